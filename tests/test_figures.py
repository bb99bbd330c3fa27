"""Figures show what the files of a run say, for any number of classes and any name."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shufflenetv2 import ShuffleNetV2
from shufflenetv2.data import Digits, build_evaluation_transform
from shufflenetv2.engine import grad_cam, try_figures
from shufflenetv2.engine.figures import reduce_to_two
from shufflenetv2.report import ClassCounts, protect, write_confusion, write_figures, write_grid
from shufflenetv2.report.figures import draw_class_accuracy, draw_confusion, wrap
from shufflenetv2.weights import Preprocessing
from tests.models import random_images
from tests.runs import write_run
from tests.support import SHORT, Train
from tests.test_records import read_csv

UNUSUAL_NAMES = [
    'great white shark, "man-eater"',
    "Привет",
    "猫 🐱",
    "crème\nbrûlée",
    "not UTF-8: \udcff",
    "=1+1",
    "",
    "a" * 300,
]


def pixels(path: Path) -> np.ndarray:
    """Return the pixels of a PNG file, RGB."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_a_run_has_a_figure_of_everything(tmp_path: Path) -> None:
    write_figures(write_run(tmp_path), Digits("val"))
    names = ["calibration", "class_accuracy", "confusion_matrix", "curves", "learning_rate", "mistakes", "uncertain"]
    assert sorted(path.stem for path in (tmp_path / "figures").iterdir()) == names
    for name in names:
        assert (pixels(tmp_path / f"figures/{name}.png") < 200).any(), name


def test_a_training_draws_figures_and_an_evaluation_unless_told_not_to(tmp_path: Path, train_here: Train) -> None:
    options = [*SHORT, "--batch-size", "128", "--total-iters", "1", "--figures"]
    assert train_here(*options).returncode == 0
    names = {path.stem for path in (tmp_path / "logs/models/figures").iterdir()}
    assert names >= {
        "curves",
        "learning_rate",
        "confusion_matrix",
        "class_accuracy",
        "calibration",
        "grad_cam",
        "embedding",
        "batch-1",
    }
    assert "figures" not in (tmp_path / "logs/models/train.log").read_text()  # no warning
    assert train_here("--eval", "--dataset", "digits", "--device", "cpu", "--no-figures").returncode == 0
    assert not [*tmp_path.glob("logs/eval/*/figures")]
    assert len([*tmp_path.glob("logs/eval/*/report.html")]) == 1


def test_grad_cam_of_the_last_maps_is_their_sum_weighted_by_the_classifier() -> None:
    """With global average pooling Grad-CAM is CAM (Zhou et al., 2016), which needs no gradient."""
    network = ShuffleNetV2(128, 5, "0.5x").eval()
    network.initialize_weights(torch.Generator().manual_seed(0))
    images = random_images(3, size=128)
    with torch.no_grad():
        labels = network(images).argmax(1)
        maps = network.forward_features(images)["conv_last"]
        weights = network.state_dict()["classifier.0.weight"][labels]
    expected = torch.einsum("nk,nkhw->nhw", weights, maps).relu()
    expected = torch.nn.functional.interpolate(expected[:, None], (128, 128), mode="bilinear")[:, 0]
    expected /= expected.amax((1, 2), keepdim=True)
    torch.testing.assert_close(grad_cam(network, images, labels), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [16, 32, 96])
def test_grad_cam_of_small_images_distinguishes_places(size: int) -> None:
    network = ShuffleNetV2(size, 5, "0.5x").eval()
    network.initialize_weights(torch.Generator().manual_seed(0))
    heat = grad_cam(network, random_images(2, size=size), torch.tensor([1, 3]))
    assert heat.shape == (2, size, size)
    assert heat.min() >= 0
    assert heat.max() == 1
    assert heat.std() > 0


def test_embeddings_of_separate_classes_are_apart() -> None:
    labels = np.arange(120) % 3
    embeddings = np.random.default_rng(0).normal(size=(120, 40)) + 20 * np.eye(40)[labels]
    for count in (120, 30):  # t-SNE if scikit-learn is installed, principal components
        points = reduce_to_two(embeddings[:count])
        assert points.shape == (count, 2)
        centres = np.stack([points[labels[:count] == label].mean(0) for label in range(3)])
        nearest = np.linalg.norm(points[:, None] - centres, axis=2).argmin(1)
        assert np.array_equal(nearest, labels[:count])


