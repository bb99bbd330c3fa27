"""What the start of a run says about its data, what it refuses (mistakes with folders, files on both sides), and its log."""

import os
import shutil
from pathlib import Path

import pytest

from shufflenetv2 import UserError
from shufflenetv2.cli import build
from shufflenetv2.cli.command import parse, training_parser
from shufflenetv2.cli.train import log_folder
from shufflenetv2.data import Digits, FolderDataset, Limit, describe_classes, find_problems, hold_out, shared_files
from tests.support import Train

UNLIMITED = Limit(files=10**9, bytes=10**12, seconds=1e9)


def fill(folder: Path, counts: dict[str, int], prefix: str = "") -> Path:
    """Make class folders with files that no two share, and that have few different sizes."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            content = f"{prefix}{folder.name}/{name}/{number}"
            (folder / name / f"{number:04}.jpg").write_text(content + "." * (40 + number % 3 - len(content)))
    return folder


def refusal(*arguments: object) -> str:
    """Return the message for a data set that cannot be trained on, as the user sees it."""
    parser = training_parser()
    with pytest.raises(UserError) as caught:
        build.open_datasets(parse([*map(str, arguments)], parser))
    assert caught.value.status == 2
    message = parser.spell(str(caught.value))
    assert "\n" not in message
    assert "`" not in message
    return message


def pairs(train: Path, val: Path, limit: Limit | None = None) -> list[tuple[str, str]]:
    train_set, val_set = FolderDataset(train), FolderDataset(val)
    return [(train_set.name(i), val_set.name(j)) for i, j in shared_files(train_set, val_set, limit).pairs]


def test_the_start_names_the_classes_with_their_images_and_warns_of_shared_files(
    train_here: Train, tmp_path: Path, photographs: Path
) -> None:
    val = tmp_path / "val"
    shutil.copytree(photographs / "cat", val / "cat")
    for number in range(3, 7):
        (val / "cat" / f"{number}.jpg").unlink()
    done = train_here(
        "--train-dir", photographs, "--val-dir", val, "--input-size", "32", "--batch-size", "4", "--total-iters", "1",
        "--device", "cpu", "--no-figures", "--model-size", "0.5x",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "training    21 images in 3 classes (" in done.stdout
    assert "classes     cat, dog, owl; 7 images each" in done.stdout
    assert "warning: no validation images of dog, owl;" in done.stdout
    assert "warning: 3 of 3 validation images are also training images" in done.stdout
    assert f"{val}/cat/0.jpg has the content of {photographs}/cat/0.jpg" in done.stdout
    assert "remove the copies" in (tmp_path / "logs/models/train.log").read_text()


def test_classes_are_named_in_the_order_of_their_labels_with_the_smallest_and_the_largest(tmp_path: Path) -> None:
    fill(tmp_path / "D", {"ant": 2, "bee": 5, "cat": 3})
    assert describe_classes(FolderDataset(tmp_path / "D")) == "ant, bee, cat; 2 (ant) to 5 (bee) images each"
    mapped = FolderDataset(tmp_path / "D", ["unicorn", "cat", "bee", "ant"])
    assert describe_classes(mapped) == "unicorn, cat, bee, ant; 0 (unicorn) to 5 (bee) images each"
    # A class without training images is no reason for a warning about the validation images.
    assert not any("no validation images" in line for line in find_problems(mapped, mapped))


def test_very_unequal_classes_get_a_suggestion_unless_the_run_follows_it(tmp_path: Path) -> None:
    folder = fill(tmp_path / "D", {"ant": 2, "bee": 19, "cat": 20})
    dataset = FolderDataset(folder, ["unicorn", "cat", "bee", "ant"])
    (suggestion,) = find_problems(dataset, None)
    assert suggestion.startswith("the largest class, cat, has 10 times as many images as the smallest, ant; ")
    assert find_problems(dataset, None, is_balanced=True) == []
    (folder / "cat/0000.jpg").unlink()
    assert find_problems(FolderDataset(folder), None) == []
    alone = FolderDataset(fill(tmp_path / "E", {"cat": 20}), ["ant", "cat"])
    assert find_problems(alone, None) == []  # a class without images is none of the two


def test_a_thousand_classes_are_described_in_one_short_line(tmp_path: Path) -> None:
    fill(tmp_path / "D", {f"class-{number:04}-{'x' * 50}": 1 for number in range(1000)})
    dataset = FolderDataset(tmp_path / "D")
    line = describe_classes(dataset)
    assert line.startswith("class-0000-xxx")
    assert "class-0004-xxx" in line
    assert "class-0005" not in line
    assert "..., class-0999-xxx" in line
    assert line.endswith("; 1 image each")
    assert len(line) < 250
    first = FolderDataset(fill(tmp_path / "V", {"class-0000-" + "x" * 50: 1}), dataset.class_names)
    warning = find_problems(dataset, first)[0]
    assert "999 classes in all" in warning
    assert len(warning) < 250


def test_images_on_both_sides_are_found_by_content_under_any_name(tmp_path: Path) -> None:
    train, val = fill(tmp_path / "train", {"a": 30, "b": 30}), fill(tmp_path / "val", {"a": 20, "b": 20})
    assert pairs(train, val) == []
    shutil.copy(train / "a/0007.jpg", val / "a/0003.jpg")
    shutil.copy(train / "a/0007.jpg", val / "b/renamed.png")  # even under another class
    os.link(train / "b/0001.jpg", val / "b/hard-link.jpg")
    (val / "a/link.jpg").symlink_to(train / "b/0002.jpg")
    expected = [("a/0007.jpg", "a/0003.jpg"), ("b/0002.jpg", "a/link.jpg"), ("b/0001.jpg", "b/hard-link.jpg"),
                ("a/0007.jpg", "b/renamed.png")]  # fmt: skip
    assert pairs(train, val) == pairs(train, val, UNLIMITED) == expected
    shutil.copy(train / "a/0007.jpg", train / "a/0008.jpg")
    assert pairs(train, val) == expected  # one pair for each validation image: the first copy


def test_files_that_are_no_plain_files_do_not_stop_the_comparison(tmp_path: Path) -> None:
    train, val = fill(tmp_path / "train", {"a": 3}), fill(tmp_path / "val", {"a": 3})
    shutil.copy(train / "a/0000.jpg", val / "a/0002.jpg")
    for folder in (train, val):
        os.mkfifo(folder / "a/pipe.jpg")  # reading it would wait for ever
        (folder / "a/dangling.jpg").symlink_to("absent")
        (folder / "a/empty.jpg").touch()
    assert pairs(train, val) == [("a/0000.jpg", "a/0002.jpg")]


def test_copies_within_one_folder_are_found_across_its_held_out_part(tmp_path: Path) -> None:
    folder = fill(tmp_path / "D", {"a": 10, "b": 10})
    train_set, val_set = hold_out(FolderDataset(folder), 0.2, 0)
    assert shared_files(train_set, val_set).pairs == []
    shutil.copy(folder / train_set.name(5), folder / val_set.name(1))
    assert shared_files(train_set, val_set).pairs == [(5, 1)]
    assert any("1 of 4 validation images are also training images" in line for line in find_problems(train_set, val_set))


def test_a_limit_ends_the_comparison_and_what_was_found_is_reported(tmp_path: Path) -> None:
    train, val = fill(tmp_path / "train", {"a": 30}), fill(tmp_path / "val", {"a": 30})
    for number in (0, 1, 2):  # of the sizes 40, 41 and 42
        shutil.copy(train / f"a/{number:04}.jpg", val / f"a/{number:04}.jpg")
    train_set, val_set = FolderDataset(train), FolderDataset(val)
    everything = shared_files(train_set, val_set)
    assert (len(everything.pairs), everything.complete) == (3, True)
    for limit, found in (
        (Limit(files=59, bytes=10**9, seconds=1e9), 0),
        (Limit(files=60, bytes=20 * 40 + 1, seconds=1e9), 1),
        (Limit(files=60, bytes=10**9, seconds=0), 0),
    ):
        shared = shared_files(train_set, val_set, limit)
        assert (len(shared.pairs), shared.complete) == (found, False)
    assert shared_files(train_set, val_set, UNLIMITED) == everything


def test_data_sets_without_files_share_none() -> None:
    assert shared_files(Digits("train"), Digits("val")).pairs == []
    assert shared_files(*hold_out(Digits("train"), 0.5, 0)).complete


@pytest.mark.parametrize(
    ("splits", "remedy"),
    [
        (("train", "val"), "give --data-dir {D}"),
        (("test", "train", "validation"), "give --data-dir {D}"),
        (("train", "valid"), "give --data-dir {D}"),
        (("test", "train"), "give --train-dir {D}/train --val-dir {D}/test"),
        (("train",), "give --train-dir {D}/train"),
    ],
)
def test_a_folder_of_splits_is_no_folder_of_classes(tmp_path: Path, splits: tuple[str, ...], remedy: str) -> None:
    folder = tmp_path / "D"
    for split in splits:
        fill(folder / split, {"a": 2, "b": 2})
    message = refusal("--train-dir", folder)
    assert message == f"--train-dir {folder} holds {' and '.join(splits)}, which are no classes; {remedy.format(D=folder)}"
    words = remedy.format(D=folder).removeprefix("give ").split()
    train_set, val_set = build.open_datasets(parse(words))  # the remedy works
    assert train_set.class_names == ["a", "b"]
    assert (val_set is None) == (len(splits) == 1)
    if val_set:
        message = refusal("--train-dir", folder / "train", "--val-dir", folder)
        inner = next(name for name in ("val", "validation", "valid", "test") if name in splits)
        assert message.endswith(f"which are no classes; give --val-dir {folder}/{inner}")


def test_classes_with_the_names_of_splits_are_trained_where_they_hold_images(tmp_path: Path) -> None:
    fill(tmp_path / "D", {"train": 2, "test": 2})
    assert build.open_datasets(parse(["--train-dir", str(tmp_path / "D")]))[0].class_names == ["test", "train"]
    fill(tmp_path / "E" / "train", {"engines": 2})  # a class "train" with subfolders, beside another class
    fill(tmp_path / "E", {"bus": 2})
    assert build.open_datasets(parse(["--train-dir", str(tmp_path / "E")]))[0].class_names == ["bus", "train"]


def test_mistakes_with_folders_get_a_line_with_the_remedy(tmp_path: Path) -> None:
    folder = fill(tmp_path / "D", {"cat": 2, "dog": 2})
    assert refusal("--data-dir", folder).endswith(f"if that is the folder of class folders, give --train-dir {folder}")

    flat = tmp_path / "flat"
    flat.mkdir()
    for number in range(3):
        (flat / f"{number}.jpg").touch()
    assert refusal("--train-dir", flat) == (
        f"{flat} holds no class folders but 3 images; put the images of each class into a folder of its own there"
    )
    single = fill(tmp_path / "single", {"cat": 2})
    assert refusal("--train-dir", single) == (f"{single} has a single class folder, 'cat'; a classifier needs two or more")
    other = fill(tmp_path / "other", {"Cat": 2, "dog": 1, "owl": 1})
    message = refusal("--train-dir", folder, "--val-dir", other)
    assert "'Cat' and 1 more, which is none of the 2 known classes; did you mean 'cat'?" in message
    assert "--class-map" in message
    message = refusal("--train-dir", folder, "--class-map", tmp_path / "absent.txt")
    assert message.startswith(f"--class-map {tmp_path / 'absent.txt'} cannot be read: No such file")
    assert "one class name per line" in message


def test_runs_with_different_folders_have_different_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def log(*arguments: str) -> Path:
        return log_folder(parse(["--train-dir", "D", *arguments]).common)

    assert log() == log("--save", str(tmp_path / "models")) == Path("logs/models")
    assert log("--experiment", "first") == log("--save", "models/first") == Path("logs/first")
    assert log("--experiment", "models") == Path("models/models/logs")
    assert log("--save", "a/run") == Path("a/run/logs")
    assert log("--save", "b", "--experiment", "run") == Path("b/run/logs")
    assert log("--save", "a/run", "--log-dir", "L") == Path("L/run")

    def leave(folder: str, save: str) -> None:
        """Leave the folders of a run."""
        for path in (folder, save):
            Path(path).mkdir(parents=True, exist_ok=True)
        Path(folder, "options.yaml").write_text(f"save: {save}\n")

    leave("L/run", "a/run")
    assert log("--save", "./a/run", "--log-dir", "L") == Path("L/run")
    with pytest.raises(UserError, match=r"^L/run is the log of .*/a/run; give `save` b/run another `log_dir`$"):
        log("--save", "b/run", "--log-dir", "L")
    # A run that version 0.1.0 began continues its log.
    leave("logs/run", "b/run")
    assert log("--save", "b/run") == Path("logs/run")
    assert log("--save", "a/run") == Path("a/run/logs")
