"""Machine-readable metrics of a run: metrics.csv and metrics.jsonl, and what passes them on to TensorBoard and others."""

import contextlib
import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from .. import files
from ..errors import UserError

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
# Files about a validation; those of another run would be mistaken for this one's.
VALIDATION_FILES = ("summary.json", "predictions.csv", "per_class.csv", "confusion.csv", "figures/*.png")

Row = dict[str, Any]  # 'iteration', 'kind', and values by name
RESERVED = ("iteration", "kind")  # names in a row that are no values
CLASS_ACCURACY = "class_accuracy"  # kind of rows with a value for each class; not in the CSV file


class Recorder(Protocol):
    """Receives the rows of a run.

    When a run continues, the rows before that iteration are offered again, and the following iterations are repeated: a
    recorder skips what it has received before.
    """

    def write(self, iteration: int, kind: str, values: Mapping[str, float]) -> None:
        """Receive a row; see `Records.write`."""

    def picture(self, iteration: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """Receive a picture, RGB (H, W, 3)."""

    def graph(self, network: nn.Module) -> None:
        """Receive the network, at the beginning of a run."""

    def close(self) -> None:
        """Finish writing."""


OpenRecorder = Callable[[Path, int], Recorder]  # (folder of the log, iteration after which the run continues)


class Records:
    """The metrics of a run: each row is written to metrics.jsonl and metrics.csv at once, then passed to other recorders.

    Args:
        folder: destination; created if missing.
        iteration: the iteration after which the run continues; see `Tables`.
        recorders: open the other recorders, such as `TensorBoard`.

    Raises:
        UserError: the files cannot be written.
    """

    def __init__(self, folder: Path, iteration: int, recorders: Sequence[OpenRecorder] = ()) -> None:
        self._tables = Tables(folder, iteration)
        self._recorders: list[Recorder] = []
        for open_recorder in recorders:
            recorder = open_recorder(folder, iteration)
            self._recorders.append(recorder)
            for row in self._tables.rows:
                values = {name: value for name, value in row.items() if name not in RESERVED}
                recorder.write(row["iteration"], row["kind"], values)

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
        self._tables.write(iteration, kind, numbers)
        for recorder in self._recorders:
            recorder.write(iteration, kind, numbers)

    def picture(self, iteration: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """Show a picture, RGB (H, W, 3), where pictures can be shown."""
        for recorder in self._recorders:
            recorder.picture(iteration, name, pixels)

    def graph(self, network: nn.Module) -> None:
        """Show a network, which symbolic tracing can follow, where it can be shown."""
        for recorder in self._recorders:
            recorder.graph(network)

    def close(self) -> None:
        """Close all recorders."""
        for recorder in self._recorders:
            recorder.close()
        self._recorders = []


class Tables:
    """Write metrics.jsonl and metrics.csv. Each row is written immediately, so that a killed run keeps its rows.

    metrics.jsonl holds all values at full precision. metrics.csv has the same columns in every run, with empty fields where a
    row has no value; it is regenerated from metrics.jsonl when a run continues.

    There is one row per iteration and kind. If a row is written a second time, as after a kill during a validation, the new row
    replaces the old one.

    Args:
        folder: destination; created if missing.
        iteration: the iteration after which the run continues. Rows of later iterations are removed, because these iterations
            will be repeated: the files become those of an uninterrupted run, except for times. 0 starts new files, and
            removes those about the validations of an earlier run.

    Attributes:
        rows: the rows that the files hold at first.

    Raises:
        UserError: the files cannot be written.
    """

    def __init__(self, folder: Path, iteration: int) -> None:
        self._csv, self._json_lines = folder / "metrics.csv", folder / "metrics.jsonl"
        self.rows = self._rewrite(lambda row: 0 < row["iteration"] <= iteration)
        self._written = {(row["iteration"], row["kind"]) for row in self.rows}
        for path in () if iteration else (path for pattern in VALIDATION_FILES for path in folder.glob(pattern)):
            with user_error(path, "removed"):
                path.unlink(missing_ok=True)

    def write(self, iteration: int, kind: str, values: Mapping[str, float]) -> None:
        """Add a row.

        Raises:
            UserError: a file cannot be written.
        """
        row = {"iteration": iteration, "kind": kind, **values}
        if (iteration, kind) in self._written:
            self._rewrite(lambda other: (other["iteration"], other["kind"]) != (iteration, kind))
        self._written.add((iteration, kind))
        for path, line in ((self._json_lines, _json_line(row)), (self._csv, _csv_line(row))):
            with user_error(path), open(path, "ab", opener=files.open_regular) as file:
                file.write(line)

    def _rewrite(self, keep: Callable[[Row], bool]) -> list[Row]:
        """Rewrite both files with the rows for which `keep` is true, and return these rows."""
        rows = []
        with user_error(self._json_lines, "read"), contextlib.suppress(FileNotFoundError):
            for line in files.read_regular_file(self._json_lines, files.MAX_RECORD_BYTES).split(b"\n"):
                with contextlib.suppress(ValueError):  # an incomplete line after a kill, or zeros after a power failure
                    rows += _as_rows(files.parse_json(line))
        rows = [row for row in rows if keep(row)]
        write_file(self._json_lines, b"".join(map(_json_line, rows)))
        write_file(self._csv, _csv_line(dict(zip(COLUMNS, COLUMNS, strict=True))) + b"".join(map(_csv_line, rows)))
        return rows


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


def _as_rows(value: Any) -> list[Row]:
    """Return the row that a line of metrics.jsonl holds; none if another program has written or damaged the line."""
    if not isinstance(value, dict) or type(value.get("iteration")) is not int or not isinstance(value.get("kind"), str):
        return []
    return [{name: item for name, item in value.items() if name in RESERVED or isinstance(item, int | float)}]


def _json_line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def _csv_line(row: Mapping[str, Any]) -> bytes:
    if row["kind"] == CLASS_ACCURACY:
        return b""
    line = io.StringIO()
    csv.DictWriter(line, COLUMNS, extrasaction="ignore", lineterminator="\n").writerow(row)
    return line.getvalue().encode(errors="backslashreplace")
