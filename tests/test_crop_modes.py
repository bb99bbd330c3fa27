"""Crop modes of evaluation (center, squash, border) and training (rrc, rkrc, rkrr): timm's geometry, and where they travel."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from timm.data.transforms import ResizeKeepRatio, center_crop_or_pad
from timm.data.transforms import crop_or_pad as timms_crop_or_pad

from shufflenetv2 import UserError, files, read_weights
from shufflenetv2.cli.command import parse
from shufflenetv2.data import DataIterator, EvaluationTransform, FolderDataset, TrainTransform
from shufflenetv2.data.crops import central_offset, crop_or_pad, draw_kept_ratio, draw_position, fitted_size
from shufflenetv2.data.images import DecodedImage
from shufflenetv2.export import ExportMetadata, load
from shufflenetv2.rng import generator
from shufflenetv2.weights import Preprocessing
from tests.models import write_model
from tests.support import Run, probabilities

SHAPES = [(90, 320), (300, 100), (64, 64), (20, 31), (33, 500)]
PLAIN: dict[str, Any] = {"hflip": 0.0, "color_jitter": (0.0, 0.0, 0.0)}


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def evaluated(pixels: np.ndarray, transform: EvaluationTransform, size: tuple[int, int]) -> np.ndarray:
    out = np.empty((*size, 3), np.uint8)
    transform(DecodedImage(pixels), out)
    return out


def timms_size(height: int, width: int, size: tuple[int, int], longest: float) -> tuple[int, int]:
    """Return the size that timm's ResizeKeepRatio gives an image."""
    get_params = ResizeKeepRatio.get_params
    new_height, new_width = get_params(torch.empty(3, height, width), size, longest)  # type: ignore[no-untyped-call]
    return new_height, new_width


def as_image(pixels: torch.Tensor) -> np.ndarray:
    return pixels.permute(1, 2, 0).numpy()


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_squash_shows_the_whole_image_at_the_input_size(height: int, width: int) -> None:
    pixels = noise(height, width)
    whole = cv2.resize(pixels, (64, 48))
    assert np.array_equal(evaluated(pixels, EvaluationTransform((48, 64), (48, 64), crop_mode="squash"), (48, 64)), whole)
    larger = cv2.resize(pixels, (73, 55))[round(7 / 2) :, round(9 / 2) :][:48, :64]
    assert np.array_equal(evaluated(pixels, EvaluationTransform((48, 64), (55, 73), crop_mode="squash"), (48, 64)), larger)


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_border_pads_the_whole_image_as_timm_does(height: int, width: int) -> None:
    pixels, fill = noise(height, width), (10.0, 20.0, 30.0)
    for size, resize_size in [((48, 64), (48, 64)), ((48, 64), (55, 73)), ((40, 40), (40, 40))]:
        new_height, new_width = timms_size(height, width, resize_size, longest=1.0)
        resized = cv2.resize(pixels, (new_width, new_height))
        expected = as_image(center_crop_or_pad(torch.from_numpy(resized).permute(2, 0, 1), [*size], fill=0))
        transform = EvaluationTransform(size, resize_size, crop_mode="border", fill=(0, 0, 0))
        assert np.array_equal(evaluated(pixels, transform, size), expected)
        colour = evaluated(pixels, replace(transform, fill=fill), size)
        missing = (colour != expected).any(2)
        assert (colour[missing] == fill).all()
        assert missing.any() == (new_height < size[0] or new_width < size[1])


def test_all_views_of_a_padded_image_have_the_input_size() -> None:
    views = np.empty((10, 48, 64, 3), np.uint8)
    EvaluationTransform((48, 64), (55, 73), views=10, crop_mode="border")(DecodedImage(noise(90, 320)), views)
    assert len({view.tobytes() for view in views}) >= 4


