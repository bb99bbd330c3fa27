"""Threads that read and decode images: for the next batches of a training, or for all files of a folder in turn.

The threads are daemons, which do not keep the process alive: a thread that waits for a file system that does not answer cannot
be ended, and the process has to end without it.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..config import height_width
from ..errors import UserError
from .transforms import Transform

BATCHES_AHEAD = 2  # number of batches that are loaded while the training step uses an earlier batch

POLL_SECONDS = 0.1  # between two calls of `while_waiting`
CLOSE_SECONDS = 3.0  # how long to wait for threads that may never end, because a file system does not answer

QUEUED_PER_THREAD = 4  # items that `map_in_threads` takes in advance

Item = TypeVar("Item")
Result = TypeVar("Result")
LoadSample = Callable[[int, np.ndarray], int]  # (position, memory to write the image into) -> target


def usable_cores() -> int:
    """Return the number of CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count(workers: int | None, processes: int = 1) -> int:
    """Return the number of loader threads of a process; by default the usable cores are divided among the processes."""
    return workers or max(1, usable_cores() // processes)


def start_threads(run: Callable[[], object], count: int, on_failure: Callable[[], object]) -> list[threading.Thread]:
    """Start threads that call `run`.

    Raises:
        UserError: the system starts no more threads; `on_failure` has been called, to end those that were started.
    """
    threads: list[threading.Thread] = []
    for number in range(count):
        thread = threading.Thread(target=run, name=f"loader-{number}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            on_failure()
            join_threads(threads)
            limit = f"the system starts no more than {number} threads; use fewer, or raise its limits (ulimit -u, ulimit -v)"
            raise UserError(f"`workers` {count}: {limit}", status=1) from error
        threads.append(thread)
    return threads


def join_threads(threads: Sequence[threading.Thread]) -> None:
    """Wait until threads end, because the process would abort if the interpreter exited while a thread is inside OpenCV.

    Each thread ends after at most one image, unless it waits for a file system that does not answer: such a thread is left
    behind.
    """
    deadline = time.monotonic() + CLOSE_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def map_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, timeout: float | None = None
) -> Generator[Result, None, None]:
    """Yield `function(item)` in the order of the items, computed by threads; closing the generator ends the threads.

    At most QUEUED_PER_THREAD items per thread are taken from `items` ahead of the result that is yielded.

    Args:
        timeout: seconds to wait for a result before `concurrent.futures.TimeoutError` is raised; None waits without limit.
    """
    calls: SimpleQueue[tuple[Future[Result], Item] | None] = SimpleQueue()  # None ends a thread
    pending: deque[Future[Result]] = deque()

    def run() -> None:
        while call := calls.get():
            future, item = call
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(item))
                except BaseException as error:  # raised again where the result is taken
                    future.set_exception(error)

    def end() -> None:
        for future in pending:
            future.cancel()
        for _ in range(workers):
            calls.put(None)

    threads = start_threads(run, workers, end)
    try:
        for item in items:
            pending.append(Future())
            calls.put((pending[-1], item))
            if len(pending) > QUEUED_PER_THREAD * workers:
                yield pending.popleft().result(timeout)
        while pending:
            yield pending.popleft().result(timeout)
    finally:
        end()
        join_threads(threads)


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


class BatchThreads:
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
        self._threads = start_threads(self._run, workers, self.close)

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
            join_threads(self._threads)

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
