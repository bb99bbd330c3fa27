"""The log of a run: train.log, short lines and a progress bar on the terminal, and the records of its metrics."""

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from .. import terminal
from ..errors import UserError, printable
from ..files import open_regular
from .records import OpenRecorder, Records
from .tensorboard import TensorBoard

logger = logging.getLogger("shufflenetv2")


@dataclass(frozen=True)
class TrainMetrics:
    """Metrics of a TRAIN line.

    Attributes:
        learning_rate, loss: of this iteration.
        top1_error, top5_error: over the images since the previous TRAIN line.
        data_time, train_time: seconds per iteration since then; data_time is the part spent waiting for images.
        images_per_second: of all processes.
        grad_norm: L2 norm of the gradients of this iteration before clipping; None if it was not measured.
        memory_mb: most memory that the process has used so far, in MiB: tensors on a GPU, or main memory.
    """

    iteration: int
    learning_rate: float
    loss: float
    top1_error: float
    top5_error: float
    data_time: float
    train_time: float
    images_per_second: float
    grad_norm: float | None = None
    memory_mb: float | None = None


@dataclass(frozen=True)
class ValidationMetrics:
    """Metrics of an evaluation: those of the TEST line, and two that give every class the same weight.

    Attributes:
        loss, top1_error, top5_error, balanced_accuracy, macro_f1: see `EvaluationResult`.
        val_time: seconds that the evaluation took.
    """

    iteration: int
    loss: float
    top1_error: float
    top5_error: float
    val_time: float
    balanced_accuracy: float
    macro_f1: float


