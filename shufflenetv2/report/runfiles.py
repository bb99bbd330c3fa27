"""Read the files in the log folder of a run; a file that is missing or damaged counts as empty."""

import contextlib
import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ..config import read_yaml
from ..errors import UserError
from ..files import MAX_RECORD_BYTES, nearest_path, open_regular, parse_json, read_regular_file
from .bad_images import Row as BadImageRow
from .bad_images import read_bad_images
from .tables import unprotect

MAX_GUESSES = 5  # in a row of predictions.csv
LOG_TIME = re.compile(r"^\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\] ", re.MULTILINE)
LOG_ITERATION = re.compile(r"TRAIN Iter (\d+):")
MODEL = re.compile(r"^\[[\d :-]+\] (ShuffleNetV2 .* pixels.*)$", re.MULTILINE)
LAYERS = re.compile(r"(?<!=)=+\nLayer \(type(?:.*\n(?!\[\d{4}-))*.*")

Row = dict[str, Any]


@dataclass(frozen=True)
class Prediction:
    """A row of predictions.csv.

    Attributes:
        position: of the row, counted from 0; that of the image in the validation set if no image before it was left out.
        image: name of the image, usually its path in the validation set.
        label, prediction: names of classes.
        probability, label_probability: of the prediction, and of the label.
    """

    position: int
    image: str
    label: str
    prediction: str
    probability: float
    label_probability: float


@dataclass(frozen=True)
class LogLine:
    """A line of train.log that has a time: seconds since the epoch, and the iteration if it is a TRAIN line."""

    time: float
    iteration: int | None


@dataclass(frozen=True)
class RunFiles:
    """Content of the log folder of a run.

    Attributes:
        folder: the log folder.
        metrics: rows of metrics.jsonl, in the order of their iterations.
        summary: content of summary.json.
        predictions: rows of predictions.csv.
        bad_images: rows of bad_images.csv: split, image, reason.
        sessions: events of sessions.jsonl.
        options: options.yaml, by name with dashes.
        lines: lines of train.log with a time.
        model, layers: the line about the network in train.log, and the table of its layers.
    """

    folder: Path
    metrics: list[Row]
    summary: Row
    predictions: list[Prediction]
    bad_images: list[BadImageRow]
    sessions: list[Row]
    options: Mapping[str, Any]
    lines: list[LogLine]
    model: str
    layers: str

    @classmethod
    def read(cls, folder: Path) -> "RunFiles":
        """Read the files in a log folder."""
        log = _read_text(folder / "train.log")
        models, layers = MODEL.findall(log), LAYERS.findall(log)
        return cls(
            folder,
            sorted(_read_json_lines(folder / "metrics.jsonl"), key=lambda row: row.get("iteration", 0)),
            _read_json(folder / "summary.json"),
            read_predictions(folder),
            read_bad_images(folder),
            _read_json_lines(folder / "sessions.jsonl"),
            _read_yaml(folder / "options.yaml"),
            _read_log_lines(log),
            models[-1] if models else "",
            layers[-1].rstrip() if layers else "",
        )


def find_log_folder(run: str | Path) -> Path:
    """Return the log folder of a run, given this folder or the folder of its checkpoints.

    Raises:
        UserError: there is no log of a run.
    """
    folder = Path(run)
    candidates = [folder, folder / "logs"]
    parts = folder.parts
    if "models" in parts:  # models/NAME has logs/NAME, and models has logs/models
        at = len(parts) - 1 - parts[::-1].index("models")
        candidates.append(Path(*parts[:at], "logs", *(parts[at + 1 :] or ("models",))))
    for candidate in candidates:
        if any((candidate / name).exists() for name in ("metrics.jsonl", "options.yaml", "summary.json")):
            return candidate
    problem = "holds no log of a run (metrics.jsonl)" if folder.is_dir() else "does not exist"
    runs = sorted(filter(Path.exists, folder.glob("*/metrics.jsonl")), key=lambda path: path.stat().st_mtime)
    near = str(runs[-1].parent) if runs else "" if folder.exists() else nearest_path(folder, is_folder=True)
    remedy = f"did you mean {near}?" if near else "give the log folder of a run, such as logs/NAME, or its `save` folder"
    raise UserError(f"{run} {problem}; {remedy}")


def _read_text(path: Path) -> str:
    try:
        content = read_regular_file(path, MAX_RECORD_BYTES)
    except OSError:
        return ""
    return io.TextIOWrapper(io.BytesIO(content), "utf-8", errors="surrogateescape").read()


def _read_json(path: Path) -> Row:
    try:
        content = parse_json(_read_text(path))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _read_json_lines(path: Path) -> list[Row]:
    rows = []
    for line in _read_text(path).split("\n"):
        with contextlib.suppress(ValueError):  # an incomplete line after a kill
            row = parse_json(line)
            if isinstance(row, dict):
                rows.append(row)
    return rows


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        return {str(name): value for name, value in read_yaml(path).items()}
    except UserError:
        return {}


def read_predictions(folder: Path) -> list[Prediction]:
    """Read predictions.csv in a log folder."""
    try:
        with open(
            folder / "predictions.csv", encoding="utf-8", errors="surrogateescape", newline="", opener=open_regular
        ) as file:
            reader = csv.reader(file)
            columns = {name: column for column, name in enumerate(next(reader, []))}
            image, label, prediction, probability, of_label = (
                columns[name] for name in ("image", "label", "prediction", "probability", "label_probability")
            )
            return [
                Prediction(
                    position, unprotect(row[image]), unprotect(row[label]), unprotect(row[prediction]),
                    float(row[probability]), float(row[of_label]),
                )
                for position, row in enumerate(reader)
            ]  # fmt: skip
    except (OSError, KeyError, IndexError, ValueError, csv.Error):
        return []


def _read_log_lines(log: str) -> list[LogLine]:
    lines = []
    for line in log.split("\n"):
        if match := LOG_TIME.match(line):
            iteration = LOG_ITERATION.search(line, match.end(), match.end() + 40)
            time = datetime.fromisoformat(match[1]).timestamp()  # local time, as the log writes it
            lines.append(LogLine(time, int(iteration[1]) if iteration else None))
    return lines
