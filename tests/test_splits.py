"""The held-out part of a data set, the data sets that options name, and the file with the order of the classes."""

from pathlib import Path

import numpy as np
import pytest

from shufflenetv2.config import DataConfig
from shufflenetv2.data import (
    Dataset,
    DecodedImage,
    Digits,
    Subset,
    hold_out,
    open_datasets,
    open_validation_set,
    read_class_map,
)
from shufflenetv2.errors import UserError
from tests.support import pixels


class LabelledPixels:
    """A data set of images of one pixel, whose value is the index of the sample."""

    def __init__(self, counts: dict[str, int], seed: int = 0) -> None:
        self.class_names = list(counts)
        labels = np.repeat(np.arange(len(counts)), list(counts.values()))
        self.targets = np.random.default_rng(seed).permutation(labels)

    def name(self, index: int) -> str:
        """Return the class and the number of the sample within the class."""
        label = self.targets[index]
        return f"{self.class_names[label]}{(self.targets[:index] == label).sum()}"

    def image(self, index: int) -> DecodedImage:
        return DecodedImage(np.full((1, 1, 3), index, np.uint8))

    def __len__(self) -> int:
        return len(self.targets)


def names(dataset: Dataset) -> list[str]:
    return [dataset.name(index) for index in range(len(dataset))]


@pytest.mark.parametrize(("fraction", "expected"), [(0.1, [10, 1, 1, 0, 0]), (0.5, [50, 2, 1, 0, 0]), (0.99, [99, 3, 1, 0, 0])])
def test_the_fraction_of_each_class_is_held_out_and_at_least_one_image_is_left(fraction: float, expected: list[int]) -> None:
    dataset = LabelledPixels({"a": 100, "b": 4, "c": 2, "d": 1, "e": 0})
    train, val = hold_out(dataset, fraction, 3)
    assert np.bincount(val.targets, minlength=5).tolist() == expected
    assert np.bincount(train.targets, minlength=5).tolist() == [100 - expected[0], 4 - expected[1], 1, 1, 0]
    assert train.class_names == val.class_names == dataset.class_names
    # Every sample is in one part, and both parts have the order of the data set.
    assert sorted(names(train) + names(val)) == sorted(names(dataset))
    for part in (train, val):
        assert names(part) == [name for name in names(dataset) if name in set(names(part))]
        assert [pixels(part, index)[0, 0, 0] for index in range(len(part))] == [
            names(dataset).index(name) for name in names(part)
        ]
        assert [name[0] for name in names(part)] == [part.class_names[label] for label in part.targets]


def test_the_held_out_part_depends_on_the_seed_and_the_class() -> None:
    dataset = LabelledPixels({"a": 50, "b": 50})
    first, again, other = (names(hold_out(dataset, 0.2, seed)[1]) for seed in (1, 1, 2))
    assert first == again != other
    # Two classes of the same size are divided differently.
    assert {name[1:] for name in first if name[0] == "a"} != {name[1:] for name in first if name[0] == "b"}
    assert first[:4] == ["b1", "a3", "b5", "b6"]  # the same in every release


def test_images_added_to_one_class_change_nothing_in_another() -> None:
    before = hold_out(LabelledPixels({"a": 50, "b": 50, "c": 50}), 0.2, 1)[1]
    after = hold_out(LabelledPixels({"a": 50, "b": 71, "c": 50}, seed=1), 0.2, 1)[1]
    for name in ("a", "c"):
        held_out = [{sample for sample in names(part) if sample[0] == name} for part in (before, after)]
        assert held_out[0] == held_out[1]
        assert len(held_out[0]) == 10


def test_classes_of_one_image_cannot_be_divided() -> None:
    with pytest.raises(UserError, match=r"`val_fraction` 0\.5 holds out nothing"):
        hold_out(LabelledPixels({"a": 1, "b": 1}), 0.5, 0)


def test_a_subset_has_the_images_of_its_data_set() -> None:
    digits = Digits("val")
    subset = Subset(digits, np.array([7, 300], np.int64))
    assert subset.targets.tolist() == digits.targets[[7, 300]].tolist()
    assert [subset.name(index) for index in range(len(subset))] == ["digits/val/7", "digits/val/300"]
    assert np.array_equal(pixels(subset, 1), pixels(digits, 300))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_class_map_gives_the_names_in_the_order_of_its_lines(encoding: str, newline: str, tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_bytes(newline.join(["zebra", "great white shark ", "", "#1", "Käfer", ""]).encode(encoding))
    assert read_class_map(file) == ["zebra", "great white shark", "#1", "Käfer"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"cat\ndog\n\ncat\n", "names 'cat' in line 1 and again in line 4"),
        (b"\n \n", "is empty"),
        (b"", "is empty"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (None, "cannot be read: No such file"),
    ],
)
def test_an_invalid_class_map_is_refused_in_one_line(content: bytes | None, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_class_map(file)
    assert str(error.value).startswith(f"`class_map` {file} {reason}")
    assert "\n" not in str(error.value)


def test_data_sets_are_opened_as_the_options_say(photographs: Path, tmp_path: Path) -> None:
    train_set, val_set = open_datasets(DataConfig(train_dir=str(photographs)), 0)
    assert (len(train_set), val_set) == (21, None)

    held_out = DataConfig(train_dir=str(photographs), val_fraction=0.3)
    train_set, val_set = open_datasets(held_out, 0)
    assert val_set is not None
    assert (len(train_set), len(val_set)) == (15, 6)
    assert names(open_validation_set(held_out, 0, None)) == names(val_set)

    (tmp_path / "classes.txt").write_text("owl\ndog\ncat\n")
    folders = DataConfig(train_dir=str(photographs), val_dir=str(photographs), class_map=str(tmp_path / "classes.txt"))
    for dataset in open_datasets(folders, 0):
        assert dataset is not None
        assert dataset.class_names == ["owl", "dog", "cat"]
    plain = DataConfig(val_dir=str(photographs))
    assert open_validation_set(plain, 0, ["owl", "cat", "dog"]).targets.tolist() == [1] * 7 + [2] * 7 + [0] * 7

    digits = DataConfig(dataset="digits", train_split="val", val_split="train")
    assert [len(dataset) for dataset in open_datasets(digits, 0) if dataset] == [359, 1438]


def test_another_number_of_classes_than_required_is_refused(photographs: Path) -> None:
    with pytest.raises(UserError, match=r"^`num_classes` 4: the training images have 3 classes$"):
        open_datasets(DataConfig(train_dir=str(photographs), num_classes=4), 0)
    assert open_datasets(DataConfig(train_dir=str(photographs), num_classes=3), 0)[1] is None