def test_a_run_without_validation_has_its_curves(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    for name in ("summary.json", "predictions.csv"):
        (folder / name).unlink()
    write_figures(folder, None)
    assert sorted(path.stem for path in (tmp_path / "figures").iterdir()) == ["curves", "learning_rate"]


def test_figures_that_cannot_be_drawn_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_run(tmp_path)
    (tmp_path / "figures").write_text("")
    with caplog.at_level(logging.INFO, "shufflenetv2"):
        try_figures(tmp_path, None, None, build_evaluation_transform(Preprocessing()))
    (message,) = [entry.getMessage() for entry in caplog.records if entry.name == "shufflenetv2"]
    assert "figures" in message


@pytest.mark.filterwarnings("error")
def test_unusual_class_names_are_written_and_drawn(tmp_path: Path) -> None:
    counts = np.eye(len(UNUSUAL_NAMES), dtype=np.int64)
    write_confusion(tmp_path, counts, UNUSUAL_NAMES)
    written = [protect(name).encode(errors="backslashreplace").decode() for name in UNUSUAL_NAMES]
    assert [row[0] for row in read_csv(tmp_path / "per_class.csv")[1:]] == written
    assert read_csv(tmp_path / "confusion.csv")[0][1:] == written
    draw_confusion(tmp_path / "matrix.png", counts, UNUSUAL_NAMES)
    assert 500 < pixels(tmp_path / "matrix.png").shape[1] < 1200
    write_grid(tmp_path / "grid.png", np.zeros((len(UNUSUAL_NAMES), 3, 32, 32), np.uint8), UNUSUAL_NAMES)


@pytest.mark.parametrize("classes", [1, 20, 61, 1337])
def test_figures_by_class_have_a_useful_size_for_any_number_of_classes(tmp_path: Path, classes: int) -> None:
    counts = np.random.default_rng(classes).multinomial(50, np.full(classes, 1 / classes), classes)
    names = [f"class {label}" for label in range(classes)]
    draw_confusion(tmp_path / "matrix.png", counts, names)
    draw_class_accuracy(tmp_path / "accuracy.png", ClassCounts.from_confusion(counts), names)
    for name in ("matrix.png", "accuracy.png"):
        height, width, _ = pixels(tmp_path / name).shape
        assert 180 < height < 1500
        assert 350 < width < 1500
        assert (tmp_path / name).stat().st_size < 1_000_000


@pytest.mark.parametrize("classes", [20, 300])
def test_confusion_tables_hold_all_counts(tmp_path: Path, classes: int) -> None:
    counts = np.random.default_rng(classes).multinomial(50, np.full(classes, 1 / classes), classes)
    write_confusion(tmp_path, counts, [f"class {label}" for label in range(classes)])
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


def test_colours_show_fractions_of_the_true_class(tmp_path: Path) -> None:
    """Of two classes one has a thousand times the images of the other, and the same fractions."""
    draw_confusion(tmp_path / "matrix.png", np.array([[3000, 1000], [1, 3]]), ["many", "few"])
    colours, counts = np.unique(pixels(tmp_path / "matrix.png").reshape(-1, 3), axis=0, return_counts=True)
    areas = sorted(zip(counts.tolist(), map(tuple, colours.tolist()), strict=True), reverse=True)
    assert areas[0][1] == (255, 255, 255)
    (right, dark), (wrong, light) = sorted(areas[1:3], key=lambda area: sum(area[1]))
    assert 0.9 < right / wrong < 1.1  # two squares each
    assert sum(dark) < sum(light)


@pytest.mark.parametrize(("count", "layout"), [(1, (1, 1)), (7, (7, 1)), (8, (8, 1)), (9, (8, 2)), (70, (8, 8))])
def test_a_grid_shows_the_pixels_of_the_images(tmp_path: Path, count: int, layout: tuple[int, int]) -> None:
    images = np.random.default_rng(count).integers(0, 256, (count, 3, 48, 120), dtype=np.uint8)
    path = tmp_path / "images" / "000020.png"
    write_grid(path, images, ["cat"] * count)
    with Image.open(path) as image:
        assert image.format == "PNG"
        grid = np.asarray(image.convert("RGB"))
    columns, rows = layout
    width, height = 120 + 8, 48 + 8 + 17
    assert grid.shape == (8 + rows * height, 8 + columns * width, 3)
    for number, image_bgr in enumerate(images[:64]):
        x, y = 8 + number % columns * width, 8 + number // columns * height
        assert np.array_equal(grid[y : y + 48, x : x + 120], image_bgr[::-1].transpose(1, 2, 0))
        assert (grid[y + 48 : y + height - 8, x : x + 120] < 128).any()  # the caption


def test_small_images_are_magnified_without_blurring(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32), dtype=np.uint8)
    write_grid(tmp_path / "grid.png", images, ["3"])
    with Image.open(tmp_path / "grid.png") as image:
        tile = np.asarray(image.convert("RGB"))[8 : 8 + 128, 8 : 8 + 128]
    assert np.array_equal(tile, images[0, ::-1].transpose(1, 2, 0).repeat(4, 0).repeat(4, 1))


def test_captions_fit_below_their_images() -> None:
    for text in [*UNUSUAL_NAMES, "great white shark 0.70 / tiger shark, Galeocerdo cuvieri 0.30 and much more of it " * 3]:
        lines = wrap(text, 120)
        assert len(lines) <= 2
        assert all(len(line) <= 20 for line in lines)
