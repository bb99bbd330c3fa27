"""The log of a run: lines on the terminal and in train.log, a progress bar, and the records of its metrics."""

import logging
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .records import Records

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
    """Writes lines to the terminal and to train.log, and metrics to `Records`; close it, or use it as a context manager.

    All messages that the package logs through Python's `logging` go the same way.

    Args:
        folder: folder of train.log, which is appended to, and of the records; created if missing. None: the terminal only.
        silent: write nothing to the terminal, in processes other than the first.
    """

    def __init__(self, folder: Path | None = None, *, silent: bool = False) -> None:
        self.folder, self._silent = folder, silent
        self._handlers: list[logging.Handler] = [logging.NullHandler() if silent else _TerminalHandler()]
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._handlers.append(logging.FileHandler(folder / "train.log", encoding="utf-8"))
        for handler in self._handlers:
            handler.setFormatter(logging.Formatter("[%(asctime)s] %(message)s", "%Y-%m-%d %H:%M:%S"))
            logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        self._bar: tqdm[Any] | None = None
        self._records: Records | None = None

    def info(self, message: str) -> None:
        """Write a message."""
        logger.info("%s", message)

    def start(self, iteration: int, total_iters: int) -> None:
        """Begin, or continue after an iteration: show the progress bar on a terminal, and open the records."""
        self._finish()
        if self.folder is not None:
            self._records = Records(self.folder, iteration)
        self._bar = tqdm(
            initial=iteration,
            total=total_iters,
            unit="it",
            dynamic_ncols=True,
            disable=self._silent or None,  # None: show it if standard error is a terminal
            file=sys.stderr,
        )

    def advance(self, iteration: int) -> None:
        """Move the progress bar to an iteration."""
        if self._bar is not None:
            self._bar.update(iteration - self._bar.n)

    def record(self, iteration: int, kind: str, values: Mapping[str, float | None]) -> None:
        """Add a row to the records, if the run has started and has a folder; see `Records.write`."""
        if self._records is not None:
            self._records.write(iteration, kind, values)

    def training(self, metrics: TrainMetrics) -> None:
        """Write the TRAIN line in the format of the original, and record the metrics."""
        values = asdict(metrics)
        self.record(values.pop("iteration"), "train", values)
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"loss {metrics.loss:.3f}, lr {metrics.learning_rate:.4f}, {metrics.images_per_second:,.0f} images/s",
                refresh=False,
            )
        self.info(
            f"TRAIN Iter {metrics.iteration}: lr = {metrics.learning_rate:.6f},\tloss = {metrics.loss:.6f},\t"
            f"Top-1 err = {metrics.top1_error:.6f},\tTop-5 err = {metrics.top5_error:.6f},\t"
            f"data_time = {metrics.data_time:.6f},\ttrain_time = {metrics.train_time:.6f}"
        )

    def test(self, metrics: ValidationMetrics, *, prefix: str = "", final: bool = False) -> None:
        """Write the TEST line in the format of the original, and record the metrics.

        Args:
            prefix: printed before the line, such as 'EMA ' for averaged weights.
            final: the evaluation is that of the result, after recalibration of batch norm.
        """
        values = asdict(metrics)
        self.record(values.pop("iteration"), "_".join(["test", *prefix.lower().split(), *["bnps"] * final]), values)
        self.info(
            f"{prefix}TEST Iter {metrics.iteration}: loss = {metrics.loss:.6f},\tTop-1 err = {metrics.top1_error:.6f},\t"
            f"Top-5 err = {metrics.top5_error:.6f},\tval_time = {metrics.val_time:.6f}"
        )

    def _finish(self) -> None:
        if self._bar is not None:
            self._bar.close()
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


class _TerminalHandler(logging.Handler):
    """Prints messages above the progress bar, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()
