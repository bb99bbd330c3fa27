"""Images are decoded, evaluated and augmented as by the original trainer; folders and digits are read as data sets."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from shufflenetv2.config import AugmentationConfig, DataConfig
from shufflenetv2.data import (
    DecodedImage,
    Digits,
    EvaluationTransform,
    FolderDataset,
    ImageError,
    RandomErasing,
    TrainTransform,
    build_train_transform,
    evaluation_batches,
    parse_policy,
)
from shufflenetv2.data.images import SequentialJpeg, decode_with_pillow, open_image, read_image
from shufflenetv2.data.jitter import draw_jitter
from shufflenetv2.data.transforms import CenterCrop, OpencvResize, ToBGRTensor
from shufflenetv2.errors import UserError
from shufflenetv2.rng import generator
from tests.support import photograph


def original_evaluation_tensor(path: Path) -> torch.Tensor:
    """Return what the original's validation transforms give: PIL decodes, OpenCV resizes, then crop and BGR."""
    image = np.ascontiguousarray(np.asarray(Image.open(path).convert("RGB"))[:, :, ::-1])
    height, width, _ = image.shape
    target = (int(256 / height * width + 0.5), 256) if height < width else (256, int(256 / width * height + 0.5))
    image = cv2.resize(image, target, interpolation=cv2.INTER_LINEAR)
    top, left = int(round((image.shape[0] - 224) / 2.0)), int(round((image.shape[1] - 224) / 2.0))  # noqa: RUF046
    crop = image[top : top + 224, left : left + 224]
    return torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1))).float()


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (333, 501), (501, 334), (97, 64), (256, 256), (225, 1000)])
@pytest.mark.parametrize("encoding", [{"subsampling": 2}, {"subsampling": 0}, {"progressive": True}])
def test_the_evaluation_tensor_equals_the_original_bit_for_bit(
    tmp_path: Path, size: tuple[int, int], encoding: dict[str, Any]
) -> None:
    path = tmp_path / "class" / "image.jpg"
    path.parent.mkdir()
    photograph(*size, seed=sum(size)).save(path, quality=87, **encoding)
    expected = original_evaluation_tensor(path)

    loaded, _ = next(evaluation_batches(FolderDataset(tmp_path), EvaluationTransform(224, 256), 1, workers=1))
    assert torch.equal(loaded[0].float(), expected)
    for source in (Image.open(path), read_image(path)):
        assert torch.equal(ToBGRTensor()(CenterCrop(224)(OpencvResize(256)(source))), expected)


def test_the_transforms_accept_pil_images_and_bgr_arrays() -> None:
    image = photograph(60, 50, seed=1)
    array = np.asarray(image)[:, :, ::-1]
    assert torch.equal(ToBGRTensor()(image), ToBGRTensor()(array))
    assert ToBGRTensor()(image).dtype == torch.float32
    assert ToBGRTensor()(image)[0, 0, 0] == array[0, 0, 0]  # blue first
    with pytest.raises(TypeError, match="uint8"):
        ToBGRTensor()(array.astype(np.float32))
    with pytest.raises(ValueError, match="does not fit"):
        CenterCrop(51)(image)


SAVED_AS = {
    "RGB": ("png", "bmp", "tiff", "ppm", "gif", "webp", "jp2", "tga", "pcx", "jpg"),
    "L": ("png", "jpg", "tiff"),
    "P": ("png", "gif", "bmp"),
    "RGBA": ("png", "webp", "tiff", "tga"),
    "LA": ("png",),
    "CMYK": ("jpg", "tiff"),
    "1": ("png", "tiff"),
}


