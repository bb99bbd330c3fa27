"""Load batches of images with threads, so that the device does not wait for images.

A training batch is made in four steps, of which this file has the second and the third:

1. `SampleOrder` or `BalancedOrder` (order.py) maps each position 0, 1, 2, ... of an endless stream to a sample.
2. `_TrainingSamples` loads the sample at a position and augments it with random numbers drawn from the stream of
   (seed, position).
3. `DataIterator` divides the stream into batches: batch k holds positions k * batch_size to (k + 1) * batch_size - 1, or
   these plus an offset if the run has changed its batch size.
4. `BatchThreads` (threads.py) loads the samples of the next few batches in parallel, each directly into its place in its batch.

Steps 1 to 3 are pure functions of the seed and the position. Batches therefore do not depend on interruptions of the run or on
the number of threads and processes.
"""

import weakref
from collections.abc import Callable, Generator, Iterator
from itertools import count

import numpy as np
from torch import Tensor

from ..rng import SAMPLE, RandomStreams
from .bad_images import BadImages, Replacements
from .datasets import Dataset
from .images import ImageError
from .order import BalancedOrder, SampleOrder
from .threads import BatchThreads
from .transforms import Transform

LEFT_OUT = -1  # target of a validation image that is left out


class _TrainingSamples:
    """The endless stream of augmented training samples."""

    def __init__(
        self, dataset: Dataset, transform: Transform, seed: int, repeats: int, balanced: bool, bad_images: BadImages | None
    ) -> None:
        self._dataset, self._transform, self._repeats, self._bad_images = dataset, transform, repeats, bad_images
        self._order = BalancedOrder(dataset.targets, seed) if balanced else SampleOrder(len(dataset), seed)
        self._random_streams, self._replacements = RandomStreams(seed, SAMPLE), Replacements(dataset.targets, seed)

    def index(self, position: int) -> int:
        return self._order(position // self._repeats)

    def load(self, position: int, out: np.ndarray) -> int:
        index = self.index(position)
        try:
            return self._load(index, position, out)
        except ImageError as error:
            if self._bad_images is None:
                raise
            self._bad_images.add(index, error)
            for replacement in self._replacements(index, position // self._repeats):
                try:
                    return self._load(replacement, position, out)
                except ImageError as another_error:
                    self._bad_images.add(replacement, another_error)
            raise

    def _load(self, index: int, position: int, out: np.ndarray) -> int:
        self._transform(self._dataset.image(index), out, self._random_streams(position))
        return int(self._dataset.targets[index])


class DataIterator:
    """Iterate endlessly over shuffled, augmented training batches that threads load in advance.

    All batches have the full size: a batch may contain samples of two epochs. The threads end when the iterator is
    closed or garbage-collected.

    Args:
        dataset: source of the images and their targets.
        transform: decodes, crops and augments an image, usually a `TrainTransform`.
        batch_size: number of samples in a batch, over all processes.
        seed: seed of the sample order and the augmentation, 0 or more.
        start_iteration: number of batches to skip; skipping takes no time.
        offset: added to all positions, for a run whose earlier batches had another size.
        workers: number of threads; by default the number of usable cores.
        pin_memory: allocate page-locked memory, from which a GPU can copy while it computes.
        repeats: how many times in a row each sample appears, with different augmentation (repeated augmentation).
        balanced: draw every class equally often, see `BalancedOrder`.
        bad_images: receives the images that cannot be decoded, which `Replacements` replaces; None raises their error.
        rank, world_size: number of this process (from 0), and number of processes; each process gets its slice of every batch.
        while_waiting: called several times per second while `next` waits for a batch; an exception that it raises ends the
            wait, for instance after a signal.

    Yields:
        images: uint8 (views * N, C, H, W), BGR or grey, in channels-last memory format. N is the batch size, or with
            several processes the length of this process's slice. With more than one view, the first views of all
            samples come first, then the second views, and so on.
        targets: int64 (N,).

    Raises:
        ImageError: from `next`, if the batch contains an image that cannot be decoded, or `bad_images` has too many.
        BaseException: from `next`, any exception of a thread, such as MemoryError for a batch that is too large.
    """

    def __init__(
        self,
        dataset: Dataset,
        transform: Transform,
        batch_size: int,
        *,
        seed: int = 0,
        start_iteration: int = 0,
        offset: int = 0,
        workers: int | None = None,
        pin_memory: bool = False,
        repeats: int = 1,
        balanced: bool = False,
        bad_images: BadImages | None = None,
        rank: int = 0,
        world_size: int = 1,
        while_waiting: Callable[[], object] = lambda: None,
    ) -> None:
        def positions(batch_number: int) -> range:
            return range(offset + batch_number * batch_size, offset + (batch_number + 1) * batch_size)

        self._dataset, self._positions, self._while_waiting = dataset, positions, while_waiting
        self._samples = _TrainingSamples(dataset, transform, seed, repeats, balanced, bad_images)
        slices = (slice_of(positions(number), rank, world_size) for number in count(start_iteration))
        self._batches = BatchThreads(self._samples.load, slices, batch_size // world_size, transform, workers, pin_memory)
        self.close = weakref.finalize(self, self._batches.close)

    def next(self) -> tuple[Tensor, Tensor]:
        """Return the images and targets of the next batch."""
        return self._batches.next(self._while_waiting)

    __next__ = next

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self

    def sample_names(self, iteration: int) -> list[str]:
        """Return the names of the samples of an iteration (1, 2, ...), in batch order, over all processes."""
        return [self._dataset.name(self._samples.index(position)) for position in self._positions(iteration - 1)]


def evaluation_batches(
    dataset: Dataset,
    transform: Transform,
    batch_size: int,
    *,
    workers: int | None = None,
    pin_memory: bool = False,
    bad_images: BadImages | None = None,
    rank: int = 0,
    world_size: int = 1,
    while_waiting: Callable[[], object] = lambda: None,
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yield every sample once, in dataset order; the last batch may be shorter.

    All processes get the same number of batches; some batches may be empty. Arguments, shapes and errors are those of
    `DataIterator`, except that images in `bad_images` are left out of their batch.
    """

    def load(index: int, out: np.ndarray) -> int:
        try:
            transform(dataset.image(index), out, None)
        except ImageError as error:
            if bad_images is None:
                raise
            bad_images.leave_out(index, error)
            return LEFT_OUT
        return int(dataset.targets[index])

    starts = range(0, len(dataset), batch_size)
    slices = (slice_of(range(start, min(start + batch_size, len(dataset))), rank, world_size) for start in starts)
    batches = BatchThreads(load, slices, batch_size // world_size, transform, workers, pin_memory)
    try:
        for _ in starts:
            images, targets = batches.next(while_waiting)
            if (is_left_out := targets == LEFT_OUT).any():
                images, targets = images[~is_left_out.repeat(transform.views)], targets[~is_left_out]
            yield images, targets
    finally:
        batches.close()


def slice_of(batch: range, rank: int, world_size: int) -> range:
    """Return the positions that process `rank` loads; the slices of all processes, concatenated in order, are the batch."""
    return batch[len(batch) * rank // world_size : len(batch) * (rank + 1) // world_size]
