"""What a run leaves can be read by the programs it is for, and a killed run leaves what an untouched one does."""

import csv
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shufflenetv2.report import figures
from shufflenetv2.report.figures import write_confusion, write_grid
from shufflenetv2.report.records import COLUMNS, EVENT_FILES, Records, ReportError
from tests.support import ONE_THREAD, ROOT

ODD_NAMES = ['great white shark, "man-eater"', "Привет", "猫 🐱", "crème\nbrûlée", "not UTF-8: \udcff", "=1+1", "", "a" * 300]


def record(folder: Path, first: int, last: int, goes_on_after: int = 0, *, tensorboard: bool = False) -> None:
    """What iterations `first` to `last` of some run write; its values have all their bits."""
    records = Records(folder, goes_on_after, tensorboard=tensorboard)
    for iteration in range(first, last + 1):
        records.write(iteration, "train", {"learning_rate": 0.1, "loss": 1 / iteration, "top1_error": iteration / 7})
        if iteration % 3 == 0:
            records.write(iteration, "test", {"loss": 2 / iteration, "val_time": 0.5})
            records.write(iteration, "test_ema", {"loss": 3 / iteration, "val_time": 0.5})
    records.close()


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("metrics.csv", "metrics.jsonl")}


def read_csv(path: Path) -> list[list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def read_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) by tag, as TensorBoard would show them."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator: Any = accumulators.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in tags}


@pytest.fixture
def untouched(tmp_path: Path) -> dict[str, bytes]:
    """The files of a run of ten iterations that nothing happens to."""
    record(tmp_path / "untouched", 1, 10)
    return files(tmp_path / "untouched")


def test_what_is_written_is_read_back_exactly(tmp_path: Path) -> None:
    records = Records(tmp_path / "logs" / "run", 0, tensorboard=False)
    train = {"learning_rate": 0.1 + 0.2, "loss": 1 / 3, "images_per_second": 1e-17}
    records.write(20, "train", {**train, "extra": 5})
    records.write(20, "test", {"loss": float(np.float32(0.1)), "val_time": 2})
    records.close()
    header, *rows = read_csv(tmp_path / "logs" / "run" / "metrics.csv")
    assert header == list(COLUMNS)
    first, second = (dict(zip(header, row, strict=True)) for row in rows)
    assert (first["iteration"], first["kind"], first["val_time"]) == ("20", "train", "")
    assert {name: float(first[name]) for name in train} == train
    assert float(second["loss"]) == float(np.float32(0.1))
    lines = (tmp_path / "logs" / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"iteration": 20, "kind": "train", **train, "extra": 5.0},
        {"iteration": 20, "kind": "test", "loss": float(np.float32(0.1)), "val_time": 2.0},
    ]


@pytest.mark.parametrize("goes_on_after", [1, 4, 6, 8])
def test_an_interrupted_run_leaves_the_files_of_an_untouched_one(
    tmp_path: Path, untouched: dict[str, bytes], goes_on_after: int
) -> None:
    record(tmp_path, 1, 8)
    record(tmp_path, goes_on_after + 1, 10, goes_on_after)
    assert files(tmp_path) == untouched
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted(untouched)  # nothing temporary


@pytest.mark.parametrize("name", ["metrics.csv", "metrics.jsonl"])
def test_a_line_cut_by_the_kill_is_dropped(tmp_path: Path, untouched: dict[str, bytes], name: str) -> None:
    record(tmp_path, 1, 8)
    os.truncate(tmp_path / name, (tmp_path / name).stat().st_size - 9)
    record(tmp_path, 7, 10, 6)
    assert files(tmp_path) == untouched


def test_what_a_power_cut_garbled_is_dropped(tmp_path: Path, untouched: dict[str, bytes]) -> None:
    record(tmp_path, 1, 6)
    for name in untouched:
        with open(tmp_path / name, "ab") as file:
            file.write(bytes(100) + b'\n{"iteration"\n')
    record(tmp_path, 7, 10, 6)
    assert files(tmp_path) == untouched


def test_a_validation_done_again_is_there_once(tmp_path: Path, untouched: dict[str, bytes]) -> None:
    """The run was stopped between the two tests of iteration 6, and goes on with the first of them."""
    record(tmp_path, 1, 5)
    records = Records(tmp_path, 5, tensorboard=False)
    records.write(6, "train", {"learning_rate": 0.1, "loss": 1 / 6, "top1_error": 6 / 7})
    records.write(6, "test", {"loss": 2 / 6, "val_time": 77.0})
    records = Records(tmp_path, 6, tensorboard=False)
    records.write(6, "test", {"loss": 2 / 6, "val_time": 0.5})
    records.write(6, "test_ema", {"loss": 3 / 6, "val_time": 0.5})
    record(tmp_path, 7, 10, 6)
    assert files(tmp_path) == untouched


