"""Estimate of the memory that a training run needs, and what to change where it is more than there is.

The memory of an iteration is measured (rehearsal.py). To it this module adds what the loader, the validation and the writer of
checkpoints need, and compares the sum with the memory that is free (free_memory.py).
"""

import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace

import torch

from ..config import MAX_VAL_BATCH_SIZE, Config, height_width
from ..data import BATCHES_AHEAD, worker_count
from ..errors import UserError
from ..weights import Weights
from . import distributed
from .devices import Devices
from .free_memory import UNKNOWN, free_gpu_memory, free_host_memory, release_freed_memory
from .rehearsal import IterationMemory, image_shape, rehearse

# The memory of a process exceeds that of its tensors by gaps between them. On a CPU with glibc, which is made to keep freed
# memory (devices.py), a gap can rarely be used by a tensor of the size that left it. Somewhat more than what
# benchmarks/memory.py has measured: a fraction of all tensors, and a number of gaps as large as the largest tensor.
HEAP_OVERHEAD = 1.3
STEP_GAPS, STEP_GAPS_CHANNELS_LAST = 6.5, 3.5
FORWARD_GAPS = 3.5  # in a forward pass without gradients
OTHER_BYTES = 60_000_000  # libraries that are loaded later, stacks of threads, images that are being decoded
# On a GPU, torch's allocator reserves more than the tensors, and the workspaces of cuDNN: 1.25 to 1.29 times their bytes and up
# to 0.3 GB more, on one NVIDIA H200 (PyTorch 2.11, 0.5x to 2.0x, batches of 256 and 1,024).
CACHE_OVERHEAD = 1.35
WORKSPACE_BYTES = 250_000_000
# Not measured: its allocator of page-locked memory, which rounds up to powers of 2.
PINNED_OVERHEAD = 2.0
CHECKPOINT_COPIES = 3  # the tensors, the file as it is composed, and its bytes
MULTIPLE = 8  # of which proposed batch sizes are multiples


@dataclass(frozen=True)
class Demand:
    """Bytes of memory as a function of the batch.

    Attributes:
        fixed: independent of the batch.
        per_sample: for each sample of a batch.
        per_prepared: additionally for each sample of a batch while it is mixed, shown to the teacher, or used to recalibrate
            batch norm.
        per_stepped: additionally for each sample that takes part in a training step at the same time.
        per_validated: additionally for each image of a validation batch.
    """

    fixed: int = 0
    per_sample: int = 0
    per_prepared: int = 0
    per_stepped: int = 0
    per_validated: int = 0

    def bytes(self, samples: int, accum_steps: int, validated: int) -> int:
        """Return the highest number of bytes in use at the same time."""
        phases = (
            samples * self.per_prepared,
            math.ceil(samples / accum_steps) * self.per_stepped,
            validated * self.per_validated,
        )
        return self.fixed + samples * self.per_sample + max(phases)

    def __add__(self, other: "Demand") -> "Demand":
        return Demand(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, factor: float) -> "Demand":
        return Demand(*(math.ceil(factor * count) for count in astuple(self)))


