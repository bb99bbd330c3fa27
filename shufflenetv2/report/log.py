"""The log of a run: lines on the terminal and in train.log, a progress bar where there is a terminal, and records."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .records import Records

LOGGER = logging.getLogger("shufflenetv2")


class _Terminal(logging.Handler):
    """Prints above the progress bar, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


class RunLog:
    """Tells the terminal and `folder`/train.log, which is appended to, what happens in a run, and keeps its Records.

    Everything the package logs goes the same way. Close it, or use it as a context manager.

    Args:
        folder: created if missing; None for the terminal alone.
        silent: say nothing, as another process does.
    """

    def __init__(self, folder: Path | None = None, *, silent: bool = False) -> None:
        self.folder, self._silent = folder, silent
        self._handlers: list[logging.Handler] = [logging.NullHandler() if silent else _Terminal()]
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._handlers.append(logging.FileHandler(folder / "train.log", encoding="utf-8"))
        for handler in self._handlers:
            handler.setFormatter(logging.Formatter("[%(asctime)s] %(message)s", "%Y-%m-%d %H:%M:%S"))
            LOGGER.addHandler(handler)
        LOGGER.setLevel(logging.INFO)
        LOGGER.propagate = False
        self._bar: tqdm[Any] | None = None
        self._records: Records | None = None

    def info(self, text: str) -> None:
        """A line of its own."""
        LOGGER.info("%s", text)

    def start(self, iteration: int, total_iters: int) -> None:
        """Shows the bar, on a terminal, and goes on with the records after that iteration."""
        self._end()
        if self.folder is not None:
            self._records = Records(self.folder, iteration)
        self._bar = tqdm(
            initial=iteration,
            total=total_iters,
            unit="it",
            dynamic_ncols=True,
            disable=self._silent or None,  # None: unless there is a terminal
            file=sys.stderr,
        )

    def advance(self, iteration: int) -> None:
        if self._bar is not None:
            self._bar.update(iteration - self._bar.n)

    def record(self, iteration: int, kind: str, values: Mapping[str, float]) -> None:
        """A row of the records, once the run has started."""
        if self._records is not None:
            self._records.write(iteration, kind, values)

    def training(
        self, iteration: int, *, learning_rate: float, loss: float, top1_error: float, top5_error: float,
        data_time: float, train_time: float, images_per_second: float,
    ) -> None:  # fmt: skip
        """The reference's TRAIN line; times are seconds per iteration, data_time the part spent waiting for images."""
        self.record(
            iteration,
            "train",
            {
                "learning_rate": learning_rate,
                "loss": loss,
                "top1_error": top1_error,
                "top5_error": top5_error,
                "data_time": data_time,
                "train_time": train_time,
                "images_per_second": images_per_second,
            },
        )
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"loss {loss:.3f}, lr {learning_rate:.4f}, {images_per_second:,.0f} images/s", refresh=False
            )
        self.info(
            f"TRAIN Iter {iteration}: lr = {learning_rate:.6f},\tloss = {loss:.6f},\t"
            f"Top-1 err = {top1_error:.6f},\tTop-5 err = {top5_error:.6f},\t"
            f"data_time = {data_time:.6f},\ttrain_time = {train_time:.6f}"
        )

    def test(
        self, iteration: int, *, loss: float, top1_error: float, top5_error: float, val_time: float, prefix: str = "",
        final: bool = False,
    ) -> None:  # fmt: skip
        """The reference's TEST line; `prefix` says of what, and `final` that it is after the recalibration."""
        kind = "_".join(["test", *prefix.lower().split(), *["bnps"] * final])
        self.record(iteration, kind, {"loss": loss, "top1_error": top1_error, "top5_error": top5_error, "val_time": val_time})
        self.info(
            f"{prefix}TEST Iter {iteration}: loss = {loss:.6f},\tTop-1 err = {top1_error:.6f},\t"
            f"Top-5 err = {top5_error:.6f},\tval_time = {val_time:.6f}"
        )

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._records is not None:
            self._records.close()

    def close(self) -> None:
        self._end()
        for handler in self._handlers:
            LOGGER.removeHandler(handler)
            handler.close()
        LOGGER.propagate = True

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
