"""Grey images train as one channel (`in_chans=1`), from 16 pixels on, and so does everything that follows a training."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from shufflenetv2 import ShuffleNetV2, UserError, files, load_model, read_weights
from shufflenetv2.cli.command import parse
from shufflenetv2.cli.train import run_training
from shufflenetv2.data import (
    DataIterator,
    Digits,
    EvaluationTransform,
    FolderDataset,
    RandomErasing,
    TrainTransform,
    build_train_transform,
    parse_policy,
    read_image,
)
from shufflenetv2.data.images import DecodedImage
from shufflenetv2.data.transforms import to_grey
from shufflenetv2.recipe import start_from
from shufflenetv2.report import write_grid
from shufflenetv2.rng import generator
from shufflenetv2.weights import Preprocessing, Weights
from tests.models import random_weights, write_model
from tests.support import Run, hub_load, probabilities

SIZE = 28


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the built-in digits as grey PNG files of 28 x 28 pixels, as the images of MNIST."""
    folder = tmp_path_factory.mktemp("digits")
    for split, count in (("train", 480), ("val", 60)):
        dataset = Digits(split)
        for index in range(count):
            path = folder / split / dataset.class_names[dataset.targets[index]] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), cv2.resize(dataset.images[index], (SIZE, SIZE)))
    return folder