@dataclass(frozen=True)
class Place:
    """A memory, and what a run needs of it.

    Attributes:
        name: 'memory' or 'GPU memory'.
        free: bytes that can still be allocated; UNKNOWN if the system does not say.
        demand: of each process, for its share of a batch.
        sharers: number of processes that use the same memory.
        shares: number of equal shares of a batch.
        val_batch_size: images in a validation batch; None if it follows the batch size.
    """

    name: str
    free: int
    demand: Demand
    sharers: int
    shares: int
    val_batch_size: int | None

    def bytes(self, batch_size: int, accum_steps: int) -> int:
        """Return the highest number of bytes in use at the same time."""
        validated = self.val_batch_size or min(batch_size, MAX_VAL_BATCH_SIZE)
        return self.sharers * self.demand.bytes(math.ceil(batch_size / self.shares), accum_steps, validated)


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory that a run needs and that is free, in each place; the same in all processes of the run."""

    places: tuple[Place, ...]
    processes: int = 1

    @property
    def is_free_memory_known(self) -> bool:
        return all(place.free < UNKNOWN for place in self.places)

    def fits(self, batch_size: int, accum_steps: int) -> bool:
        """Return whether a run fits into the free memory; also true where that is unknown."""
        return all(place.bytes(batch_size, accum_steps) <= place.free for place in self.places)

    def largest_batch_size(self, limit: int, accum_steps: int) -> int | None:
        """Return the largest batch size up to `limit` that fits, None if there is none.

        It can be divided among processes and accumulation steps, and is a multiple of 8 unless none of these fits.
        """
        divisor = self.processes * accum_steps
        for unit in (math.lcm(MULTIPLE, divisor), divisor):
            low, high = 0, limit // unit
            while low < high:  # find the largest count such that `count * unit` fits
                middle = (low + high + 1) // 2
                low, high = (middle, high) if self.fits(middle * unit, accum_steps) else (low, middle - 1)
            if low:
                return low * unit
        return None

    def smallest_accum_steps(self, batch_size: int, above: int) -> int | None:
        """Return the smallest number of accumulation steps greater than `above` that fits, None if there is none."""
        share = batch_size // self.processes
        divisors = (steps for steps in range(above + 1, share + 1) if share % steps == 0)
        return next((steps for steps in divisors if self.fits(batch_size, steps)), None)

    def describe(self, batch_size: int, accum_steps: int) -> str:
        """Return a line for the log."""
        texts = []
        for place in self.places:
            of_free = f" of {in_words(place.free)} free" if place.free < UNKNOWN else ""
            texts.append(f"about {in_words(place.bytes(batch_size, accum_steps))}{of_free} {place.name}")
        return f"batches of {batch_size} need {' and '.join(texts)}"

    def require_fit(self, batch_size: int, accum_steps: int, *, is_continued: bool = False) -> None:
        """Check that a run fits into the free memory.

        Args:
            is_continued: the run has begun before, and its options only change with `change_recipe`.

        Raises:
            UserError: names the largest batch size, and the smallest number of accumulation steps, that would fit.
        """
        for place in self.places:
            if (size := place.bytes(batch_size, accum_steps)) > place.free:
                remedy = " or ".join(self._remedies(batch_size, accum_steps))
                if is_continued:
                    remedy += ", with `change_recipe`"
                raise UserError(
                    f"`batch_size` {batch_size} needs about {in_words(size)} of {place.name}, and {in_words(place.free)} are "
                    f"free; use {remedy} (`memory_check=False` leaves this check out)"
                )

    def _remedies(self, batch_size: int, accum_steps: int) -> Iterator[str]:
        smaller = self.largest_batch_size(batch_size, accum_steps)
        steps = self.smallest_accum_steps(batch_size, accum_steps)
        if smaller:
            yield f"`batch_size` {smaller} or less"
        if steps:
            yield f"`grad_accum_steps` {steps}"
        if not (smaller or steps):
            yield "a smaller `model_size`, `input_size` or `val_batch_size`"


def in_words(size: int) -> str:
    """Return a number of bytes in words, such as '21.4 GB'."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def estimate_memory(config: Config, devices: Devices, class_names: list[str], weights: Weights | None) -> MemoryEstimate:
    """Measure the memory that a run needs, and that is free; in all processes of the run.

    Args:
        class_names: class names in the order of their labels.
        weights: weights that the run starts from; None for random weights.
    """
    iteration = rehearse(config, devices, class_names, weights)
    release_freed_memory()
    if devices.first.type == "cuda":
        torch.cuda.empty_cache()
    distributed.all_reduce_max(0)  # a barrier: the other processes of this machine have released their memory, too
    processes, on_machine = distributed.world_size(), distributed.local_world_size()
    on_device, on_host = _demand_of_iterations(config, iteration), _demand_of_files(config, iteration)
    val_batch_size = config.data.val_batch_size
    if devices.first.type == "cuda":
        demand, gpus = on_device * CACHE_OVERHEAD + Demand(fixed=WORKSPACE_BYTES), devices.count
        on_host *= PINNED_OVERHEAD
        places = [Place("GPU memory", free_gpu_memory(devices.first, gpus), demand, 1, processes * gpus, val_batch_size)]
        gaps = Demand()
    else:
        on_host += on_device
        gaps = _demand_of_gaps(config, iteration)
        places = []
    demand = on_host * HEAP_OVERHEAD + gaps + Demand(fixed=OTHER_BYTES)
    places.append(Place("memory", free_host_memory(), demand, on_machine, processes, val_batch_size))
    return MemoryEstimate(tuple(map(_same_in_all_processes, places)), processes)


def _same_in_all_processes(place: Place) -> Place:
    """Return the place with the largest demand and the least free memory of all processes."""
    demand = Demand(*map(distributed.all_reduce_max, astuple(place.demand)))
    return replace(place, free=-distributed.all_reduce_max(-place.free), demand=demand)


def _demand_of_iterations(config: Config, iteration: IterationMemory) -> Demand:
    """Return the demand of the network and its batches on the device."""
    views = image_shape(config)[1]
    buckets = iteration.gradients if distributed.world_size() > 1 else 0  # in which gradients are sent
    return Demand(
        fixed=iteration.state + iteration.step + buckets,
        per_sample=iteration.held,
        per_prepared=max(iteration.prepared - iteration.held, views * iteration.forward),
        per_stepped=iteration.stepped - iteration.held,
        per_validated=math.ceil(iteration.forward * _enlargement(config)),
    )


def _enlargement(config: Config) -> float:
    """Return the number of pixels of a validation image as a multiple of that of a view of a training image."""
    return math.prod(height_width(config.data.input_size)) / math.prod(image_shape(config)[0])


def _demand_of_gaps(config: Config, iteration: IterationMemory) -> Demand:
    """Return the demand of gaps as large as the largest tensor."""
    step_gaps = STEP_GAPS_CHANNELS_LAST if config.execution.channels_last else STEP_GAPS
    in_step, in_forward = step_gaps * iteration.largest, FORWARD_GAPS * iteration.largest
    in_validation = in_forward / image_shape(config)[1] * _enlargement(config)
    return Demand(0, 0, *map(math.ceil, (in_forward, in_step, in_validation)))


def _demand_of_files(config: Config, iteration: IterationMemory) -> Demand:
    """Return the demand of the loader and of the writer of checkpoints in main memory."""
    size, views = image_shape(config)
    image, val_image = views * math.prod(size), math.prod(height_width(config.data.input_size))
    image, val_image = config.model.in_chans * image, config.model.in_chans * val_image
    # Besides the batch in use the loader holds BATCHES_AHEAD batches, and more if it has more threads than a batch has images.
    batches, workers = BATCHES_AHEAD + 1, worker_count(config.common.workers, distributed.local_world_size())
    return Demand(
        fixed=CHECKPOINT_COPIES * iteration.state + workers * (image + val_image),
        per_sample=batches * image,
        per_validated=(batches + 1) * val_image,
    )
