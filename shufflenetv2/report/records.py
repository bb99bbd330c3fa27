"""Machine-readable metrics of a run: metrics.csv, metrics.jsonl and TensorBoard's event files."""

import contextlib
import csv
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files
from ..errors import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

COLUMNS = (
    "iteration",
    "kind",
    "learning_rate",
    "loss",
    "top1_error",
    "top5_error",
    "data_time",
    "train_time",
    "images_per_second",
    "grad_norm",
    "val_time",
    "balanced_accuracy",
    "macro_f1",
)
EVENT_FILES = "events.out.tfevents.*"
# Files about a validation; those of another run would be mistaken for this one's.
VALIDATION_FILES = ("summary.json", "predictions.csv", "per_class.csv", "confusion.csv", "figures/*.png")

logger = logging.getLogger("shufflenetv2")


class Records:
    """Write the metrics of a run to three kinds of files. Each row is written immediately, so that a killed run keeps its rows.

    metrics.jsonl holds all values at full precision. metrics.csv has the same columns in every run, with empty fields where a
    row has no value; it is regenerated from metrics.jsonl when a run continues. TensorBoard's event files hold float32 values
    under names like train/loss.

    There is one row per iteration and kind. If a row is written a second time, as after a kill during a validation, the new row
    replaces the old one.

    Args:
        folder: destination; created if missing.
        iteration: the iteration after which the run continues. Rows of later iterations are removed, because these iterations
            will be repeated: the files become those of an uninterrupted run, except for times. 0 starts new files.
        tensorboard: write event files too, if the package tensorboard is installed.

    Raises:
        UserError: the files cannot be written.
    """

    def __init__(self, folder: Path, iteration: int, *, tensorboard: bool = True) -> None:
        self._folder, self._iteration, self._tensorboard = folder, iteration, tensorboard
        self._csv, self._json_lines = folder / "metrics.csv", folder / "metrics.jsonl"
        self._events: SummaryWriter | None = None
        if not iteration:
            for path in (path for pattern in (EVENT_FILES, *VALIDATION_FILES) for path in folder.glob(pattern)):
                with user_error(path, "replaced"):
                    path.unlink(missing_ok=True)
        self._written = self._rewrite(lambda row: 0 < row["iteration"] <= iteration)

    def write(self, iteration: int, kind: str, values: Mapping[str, float | None]) -> None:
        """Add a row.

        Args:
            iteration: number of the iteration, from 1.
            kind: 'train', 'test', 'test_ema', ...
            values: name -> value; None is left out, and the CSV file receives only the names in COLUMNS.

        Raises:
            UserError: a file cannot be written.
        """
        numbers = {name: float(value) for name, value in values.items() if value is not None}
        row = {"iteration": iteration, "kind": kind} | numbers
        if (iteration, kind) in self._written:
            self._rewrite(lambda other: (other["iteration"], other["kind"]) != (iteration, kind))
        self._written.add((iteration, kind))
        for path, line in ((self._json_lines, _json_line(row)), (self._csv, _csv_line(row))):
            with user_error(path), open(path, "ab", opener=files.open_regular) as file:
                file.write(line)
        with user_error(self._folder / EVENT_FILES):
            self._write_events(iteration, kind, numbers)

    def close(self) -> None:
        """Close the event files."""
        if self._events is not None:
            with contextlib.suppress(OSError):  # `write` has already raised an error for this file
                self._events.close()
            self._events = None

    def _rewrite(self, keep: Callable[[dict[str, Any]], bool]) -> set[tuple[int, str]]:
        """Rewrite both files with the rows for which `keep` is true, and return (iteration, kind) of each of these rows."""
        rows = []
        with user_error(self._json_lines, "read"), contextlib.suppress(FileNotFoundError):
            for line in files.read_regular_file(self._json_lines, files.MAX_RECORD_BYTES).split(b"\n"):
                with contextlib.suppress(ValueError):  # an incomplete line after a kill, or zeros after a power failure
                    rows.append(json.loads(line))
        rows = [row for row in rows if keep(row)]
        write_file(self._json_lines, b"".join(map(_json_line, rows)))
        write_file(self._csv, _csv_line(dict(zip(COLUMNS, COLUMNS, strict=True))) + b"".join(map(_csv_line, rows)))
        return {(row["iteration"], row["kind"]) for row in rows}

    def _write_events(self, iteration: int, kind: str, values: Mapping[str, float]) -> None:
        if not self._tensorboard:
            return
        if self._events is None:
            try:
                from torch.utils.tensorboard import SummaryWriter  # imported here: it takes a fifth of a second
            except Exception as error:  # ImportError if it is not installed; other types if packages are incompatible
                reason = str(error).partition("\n")[0]
                logger.warning("no TensorBoard files are written (%s); `pip install tensorboard` may help", reason)
                self._tensorboard = False
                return
            # With purge_step TensorBoard ignores values of this and later steps in earlier files.
            try:
                self._events = SummaryWriter(str(self._folder), purge_step=self._iteration + 1 if self._iteration else None)
            except UnicodeEncodeError:
                logger.warning("no TensorBoard files are written: the name of the folder %s is not UTF-8 here", self._folder)
                self._tensorboard = False
                return
        for name, value in values.items():
            self._events.add_scalar(f"{kind}/{name}", float(value), iteration)
        self._events.flush()


def write_file(path: Path, content: bytes) -> None:
    """Write a file of the report atomically; its folder is created if missing.

    Raises:
        UserError: the file cannot be written.
    """
    with user_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, content, durable=False)


@contextlib.contextmanager
def user_error(path: Path, action: str = "written") -> Iterator[None]:
    """Turn an OSError into a UserError that names the file."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be {action}: {error.strerror or error}", status=1) from error


def _json_line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()


def _csv_line(row: Mapping[str, Any]) -> bytes:
    line = io.StringIO()
    csv.DictWriter(line, COLUMNS, extrasaction="ignore", lineterminator="\n").writerow(row)
    return line.getvalue().encode()
