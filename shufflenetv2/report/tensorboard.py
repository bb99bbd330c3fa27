"""TensorBoard's event files: the metrics of a run as curves, and pictures."""

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import fx, nn

from .records import user_error

if TYPE_CHECKING:
    from tensorboard.compat.proto.graph_pb2 import GraphDef
    from torch.utils.tensorboard import SummaryWriter

EVENT_FILES = "events.out.tfevents.*"
logger = logging.getLogger("shufflenetv2")


class TensorBoard:
    """Write event files with float32 values under names like train/loss; a recorder, see `Recorder`.

    If the package tensorboard is missing, a warning is logged and nothing is written.

    Args:
        folder: destination.
        iteration: the iteration after which the run continues: TensorBoard then ignores earlier events of this iteration and
            of later ones. 0 removes earlier files.

    Raises:
        UserError: the files cannot be written.
    """

    def __init__(self, folder: Path, iteration: int) -> None:
        self._folder, self._iteration = folder, iteration
        self._writer: SummaryWriter | None = None
        self._is_available = True
        self._exit_stack = contextlib.ExitStack()  # what ends when the writer is closed
        event_files = list(folder.glob(EVENT_FILES))
        self._first = iteration if event_files and iteration else 0  # earlier rows are in the files
        self._written = set[tuple[int, str]]()
        for path in [] if iteration else event_files:
            with user_error(path, "replaced"):
                path.unlink(missing_ok=True)

    def write(self, iteration: int, kind: str, values: Mapping[str, float]) -> None:
        if iteration < self._first or (iteration, kind) in self._written:
            return
        self._written.add((iteration, kind))
        with user_error(self._folder / EVENT_FILES):
            if writer := self._open():
                for name, value in values.items():
                    writer.add_scalar(f"{kind}/{name}", value, iteration)
                writer.flush()

    def picture(self, iteration: int, name: str, pixels: NDArray[np.uint8]) -> None:
        with user_error(self._folder / EVENT_FILES):
            if writer := self._open():
                writer.add_image(name, pixels, iteration, dataformats="HWC")
                writer.flush()

    def graph(self, network: nn.Module) -> None:
        with user_error(self._folder / EVENT_FILES):
            if writer := self._open():
                from tensorboard.compat.proto.event_pb2 import Event

                # Symbolic tracing takes a tenth of a second, and torch's own add_graph, which runs the network, seconds.
                definition = _describe_graph(fx.symbolic_trace(network))
                file_writer: Any = writer.file_writer
                file_writer.add_event(Event(graph_def=definition.SerializeToString()))
                writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError):  # `write` has already raised an error for this file
                self._writer.close()
            self._writer = None
        self._exit_stack.close()

    def _open(self) -> "SummaryWriter | None":
        if self._writer is None and self._is_available:
            try:
                from torch.utils.tensorboard import SummaryWriter  # imported here: it takes a fifth of a second
            except Exception as error:  # ImportError if it is not installed; other types if packages are incompatible
                reason = str(error).partition("\n")[0]
                logger.warning("no TensorBoard files are written (%s); `pip install tensorboard` may help", reason)
                self._is_available = False
                return None
            # With purge_step TensorBoard ignores values of this and later steps in earlier files. What belongs to the step
            # itself is written again: after a kill the files may hold it, or not.
            try:
                self._exit_stack.enter_context(_hidden_errors_of_threads())
                self._writer = SummaryWriter(str(self._folder), purge_step=self._iteration or None)
            except UnicodeEncodeError:
                logger.warning("no TensorBoard files are written: the name of the folder %s is not UTF-8 here", self._folder)
                self._is_available = False
        return self._writer


@contextlib.contextmanager
def _hidden_errors_of_threads() -> Iterator[None]:
    """Print no traceback for an error in a thread of TensorBoard, whose next call raises it again."""
    print_error = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if not type(arguments.thread).__module__.startswith("tensorboard."):
            print_error(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        if threading.excepthook is hook:
            threading.excepthook = print_error


def _describe_graph(traced: fx.GraphModule) -> "GraphDef":
    """Return the operations of a network in TensorBoard's form; modules inside each other are boxes inside each other."""
    from tensorboard.compat.proto.graph_pb2 import GraphDef

    definition, names = GraphDef(), dict[fx.Node, str]()
    for node in traced.graph.nodes:
        names[node], operation = node.name, node.op
        if node.op == "call_module":
            names[node], operation = node.target.replace(".", "/"), type(traced.get_submodule(node.target)).__name__
        elif node.op in ("call_function", "call_method"):
            operation = getattr(node.target, "__name__", str(node.target))
        definition.node.add(name=names[node], op=operation, input=[names[source] for source in node.all_input_nodes])
    return definition