def test_a_run_from_the_beginning_replaces_what_another_left(tmp_path: Path, untouched: dict[str, bytes]) -> None:
    record(tmp_path, 1, 20, tensorboard=True)
    assert list(tmp_path.glob(EVENT_FILES))
    record(tmp_path, 1, 10)
    assert files(tmp_path) == untouched
    assert not list(tmp_path.glob(EVENT_FILES))


def test_tensorboard_shows_an_interrupted_run_as_an_untouched_one(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    record(tmp_path / "a", 1, 10, tensorboard=True)
    record(tmp_path / "b", 1, 8, tensorboard=True)
    record(tmp_path / "b", 6, 10, 5, tensorboard=True)
    shown = read_events(tmp_path / "a")
    assert shown["train/loss"] == [(iteration, float(np.float32(1 / iteration))) for iteration in range(1, 11)]
    assert [step for step, _ in shown["test_ema/loss"]] == [3, 6, 9]
    assert read_events(tmp_path / "b") == shown
    assert set(threading.enumerate()) <= before


def test_a_killed_run_keeps_every_row(tmp_path: Path) -> None:
    """TensorBoard's writer has a thread of its own, which SIGKILL gives no time to finish."""
    pytest.importorskip("tensorboard")
    program = (
        "import os, signal, sys; from pathlib import Path; from shufflenetv2.report.records import Records\n"
        "records = Records(Path(sys.argv[1]), 0)\n"
        "for iteration in range(1, 31): records.write(iteration, 'train', {'loss': 1 / iteration})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], cwd=ROOT, env={**os.environ, **ONE_THREAD}, capture_output=True, timeout=100
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not done.stderr
    assert len(read_csv(tmp_path / "metrics.csv")) == 31
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 30
    assert [step for step, _ in read_events(tmp_path)["train/loss"]] == list(range(1, 31))


def test_tensorboard_is_imported_only_when_it_is_wanted(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from shufflenetv2.report import figures; "
        "from shufflenetv2.report.records import Records\n"
        "Records(Path(sys.argv[1]), 0); records = Records(Path(sys.argv[1]), 0, tensorboard=False)\n"
        "records.write(1, 'train', {'loss': 1.0})\n"
        "print({'torch', 'tensorboard', 'cv2', 'matplotlib'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout == "set()\n"


def test_without_tensorboard_one_line_says_so_and_the_rest_goes_on(
    tmp_path: Path, untouched: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as Python marks what cannot be imported
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    with caplog.at_level(logging.INFO, "shufflenetv2"):
        record(tmp_path, 1, 10, tensorboard=True)
    (message,) = [entry.getMessage() for entry in caplog.records if entry.name == "shufflenetv2"]
    assert "TensorBoard" in message
    assert "pip install tensorboard" in message
    assert "\n" not in message
    assert files(tmp_path) == untouched


def test_what_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match=r"metrics\.jsonl cannot be read: Not a directory") as raised:
        Records(tmp_path / "file", 0)
    assert raised.value.status == 1
    records = Records(tmp_path / "run", 0, tensorboard=False)
    (tmp_path / "run" / "metrics.csv").unlink()
    (tmp_path / "run" / "metrics.csv").mkdir()
    with pytest.raises(ReportError, match=r"metrics\.csv cannot be written: Is a directory"):
        records.write(1, "train", {"loss": 1.0})


def test_each_class_has_its_accuracy_and_its_worst_confusion(tmp_path: Path) -> None:
    counts = np.array([[8, 2, 0, 0], [1, 3, 5, 0], [0, 0, 4, 0], [0, 0, 0, 0]])
    before = counts.copy()
    write_confusion(tmp_path / "new", counts, ["cat", "dog, wild", "owl", "eel"])
    assert np.array_equal(counts, before)
    assert read_csv(tmp_path / "new" / "per_class.csv") == [
        ["class", "images", "correct", "accuracy", "most_confused_with", "times"],
        ["cat", "10", "8", "0.8", "dog, wild", "2"],
        ["dog, wild", "9", "3", str(3 / 9), "owl", "5"],
        ["owl", "4", "4", "1.0", "", ""],
        ["eel", "0", "0", "", "", ""],
    ]
    assert read_csv(tmp_path / "new" / "confusion.csv")[:2] == [
        ["true class", "cat", "dog, wild", "owl", "eel"],
        ["cat", "8", "2", "0", "0"],
    ]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "confusion.csv", "confusion_matrix.png", "per_class.csv",
    ]  # fmt: skip


@pytest.mark.parametrize("fonts", [figures.FONTS, ()], ids=["system's font", "Pillow's font"])
def test_odd_class_names_are_kept_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fonts: tuple[str, ...]) -> None:
    monkeypatch.setattr(figures, "FONTS", fonts)
    write_confusion(tmp_path, np.eye(len(ODD_NAMES), dtype=np.int64), ODD_NAMES)
    written = [name.encode(errors="backslashreplace").decode() for name in ODD_NAMES]
    assert [row[0] for row in read_csv(tmp_path / "per_class.csv")[1:]] == written
    assert read_csv(tmp_path / "confusion.csv")[0][1:] == written
    with Image.open(tmp_path / "confusion_matrix.png") as image:
        assert 500 < image.width < 1200
    write_grid(tmp_path / "grid.png", np.zeros((len(ODD_NAMES), 3, 32, 32), np.uint8), ODD_NAMES)


def test_without_a_system_font_accents_are_left_out_rather_than_the_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "FONTS", ())
    assert figures._drawable("crème  brûlée", figures._font(12)) == "creme brulee"


