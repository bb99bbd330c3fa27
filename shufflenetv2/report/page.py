"""The page report.html: collect what the files of a run say, and embed it in a template."""

import functools
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .. import __version__
from ..config import OPTIONS, Config
from ..data import Dataset
from ..errors import UserError
from ..files import MAX_RECORD_BYTES, parse_json, read_regular_file
from .commands import next_commands
from .comparison import wilson_interval
from .history import Session, describe_state, read_sessions
from .records import write_file
from .runfiles import Row, RunFiles
from .series import calibration, read_curves, significant
from .thumbnails import as_written, encode_thumbnails, select_by_cell, select_mistakes, select_uncertain

PAGE_FILE = "report.html"
MAX_CELLS = 20_000  # of the confusion matrix, the most frequent
MAX_BAD_IMAGES = 100
IMAGENET_IMAGES = 1_281_167
DATA_BEGIN, DATA_END = b'<script type="application/json" id="data">', b"</script>"

logger = logging.getLogger("shufflenetv2")


class ReportPage:
    """Writes report.html of a run, again and again; the images that it shows are encoded once.

    Args:
        folder: log folder of the run.
        train_set, val_set: data sets of the run, for the numbers of images and for thumbnails. None if they are not at hand:
            the page that exists then provides them.
    """

    def __init__(self, folder: Path, train_set: Dataset | None = None, val_set: Dataset | None = None) -> None:
        self.folder, self._train_set, self._val_set = folder, train_set, val_set
        self._thumbnails: dict[str, str] = {}
        self._has_failed = False

    def collect(self) -> Row:
        """Return the data of the page; see `collect_run`.

        Raises:
            UserError: the files in the folder are not those of a run.
        """
        try:
            return self._collect()
        except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise UserError(f"{self.folder} has files that no run has written: {error!r}", status=1) from error

    def _collect(self) -> Row:
        previous = read_page(self.folder / PAGE_FILE) if self._val_set is None else {}
        self._thumbnails |= {
            image[0]: image[-1] for image in previous.get("images", []) if str(image[-1]).startswith("data:image/")
        }
        data = collect_run(RunFiles.read(self.folder), self._val_set, self._thumbnails)
        if self._train_set is not None:
            data["train_counts"] = _class_counts(self._train_set)
        elif previous.get("train_counts"):
            data["train_counts"] = previous["train_counts"]
        return data

    def write(self, path: Path | None = None) -> Path:
        """Write the page and return its path, by default report.html in the log folder.

        Raises:
            UserError: the file cannot be written.
        """
        path = path or self.folder / PAGE_FILE
        write_page(path, [self.collect()])
        return path

    def update(self) -> None:
        """Write report.html; a failure is one warning, and the training goes on."""
        try:
            self.write()
        except Exception as error:  # of any type: a report must not end a training
            if not self._has_failed:
                logger.warning("report.html is not written: %s", str(error).partition("\n")[0] or type(error).__name__)
            self._has_failed = True


def collect_run(run: RunFiles, val_set: Dataset | None = None, thumbnails: dict[str, str] | None = None) -> Row:
    """Return what the page shows about a run: plain values, without NaN.

    Args:
        val_set: the validation set, for thumbnails.
        thumbnails: data URIs by image name that are encoded already; extended.
    """
    sessions = read_sessions(run)
    total_iters = int(run.options.get("total-iters") or 0)
    is_final = bool(run.summary.get("final"))
    state, reason = describe_state(sessions, is_final, time.time())
    iteration = max([row.get("iteration", 0) for row in run.metrics] + [session.last for session in sessions], default=0)
    start = next((event for event in reversed(run.sessions) if event.get("event") == "start"), {})
    data = {
        "name": _name(run),
        "folder": str(run.folder),
        "written": time.time(),
        "version": __version__,
        "state": state,
        "reason": reason,
        "iteration": iteration,
        "total_iters": total_iters,
        "summary": {name: value for name, value in run.summary.items() if name not in ("classes", "confusion")},
        "interval": _interval(run.summary),
        "validations": _validations(run.metrics),
        "curves": read_curves(run.metrics),
        "classes": run.summary.get("classes", []),
        "confusion": sorted(run.summary.get("confusion", []), key=lambda cell: -cell[2])[:MAX_CELLS],
        "calibration": calibration(run.predictions),
        **_images(run, encode_thumbnails(run.predictions, val_set, thumbnails)),
        "bad_images": run.bad_images[:MAX_BAD_IMAGES],
        "bad_image_count": len(run.bad_images),
        "options": differing_options(run.options),
        "all_options": {name: _plain(value) for name, value in run.options.items()},
        "model": run.model,
        "layers": run.layers,
        "environment": start.get("environment", {}),
        "command": start.get("command", []),
        "sessions": [vars(session) for session in sessions],
        "speed": _speed(run.metrics, sessions),
        "next": next_commands(run.options, start.get("command", []), state, is_final=is_final),
    }
    return _without_nan(data)  # type: ignore[no-any-return]


