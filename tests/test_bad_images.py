"""Images that cannot be decoded do not end a run: they are replaced or left out, counted, and listed once."""

import csv
import shutil
from pathlib import Path

import cv2
import pytest
import torch

from shufflenetv2.data import (
    BadImages,
    DataIterator,
    Digits,
    EvaluationTransform,
    FolderDataset,
    ImageError,
    TrainTransform,
    evaluation_batches,
)
from shufflenetv2.data.bad_images import TooManyBadImagesError
from shufflenetv2.report.page import read_page
from tests.support import SHORT, Run, Train, same_tensors

TRANSFORM = TrainTransform(size=32)
DIRT = {  # of an image
    "truncated.jpg": b"\xff\xd8\xff\xe0\x00\x10JFIF",
    "empty.png": b"",
    "page.jpg": b"<!DOCTYPE html><title>404 Not Found</title>",
    "short.png": cv2.imencode(".png", Digits("val").images[0])[1].tobytes()[:60],
}


def damage(photographs: Path, folder: Path, *paths: str) -> FolderDataset:
    """Copy the photographs with some of them overwritten by a text."""
    shutil.copytree(photographs, folder)
    for path in paths:
        (folder / path).write_bytes(b"not a picture")
    return FolderDataset(folder)


def test_a_bad_image_is_replaced_by_one_of_its_class_and_no_other_sample_changes(photographs: Path, tmp_path: Path) -> None:
    dataset = damage(photographs, tmp_path / "data", "dog/2.jpg", "owl/0.jpg")
    bad = {dataset.paths.index(path) for path in ("dog/2.jpg", "owl/0.jpg")}
    clean = DataIterator(FolderDataset(photographs), TRANSFORM, 7)
    bad_images = BadImages(dataset, "training", 0.5)
    dirty = DataIterator(dataset, TRANSFORM, 7, bad_images=bad_images)
    replaced = 0
    for iteration in range(1, 10):
        (images, targets), (expected_images, expected_targets) = dirty.next(), clean.next()
        assert targets.tolist() == expected_targets.tolist()  # the classes are large enough for a replacement
        for image, expected, name in zip(images, expected_images, dirty.sample_names(iteration), strict=True):
            assert torch.equal(image, expected) == (dataset.paths.index(name) not in bad)
            replaced += dataset.paths.index(name) in bad
    assert replaced == 6  # two in each of three epochs
    assert [(image.split, image.name) for image in sorted(bad_images.take_new())] == [
        ("training", "dog/2.jpg"),
        ("training", "owl/0.jpg"),
    ]
    assert bad_images.take_new() == []


def test_replacements_do_not_depend_on_workers_processes_or_the_start(photographs: Path, tmp_path: Path) -> None:
    dataset = damage(photographs, tmp_path / "data", *[f"dog/{number}.jpg" for number in range(7)], "owl/0.jpg")

    def iterator(workers: int, start: int = 0, rank: int = 0, world_size: int = 1) -> DataIterator:
        return DataIterator(
            dataset, TRANSFORM, 6, start_iteration=start, workers=workers, rank=rank, world_size=world_size,
            bad_images=BadImages(dataset, "training", 0.9),
        )  # fmt: skip

    whole = iterator(1)
    batches = [whole.next() for _ in range(6)]
    later = iterator(3, start=3)
    for images, targets in batches[3:]:
        assert all(torch.equal(a, b) for a, b in zip(later.next(), (images, targets), strict=True))
    assert 1 not in torch.cat([targets for _, targets in batches])  # no dog is readable: other classes take their place
    parts = [iterator(2, rank=rank, world_size=2) for rank in range(2)]
    for batch in batches:
        for together, whole_part in zip(zip(*(part.next() for part in parts), strict=True), batch, strict=True):
            assert torch.equal(torch.cat(together), whole_part)


@pytest.mark.parametrize("views", [1, 2])
def test_bad_images_are_left_out_of_an_evaluation(photographs: Path, tmp_path: Path, views: int) -> None:
    dataset = damage(photographs, tmp_path / "data", "cat/0.jpg", "owl/6.jpg")
    transform, bad_images = EvaluationTransform(32, 36, views=views), BadImages(dataset, "validation", 0.5)
    batches = [*evaluation_batches(dataset, transform, 4, bad_images=bad_images)]
    expected = [*evaluation_batches(FolderDataset(photographs), transform, 4)]
    assert [len(targets) for _, targets in batches] == [3, 4, 4, 4, 4, 0]
    images, targets = expected[0]
    assert torch.equal(batches[0][1], targets[1:])
    assert torch.equal(batches[0][0], torch.cat([view[1:] for view in torch.split(images, len(targets))]))
    assert (sorted(bad_images.take_left_out()), bad_images.take_left_out(), len(bad_images)) == ([0, 20], [], 2)


def test_without_a_collection_the_first_bad_image_raises_its_error(photographs: Path, tmp_path: Path) -> None:
    dataset = damage(photographs, tmp_path / "data", "cat/0.jpg")
    with pytest.raises(ImageError, match=r"cat/0\.jpg"):
        next(evaluation_batches(dataset, EvaluationTransform(32, 36), 4))


