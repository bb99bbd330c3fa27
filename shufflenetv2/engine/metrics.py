"""Compute the numbers of the TRAIN lines: accuracy, counted on the device, norm of the gradients, times, and memory."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from . import distributed
from .evaluation import count_correct

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


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


class GradientNorm:
    """Measure the L2 norm of all gradients together, before they are clipped; `train_step` calls it in place of `clip`.

    Attributes:
        value: scalar, on the device; None before the call.
    """

    def __init__(self, network: nn.Module, clip: Callable[[], object] | None) -> None:
        self._network, self._clip = network, clip
        self.value: Tensor | None = None

    @torch.no_grad()
    def __call__(self) -> None:
        gradients = [parameter.grad for parameter in self._network.parameters() if parameter.grad is not None]
        self.value = nn.utils.get_total_norm(gradients)
        if self._clip:
            self._clip()


def peak_memory(device: torch.device) -> float | None:
    """Return the most memory that this process has used so far in MiB: tensors on a GPU, or main memory; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if resource is None:
        return None
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return kibibytes / 1024


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