def test_crops_beyond_the_edges_are_mirrored_as_timm_does() -> None:
    rng = np.random.default_rng(1)
    for trial in range(60):
        height, width, *size = (int(n) for n in rng.integers(1, 30, 4))
        pixels = noise(height, width, trial)
        tensor = torch.from_numpy(np.pad(pixels, ((30, 30), (30, 30), (0, 0)), mode="reflect"))  # torch mirrors once only
        part = size[0], size[1]
        top, left = central_offset(height, part[0]), central_offset(width, part[1])
        expected = center_crop_or_pad(torch.empty(3, height, width), size)
        result = crop_or_pad(pixels, top, left, part)
        assert result.shape[:2] == expected.shape[1:]
        assert np.array_equal(result, tensor[30 + top :, 30 + left :][: size[0], : size[1]])
        filled = timms_crop_or_pad(torch.from_numpy(pixels).permute(2, 0, 1), top, left, *part)
        assert np.array_equal(crop_or_pad(pixels, top, left, part, fill=(0, 0, 0)), as_image(filled))
        if min(height - size[0], width - size[1]) >= 0 or max(height - size[0], width - size[1]) <= 0:
            centred = center_crop_or_pad(torch.from_numpy(pixels).permute(2, 0, 1), size)
            assert np.array_equal(crop_or_pad(pixels, top, left, part, fill=(0, 0, 0)), as_image(centred))


def test_kept_ratios_have_timms_distribution() -> None:
    """Half of the images keep their scale, half their ratio; the others are drawn from the ranges of timm."""
    rng = generator(0, 99, 0)
    size, scale, ratio = (48, 64), (0.25, 1.0), (0.5, 2.0)
    base = timms_size(900, 3200, size, longest=0.0)
    draws = np.array([draw_kept_ratio(900, 3200, size, scale, ratio, rng) for _ in range(4000)])
    assert base == (48, 171)
    zoom = np.sqrt(draws.prod(1) / np.prod(base))  # 1 to 2
    stretch = draws[:, 1] / draws[:, 0] / (base[1] / base[0])
    assert zoom.min() > 0.98
    assert zoom.max() < 2.02
    assert stretch.min() > 0.47
    assert stretch.max() < 2.1
    assert (draws == base).all(1).mean() == pytest.approx(0.25, abs=0.03)
    assert (np.abs(np.log(stretch)) > 0.1).mean() == pytest.approx(0.5 * (1 - 0.1 / np.log(2)), abs=0.04)
    assert (1 / zoom**2 < 0.625).mean() == pytest.approx(0.25, abs=0.03)  # half of the range, for half of the images
    assert fitted_size(10, 100_000, (48, 64)) == (1, 64)


def test_a_position_is_drawn_from_all_that_are_possible() -> None:
    rng = generator(0, 99, 1)
    assert {draw_position(10, 7, rng) for _ in range(200)} == {0, 1, 2, 3}
    assert {draw_position(7, 10, rng) for _ in range(200)} == {0, -1, -2, -3}
    assert {draw_position(7, 7, rng) for _ in range(20)} == {0}


@pytest.mark.parametrize("crop_mode", ["rkrc", "rkrr"])
def test_a_training_crop_keeps_the_ratio_and_shows_the_same_part_in_every_view(crop_mode: str) -> None:
    pixels = noise(90, 320)
    transform = TrainTransform((45, 64), (1.0, 1.0), (1.0, 1.0), **PLAIN, crop_mode=crop_mode)
    resized = cv2.resize(pixels, (160, 45))
    lefts = set()
    for position in range(40):
        out, views = np.empty((45, 64, 3), np.uint8), np.empty((2, 45, 64, 3), np.uint8)
        transform(DecodedImage(pixels), out, generator(0, 99, position))
        replace(transform, views=2)(DecodedImage(pixels), views, generator(0, 99, position))
        assert (views == out).all()
        lefts |= {left for left in range(97) if np.array_equal(out, resized[:, left : left + 64])}
        flipped = np.empty_like(out)
        replace(transform, hflip=1.0, vflip=1.0)(DecodedImage(pixels), flipped, generator(0, 99, position))
        assert np.array_equal(flipped, out[::-1, ::-1])
    assert lefts == {48} if crop_mode == "rkrc" else len(lefts) > 20
    assert "KeepRatio" in repr(transform)


def test_batches_of_a_kept_ratio_do_not_depend_on_the_threads(photographs: Path) -> None:
    batches = []
    for workers in (1, 3):
        iterator = DataIterator(
            FolderDataset(photographs), TrainTransform((40, 72), crop_mode="rkrr"), 8, seed=3, workers=workers
        )
        batches.append(torch.cat([iterator.next()[0] for _ in range(3)]))
        iterator.close()
    assert torch.equal(*batches)
    assert batches[0].shape == (24, 3, 40, 72)


