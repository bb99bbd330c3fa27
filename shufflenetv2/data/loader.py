"""Batches: which samples, in what order, with which random draws, filled by threads.

Nothing here has a state that could be lost. Position p (0, 1, 2, ...) of the endless stream of
training samples is sample `SampleOrder(p)`, and its augmentation is drawn from `generator(seed,
SAMPLE, p)`. Both are functions, so iteration k of a run that was resumed ten times, with any
number of workers, gets the very batch it would have got.
"""

import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from functools import lru_cache
from itertools import count

import numpy as np
import torch
from torch import Tensor

from ..rng import ORDER, SAMPLE, Streams, generator
from .datasets import Dataset
from .transforms import Transform

BATCHES_AHEAD = 2


class SampleOrder:
    """The endless order of samples: each epoch a shuffle of its own, epochs joined without a seam."""

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        # Positions run through at most two epochs at a time.
        self._shuffle = lru_cache(maxsize=2)(lambda epoch: generator(seed, ORDER, epoch).permutation(length))

    def __call__(self, position: int) -> int:
        """The index of the sample at a position."""
        epoch, offset = divmod(position, self.length)
        return int(self._shuffle(epoch)[offset])


def usable_cores() -> int:
    """The cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def slice_of(batch: range, rank: int, world_size: int) -> range:
    """The part of a batch's positions that one of several processes takes; all parts in order are the batch."""
    return batch[len(batch) * rank // world_size : len(batch) * (rank + 1) // world_size]


class DataIterator:
    """Training batches without end: shuffled, augmented, decoded ahead by threads.

    A batch may span the border between two epochs; none is short. Close it, or drop it, to end its threads.

    Args:
        dataset: where the images come from.
        transform: what becomes of each.
        batch_size: samples in a batch, over all processes.
        seed: of the order and of the augmentation, 0 or more.
        start_iteration: batches to pass over; costs nothing, whatever the number.
        workers: threads, the usable cores if None. Has no influence on the batches.
        pin_memory: whether to use page-locked memory, from which a GPU can fetch while it computes.
        repeats: how often in a row a sample appears, each time augmented otherwise.
        rank, world_size: the number of this process and how many there are; it gets its slice of each batch.

    Yields:
        images, uint8 (views * N, 3, size, size), BGR, interleaved in memory (channels last), the first views of
        all samples before the second ones; targets, int64 (N,); where N is the batch size, or with
        several processes the length of the slice.

    Raises:
        ImageError: from `next`, when the batch holds an unreadable image.
    """

    def __init__(
        self,
        dataset: Dataset,
        transform: Transform,
        batch_size: int,
        *,
        seed: int = 0,
        start_iteration: int = 0,
        workers: int | None = None,
        pin_memory: bool = False,
        repeats: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        samples, streams = SampleOrder(len(dataset), seed), Streams(seed, SAMPLE)

        def order(position: int) -> int:
            return samples(position // repeats)

        def fill(position: int, out: np.ndarray) -> int:
            index = order(position)
            transform(dataset.image(index), out, streams(position))
            return int(dataset.targets[index])

        def positions(number: int) -> range:
            return range(number * batch_size, (number + 1) * batch_size)

        self._dataset, self._order, self._positions = dataset, order, positions
        slices = (slice_of(positions(number), rank, world_size) for number in count(start_iteration))
        self._batches = _ThreadedBatches(fill, slices, batch_size // world_size, transform, workers, pin_memory)
        self.close = weakref.finalize(self, self._batches.close)

    def next(self) -> tuple[Tensor, Tensor]:
        """The next batch: images, targets."""
        return self._batches.next()

    __next__ = next

    def sample_names(self, iteration: int) -> list[str]:
        """What the samples of an iteration (1, 2, ...) are called, in the order of the batch."""
        return [self._dataset.name(self._order(position)) for position in self._positions(iteration - 1)]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self


def evaluation_batches(
    dataset: Dataset,
    transform: Transform,
    batch_size: int,
    *,
    workers: int | None = None,
    pin_memory: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Every sample once, in order; the last batch may be short. Arguments, shapes and errors are DataIterator's.

    All processes get the same number of batches, some of which may then be empty.
    """

    def fill(index: int, out: np.ndarray) -> int:
        transform(dataset.image(index), out, None)
        return int(dataset.targets[index])

    starts = range(0, len(dataset), batch_size)
    slices = (slice_of(range(start, min(start + batch_size, len(dataset))), rank, world_size) for start in starts)
    batches = _ThreadedBatches(fill, slices, batch_size // world_size, transform, workers, pin_memory)
    try:
        for _ in starts:
            yield batches.next()
    finally:
        batches.close()


class _Batch:
    """A batch on its way: memory, and how many of its samples are still missing."""

    def __init__(self, length: int, transform: Transform, pin_memory: bool) -> None:
        # Fresh memory for every batch, so that whoever keeps one keeps it unchanged. torch's
        # allocators hand the same pages out again, pinned ones only when the GPU has read them.
        shape = (transform.views, length, transform.size, transform.size, 3)
        self.images = torch.empty(shape, dtype=torch.uint8, pin_memory=pin_memory)
        self.targets = torch.empty(length, dtype=torch.int64, pin_memory=pin_memory)
        self.slots, self.labels = self.images.numpy(), self.targets.numpy()
        self.missing = length
        self.error: BaseException | None = None


class _ThreadedBatches:
    """Threads that take the next position, whoever is free, and fill its slot of its batch.

    Threads and not processes, because decoding and resizing release the interpreter's lock:
    pixels are written once, where they stay, and nothing is pickled.
    """

    def __init__(
        self,
        fill: Callable[[int, np.ndarray], int],  # (position, slot of the batch) -> target
        slices: Iterator[range],  # the positions of one batch after the other
        length: int,  # of a slice, about
        transform: Transform,
        workers: int | None,
        pin_memory: bool,
    ) -> None:
        workers = workers or usable_cores()
        self._fill, self._slices, self._transform, self._pin_memory = fill, slices, transform, pin_memory
        # Enough batches ahead that no worker waits while another finishes the last image of one.
        self._ahead = BATCHES_AHEAD + -(-workers // max(1, length))
        self._positions: Iterator[tuple[int, int]] = iter(())  # (slot, position) yet to fill in the newest batch
        self._begun = 0  # batches
        self._taken = 0  # batches handed out
        self._pending: dict[int, _Batch] = {}
        self._closed = False
        lock = threading.RLock()  # a garbage collection inside a worker may call close()
        self._room, self._ready = threading.Condition(lock), threading.Condition(lock)
        self._threads = [threading.Thread(target=self._work, name=f"loader-{n}", daemon=True) for n in range(workers)]
        for thread in self._threads:
            thread.start()

    def next(self) -> tuple[Tensor, Tensor]:
        with self._ready:
            while not (self._closed or self._is_ready()):
                self._ready.wait()
            if self._closed:
                raise ValueError("this loader is closed")
            batch = self._pending.pop(self._taken)
            self._taken += 1
            self._room.notify_all()
        if batch.error is not None:
            raise batch.error
        return batch.images.flatten(0, 1).permute(0, 3, 1, 2), batch.targets

    def _is_ready(self) -> bool:
        return self._taken in self._pending and self._pending[self._taken].missing == 0

    def close(self) -> None:
        with self._ready:
            self._closed = True
            self._room.notify_all()
            self._ready.notify_all()
        if threading.current_thread() not in self._threads:
            # An interpreter that exits under a thread inside OpenCV aborts; each is done with its image in a moment.
            for thread in self._threads:
                thread.join()

    def _work(self) -> None:
        while (claim := self._claim()) is not None:
            position, slot, batch = claim
            try:
                batch.labels[slot] = self._fill(position, batch.slots[:, slot])
            except BaseException as error:  # handed to whoever asks for this batch
                batch.error = error
            with self._ready:
                batch.missing -= 1
                if batch.missing == 0:
                    self._ready.notify()

    def _claim(self) -> tuple[int, int, _Batch] | None:
        """The next position to fill, when there is room for its batch; None when there is nothing left to do."""
        with self._room:
            while not self._closed:
                if claim := next(self._positions, None):
                    slot, position = claim
                    return position, slot, self._pending[self._begun - 1]
                if self._begun < self._taken + self._ahead:
                    if (positions := next(self._slices, None)) is None:
                        return None
                    self._positions = enumerate(positions)
                    self._pending[self._begun] = _Batch(len(positions), self._transform, self._pin_memory)
                    self._begun += 1
                    self._ready.notify()  # should it be empty
                else:
                    self._room.wait()
            return None
