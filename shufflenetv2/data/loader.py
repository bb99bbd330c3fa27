"""Load batches of images with threads, so that the device does not wait for images.

A training batch is made in four steps; steps 2 to 4 are in the order of this file:

1. `SampleOrder` or `BalancedOrder` (order.py) maps each position 0, 1, 2, ... of an endless stream to a sample.
2. `_TrainingSamples` loads the sample at a position and augments it with random numbers drawn from the stream of
   (seed, position).
3. `DataIterator` divides the stream into batches: batch k holds positions k * batch_size to (k + 1) * batch_size - 1, or
   these plus an offset if the run has changed its batch size.
4. `_BatchThreads` loads the samples of the next few batches in parallel, each directly into its place in its batch.

Steps 1 to 3 are pure functions of the seed and the position. Batches therefore do not depend on interruptions of the run or on
the number of threads and processes.
"""

import os
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from itertools import count

import numpy as np
import torch
from torch import Tensor

from ..config import height_width
from ..errors import UserError
from ..rng import SAMPLE, RandomStreams
from .datasets import Dataset
from .order import BalancedOrder, SampleOrder
from .transforms import Transform

BATCHES_AHEAD = 2  # number of batches that are loaded while the training step uses an earlier batch

POLL_SECONDS = 0.1  # between two calls of `while_waiting`
CLOSE_SECONDS = 3.0  # how long to wait for threads that may never end, because a file system does not answer

LoadSample = Callable[[int, np.ndarray], int]  # (position, memory to write the image into) -> target


