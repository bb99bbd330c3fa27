"""Batches depend only on the seed and the iteration, and the loader releases its threads and memory."""

import gc
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

from shufflenetv2.data import (
    DataIterator,
    Dataset,
    Digits,
    EvaluationTransform,
    FolderDataset,
    ImageError,
    Subset,
    TrainTransform,
    evaluation_batches,
)
from shufflenetv2.data.images import Image
from shufflenetv2.data.order import BalancedOrder, SampleOrder
from shufflenetv2.rng import RandomStreams, generator

TRANSFORM = TrainTransform(size=32)


def test_each_epoch_is_a_different_permutation_of_the_samples() -> None:
    order = SampleOrder(11, seed=3)
    epochs = [[order(position) for position in range(epoch * 11, epoch * 11 + 11)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    assert [SampleOrder(11, seed=3)(position) for position in (25, 3)] == [epochs[2][3], epochs[0][3]]


LABELS = np.array([3] * 2 + [0] * 7 + [2] * 4 + [0] * 2)  # unsorted; class 1 has no images


def test_balanced_rounds_have_one_image_of_each_class() -> None:
    order = BalancedOrder(LABELS, seed=3)
    indices = [order(position) for position in range(3 * 30)]
    rounds = LABELS[indices].reshape(30, 3)
    assert all(sorted(labels) == [0, 2, 3] for labels in rounds.tolist())
    assert len({tuple(labels) for labels in rounds.tolist()}) == 6  # the classes stand in every order
    assert [BalancedOrder(LABELS, seed=3)(position) for position in (77, 5)] == [indices[77], indices[5]]
    other = BalancedOrder(LABELS, seed=4)
    assert [other(position) for position in range(90)] != indices


def test_a_balanced_order_repeats_an_image_only_after_all_of_its_class() -> None:
    order = BalancedOrder(LABELS, seed=3)
    indices = np.array([order(position) for position in range(3 * 36)])
    for label in (0, 2, 3):
        images = np.flatnonzero(np.equal(LABELS, label))
        epochs = indices[LABELS[indices] == label].reshape(-1, len(images)).tolist()
        assert all(sorted(epoch) == images.tolist() for epoch in epochs)
        assert len(set(map(tuple, epochs))) > 1


def test_balanced_batches_do_not_depend_on_workers_processes_or_the_start(photographs: Path) -> None:
    folder = FolderDataset(photographs)
    dataset = Subset(folder, np.flatnonzero((folder.targets > 0) | (np.arange(21) < 2)))  # 2, 7 and 7 images
    reference = DataIterator(dataset, TRANSFORM, 6, seed=4, workers=1, balanced=True)
    slices = [
        DataIterator(dataset, TRANSFORM, 6, seed=4, workers=3, balanced=True, start_iteration=1, rank=rank, world_size=2)
        for rank in range(2)
    ]
    reference.next()
    for iteration in (2, 3):
        images, targets = reference.next()
        parts = [part.next() for part in slices]
        assert torch.equal(torch.cat([part[0] for part in parts]), images)
        assert torch.equal(torch.cat([part[1] for part in parts]), targets)
        assert targets.bincount().tolist() == [2, 2, 2]
        names = reference.sample_names(iteration)
        assert [dataset.class_names[label] for label in targets] == [name.split("/")[0] for name in names]


def test_streams_of_different_purpose_seed_or_index_differ() -> None:
    draws = {generator(*key).random() for key in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (0, 1, 3))}
    assert len(draws) == 4
    assert generator(5, 1, 2).random() == generator(5, 1, 2).random()


def test_random_streams_draw_the_same_numbers_as_new_generators() -> None:
    streams = RandomStreams(5, 2)
    for index in (0, 2**40, 7, 7):
        rng, new = streams(index), generator(5, 2, index)
        assert rng.random(7).tolist() == new.random(7).tolist()
        assert rng.integers(10) == new.integers(10)  # buffers half of a 64-bit word, which the next stream must not return
        assert (rng.random(), rng.integers(1 << 20)) == (new.random(), new.integers(1 << 20))


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_batches_do_not_depend_on_the_workers_or_the_start_iteration(photographs: Path, workers: int) -> None:
    dataset = FolderDataset(photographs)  # 21 images: batches of 8 contain samples of two epochs
    reference = DataIterator(dataset, TRANSFORM, 8, seed=4, workers=1)
    expected = [reference.next() for _ in range(9)]
    resumed = DataIterator(dataset, TRANSFORM, 8, seed=4, workers=workers, start_iteration=5)
    for images, targets in expected[5:]:
        resumed_images, resumed_targets = resumed.next()
        assert torch.equal(resumed_images, images)
        assert torch.equal(resumed_targets, targets)
    assert all(images.shape == (8, 3, 32, 32) and images.dtype == torch.uint8 for images, _ in expected)
    assert all(targets.shape == (8,) and targets.dtype == torch.int64 for _, targets in expected)


def test_sample_names_lists_the_samples_of_any_iteration(photographs: Path) -> None:
    dataset = FolderDataset(photographs)
    batches = DataIterator(dataset, TRANSFORM, 8, seed=4, workers=1)
    labels = {dataset.name(index): target for index, target in enumerate(dataset.targets)}
    for iteration in range(1, 6):
        assert [labels[name] for name in batches.sample_names(iteration)] == batches.next()[1].tolist()


def test_a_batch_is_not_overwritten_by_later_batches() -> None:
    batches = DataIterator(Digits("train"), TRANSFORM, 16, workers=2)
    images, _ = batches.next()
    copy = images.clone()
    for _ in range(20):
        batches.next()
    assert torch.equal(images, copy)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory_growth_over_400_batches() -> int:
    """Return by how many bytes the memory of this process grows while a loader makes 400 batches."""
    batches = DataIterator(Digits("train"), TRANSFORM, 8, workers=2)
    for _ in range(100):
        batches.next()
    before = resident_bytes()
    for _ in range(400):
        batches.next()
    growth = resident_bytes() - before
    batches.close()
    return growth


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the size of a process from Linux's /proc")
def test_memory_does_not_grow_with_the_number_of_batches() -> None:
    """Measure in a new process, because memory freed by other tests would hide a leak."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        growth = process.submit(memory_growth_over_400_batches).result()
    assert growth < 700_000  # bytes; 0.1 MB was the largest growth seen, and keeping every tenth batch (25 kB) would take 1 MB


def test_an_iterator_can_start_at_the_end_of_a_long_run() -> None:
    images, _ = DataIterator(Digits("train"), TRANSFORM, 1024, start_iteration=299_999, workers=2).next()
    assert len(images) == 1024


def test_different_seeds_give_different_batches() -> None:
    first, second = (DataIterator(Digits("train"), TRANSFORM, 16, seed=seed).next() for seed in (0, 1))
    assert not torch.equal(first[1], second[1])


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 3), (8, 2), (21, 1), (100, 4)])
def test_evaluation_sees_every_image_once_and_in_order(photographs: Path, batch_size: int, workers: int) -> None:
    dataset: Dataset = FolderDataset(photographs)
    batches = list(evaluation_batches(dataset, EvaluationTransform(32, 36), batch_size, workers=workers))
    assert torch.cat([targets for _, targets in batches]).tolist() == dataset.targets.tolist()
    single_images = [images[0] for images, _ in evaluation_batches(dataset, EvaluationTransform(32, 36), 1, workers=1)]
    assert torch.equal(torch.cat([images for images, _ in batches]), torch.stack(single_images))


def test_next_raises_an_error_that_names_the_unreadable_image(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "bad.jpg").write_bytes(b"not a picture")
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        DataIterator(FolderDataset(tmp_path), TRANSFORM, 2).next()


class MemoryErrorImages(Digits):
    def image(self, index: int) -> Image:
        raise MemoryError("no memory for this image")


def test_any_exception_that_ends_a_thread_is_raised_by_next_and_no_other_call_hangs() -> None:
    too_large = DataIterator(Digits("train"), TRANSFORM, 10**12, workers=3)  # no computer can address such a batch
    for _ in range(2):
        with pytest.raises(RuntimeError, match="memory"):
            too_large.next()
    too_large.close()
    failing = DataIterator(MemoryErrorImages("train"), TRANSFORM, 4, workers=3)
    for _ in range(2):
        with pytest.raises(MemoryError, match="no memory for this image"):
            failing.next()
    failing.close()


def test_a_wait_for_a_file_that_does_not_answer_can_be_ended_and_its_thread_does_not_hold_up_the_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shufflenetv2.data.threads.CLOSE_SECONDS", 0.1)
    release = threading.Event()

    class Stalled(Digits):
        def image(self, index: int) -> Image:
            release.wait()
            return super().image(index)

    def stop() -> None:
        raise InterruptedError

    training = DataIterator(Stalled("train"), TRANSFORM, 4, workers=1, while_waiting=stop)
    evaluation = evaluation_batches(Stalled("val"), EvaluationTransform(32, 36), 4, workers=1, while_waiting=stop)
    try:
        for batches in (training, evaluation):
            with pytest.raises(InterruptedError):
                next(batches)
        training.close()
        assert loader_threads()  # they were left behind
    finally:
        release.set()


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader-")]


def test_threads_end_when_the_iterator_is_closed_or_collected() -> None:
    gc.collect()
    before = set(loader_threads())
    closed, collected = (DataIterator(Digits("train"), TRANSFORM, 4, workers=3) for _ in range(2))
    closed.next()
    threads = [thread for thread in loader_threads() if thread not in before]
    assert len(threads) == 6
    closed.close()
    del collected
    gc.collect()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    with pytest.raises(ValueError, match="closed"):
        closed.next()
