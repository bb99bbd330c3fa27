"""Images that are not square: height and width in training, evaluation, weight files and exports."""

import json
from pathlib import Path

import cv2
import jsonschema
import numpy as np
import onnx
import pytest
import torch

from shufflenetv2 import ShuffleNetV2, UserError, files, read_weights
from shufflenetv2.cli.command import parse
from shufflenetv2.cli.schema import build_schema
from shufflenetv2.cli.train import run_training
from shufflenetv2.data import DataIterator, EvaluationTransform, FolderDataset, TrainTransform, read_image
from shufflenetv2.data.images import CropResize, DecodedImage, open_image
from shufflenetv2.data.jitter import Jitter
from shufflenetv2.export import load
from shufflenetv2.weights import Preprocessing
from tests.support import Run, probabilities

PANORAMA = (90, 320)  # height and width
HALF = ["--crop-pct", "1", "--scale", "0.9", "1", "--ratio", "3", "4"]  # crops that keep both ends of a panorama


@pytest.fixture(scope="module")
def panoramas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a data set of two classes of panoramas, which differ in the brightness of their two ends alone."""
    folder = tmp_path_factory.mktemp("panoramas")
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 8)):
        for name, low, high in (("bright", 205, 256), ("dark", 0, 50)):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = cv2.GaussianBlur(rng.integers(90, 160, (*PANORAMA, 3), dtype=np.uint8), (0, 0), 2)
                pixels[:, :30] = pixels[:, -30:] = rng.integers(low, high)
                cv2.imwrite(str(folder / split / name / f"{number}.png"), pixels)
    return folder


def train_on(panoramas: Path, folder: Path, *options: str) -> float:
    """Train for twenty iterations, and return the top-1 accuracy."""
    common = [
        "--data-dir", str(panoramas), "--save", str(folder / "models"), "--log-dir", str(folder / "logs"), "--device", "cpu",
        "--model-size", "0.5x", "--batch-size", "16", "--lr", "0.05", "--total-iters", "20", "--color-jitter", "0",
        "--label-smooth", "0", "--workers", "2", "--no-figures",
    ]  # fmt: skip
    assert run_training(parse([*common, *options])) == 0
    accuracy: float = read_weights(folder / "models/model.pkl").details["accuracy"]["top1"]
    return accuracy


@pytest.fixture(scope="module")
def rectangular(panoramas: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train with a rectangular input, and return the folder of the run."""
    folder = tmp_path_factory.mktemp("rectangular")
    assert train_on(panoramas, folder, "--input-size", "32", "112", *HALF) == 1
    return folder


def test_what_stands_at_the_ends_of_panoramas_is_learned_with_a_rectangular_input_and_not_from_the_central_crop(
    rectangular: Path, panoramas: Path, tmp_path: Path
) -> None:
    assert "at 32 x 112 pixels (height x width)" in (rectangular / "logs/models/train.log").read_text()
    assert train_on(panoramas, tmp_path, "--input-size", "32", "--crop-pct", "1") < 0.8


def test_what_stands_at_the_ends_of_panoramas_is_learned_when_they_are_squashed(panoramas: Path, tmp_path: Path) -> None:
    assert train_on(panoramas, tmp_path, "--input-size", "32", "--crop-mode", "squash", *HALF) > 0.9


def test_the_shape_travels_with_the_weights_into_every_command(
    rectangular: Path, panoramas: Path, tmp_path: Path, command: Run
) -> None:
    model = rectangular / "models/model.pkl"
    assert read_weights(model).preprocessing == Preprocessing((32, 112), (32, 112))
    assert "central 32 x 112 pixels (height x width)" in command("info", model)[1]
    assert json.loads(command("info", model, "--json")[1])["preprocessing"]["input_size"] == [32, 112]
    status, output, errors = command(
        "train", "--eval", "--eval-resume", model, "--val-dir", panoramas / "val", "--device", "cpu"
    )
    assert (status, errors) == (0, "")
    assert "top-1 100.00%" in output
    status, output, errors = command(
        "recalibrate", model, "again.pkl", "--data-dir", panoramas, "--images", "16", "--device", "cpu"
    )
    assert (status, errors) == (0, "")
    assert read_weights("again.pkl").preprocessing == Preprocessing((32, 112), (32, 112))

    expected = probabilities(command("predict", model, panoramas / "val", "--json", "--device", "cpu")[1])
    assert expected.argmax(1).tolist() == [0] * 8 + [1] * 8
    images = ["--images", panoramas / "val"]
    assert command("export", model, "model.onnx", "--uint8-input", "rgb-nhwc", *images)[0] == 0
    assert load("model.onnx").preprocessing == Preprocessing((32, 112), (32, 112))
    torch.testing.assert_close(probabilities(command("predict", "model.onnx", panoramas / "val", "--json")[1]), expected)
    metadata = {entry.key: entry.value for entry in onnx.load("model.onnx").metadata_props}
    assert json.loads(metadata["input"])["shape"] == [1, 32, 112, 3]
    assert json.loads(metadata["preprocessing"])["center_crop"] == [32, 112]

    assert command("convert", model, "model.safetensors", "--to", "safetensors")[0] == 0
    assert read_weights("model.safetensors").preprocessing == Preprocessing((32, 112), (32, 112))
    output = command("convert", model, "original.pth", "--to", "original")[1]
    assert "images resized to cover 32 x 112 pixels (height x width), central 32 x 112 pixels" in output
    assert read_weights("original.pth").preprocessing == Preprocessing((32, 112), (32, 112))