class _TrainingSamples:
    """The endless stream of augmented training samples."""

    def __init__(self, dataset: Dataset, transform: Transform, seed: int, repeats: int, balanced: bool) -> None:
        self._dataset, self._transform, self._repeats = dataset, transform, repeats
        self._order = BalancedOrder(dataset.targets, seed) if balanced else SampleOrder(len(dataset), seed)
        self._random_streams = RandomStreams(seed, SAMPLE)

    def index(self, position: int) -> int:
        return self._order(position // self._repeats)

    def load(self, position: int, out: np.ndarray) -> int:
        index = self.index(position)
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
        rank, world_size: number of this process (from 0), and number of processes; each process gets its slice of every batch.
        while_waiting: called several times per second while `next` waits for a batch; an exception that it raises ends the
            wait, for instance after a signal.

    Yields:
        images: uint8 (views * N, C, H, W), BGR or grey, in channels-last memory format. N is the batch size, or with
            several processes the length of this process's slice. With more than one view, the first views of all
            samples come first, then the second views, and so on.
        targets: int64 (N,).

    Raises:
        ImageError: from `next`, if the batch contains an unreadable image.
        BaseException: from `next`, whatever a thread raised, for instance if there is no memory for a batch.
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
        rank: int = 0,
        world_size: int = 1,
        while_waiting: Callable[[], object] = lambda: None,
    ) -> None:
        def positions(batch_number: int) -> range:
            return range(offset + batch_number * batch_size, offset + (batch_number + 1) * batch_size)

        self._dataset, self._positions, self._while_waiting = dataset, positions, while_waiting
        self._samples = _TrainingSamples(dataset, transform, seed, repeats, balanced)
        slices = (slice_of(positions(number), rank, world_size) for number in count(start_iteration))
        self._batches = _BatchThreads(self._samples.load, slices, batch_size // world_size, transform, workers, pin_memory)
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
    rank: int = 0,
    world_size: int = 1,
    while_waiting: Callable[[], object] = lambda: None,
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yield every sample once, in dataset order; the last batch may be shorter.

    All processes get the same number of batches; some batches may be empty. Arguments, shapes and errors are those of
    `DataIterator`.
    """

    def load(index: int, out: np.ndarray) -> int:
        transform(dataset.image(index), out, None)
        return int(dataset.targets[index])

    starts = range(0, len(dataset), batch_size)
    slices = (slice_of(range(start, min(start + batch_size, len(dataset))), rank, world_size) for start in starts)
    batches = _BatchThreads(load, slices, batch_size // world_size, transform, workers, pin_memory)
    try:
        for _ in starts:
            yield batches.next(while_waiting)
    finally:
        batches.close()


def slice_of(batch: range, rank: int, world_size: int) -> range:
    """Return the positions that process `rank` loads; the slices of all processes, concatenated in order, are the batch."""
    return batch[len(batch) * rank // world_size : len(batch) * (rank + 1) // world_size]


def usable_cores() -> int:
    """Return the number of CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count(workers: int | None, processes: int = 1) -> int:
    """Return the number of loader threads of a process; by default the usable cores are divided among the processes."""
    return workers or max(1, usable_cores() // processes)


class _Batch:
    """A batch that is being loaded."""

    def __init__(self, length: int, transform: Transform, pin_memory: bool) -> None:
        # Each batch gets new memory, so that callers may keep batches. That costs little: torch's allocators reuse freed
        # memory, and pinned memory only after the GPU has read it.
        shape = (transform.views, length, *height_width(transform.size), transform.channels)
        self.images = torch.empty(shape, dtype=torch.uint8, pin_memory=pin_memory)
        self.targets = torch.empty(length, dtype=torch.int64, pin_memory=pin_memory)
        self.images_array, self.targets_array = self.images.numpy(), self.targets.numpy()  # the same memory
        self.missing = length  # samples that are not loaded yet
        self.error: BaseException | None = None


class _BatchThreads:
    """Threads that load the samples of the next batches: each free thread takes the next sample.

    These are threads and not processes, because decoding and resizing release the interpreter lock: pixels are written once,
    directly into the batch, and nothing is pickled.

    Args:
        load: loads one sample into the memory given and returns its target.
        slices: for each batch, the positions of the samples to load.
        length: usual number of samples in a batch of this process.
        transform: determines the shape of a batch.
    """

    def __init__(
        self,
        load: LoadSample,
        slices: Iterator[range],
        length: int,
        transform: Transform,
        workers: int | None,
        pin_memory: bool,
    ) -> None:
        workers = workers or usable_cores()
        self._load, self._slices, self._transform, self._pin_memory = load, slices, transform, pin_memory
        # More batches if they are small, so that no thread has to wait while other threads load the last images of a batch.
        self._batches_ahead = BATCHES_AHEAD + -(-workers // max(1, length))
        self._pending: dict[int, _Batch] = {}  # batch number -> batch
        self._started = 0  # number of batches whose loading has begun
        self._returned = 0  # number of batches that `next` has returned
        self._newest: _Batch | None = None  # the batch whose loading began last
        self._unclaimed: Iterator[tuple[int, int]] = iter(())  # (place in the batch, position) of the newest batch
        self._closed = False
        self._error: BaseException | None = None  # ended a thread, and ends the others
        lock = threading.RLock()  # reentrant: a garbage collection inside a thread may call close()
        self._may_start_batch, self._batch_ready = threading.Condition(lock), threading.Condition(lock)
        self._threads: list[threading.Thread] = []
        for number in range(workers):
            thread = threading.Thread(target=self._run, name=f"loader-{number}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                self.close()
                raise UserError(f"`workers` {workers}: the system starts no more than {number} threads", status=1) from error
            self._threads.append(thread)

    def next(self, while_waiting: Callable[[], object]) -> tuple[Tensor, Tensor]:
        with self._batch_ready:
            while not (self._closed or self._error or self._next_is_ready()):
                if not any(thread.is_alive() for thread in self._threads):
                    raise RuntimeError("the threads that load images have ended without an error")
                self._batch_ready.wait(POLL_SECONDS)
                while_waiting()
            if self._error:
                raise self._error
            if self._closed:
                raise ValueError("this loader is closed")
            batch = self._pending.pop(self._returned)
            self._returned += 1
            self._may_start_batch.notify_all()
        if batch.error is not None:
            raise batch.error
        # (views, N, H, W, C) -> (views * N, C, H, W), without moving a pixel
        return batch.images.flatten(0, 1).permute(0, 3, 1, 2), batch.targets

    def close(self) -> None:
        with self._batch_ready:
            self._closed = True
            self._may_start_batch.notify_all()
            self._batch_ready.notify_all()
        if threading.current_thread() not in self._threads:
            # Wait for the threads, because the process would abort if the interpreter exited while a thread is inside OpenCV.
            # Each thread ends after at most one image, unless it waits for a file system that does not answer: such a thread
            # is left behind, and does not keep the process alive.
            deadline = time.monotonic() + CLOSE_SECONDS
            for thread in self._threads:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _next_is_ready(self) -> bool:
        batch = self._pending.get(self._returned)
        return batch is not None and (batch.missing == 0 or batch.error is not None)

    def _run(self) -> None:
        try:
            while (claim := self._claim_sample()) is not None:
                self._load_sample(*claim)
        except BaseException as error:  # raised again by `next`
            with self._batch_ready:
                self._error = error
                self._may_start_batch.notify_all()
                self._batch_ready.notify_all()

    def _load_sample(self, position: int, place: int, batch: _Batch) -> None:
        try:
            batch.targets_array[place] = self._load(position, batch.images_array[:, place])
        except BaseException as error:  # raised again by `next` for this batch
            batch.error = error
        with self._batch_ready:
            batch.missing -= 1
            if batch.missing == 0 or batch.error is not None:
                self._batch_ready.notify()

    def _claim_sample(self) -> tuple[int, int, _Batch] | None:
        """Return (position, place in the batch, batch) of the next sample to load; wait until its batch may be started.

        None after the last sample, if the loader is closed, or if another thread has ended with an error.
        """
        with self._may_start_batch:
            while not (self._closed or self._error):
                if self._newest and (claim := next(self._unclaimed, None)):
                    place, position = claim
                    return position, place, self._newest
                if self._started < self._returned + self._batches_ahead:
                    if (positions := next(self._slices, None)) is None:
                        return None
                    self._newest = _Batch(len(positions), self._transform, self._pin_memory)
                    self._unclaimed = enumerate(positions)
                    self._pending[self._started] = self._newest
                    self._started += 1
                    self._batch_ready.notify()  # a batch without samples is ready at once
                else:
                    self._may_start_batch.wait()
            return None