class RunLog:
    """Writes what happens in a run to train.log, in short to the terminal, and its metrics to `Records`; a context manager.

    train.log has the TRAIN and TEST lines of the original. On the terminal stands one short line in their place, and on an
    interactive one a progress bar under the lines. Messages that the package logs through Python's `logging` go to both.

    Args:
        folder: folder of train.log, which is appended to, and of the records; created if missing. None: the terminal only.
        silent: write nothing to the terminal, in processes other than the first.
        recorders: receive the metrics as well, besides the files; see `Records`.
    """

    def __init__(
        self, folder: Path | None = None, *, silent: bool = False, recorders: Sequence[OpenRecorder] = (TensorBoard,)
    ) -> None:
        self.folder, self._silent, self._recorders = folder, silent, recorders
        self._handlers: list[logging.Handler] = [logging.NullHandler() if silent else _TerminalHandler(logging.INFO)]
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / "train.log"
            os.close(open_regular(path, os.O_WRONLY | os.O_CREAT))  # raises an error if it is no file
            self._handlers.append(_FileHandler(path, encoding="utf-8", errors="backslashreplace"))
            self._handlers[-1].setFormatter(_Formatter("[%(asctime)s] %(message)s", "%Y-%m-%d %H:%M:%S"))
        for handler in self._handlers:
            logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        self._records: Records | None = None
        self._has_failed = False
        self._bar: terminal.Progress | None = None
        self._total_iters = 0
        self._val_interval, self._val_times = 0, dict[str, float]()  # seconds by prefix of the TEST line
        self._last_accuracy: float | None = None
        self._best_accuracy: float | None = None

    # ---- messages

    def info(self, message: str) -> None:
        """Write a message."""
        logger.info("%s", message)

    def detail(self, *lines: str) -> None:
        """Write a message of one line or several to train.log only."""
        logger.debug("%s", "\n".join(printable(line, keep="\t") for line in lines), extra={"is_escaped": True})

    def warning(self, message: str) -> None:
        """Write a message that is shown with `quiet` too; 'warning: ' is put before it."""
        logger.warning("%s", message)

    def result(self, *lines: str) -> None:
        """Write a message about what the run has led to, which is shown with `quiet` too."""
        self.end_training()
        terminal.clear()
        self.detail(*lines)
        self._show(*lines, important=True)

    def _show(self, *lines: str, important: bool = False) -> None:
        if not self._silent:
            terminal.show(*lines, important=important)

    # ---- training

    def start(self, iteration: int, total_iters: int, *, val_interval: int = 0, best_accuracy: float | None = None) -> None:
        """Begin, or continue after an iteration: show the progress, and open the records.

        Args:
            val_interval: number of iterations between two validations; 0 without validation.
            best_accuracy: top-1 accuracy of the best weights so far.
        """
        self._finish()
        if self.folder is not None:
            self._records = Records(self.folder, iteration, self._recorders)
        self._total_iters, self._val_interval, self._best_accuracy = total_iters, val_interval, best_accuracy
        if not self._silent:
            self._bar = terminal.Progress("", total_iters, "it", initial=iteration, plain=False)

    def advance(self, iteration: int) -> None:
        """Move the progress bar to an iteration."""
        if self._bar is not None:
            self._bar.seconds_after = self._validations_left(iteration) * sum(self._val_times.values())
            self._bar.update(iteration)

    def _validations_left(self, iteration: int) -> int:
        """Return the number of validations to come, with that after this iteration."""
        if not self._val_interval:
            return 0
        return self._total_iters // self._val_interval - max(0, iteration - 1) // self._val_interval

    def record(self, iteration: int, kind: str, values: Mapping[str, float | None]) -> None:
        """Add a row to the records, if the run has started and has a folder; see `Records.write`."""
        if self._records is not None:
            with self.optional():
                self._records.write(iteration, kind, values)

    @contextmanager
    def optional(self) -> Iterator[None]:
        """Let the run go on if the block cannot write a file of the log folder, whose disk may be full; warn once."""
        try:
            yield
        except UserError as error:
            if not self._has_failed:
                self.warning(f"{error}; the run goes on without it")
            self._has_failed = True

    def picture(self, iteration: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """Show a picture, RGB (H, W, 3), in TensorBoard and the like, if the run has started and has a folder."""
        if self._records is not None:
            with self.optional():
                self._records.picture(iteration, name, pixels)

    def graph(self, network: nn.Module) -> None:
        """Show a network in TensorBoard, if the run has started and has a folder."""
        if self._records is not None:
            self._records.graph(network)

    def training(self, metrics: TrainMetrics) -> None:
        """Write the TRAIN line in the format of the original, and a short one to the terminal; record the metrics."""
        values = asdict(metrics)
        self.record(values.pop("iteration"), "train", values)
        self.detail(
            f"TRAIN Iter {metrics.iteration}: lr = {metrics.learning_rate:.6f},\tloss = {metrics.loss:.6f},\t"
            f"Top-1 err = {metrics.top1_error:.6f},\tTop-5 err = {metrics.top5_error:.6f},\t"
            f"data_time = {metrics.data_time:.6f},\ttrain_time = {metrics.train_time:.6f}"
        )
        total = f"{self._total_iters:,}"
        texts = [
            f"iter {metrics.iteration:>{len(total)},}/{total}",
            f"loss {metrics.loss:.4f}",
            f"top-1 {1 - metrics.top1_error:.1%}",
            f"lr {metrics.learning_rate:.4g}",
            f"{metrics.images_per_second:,.0f} images/s",
        ]
        if self._bar is not None:
            self._bar.notes = (f"loss {metrics.loss:.3f}", self._accuracies())
            if not terminal.has_bars() and (time_left := self._bar.time_left()):
                texts.append(time_left)
        self._show("  ".join(texts))

    def _accuracies(self) -> str:
        """Return the accuracy of the last validation and of the best weights, for the progress bar."""
        accuracies = {"val": self._last_accuracy, "best": self._best_accuracy}
        return ", ".join(f"{name} {accuracy:.1%}" for name, accuracy in accuracies.items() if accuracy is not None)

    def test(self, metrics: ValidationMetrics, *, prefix: str = "", final: bool = False, best: bool = False) -> None:
        """Write the TEST line in the format of the original, and a short one to the terminal; record the metrics.

        Args:
            prefix: printed before the line, such as 'EMA ' for averaged weights.
            final: the evaluation is that of the result, after recalibration of batch norm.
            best: these weights are better than all before.
        """
        values = asdict(metrics)
        self.record(values.pop("iteration"), "_".join(["test", *prefix.lower().split(), *["bnps"] * final]), values)
        self.detail(
            f"{prefix}TEST Iter {metrics.iteration}: loss = {metrics.loss:.6f},\tTop-1 err = {metrics.top1_error:.6f},\t"
            f"Top-5 err = {metrics.top5_error:.6f},\tval_time = {metrics.val_time:.6f}"
        )
        self._val_times[prefix] = metrics.val_time
        self._last_accuracy = 1 - metrics.top1_error
        if best:
            self._best_accuracy = self._last_accuracy
        if self._bar is not None:
            self._bar.notes = (*self._bar.notes[:1], self._accuracies())
        if not self._total_iters:  # an evaluation, not a run
            return
        what = "recalibrated" if final else "validation"
        texts = [
            f"{prefix}{what} at {metrics.iteration:,}",
            f"top-1 {1 - metrics.top1_error:.2%}",
            f"top-5 {1 - metrics.top5_error:.2%}",
            f"loss {metrics.loss:.4f}",
            *["best"] * best,
        ]
        self._show("  ".join(texts))

    def end_training(self) -> None:
        """Remove the progress bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _finish(self) -> None:
        self.end_training()
        if self._records is not None:
            self._records.close()

    def close(self) -> None:
        """Close the files and the progress bar."""
        self._finish()
        for handler in self._handlers:
            logger.removeHandler(handler)
            handler.close()
        logger.propagate = True

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _FileHandler(logging.FileHandler):
    """Appends to train.log. If that fails, as on a full disk, it warns once on the terminal, and the run goes on."""

    _has_failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        if not self._has_failed:
            error = sys.exc_info()[1]
            reason = error.strerror if isinstance(error, OSError) else error
            terminal.show(
                f"warning: {self.baseFilename} cannot be written: {reason}; the run goes on without it", important=True
            )
        self._has_failed = True

    def close(self) -> None:
        with suppress(OSError):  # of lines that could not be written
            super().close()


class _Formatter(logging.Formatter):
    """Escapes characters that are not printable, line breaks among them, and puts 'warning: ' before warnings."""

    def format(self, record: logging.LogRecord) -> str:
        warning = logging.makeLogRecord(record.__dict__)
        if record.levelno >= logging.WARNING:
            warning.msg = f"warning: {record.msg}"
        return super().format(warning)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        if not getattr(record, "is_escaped", False):
            record.message = printable(record.message, keep="\t")
        return super().formatMessage(record)


class _TerminalHandler(logging.Handler):
    """Prints messages above the progress bar, if there is one."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.setFormatter(_Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        terminal.show(*self.format(record).split("\n"), important=record.levelno >= logging.WARNING)