def test_the_ranges_of_a_crop_follow_its_mode(tmp_path: Path) -> None:
    def ranges(*options: str) -> list[tuple[float, float]]:
        augmentation = parse(["--train-dir", "D", *options]).augmentation
        return [augmentation.scale, augmentation.ratio]

    assert ranges() == [(0.08, 1.0), (3 / 4, 4 / 3)]
    assert ranges("--train-crop-mode", "rkrc") == [(0.8, 1.0), (0.9, 1 / 0.9)]
    assert ranges("--train-crop-mode", "rkrr", "--scale", "0.5", "1") == [(0.5, 1.0), (0.9, 1 / 0.9)]
    with pytest.raises(UserError, match="leave `train_crop_mode` out"):
        ranges("--train-crop-mode", "rkrr", "--no-aug")


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing((32, 48), (40, 60), (90.2, 110.6, 130.0), (40.0, 60.0, 80.0), "bilinear", "border"),
        Preprocessing(32, 40, interpolation="bicubic", crop_mode="squash"),
        Preprocessing((32, 48), 48),
    ],
    ids=lambda preprocessing: preprocessing.crop_mode,
)
def test_an_exported_file_states_how_images_are_resized(preprocessing: Preprocessing) -> None:
    for channels in ("bgr", "rgb"):
        metadata = ExportMetadata("0.5x", None, preprocessing, channels)
        restored = ExportMetadata.from_strings(metadata.to_strings()).preprocessing
        expected = replace(preprocessing, mean=preprocessing.border_color, std=(1.0,) * 3)  # the file normalizes images itself
        assert restored == expected
        assert restored.border_color == preprocessing.border_color


def test_the_crop_mode_travels_with_the_weights(command: Run, tmp_path: Path, photographs: Path) -> None:
    weights = read_weights(write_model(tmp_path / "center.pkl", n_class=3, mean=(90.0, 110.0, 130.0)))
    assert weights.preprocessing is not None
    outputs = {}
    for crop_mode in ("center", "squash", "border"):
        weights.preprocessing = replace(weights.preprocessing, crop_mode=crop_mode)
        weights.class_names = ["cat", "dog", "owl"]
        files.write(Path("model.pkl"), weights.record())
        outputs[crop_mode] = command("predict", "model.pkl", photographs, "--json", "--device", "cpu")[1]
    assert len(set(outputs.values())) == 3

    assert "resized to fit into 40 x 40 pixels, padded with the mean colour" in command("info", "model.pkl")[1]
    assert command("export", "model.pkl", "model.pt", "--uint8-input", "rgb-nchw", "--images", photographs)[0] == 0
    exported = load("model.pt").preprocessing
    assert (exported.crop_mode, exported.border_color) == ("border", (90.0, 110.0, 130.0))
    predictions = command("predict", "model.pt", photographs, "--json")[1]
    torch.testing.assert_close(probabilities(predictions), probabilities(outputs["border"]), rtol=0, atol=1e-4)

    evaluate = ["train", "--eval", "--eval-resume", "model.pkl", "--val-dir", photographs, "--device", "cpu", "--tta"]
    losses = {
        mode: command(*evaluate, "1", *(["--crop-mode", mode] if mode else []))[1].split("loss ")[1].split(",")[0]
        for mode in ("", "border", "center")
    }
    assert losses[""] == losses["border"] != losses["center"]
    arguments = ["--train-dir", photographs, "--val-dir", photographs, "--images", "4", "-b", "4", "--device", "cpu"]
    lines = command("recalibrate", "model.pkl", "again.pkl", *arguments)[1]
    assert f"loss {float(losses['border']):.4f}" in lines.splitlines()[0]
    again = read_weights("again.pkl").preprocessing
    assert again == weights.preprocessing
    assert "padded with the mean colour" in command("convert", "model.pkl", "other.pth", "--to", "original")[1]


def test_a_file_that_was_exported_before_there_were_crop_modes_is_read() -> None:
    strings = ExportMetadata("0.5x", None, Preprocessing(32, 40)).to_strings()
    preprocessing = json.loads(strings["preprocessing"])
    assert preprocessing.pop("crop_mode") == "center"
    strings["preprocessing"] = json.dumps(preprocessing)
    assert ExportMetadata.from_strings(strings).preprocessing == Preprocessing(32, 40)