def test_a_size_is_one_number_two_or_three(tmp_path: Path) -> None:
    for typed, in_file, size in [
        ("160", "160", 160),
        ("160 160", "[160, 160]", 160),
        ("48 160", "[48, 160]", (48, 160)),
        ("3 48 160", "[3, 48, 160]", (48, 160)),
        ("48 160", "48 160", (48, 160)),
    ]:
        file = tmp_path / "c.yaml"
        file.write_text(f"input-size: {in_file}\n")
        for arguments in (["--input-size", *typed.split()], ["--config", str(file)]):
            config = parse(["--train-dir", "D", *arguments])
            assert config.data.input_size == size
            assert config.data.resize_size == (183 if size == 160 else (55, 183))
            file.write_text(config.to_yaml())  # an options.yaml is a valid file
            assert parse(["--config", str(file)]).recipe() == config.recipe()
    jsonschema.validate({"input-size": [48, 160], "resize-size": 200, "train-crop-size": [32, 64]}, build_schema())
    data = parse(
        ["--input-size", "48", "160", "--resize-size", "60", "160", "--train-crop-size", "32", "96", str(tmp_path)]
    ).data
    assert (data.train_dir, data.resize_size, data.train_crop_size) == (str(tmp_path), (60, 160), (32, 96))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--input-size 48 160 --resize-size 64", "`resize_size` 64 is smaller than `input_size` 48 160"),
        ("--input-size 48 160 --resize-size 50 150", "`resize_size` 50 150 is smaller than `input_size` 48 160"),
        ("--input-size 48 15", "`input_size` 48 15: must be a whole number of pixels from 16 to 8192, or"),
        ("--train-crop-size 48 wide", "unexpected argument 'wide' on the command line"),
    ],
)
def test_a_size_that_does_not_fit_is_refused_in_one_line(options: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(["--train-dir", "D", *options.split()])
    assert str(caught.value).startswith(message)


def test_evaluation_covers_the_rectangle_and_crops_its_centre() -> None:
    rng = np.random.default_rng(3)
    for height, width, new_height, new_width in [
        (90, 320, 55, 196),
        (300, 100, 549, 183),
        (55, 183, 55, 183),
        (60, 183, 60, 183),
    ]:
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        resized = cv2.resize(pixels, (new_width, new_height))
        top, left = round((new_height - 48) / 2), round((new_width - 160) / 2)
        views = np.empty((5, 48, 160, 3), np.uint8)
        EvaluationTransform((48, 160), (55, 183), views=5)(DecodedImage(pixels), views)
        assert np.array_equal(views[0], resized[top : top + 48, left : left + 160])
        corners = [
            resized[rows, columns] for rows in (slice(48), slice(-48, None)) for columns in (slice(160), slice(-160, None))
        ]
        assert np.array_equal(views[1:], corners)


def test_a_rectangular_crop_of_a_jpeg_equals_opencvs_plain_form_bit_for_bit(photographs: Path) -> None:
    path = photographs / "cat/6.jpg"
    whole, rng = read_image(path), np.random.default_rng(5)
    for trial in range(40):
        height, width = (int(n) for n in rng.integers(20, whole.shape[:2]))
        top, left = (int(n) for n in rng.integers(0, (whole.shape[0] - height + 1, whole.shape[1] - width + 1)))
        # A result of more than half of the crop's height or width: the JPEG is decoded at its full size.
        new_height, new_width = (
            (1 + height // 2, int(rng.integers(1, 200))) if trial & 4 else (int(rng.integers(1, 200)), width)
        )
        hflip, vflip, jitter = bool(trial & 1), bool(trial & 2), Jitter(0.7, 0.2, 0.15)
        result = open_image(path).crop_resize(
            CropResize(top, left, height, width, (new_height, new_width), "bilinear", hflip, vflip, jitter)
        )
        expected = cv2.resize(whole[top : top + height, left : left + width], (new_width, new_height))
        expected = np.ascontiguousarray(expected[:: -1 if vflip else 1, :: -1 if hflip else 1])
        assert np.array_equal(result, cv2.transform(expected, jitter.matrix(cv2.mean(expected))))


def test_batches_have_the_height_and_the_width(panoramas: Path) -> None:
    dataset = FolderDataset(panoramas / "train")
    for transform, size in [(TrainTransform((40, 72)), (40, 72)), (TrainTransform((40, 72), views=2), (40, 72))]:
        batches = DataIterator(dataset, transform, 4, seed=1, workers=2)
        images, _ = batches.next()
        assert images.shape == (4 * transform.views, 3, *size)
        batches.close()


def test_the_network_checks_both_sides() -> None:
    assert ShuffleNetV2((32, 160)).input_size == (32, 160)
    with pytest.raises(ValueError, match=r"input_size must be at least 16 pixels, not \(160, 15\)"):
        ShuffleNetV2((160, 15))


def test_a_file_with_a_single_number_loads(tmp_path: Path) -> None:
    """Files that were written before a size could be a pair."""
    network = ShuffleNetV2(64, 3, "0.5x")
    old = {"input_size": 64, "resize_size": 72, "mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bicubic"}
    content = {"state_dict": network.state_dict(), "model_size": "0.5x", "class_names": ["a", "b", "c"], "preprocessing": old}
    files.write(tmp_path / "old.pkl", content)
    weights = read_weights(tmp_path / "old.pkl")
    assert weights.preprocessing == Preprocessing(64, 72, interpolation="bicubic")
    assert weights.network().input_size == 64