@pytest.mark.parametrize("classes", [1, 2, 20, 21, 71, 200, 499, 1000, 1337])
def test_a_figure_has_a_sensible_size_however_many_classes(tmp_path: Path, classes: int) -> None:
    counts = np.random.default_rng(classes).multinomial(50, np.full(classes, 1 / classes), classes)
    write_confusion(tmp_path, counts, [f"class {label}" for label in range(classes)])
    path = tmp_path / "confusion_matrix.png"
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert 350 < image.width < 1500
        assert 350 < image.height < 1500
    assert path.stat().st_size < 1_000_000
    assert len(read_csv(tmp_path / "per_class.csv")) == classes + 1
    table = read_csv(tmp_path / "confusion.csv")
    if classes <= 200:
        assert [[int(count) for count in row[1:]] for row in table[1:]] == counts.tolist()
    else:
        assert table[0] == ["true", "guess", "count"]
        assert len(table) == np.count_nonzero(counts) + 1
        assert {(row[0], row[1]): int(row[2]) for row in table[1:]} == {
            (f"class {true}", f"class {guess}"): count for (true, guess), count in np.ndenumerate(counts) if count
        }


def test_a_colour_is_a_share_of_the_row(tmp_path: Path) -> None:
    """Two classes, one with a thousand times the images of the other, and the same shares."""
    write_confusion(tmp_path, np.array([[3000, 1000], [1, 3]]), ["many", "few"])
    with Image.open(tmp_path / "confusion_matrix.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    areas = sorted(zip(counts.tolist(), map(tuple, colours.tolist()), strict=True), reverse=True)
    assert areas[0][1] == (255, 255, 255)
    (right, dark), (wrong, light) = sorted(areas[1:3], key=lambda area: sum(area[1]))
    assert min(right, wrong) > 2 * 230 * 230  # two squares of 240 pixels each, and a number in them
    assert max(right, wrong) < 2.1 * 240 * 240
    assert sum(dark) < sum(light)


@pytest.mark.parametrize(("count", "shown"), [(1, (1, 1)), (7, (7, 1)), (8, (8, 1)), (9, (8, 2)), (70, (8, 8))])
def test_a_grid_shows_the_images_as_they_are(tmp_path: Path, count: int, shown: tuple[int, int]) -> None:
    images = np.random.default_rng(count).integers(0, 256, (count, 3, 48, 120), dtype=np.uint8)
    path = tmp_path / "seen" / "000020.png"
    write_grid(path, images, ["cat"] * count)
    with Image.open(path) as image:
        assert image.format == "PNG"
        grid = np.asarray(image.convert("RGB"))
    columns, rows = shown
    width, height = 120 + 8, 48 + 8 + 17
    assert grid.shape == (8 + rows * height, 8 + columns * width, 3)
    for number, image_bgr in enumerate(images[:64]):
        x, y = 8 + number % columns * width, 8 + number // columns * height
        assert np.array_equal(grid[y : y + 48, x : x + 120], image_bgr[::-1].transpose(1, 2, 0))
        assert (grid[y + 48 : y + height - 8, x : x + 120] < 128).any()  # its caption


def test_small_images_are_magnified_without_blurring(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32), dtype=np.uint8)
    write_grid(tmp_path / "grid.png", images, ["3"])
    with Image.open(tmp_path / "grid.png") as image:
        tile = np.asarray(image.convert("RGB"))[8 : 8 + 128, 8 : 8 + 128]
    assert np.array_equal(tile, images[0, ::-1].transpose(1, 2, 0).repeat(4, 0).repeat(4, 1))


def test_captions_keep_to_their_width() -> None:
    font = figures._font(13)
    for text in [*ODD_NAMES, "great white shark 0.70 / tiger shark, Galeocerdo cuvieri 0.30 and much more of it " * 3]:
        lines = figures._wrapped(text, font, 120)
        assert len(lines) <= 2
        assert all(font.getlength(line) <= 120 for line in lines)


def test_a_figure_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match=r"per_class\.csv cannot be written"):
        write_confusion(tmp_path / "file", np.eye(2, dtype=np.int64), ["a", "b"])
