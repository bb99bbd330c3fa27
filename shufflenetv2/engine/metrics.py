"""Compute the numbers of the TRAIN lines: accuracy, counted on the device, and times."""

import contextlib
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from . import distributed
from .evaluation import count_correct


class RunningAccuracy:
    """Accuracy since the last TRAIN line. Counts stay on the device, so that no iteration waits for the device."""

    def __init__(self) -> None:
        self._images = 0
        self._correct: Tensor | None = None  # int64 (2,): top-1, top-5

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count a batch: logits (N, n_class), targets (N,)."""
        correct = count_correct(logits, targets)
        self._correct = correct if self._correct is None else self._correct + correct
        self._images += len(targets)

    def state_dict(self) -> dict[str, int]:
        """Return the counts of all processes: 'images', 'top1', 'top5'. Waits for the device."""
        correct = [0, 0] if self._correct is None else self._correct.tolist()
        images, top1, top5 = distributed.all_reduce_sum(torch.tensor([self._images, *correct])).tolist()
        return {"images": images, "top1": top1, "top5": top5}

    def load_state_dict(self, counts: dict[str, int], device: torch.device) -> None:
        """Restore the counts of all processes, in process 0; the other processes start with 0."""
        if distributed.rank() == 0:
            self._images = counts["images"]
            self._correct = torch.tensor([counts["top1"], counts["top5"]], device=device)


class Stopwatch:
    """Measure the time, and count the iterations and images, since the creation of this object."""

    def __init__(self) -> None:
        self._started, self._waited = time.perf_counter(), 0.0
        self._iterations, self._images = 0, 0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time of the block as time spent waiting for images."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the block from the measurement."""
        started = time.perf_counter()
        yield
        self._started += time.perf_counter() - started

    def count(self, images: int) -> None:
        """Count an iteration of this many images."""
        self._iterations += 1
        self._images += images

    def rates(self) -> dict[str, float]:
        """Return 'data_time' and 'train_time' in seconds per iteration, and 'images_per_second' of all processes."""
        elapsed = time.perf_counter() - self._started
        return {
            "data_time": self._waited / self._iterations,
            "train_time": elapsed / self._iterations,
            "images_per_second": self._images * distributed.world_size() / elapsed,
        }