def test_too_many_bad_images_are_an_error_that_names_the_first_ten(photographs: Path, tmp_path: Path) -> None:
    paths = [f"{name}/{number}.jpg" for name in ("cat", "dog") for number in range(6)]
    dataset = damage(photographs, tmp_path / "data", *paths)
    bad_images = BadImages(dataset, "validation", 11 / 21)
    message = r"12 of 21 validation images .* 0\.52.* accepts: cat/0.* dog/3\.jpg, \.\.\."
    with pytest.raises(TooManyBadImagesError, match=message):
        for _ in evaluation_batches(dataset, EvaluationTransform(32, 36), 4, workers=1, bad_images=bad_images):
            pass
    half = BadImages(dataset, "validation", 12 / 21)
    assert sum(len(targets) for _, targets in evaluation_batches(dataset, EvaluationTransform(32, 36), 4, bad_images=half)) == 9


@pytest.fixture
def dirty_digits(tmp_path: Path) -> list[str]:
    """Write 200 training and 40 validation digits as files, among them bad ones; return the names of the bad ones."""
    for split, count in (("train", 200), ("val", 40)):
        digits = Digits(split)
        for index in range(count):
            path = tmp_path / "data" / split / digits.class_names[digits.targets[index]] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), digits.images[index])
        for number, (name, content) in enumerate(DIRT.items()):
            (tmp_path / "data" / split / str(number) / name).write_bytes(content)
    return [f"{number}/{name}" for number, name in enumerate(DIRT)]


def test_a_run_with_bad_images_names_each_once_and_continues_exactly(
    tmp_path: Path, train_here: Train, dirty_digits: list[str]
) -> None:
    arguments = [*SHORT, "--dataset", "folder", "--data-dir", "data", "--max-bad-images", "0.1", "--total-iters", "14"]
    complete = train_here(*arguments, "--save", "complete")
    assert complete.returncode == 0, complete.stderr
    with open(tmp_path / "complete/logs/bad_images.csv", newline="") as file:
        rows = list(csv.reader(file))
    names = [("training", name) for name in dirty_digits] + [("validation", name) for name in dirty_digits]
    assert sorted((split, name) for split, name, _ in rows) == sorted(names)
    assert all(complete.stdout.count(f"left out: {reason}") == 1 for _, _, reason in rows)
    page = read_page(tmp_path / "complete/logs/report.html")
    assert page["bad_images"] == rows
    assert "4 of 44 validation images cannot be decoded and are left out" in complete.stdout
    assert "4 training images and 4 validation images cannot be decoded and were left out; " in complete.stdout

    interrupted = train_here(*arguments, "--save", "interrupted", "--hook", "tests.support:Stop")
    assert interrupted.returncode == 143
    resumed = train_here(*arguments, "--save", "interrupted", "--workers", "1")
    assert resumed.returncode == 0, resumed.stderr
    a, b = (torch.load(tmp_path / name / "best.pkl", weights_only=True)["state_dict"] for name in ("complete", "interrupted"))
    assert same_tensors(a, b)
    assert sorted((tmp_path / "interrupted/logs/bad_images.csv").read_text().splitlines()) == sorted(
        (tmp_path / "complete/logs/bad_images.csv").read_text().splitlines()
    )
    with open(tmp_path / "complete/logs/predictions.csv", newline="") as file:
        predicted = [row[0] for row in csv.reader(file)][1:]
    assert len(predicted) == 40
    assert not {*predicted} & {*dirty_digits}
    both = interrupted.stdout + resumed.stdout
    assert all(both.count(f"left out: {reason}") == 1 for _, _, reason in rows)


def test_a_run_with_more_bad_images_than_accepted_stops_and_has_saved_a_checkpoint(
    tmp_path: Path, train_here: Train, dirty_digits: list[str]
) -> None:
    arguments = [*SHORT, "--dataset", "folder", "--train-dir", "data/train", "--total-iters", "14"]
    stopped = train_here(*arguments)
    assert (stopped.returncode, stopped.stderr.count("\n")) == (1, 1)
    assert "3 of 204 training images cannot be decoded, which is more than --max-bad-images 0.01 accepts: " in stopped.stderr
    assert list((tmp_path / "models").glob("checkpoint-*"))
    at_once = train_here(*arguments, "--on-bad-image", "stop")
    assert (at_once.returncode, at_once.stderr.count("\n")) == (1, 1)
    assert "remove it or replace it" in at_once.stderr


def test_recalibration_replaces_bad_images_and_names_them(
    dirty_digits: list[str], tmp_path: Path, command: Run, train_here: Train
) -> None:
    folders = ["--data-dir", "data", "--device", "cpu"]
    trained = train_here(*SHORT, "--dataset", "folder", *folders, "--total-iters", "2", "--max-bad-images", "0.1")
    assert trained.returncode == 0, trained.stderr
    status, output, errors = command("recalibrate", "models/model.pkl", "out.pkl", *folders, "--max-bad-images", "0.1")
    assert (status, errors) == (0, "")
    assert any(f"left out: data/train/{name} " in output for name in dirty_digits)
    status, _, errors = command("recalibrate", "models/model.pkl", "out.pkl", *folders, "--max-bad-images", "0.001")
    assert (status, errors.count("\n")) == (1, 1)
    assert "more than --max-bad-images 0.001 accepts" in errors