def write_page(path: Path, runs: Sequence[Mapping[str, Any]], best: int | None = None, verdict: str = "") -> None:
    """Write a page about one run, or one that compares several.

    Args:
        runs: see `collect_run`.
        best, verdict: see `find_best`.

    Raises:
        UserError: the file cannot be written.
    """
    text = json.dumps({"runs": runs, "best": best, "verdict": verdict}, separators=(",", ":"))
    # In a script element only `</script` and `<!--` mean anything: neither can occur without `<`.
    text = text.replace("<", "\\u003c")
    page = _template("page.html").replace("/* page.css */", _template("page.css"))
    scripts = "\n".join(_template(name) for name in ("charts.js", "confusion.js", "sections.js", "compare.js", "page.js"))
    page = page.replace("/* page.js */", scripts)
    write_file(path, page.replace("null /* data */", text).encode("utf-8", errors="surrogatepass"))


def read_page(path: Path) -> Row:
    """Return the data of the run on an existing page; {} if there is none."""
    try:
        _, _, page = read_regular_file(path, MAX_RECORD_BYTES).partition(DATA_BEGIN)
        content = parse_json(page.partition(DATA_END)[0])
    except (OSError, ValueError):
        return {}
    runs = content.get("runs") if isinstance(content, dict) else None
    return runs[0] if isinstance(runs, list) and len(runs) == 1 and isinstance(runs[0], dict) else {}


def differing_options(options: Mapping[str, Any]) -> list[list[Any]]:
    """Return the recipe's options that differ from the published recipe: [name, value, published value]."""
    published = _published_options()
    names = [option.key for option in OPTIONS if option.recipe]
    return [
        [name, _plain(options.get(name)), _plain(published.get(name))]
        for name in names
        if name in options and options[name] != published.get(name)
    ]


@functools.cache
def _published_options() -> Mapping[str, Any]:
    """Return the options of the published recipe as options.yaml holds them."""
    options: Mapping[str, Any] = yaml.safe_load(Config.from_values({"train_dir": "."}).with_length(IMAGENET_IMAGES).to_yaml())
    return options


def _name(run: RunFiles) -> str:
    save = Path(str(run.options.get("save", "")))
    return save.name or run.folder.resolve().name


def _interval(summary: Row) -> list[float] | None:
    """Return the 95 % interval of the top-1 accuracy; None without a result."""
    accuracy, images = summary.get("top1"), summary.get("images")
    return wilson_interval(accuracy, images) if isinstance(accuracy, int | float) and images else None


def _validations(metrics: Sequence[Row]) -> list[Row]:
    return [row for row in metrics if str(row.get("kind", "")).startswith("test")]


def _images(run: RunFiles, thumbnails: Mapping[str, str]) -> Row:
    """Return the images that the page names, and the positions among them of those in its two grids.

    An image is [name, label, predicted label, probability of the prediction, probability of the label, data URI or None].
    """
    labels = {as_written(str(entry["name"])): label for label, entry in enumerate(run.summary.get("classes", []))}
    grids = {"mistakes": select_mistakes(run.predictions), "uncertain": select_uncertain(run.predictions)}
    rows = {row.position: row for row in (*grids["mistakes"], *grids["uncertain"], *select_by_cell(run.predictions))}
    numbers = {position: number for number, position in enumerate(rows)}
    images = [
        [
            row.image, labels.get(row.label, -1), labels.get(row.prediction, -1),
            significant(row.probability), significant(row.label_probability), thumbnails.get(row.image),
        ]
        for row in rows.values()
    ]  # fmt: skip
    return {"images": images} | {name: [numbers[row.position] for row in grid] for name, grid in grids.items()}


def _speed(metrics: Sequence[Row], sessions: Sequence[Session]) -> Row:
    train = [row for row in metrics if row.get("kind") == "train"]
    speeds = [row["images_per_second"] for row in train if row.get("images_per_second")]
    step = [row["train_time"] for row in train if row.get("train_time")]
    waiting = [row["data_time"] / row["train_time"] for row in train if row.get("train_time")]
    return {
        "duration": sum(session.end - session.start for session in sessions),
        "images_per_second": float(np.median(speeds)) if speeds else None,
        "iteration_time": float(np.median(step)) if step else None,
        "waiting": float(np.median(waiting)) if waiting else None,
        "memory_mb": max((row["memory_mb"] for row in train if row.get("memory_mb")), default=None),
        "validation_time": sum(row.get("val_time", 0) for row in metrics),
    }


def _class_counts(dataset: Dataset) -> list[int]:
    counts: list[int] = np.bincount(dataset.targets, minlength=len(dataset.class_names)).tolist()
    return counts


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value in (None, "", []):
        return ""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _template(name: str) -> str:
    return files(__package__).joinpath("web", name).read_text(encoding="utf-8")