@pytest.fixture(scope="module")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on grey images for a short time, and return the model file."""
    folder = tmp_path_factory.mktemp("grey")
    options = [
        "--data-dir", str(digits), "--save", str(folder / "models"), "--log-dir", str(folder / "logs"), "--in-chans", "1",
        "--input-size", str(SIZE), "--crop-pct", "1", "--mean", "80", "--std", "90", "--model-size", "0.5x", "--lr", "0.05",
        "--scale", "0.8", "1", "--ratio", "0.9", "1.1", "--hflip", "0", "--color-jitter", "0.2", "--total-iters", "40",
        "--batch-size", "64", "--val-interval", "40", "--workers", "2", "--device", "cpu", "--no-figures", "--save-images",
    ]  # fmt: skip
    assert run_training(parse(options)) == 0
    return folder / "models/model.pkl"


def test_grey_digits_of_28_pixels_are_learned_as_one_channel(trained: Path) -> None:
    weights = read_weights(trained)
    assert weights.state_dict["first_conv.0.weight"].shape == (24, 1, 3, 3)
    assert weights.architecture["in_chans"] == 1
    assert weights.preprocessing == Preprocessing(SIZE, SIZE, (80.0,), (90.0,))
    assert weights.details["accuracy"]["top1"] > 0.4  # ten classes
    (picture, *_) = sorted((trained.parents[1] / "logs").rglob("images/*.png"))
    pixels = read_image(picture)
    assert (pixels == pixels[:, :, :1]).all()


def test_grey_travels_with_the_weights_into_every_command(trained: Path, digits: Path, command: Run) -> None:
    val = digits / "val"
    expected = command("predict", trained, val, "--json", "--top", "10", "--device", "cpu")[1]
    paths = [json.loads(line)["path"] for line in expected.splitlines()]
    images = torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in paths]))[:, None]
    for model in (load_model(trained), hub_load(checkpoint=str(trained))):
        with torch.inference_mode():
            torch.testing.assert_close(probabilities(expected), model(images).softmax(1), rtol=0, atol=1e-5)

    assert command("export", trained, "model.onnx", "--uint8-input", "grey-nhwc", "--images", val)[0] == 0
    torch.testing.assert_close(
        probabilities(command("predict", "model.onnx", val, "--json", "--top", "10")[1]),
        probabilities(expected),
        rtol=0,
        atol=1e-4,
    )
    metadata = {
        entry.key: json.loads(entry.value) for entry in onnx.load("model.onnx").metadata_props if entry.key != "shufflenetv2"
    }
    assert metadata["input"] == {
        "channels": "grey", "layout": "nhwc", "dtype": "uint8", "range": [0, 255], "shape": [1, SIZE, SIZE, 1],
    }  # fmt: skip
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    logits = torch.from_numpy(session.run(None, {"images": images[:1].permute(0, 2, 3, 1).numpy()})[0])
    torch.testing.assert_close(logits.softmax(1), probabilities(expected)[:1], rtol=0, atol=1e-4)
    status, _, errors = command("export", trained, "--uint8-input", "rgb-nhwc", "--images", val)
    assert (status, errors.count("\n")) == (2, 1)
    assert "takes grey images; use grey-nhwc" in errors

    assert f"central {SIZE} x {SIZE} pixels; bilinear, grey, 0..255, mean 80, std 90" in command("info", trained)[1]
    evaluate = ["train", "--eval", "--eval-resume", trained, "--val-dir", val, "--device", "cpu"]
    accuracy = read_weights(trained).details["accuracy"]["top1"]
    assert f"top-1 {accuracy:.2%}" in command(*evaluate, "--in-chans", "1", "--mean", "80")[1]
    for options, message in [
        (["--in-chans", "3"], "takes images with --in-chans 1, not 3"),
        (["--mean", "80", "81", "82"], "--mean 80.0 81.0 82.0: the model takes grey images"),
    ]:
        status, _, errors = command(*evaluate, *options)
        assert (status, errors.count("\n")) == (2, 1)
        assert message in errors

    arguments = ["--data-dir", digits, "--images", "64", "--device", "cpu"]
    assert command("recalibrate", trained, "again.pkl", *arguments)[0] == 0
    assert read_weights("again.pkl").preprocessing == Preprocessing(SIZE, SIZE, (80.0,), (90.0,))
    assert command("convert", trained, "model.safetensors", "--to", "safetensors")[0] == 0
    assert read_weights("model.safetensors").network().in_chans == 1
    for project in ("original", "torchvision", "mmpretrain"):
        status, _, errors = command("convert", trained, "other.pth", "--to", project)
        assert (status, errors.count("\n")) == (2, 1)
        assert "images have three channels; these weights take grey images" in errors


def test_colour_files_become_grey_with_opencvs_weights(photographs: Path) -> None:
    pixels = read_image(photographs / "cat/3.jpg")
    grey = to_grey(pixels)
    by_hand = pixels @ np.array([0.114, 0.587, 0.299])
    assert np.abs(grey[:, :, 0] - by_hand).max() < 0.51
    assert np.abs(grey[:, :, 0].astype(int) - np.asarray(Image.fromarray(pixels[:, :, ::-1]).convert("L"))).max() <= 1
    values = np.arange(256, dtype=np.uint8)[:, None]
    assert np.array_equal(to_grey(np.repeat(values[:, :, None], 3, 2))[:, :, 0], values)  # grey stays grey

    colour, out = np.empty((10, 24, 32, 3), np.uint8), np.empty((10, 24, 32, 1), np.uint8)
    for mode in ("center", "squash", "border"):
        transform = EvaluationTransform((24, 32), (30, 40), views=10, crop_mode=mode, fill=(9.0,) * 3)
        transform(DecodedImage(pixels), colour)
        replace(transform, channels=1)(DecodedImage(pixels), out)
        assert all(np.array_equal(view, to_grey(image)) for view, image in zip(out, colour, strict=True))


@pytest.mark.parametrize("crop_mode", ["rrc", "rkrr"])
@pytest.mark.parametrize("policy", ["", "rand-m9-mstd0.5", "augmix-m3", "ta_wide"])
def test_augmentation_of_grey_images_is_that_of_equal_channels(crop_mode: str, policy: str, photographs: Path) -> None:
    """A colour image is made grey after crop and resizing; from there on it is treated like a grey file."""
    pixels = read_image(photographs / "owl/2.jpg")
    as_file = np.repeat(to_grey(pixels), 3, 2)
    ratio = pixels.shape[1] / pixels.shape[0]
    transform = TrainTransform(
        48,
        (1.0, 1.0),
        (ratio, ratio),
        crop_mode=crop_mode,
        policy=parse_policy(policy, fill=(90.0,) * 3) if policy else None,
        blur=0.5,
        interpolation="nearest",
    )
    for views in (1, 3):
        colour, grey, file = (np.empty((views, 48, 48, channels), np.uint8) for channels in (3, 1, 1))
        for position in range(6):
            replace(transform, views=views)(DecodedImage(as_file), colour, generator(0, 99, position))
            for image, out in ((pixels, grey), (as_file, file)):
                replace(transform, views=views, channels=1)(DecodedImage(image), out, generator(0, 99, position))
            assert np.array_equal(file, grey)
            assert (np.abs(file[..., 0].astype(int) - colour.astype(int).transpose(3, 0, 1, 2)) <= 1).all()


def test_saturation_does_not_change_a_grey_image_and_brightness_does(photographs: Path) -> None:
    image = DecodedImage(read_image(photographs / "owl/2.jpg"))
    results = {}
    for name, jitter in {
        "none": (0, 0, 0),
        "saturation": (0, 0, 0.9),
        "brightness": (0.9, 0, 0),
        "contrast": (0, 0.9, 0),
    }.items():
        out = np.empty((32, 32, 1), np.uint8)
        strengths = jitter[0], jitter[1], jitter[2]
        TrainTransform(32, color_jitter=strengths, hflip=0.0, channels=1)(image, out, generator(0, 99, 5))
        results[name] = out
    assert np.array_equal(results["saturation"], results["none"])
    assert len({pixels.tobytes() for pixels in results.values()}) == 3


def test_batches_of_grey_images_have_one_channel(photographs: Path) -> None:
    transforms = [
        TrainTransform(32, channels=1, erasing=RandomErasing(1.0, "pixel", 2, (90.0,), (40.0,)), views=v) for v in (1, 2)
    ]
    for transform in transforms:
        batches = DataIterator(FolderDataset(photographs), transform, 4, seed=1, workers=2)
        images, _ = batches.next()
        batches.close()
        assert images.shape == (4 * transform.views, 1, 32, 32)
        assert images.dtype == torch.uint8
        assert images.float().std() > 10


def test_the_colours_that_fill_grey_images_are_grey() -> None:
    for options, mean in [([], 117.04), (["--mean", "80", "--std", "60"], 80.0)]:
        config = parse(["--train-dir", "D", "--in-chans", "1", "--aa", "ta_wide", "--reprob", "0.5", *options])
        transform = build_train_transform(config.data, config.augmentation)
        assert isinstance(transform, TrainTransform)
        assert transform.erasing is not None
        assert transform.erasing.mean == pytest.approx((mean,), abs=0.01)
        assert len(transform.erasing.std) == transform.channels == 1


def test_weights_for_colours_start_a_network_for_grey_images_and_back() -> None:
    """An image of three equal channels gives the logits of the grey image."""
    weights = random_weights("0.5x")
    grey, colour = (torch.rand(2, 1, 40, 40, generator=torch.Generator().manual_seed(2)) * 255 for _ in range(2))
    colour = grey.expand(-1, 3, -1, -1)
    network = ShuffleNetV2(40, weights.n_class, "0.5x", in_chans=1)
    line = start_from(network, weights)
    assert "the first convolution sums its weights for the three colours, for grey images" in line
    with torch.inference_mode():
        torch.testing.assert_close(network.eval()(grey), weights.network()(colour), rtol=1e-4, atol=1e-4)
        back = ShuffleNetV2(40, weights.n_class, "0.5x")
        line = start_from(back, Weights(Path("grey.pkl"), network.state_dict(), "0.5x", 7, architecture={"in_chans": 1}))
        assert "a third of the weights" in line
        torch.testing.assert_close(back.eval()(colour), network(grey), rtol=1e-4, atol=1e-4)
    assert Preprocessing(mean=(10.0, 20.0, 60.0), std=(1.0, 2.0, 6.0)).normalization(1) == ((30.0,), (3.0,))


def test_a_run_starts_from_colour_weights_with_a_grey_teacher_or_a_colour_teacher(digits: Path, tmp_path: Path) -> None:
    colour = write_model(tmp_path / "colour.pkl", n_class=10, mean=(60.0, 90.0, 120.0), std=(50.0, 60.0, 70.0))
    content = read_weights(colour)
    content.class_names = [str(digit) for digit in range(10)]
    files.write(colour, content.record())
    common = [
        "--data-dir", str(digits), "--model-size", "0.5x", "--input-size", "32", "--batch-size", "8", "--total-iters", "1",
        "--lr", "0.01", "--device", "cpu", "--log-dir", str(tmp_path / "logs"), "--no-validate",
    ]  # fmt: skip
    grey = ["--in-chans", "1", "--initial-checkpoint", str(colour), "--teacher", str(colour), "--save", str(tmp_path / "grey")]
    assert run_training(parse([*common, *grey])) == 0
    weights = read_weights(tmp_path / "grey/model.pkl")
    assert weights.preprocessing is not None
    assert (weights.preprocessing.mean, weights.preprocessing.std) == ((90.0,), (60.0,))
    with pytest.raises(UserError, match="takes grey images, and the training images are in colour"):
        run_training(parse([*common, "--teacher", str(tmp_path / "grey/model.pkl"), "--save", str(tmp_path / "colour")]))


def test_a_file_without_preprocessing_is_recognized_as_grey(tmp_path: Path) -> None:
    network = ShuffleNetV2(32, 5, "0.5x", in_chans=1)
    torch.save(network.state_dict(), tmp_path / "bare.pth")
    weights = read_weights(tmp_path / "bare.pth")
    assert (weights.origin, weights.channels) == ("shufflenetv2", 1)
    assert weights.preprocessing_or_default().channels == 1
    assert weights.network()(torch.zeros(1, 1, 32, 32)).shape == (1, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--in-chans 2", "`in_chans` 2: must be one of 1, 3"),
        ("--in-chans 1 --grayscale-prob 0.2", "`grayscale_prob` has no effect on grey images (`in_chans=1`); leave it out"),
        ("--in-chans 1 --mean 1 2 3", "`mean` and `std` of grey images (`in_chans=1`) are a single number each"),
        ("--in-chans 1 --mean 0.1307 --std 0.3081", "`mean` 0.1307 is for pixels of 0..1; here pixels are 0..255"),
        ("--in-chans 3 --input-size 1 28 28", "`input_size` 1 28 28 begins with the channels, and `in_chans` is 3"),
        ("--mean 1 2", "`mean` 1 2: must be one number from -1e6 to 1e6, or three"),
    ],
)
def test_what_has_no_meaning_for_grey_images_is_refused_in_one_line(options: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(["--train-dir", "D", *options.split()])
    assert str(caught.value).startswith(message)


def test_the_channels_may_stand_before_the_size(tmp_path: Path) -> None:
    config = parse(["--train-dir", "D", "--input-size", "1", "28", "28"])
    assert (config.model.in_chans, config.data.input_size, config.data.mean) == (1, 28, (0.0,))
    assert {"in_chans", "input_size"} <= config.explicit
    (tmp_path / "c.yaml").write_text("input-size: [1, 28, 36]\nmean: 100\n")
    config = parse(["--train-dir", "D", "--config", str(tmp_path / "c.yaml")])
    assert (config.model.in_chans, config.data.input_size, config.data.mean) == (1, (28, 36), (100.0,))
    assert parse(["--mean", "100", str(tmp_path)]).data.mean == (100.0,) * 3  # one number for every channel, as in timm


def test_grey_images_are_shown_in_a_picture(tmp_path: Path) -> None:
    images = np.arange(2 * 20 * 30, dtype=np.uint8).reshape(2, 1, 20, 30)
    write_grid(tmp_path / "grid.png", images, ["a", "b"])
    assert read_image(tmp_path / "grid.png").shape[2] == 3