@pytest.mark.parametrize(("mode", "suffix"), [(mode, suffix) for mode, suffixes in SAVED_AS.items() for suffix in suffixes])
def test_every_kind_of_image_is_decoded_to_three_bgr_channels(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    photograph(31, 22, seed=2).convert(mode).save(path, **options)
    image = read_image(path)
    assert image.shape == (22, 31, 3)
    assert image.dtype == np.uint8
    expected = np.asarray(Image.open(path).convert("RGB"))[:, :, ::-1]
    assert np.abs(image.astype(int) - expected).max() <= 1  # the conversion of CMYK rounds differently; all others are equal


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_sixteen_bits_keep_the_upper_eight(tmp_path: Path, suffix: str, channels: int) -> None:
    values = np.arange(0, 65536, 65536 // 300, dtype=np.uint16)[:300].reshape(15, 20, 1).repeat(channels, 2)
    cv2.imwrite(str(tmp_path / f"image.{suffix}"), values)
    image = read_image(tmp_path / f"image.{suffix}")
    assert np.abs(image.astype(int) - (values >> 8)).max() <= 1  # some decoders round


def test_images_of_sixteen_bits_are_not_clipped_by_pillow(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 48, dtype=np.uint16).reshape(6, 8)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    image = decode_with_pillow("name", buffer.getvalue())
    assert np.array_equal(image, (grey >> 8)[:, :, None].repeat(3, 2))


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0 cut short"])
def test_an_unreadable_image_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=r"bad\.jpg is not a readable image; remove it"):
        read_image(tmp_path / "bad.jpg")


def test_a_truncated_jpeg_is_unreadable(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    photograph(100, 80, seed=3).save(buffer, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(ImageError, match=r"cut\.jpg"):
        read_image(tmp_path / "cut.jpg")


@pytest.mark.parametrize("sampling", [0x111111, 0x211111, 0x221111, 0x121111, 0x411111, None])
@pytest.mark.parametrize("extra", [[], [cv2.IMWRITE_JPEG_RST_INTERVAL, 3], [cv2.IMWRITE_JPEG_OPTIMIZE, 1]])
def test_a_partly_decoded_jpeg_has_the_pixels_of_the_whole(tmp_path: Path, sampling: int | None, extra: list[int]) -> None:
    """For every chroma subsampling, and for grey images."""
    path = tmp_path / "image.jpg"
    for width, height in ((97, 61), (200, 133), (64, 64), (17, 130)):
        image = np.asarray(photograph(width, height, seed=height))
        colour = [] if sampling is None else [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
        cv2.imwrite(str(path), image[:, :, 0] if sampling is None else image, [*colour, *extra])
        whole = np.asarray(Image.open(path).convert("RGB"))[:, :, ::-1]
        opened = open_image(path)
        assert isinstance(opened, SequentialJpeg)
        assert (opened.height, opened.width) == (height, width)
        for end in (1, 7, 16, 33, height - 1, height):
            assert np.array_equal(opened.crop(0, 0, end, width), whole[:end])
        assert np.array_equal(opened.crop(height // 3, width // 5, 5, 9), whole[height // 3 :, width // 5 :][:5, :9])


SHRUNK = [(64, 64, 8), (65, 9, 4), (9, 65, 4), (128, 128, 4), (200, 100, 2), (1, 256, 2), (257, 1, 1), (513, 513, 1)]


@pytest.mark.parametrize(("least_height", "least_width", "factor"), SHRUNK)
def test_a_crop_that_will_be_shrunk_is_decoded_at_a_reduced_scale(
    tmp_path: Path, least_height: int, least_width: int, factor: int
) -> None:
    path = tmp_path / "image.jpg"
    photograph(900, 701, seed=4).save(path, quality=95)
    whole = read_image(path)
    for top, left in ((0, 0), (101, 33), (188, 387)):
        crop = open_image(path).crop(top, left, 513, 513, min_size=(least_height, least_width))
        edges = [(edge + factor // 2) // factor for edge in (top, top + 513, left, left + 513)]
        assert crop.shape == (edges[1] - edges[0], edges[3] - edges[2], 3)
        assert crop.shape[0] >= least_height
        assert crop.shape[1] >= least_width
        # Each pixel is the average of a block of the whole image, up to rounding and chroma subsampling.
        rows, columns = (n // factor * factor for n in whole.shape[:2])
        averages = whole[:rows, :columns].reshape(rows // factor, factor, columns // factor, factor, 3).mean((1, 3))
        inner = averages[edges[0] : edges[1], edges[2] : edges[3]]
        assert np.abs(crop[: inner.shape[0], : inner.shape[1]] - inner).mean() < (1.5 if factor > 1 else 1e-9)


def test_partial_decoding_prints_nothing(photographs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for path in photographs.rglob("*.jpg"):
        open_image(path).crop(0, 0, 5, 5)
    assert capfd.readouterr() == ("", "")


def test_a_progressive_jpeg_is_decoded_whole(tmp_path: Path) -> None:
    photograph(50, 40, seed=1).save(tmp_path / "image.jpg", progressive=True)
    assert isinstance(open_image(tmp_path / "image.jpg"), DecodedImage)


def test_read_image_returns_memory_that_is_not_reused(photographs: Path) -> None:
    first = read_image(photographs / "cat/0.jpg")
    copy = first.copy()
    read_image(photographs / "cat/1.jpg")
    assert np.array_equal(first, copy)


# ---- folders


def test_a_folder_is_read_recursively_in_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b/1.JPG", "b/deep/2.png", "a/3.jpeg", "a/.hidden.jpg", "a/notes.txt", ".cache/4.jpg", "stray.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        photograph(8, 8, seed=1).save(tmp_path / name, "PNG")
    (tmp_path / "a" / "back").symlink_to(tmp_path / "a", target_is_directory=True)
    dataset = FolderDataset(tmp_path)
    assert dataset.class_names == ["a", "b"]
    assert [dataset.name(index) for index in range(len(dataset))] == ["a/3.jpeg", "b/1.JPG", "b/deep/2.png"]
    assert dataset.targets.tolist() == [0, 1, 1]


def test_a_validation_folder_is_labelled_by_given_classes(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "owl").mkdir()
    photograph(8, 8, seed=1).save(tmp_path / "owl" / "1.png")
    assert FolderDataset(tmp_path, FolderDataset(photographs).class_names).targets.tolist() == [2]
    with pytest.raises(UserError, match="'owl', which is none of the 2 known classes"):
        FolderDataset(tmp_path, ["cat", "dog"])


def test_the_digits_are_complete_and_their_splits_disjoint() -> None:
    train, val = Digits("train"), Digits("val")
    assert (len(train), len(val)) == (1438, 359)
    assert train.image(0).crop(0, 0, 8, 8).shape == (8, 8, 3)
    assert train.images.max() == 255
    distinct = {image.tobytes() for image in train.images} | {image.tobytes() for image in val.images}
    assert len(distinct) == 1797


# ---- augmentation


def test_crops_are_drawn_as_torchvision_draws_them() -> None:
    torch.manual_seed(0)
    transform, rng = TrainTransform(), generator(0, 99, 0)
    draws: list[tuple[float, ...]] = []
    expected: list[tuple[float, ...]] = []
    for _ in range(4000):
        top, left, height, width = transform.draw_crop(375, 500, rng)
        assert 0 <= top <= 375 - height
        assert 0 <= left <= 500 - width
        draws.append((top, left, height * width, np.log(width / height)))
        top, left, height, width = RandomResizedCrop.get_params(torch.empty(3, 375, 500), [0.08, 1.0], [3 / 4, 4 / 3])
        expected.append((top, left, height * width, np.log(width / height)))
    for samples in zip(np.sort(draws, 0).T, np.sort(expected, 0).T, strict=True):
        # Kolmogorov-Smirnov test at a significance of 0.001
        cdfs = [np.searchsorted(sample, np.concatenate(samples), "right") / len(sample) for sample in samples]
        assert np.abs(cdfs[0] - cdfs[1]).max() < 1.95 * np.sqrt(2 / 4000)


def test_an_image_too_narrow_for_any_crop_is_cropped_to_its_centre() -> None:
    assert TrainTransform().draw_crop(1000, 10, generator(0, 99, 0)) == (493, 0, 13, 10)
    assert TrainTransform().draw_crop(10, 1000, generator(0, 99, 0)) == (0, 493, 10, 13)


def test_the_jitter_matrix_equals_the_three_steps_in_sequence() -> None:
    """Compare with the definition in float64: Pillow's steps without rounding."""
    pixels = np.asarray(photograph(20, 16, seed=4))[:, :, ::-1].astype(np.float64)
    grey = np.array([0.114, 0.587, 0.299])
    orders = set()
    for trial in range(60):
        matrix = draw_jitter((0.4, 0.3, 0.2), generator(trial, 99, 0)).matrix(pixels.mean((0, 1)))
        # The same draws, in the same order.
        rng = generator(trial, 99, 0)
        factors = [1 - s + 2 * s * rng.random() for s in (0.4, 0.3, 0.2)]
        order = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)][int(rng.random() * 6)]
        orders.add(order)
        expected = pixels
        for step in order:
            if step == 0:
                blend = np.zeros_like(expected)
            elif step == 1:
                blend = np.full_like(expected, (expected @ grey).mean())
            else:
                blend = (expected @ grey)[:, :, None].repeat(3, 2)
            expected = factors[step] * expected + (1 - factors[step]) * blend
        np.testing.assert_allclose(pixels @ matrix[:, :3].T + matrix[:, 3], expected, atol=1e-9)
    assert len(orders) == 6


def test_the_horizontal_flip_mirrors_the_crop() -> None:
    image = np.asarray(photograph(40, 40, seed=5))
    unflipped, flipped = (np.empty((40, 40, 3), np.uint8) for _ in range(2))
    whole: dict[str, Any] = {"size": 40, "scale": (1.0, 1.0), "ratio": (1.0, 1.0), "color_jitter": (0.0, 0.0, 0.0)}
    TrainTransform(**whole, hflip=0.0)(DecodedImage(image), unflipped, generator(0, 99, 0))
    TrainTransform(**whole, hflip=1.0)(DecodedImage(image), flipped, generator(0, 99, 0))
    assert np.array_equal(unflipped, image)
    assert np.array_equal(flipped, image[:, ::-1])


@pytest.mark.parametrize("jitter", [0.0, 0.4])
@pytest.mark.parametrize("hflip", [0.0, 1.0])
def test_pixels_are_written_only_into_the_given_part_of_a_batch(jitter: float, hflip: float) -> None:
    batch = np.zeros((3, 32, 32, 3), np.uint8)
    TrainTransform(size=32, color_jitter=(jitter,) * 3, hflip=hflip)(
        DecodedImage(np.full((50, 60, 3), 200, np.uint8)), batch[1], generator(0, 99, 0)
    )
    assert batch[1].min() > 0
    assert not batch[0].any()
    assert not batch[2].any()


def test_a_train_transform_prints_its_steps() -> None:
    transform = TrainTransform(176, policy=parse_policy("ta_wide"), erasing=RandomErasing(0.3), color_jitter=(0.0, 0.0, 0.0))
    names = [line.split("(")[0].strip() for line in repr(transform).splitlines()]
    steps = ["RandomResizedCrop", "RandomHorizontalFlip", "TrivialAugmentWide", "RandomErasing"]
    assert names == ["TrainTransform", *steps, ")"]


def test_a_train_transform_is_built_from_its_options() -> None:
    data = DataConfig(input_size=64, resize_size=72, train_crop_size=48, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))
    jitter = (0.1, 0.2, 0.3)
    ranges: dict[str, Any] = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "color_jitter": jitter}
    built = build_train_transform(data, AugmentationConfig(**ranges, aa="ta_wide", reprob=0.2, aug_splits=3))
    policy, erasing = parse_policy("ta_wide", fill=(1.0, 2.0, 3.0)), RandomErasing(0.2, mean=data.mean, std=data.std)
    assert built == TrainTransform(48, color_jitter=jitter, policy=policy, erasing=erasing, views=3)
    not_normalized = replace(data, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    built = build_train_transform(not_normalized, AugmentationConfig(**ranges, aa="ta_wide", reprob=0.2))
    assert built == TrainTransform(48, color_jitter=jitter, policy=parse_policy("ta_wide"), erasing=RandomErasing(0.2))
    assert build_train_transform(data, AugmentationConfig(no_aug=True)) == EvaluationTransform(64, 72)
