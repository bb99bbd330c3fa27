"""What a run leaves for programs to read: metrics.csv, metrics.jsonl and TensorBoard's event files."""

import contextlib
import csv
import io
import json
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

COLUMNS = (
    "iteration", "kind", "learning_rate", "loss", "top1_error", "top5_error", "data_time", "train_time",
    "images_per_second", "val_time",
)  # fmt: skip
EVENT_FILES = "events.out.tfevents.*"

logger = logging.getLogger("shufflenetv2")


class ReportError(UserError):
    """A file of the report that could not be written; the text names it and says why."""

    status = 1


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that afterwards is complete, or as it was before; its folder is created if missing.

    Raises:
        ReportError: where the disk is full, the folder read-only, ...
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _named(path: Path, done: str = "written") -> Iterator[None]:
    """Turns what the system says of a file into an error that names it."""
    try:
        yield
    except OSError as error:
        raise ReportError(f"{path} cannot be {done}: {error.strerror or error}") from error


class Records:
    """Writes a run's figures to a folder, each row as soon as it is known, so that a killed run keeps its own.

    An iteration's row of a kind is there once: written again, as after a kill in the middle of a
    validation, it replaces the first. The CSV has the same columns in every run, blank where there
    is no figure, and is made anew from the JSON lines where a run goes on; those have all that was
    given, to the last bit; TensorBoard has float32 values by names like train/loss.

    Args:
        folder: of the log; created if missing.
        iteration: the one that the run goes on after. What an interrupted run wrote of later ones,
            which are now repeated, is dropped, so that the files become those of an untouched run,
            but for times. At 0 the run begins, and replaces what another one left.
        tensorboard: whether to write event files too, as far as the package tensorboard is there.

    Raises:
        ReportError: where the files cannot be written.
    """

    def __init__(self, folder: Path, iteration: int, *, tensorboard: bool = True) -> None:
        self._folder, self._iteration, self._tensorboard = folder, iteration, tensorboard
        self._csv, self._json_lines = folder / "metrics.csv", folder / "metrics.jsonl"
        self._events: SummaryWriter | None = None
        if not iteration:
            for path in folder.glob(EVENT_FILES):
                with _named(path, "replaced"):
                    path.unlink(missing_ok=True)
        self._written = self._keep(lambda row: 0 < row["iteration"] <= iteration)

    def write(self, iteration: int, kind: str, values: Mapping[str, float]) -> None:
        """Adds a row.

        Args:
            iteration: from 1.
            kind: 'train', 'test', 'test_ema', ...
            values: by name; those named in COLUMNS are in the CSV.

        Raises:
            ReportError: where it cannot be written.
        """
        row = {"iteration": iteration, "kind": kind} | {name: float(value) for name, value in values.items()}
        if (iteration, kind) in self._written:
            self._keep(lambda other: (other["iteration"], other["kind"]) != (iteration, kind))
        self._written.add((iteration, kind))
        for path, line in ((self._json_lines, _json_line(row)), (self._csv, _csv_line(row))):
            with _named(path), open(path, "ab") as file:
                file.write(line)
        with _named(self._folder / EVENT_FILES):
            self._write_events(iteration, kind, values)

    def close(self) -> None:
        if self._events is not None:
            with contextlib.suppress(OSError):  # of which `write` has told
                self._events.close()
            self._events = None

    def _keep(self, wanted: Callable[[dict[str, Any]], bool]) -> set[tuple[int, str]]:
        """Rewrites both files with the wanted rows of the JSON lines, and gives (iteration, kind) of those."""
        rows = []
        with _named(self._json_lines, "read"), contextlib.suppress(FileNotFoundError):
            for line in self._json_lines.read_bytes().split(b"\n"):
                with contextlib.suppress(ValueError):  # the last line, cut by a kill; zeros, left by a power cut
                    rows.append(json.loads(line))
        rows = [row for row in rows if wanted(row)]
        write_whole(self._json_lines, b"".join(map(_json_line, rows)))
        write_whole(self._csv, _csv_line(dict(zip(COLUMNS, COLUMNS, strict=True))) + b"".join(map(_csv_line, rows)))
        return {(row["iteration"], row["kind"]) for row in rows}

    def _write_events(self, iteration: int, kind: str, values: Mapping[str, float]) -> None:
        if not self._tensorboard:
            return
        if self._events is None:
            try:
                from torch.utils.tensorboard import SummaryWriter  # here: a fifth of a second, for those who want it
            except Exception as error:  # absent, or at odds with another package, which shows in many ways
                reason = str(error).partition("\n")[0]
                logger.warning("no TensorBoard files are written (%s); pip install tensorboard mends it", reason)
                self._tensorboard = False
                return
            # TensorBoard leaves out what earlier files say of this step and later ones.
            self._events = SummaryWriter(str(self._folder), purge_step=self._iteration + 1 if self._iteration else None)
        for name, value in values.items():
            self._events.add_scalar(f"{kind}/{name}", float(value), iteration)
        self._events.flush()


def _json_line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()


def _csv_line(row: Mapping[str, Any]) -> bytes:
    line = io.StringIO()
    csv.DictWriter(line, COLUMNS, extrasaction="ignore", lineterminator="\n").writerow(row)
    return line.getvalue().encode()
