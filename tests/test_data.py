"""The pixels are the original's, and the stream of samples is a function of (seed, position)."""

import gc
import io
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from shufflenetv2.data import (
    DataIterator,
    Dataset,
    DecodedImage,
    Digits,
    EvaluationTransform,
    FolderDataset,
    ImageError,
    TrainTransform,
    evaluation_batches,
)
from shufflenetv2.data.images import SequentialJpeg, decode_with_pillow, open_image, read_image
from shufflenetv2.data.jitter import draw_jitter
from shufflenetv2.data.loader import SampleOrder
from shufflenetv2.data.transforms import CenterCrop, OpencvResize, ToBGRTensor
from shufflenetv2.errors import UserError
from shufflenetv2.rng import RandomStreams, generator
from tests.support import photograph

SMALL = TrainTransform(size=32)


def original_evaluation_tensor(path: Path) -> torch.Tensor:
    """The original's validation transforms, literally: PIL decodes, OpenCV resizes, then crop and BGR."""
    image = np.ascontiguousarray(np.asarray(Image.open(path).convert("RGB"))[:, :, ::-1])
    height, width, _ = image.shape
    target = (int(256 / height * width + 0.5), 256) if height < width else (256, int(256 / width * height + 0.5))
    image = cv2.resize(image, target, interpolation=cv2.INTER_LINEAR)
    top, left = int(round((image.shape[0] - 224) / 2.0)), int(round((image.shape[1] - 224) / 2.0))  # noqa: RUF046
    crop = image[top : top + 224, left : left + 224]
    return torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1))).float()


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (333, 501), (501, 334), (97, 64), (256, 256), (225, 1000)])
@pytest.mark.parametrize("encoding", [{"subsampling": 2}, {"subsampling": 0}, {"progressive": True}])
def test_the_evaluation_tensor_is_the_originals_to_the_last_bit(
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


def test_the_transforms_take_pil_images_and_bgr_arrays_alike() -> None:
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
    "L": ("png", "jpg", "tiff"), "P": ("png", "gif", "bmp"), "RGBA": ("png", "webp", "tiff", "tga"), "LA": ("png",),
    "CMYK": ("jpg", "tiff"), "1": ("png", "tiff"),
}  # fmt: skip


@pytest.mark.parametrize(("mode", "suffix"), [(mode, suffix) for mode, suffixes in SAVED_AS.items() for suffix in suffixes])
def test_every_kind_of_image_comes_out_as_three_bgr_channels(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    exactly: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    photograph(31, 22, seed=2).convert(mode).save(path, **exactly)
    image = read_image(path)
    assert image.shape == (22, 31, 3)
    assert image.dtype == np.uint8
    expected = np.asarray(Image.open(path).convert("RGB"))[:, :, ::-1]
    assert np.abs(image.astype(int) - expected).max() <= 1  # CMYK rounds its own way; all others are equal


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_keep_their_upper_eight(tmp_path: Path, suffix: str, channels: int) -> None:
    values = np.arange(0, 65536, 65536 // 300, dtype=np.uint16)[:300].reshape(15, 20, 1).repeat(channels, 2)
    cv2.imwrite(str(tmp_path / f"image.{suffix}"), values)
    image = read_image(tmp_path / f"image.{suffix}")
    assert np.abs(image.astype(int) - (values >> 8)).max() <= 1  # some decoders round


def test_sixteen_bits_are_not_clipped_where_pillow_reads_them(tmp_path: Path) -> None:
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


def test_a_truncated_jpeg_is_named_rather_than_trained_on(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    photograph(100, 80, seed=3).save(buffer, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(ImageError, match=r"cut\.jpg"):
        read_image(tmp_path / "cut.jpg")


@pytest.mark.parametrize("sampling", [0x111111, 0x211111, 0x221111, 0x121111, 0x411111, None])
@pytest.mark.parametrize("extra", [[], [cv2.IMWRITE_JPEG_RST_INTERVAL, 3], [cv2.IMWRITE_JPEG_OPTIMIZE, 1]])
def test_a_jpeg_decoded_in_part_has_the_pixels_of_the_whole(tmp_path: Path, sampling: int | None, extra: list[int]) -> None:
    """For every subsampling of the colours, and for grey."""
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


@pytest.mark.parametrize(("side", "factor"), [(64, 8), (65, 4), (128, 4), (200, 2), (256, 2), (257, 1), (None, 1)])
def test_a_crop_that_is_shrunk_anyway_is_decoded_smaller(tmp_path: Path, side: int | None, factor: int) -> None:
    path = tmp_path / "image.jpg"
    photograph(900, 701, seed=4).save(path, quality=95)
    whole = read_image(path)
    for top, left in ((0, 0), (101, 33), (188, 387)):
        crop = open_image(path).crop(top, left, 513, 513, min_side=side)
        edges = [(edge + factor // 2) // factor for edge in (top, top + 513, left, left + 513)]
        assert crop.shape == (edges[1] - edges[0], edges[3] - edges[2], 3)
        assert min(crop.shape[:2]) >= (side or 513)
        # Its pixels are the averages of those they stand for, up to rounding and the coarser colours.
        rows, columns = (n // factor * factor for n in whole.shape[:2])
        averages = whole[:rows, :columns].reshape(rows // factor, factor, columns // factor, factor, 3).mean((1, 3))
        inner = averages[edges[0] : edges[1], edges[2] : edges[3]]
        assert np.abs(crop[: inner.shape[0], : inner.shape[1]] - inner).mean() < (1.5 if factor > 1 else 1e-9)


def test_decoding_in_part_says_nothing(photographs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for path in photographs.rglob("*.jpg"):
        open_image(path).crop(0, 0, 5, 5)
    assert capfd.readouterr() == ("", "")


def test_a_progressive_jpeg_is_decoded_whole(tmp_path: Path) -> None:
    photograph(50, 40, seed=1).save(tmp_path / "image.jpg", progressive=True)
    assert isinstance(open_image(tmp_path / "image.jpg"), DecodedImage)


def test_an_image_that_was_read_is_not_overwritten_by_the_next(photographs: Path) -> None:
    first = read_image(photographs / "cat/0.jpg")
    copy = first.copy()
    read_image(photographs / "cat/1.jpg")
    assert np.array_equal(first, copy)


# ---- folders


def test_a_folder_is_read_deep_and_in_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b/1.JPG", "b/deep/2.png", "a/3.jpeg", "a/.hidden.jpg", "a/notes.txt", ".cache/4.jpg", "stray.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        photograph(8, 8, seed=1).save(tmp_path / name, "PNG")
    (tmp_path / "a" / "back").symlink_to(tmp_path / "a", target_is_directory=True)
    dataset = FolderDataset(tmp_path)
    assert dataset.class_names == ["a", "b"]
    assert [dataset.name(index) for index in range(len(dataset))] == ["a/3.jpeg", "b/1.JPG", "b/deep/2.png"]
    assert dataset.targets.tolist() == [0, 1, 1]


def test_a_validation_folder_is_labelled_by_the_classes_of_the_model(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "owl").mkdir()
    photograph(8, 8, seed=1).save(tmp_path / "owl" / "1.png")
    assert FolderDataset(tmp_path, FolderDataset(photographs).class_names).targets.tolist() == [2]
    with pytest.raises(UserError, match="'owl', which is none of the 2 known classes"):
        FolderDataset(tmp_path, ["cat", "dog"])


def test_the_digits_are_all_there_and_split_once() -> None:
    train, val = Digits("train"), Digits("val")
    assert (len(train), len(val)) == (1438, 359)
    assert train.image(0).crop(0, 0, 8, 8).shape == (8, 8, 3)
    assert train.images.max() == 255
    every = {image.tobytes() for image in train.images} | {image.tobytes() for image in val.images}
    assert len(every) == 1797  # no digit twice, none in both


# ---- augmentation


def test_crops_are_drawn_as_torchvision_draws_them() -> None:
    torch.manual_seed(0)
    transform, rng = TrainTransform(), generator(0, 99, 0)
    ours, theirs = [], []
    for _ in range(4000):
        top, left, height, width = transform.draw_crop(375, 500, rng)
        assert 0 <= top <= 375 - height
        assert 0 <= left <= 500 - width
        ours.append((top, left, height * width, np.log(width / height)))
        top, left, height, width = RandomResizedCrop.get_params(torch.empty(3, 375, 500), [0.08, 1.0], [3 / 4, 4 / 3])
        theirs.append((top, left, height * width, np.log(width / height)))
    for mine, other in zip(np.sort(ours, 0).T, np.sort(theirs, 0).T, strict=True):
        # Kolmogorov and Smirnov's distance of the two distributions, at a significance of 0.001
        both = np.concatenate((mine, other))
        shares = [np.searchsorted(sample, both, "right") / len(sample) for sample in (mine, other)]
        assert np.abs(shares[0] - shares[1]).max() < 1.95 * np.sqrt(2 / 4000)


def test_an_image_too_narrow_for_any_crop_gives_its_centre() -> None:
    assert TrainTransform().draw_crop(1000, 10, generator(0, 99, 0)) == (493, 0, 13, 10)
    assert TrainTransform().draw_crop(10, 1000, generator(0, 99, 0)) == (0, 493, 10, 13)


def test_the_jitter_matrix_is_the_three_steps_one_after_another() -> None:
    """Against the definition, pixel by pixel in float: Pillow's steps without its rounding."""
    pixels = np.asarray(photograph(20, 16, seed=4))[:, :, ::-1].astype(np.float64)
    grey = np.array([0.114, 0.587, 0.299])
    seen = set()
    for trial in range(60):
        matrix = draw_jitter((0.4, 0.3, 0.2), generator(trial, 99, 0)).matrix(pixels.mean((0, 1)))
        # The same draws, in the same order.
        rng = generator(trial, 99, 0)
        factors = [1 - s + 2 * s * rng.random() for s in (0.4, 0.3, 0.2)]
        order = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)][int(rng.random() * 6)]
        seen.add(order)
        expected = pixels
        for step in order:
            if step == 0:
                other = np.zeros_like(expected)
            elif step == 1:
                other = np.full_like(expected, (expected @ grey).mean())
            else:
                other = (expected @ grey)[:, :, None].repeat(3, 2)
            expected = factors[step] * expected + (1 - factors[step]) * other
        np.testing.assert_allclose(pixels @ matrix[:, :3].T + matrix[:, 3], expected, atol=1e-9)
    assert len(seen) == 6


def test_the_flip_mirrors_and_nothing_else() -> None:
    image = np.asarray(photograph(40, 40, seed=5))
    kept, mirrored = (np.empty((40, 40, 3), np.uint8) for _ in range(2))
    whole = {"size": 40, "scale": (1.0, 1.0), "ratio": (1.0, 1.0), "color_jitter": (0.0, 0.0, 0.0)}
    TrainTransform(**whole, hflip=0.0)(DecodedImage(image), kept, generator(0, 99, 0))  # type: ignore[arg-type]
    TrainTransform(**whole, hflip=1.0)(DecodedImage(image), mirrored, generator(0, 99, 0))  # type: ignore[arg-type]
    assert np.array_equal(kept, image)
    assert np.array_equal(mirrored, image[:, ::-1])


@pytest.mark.parametrize("jitter", [0.0, 0.4])
@pytest.mark.parametrize("hflip", [0.0, 1.0])
def test_the_pixels_land_in_the_batch_itself(jitter: float, hflip: float) -> None:
    batch = np.zeros((3, 32, 32, 3), np.uint8)
    TrainTransform(size=32, color_jitter=(jitter,) * 3, hflip=hflip)(
        DecodedImage(np.full((50, 60, 3), 200, np.uint8)), batch[1], generator(0, 99, 0)
    )
    assert batch[1].min() > 0
    assert not batch[0].any()
    assert not batch[2].any()


# ---- the stream


def test_an_epoch_has_every_sample_once_and_no_two_epochs_are_alike() -> None:
    order = SampleOrder(11, seed=3)
    epochs = [[order(position) for position in range(epoch * 11, epoch * 11 + 11)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    assert [SampleOrder(11, seed=3)(position) for position in (25, 3)] == [epochs[2][3], epochs[0][3]]


def test_streams_of_different_purpose_seed_or_index_differ() -> None:
    draws = {generator(*key).random() for key in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (0, 1, 3))}
    assert len(draws) == 4
    assert generator(5, 1, 2).random() == generator(5, 1, 2).random()


def test_a_generator_that_is_turned_to_a_stream_draws_what_a_new_one_draws() -> None:
    streams = RandomStreams(5, 2)
    for index in (0, 2**40, 7, 7):
        rng, new = streams(index), generator(5, 2, index)
        assert rng.random(7).tolist() == new.random(7).tolist()
        assert rng.integers(10) == new.integers(10)  # half a word stays behind, which the next stream must not see
        assert (rng.random(), rng.integers(1 << 20)) == (new.random(), new.integers(1 << 20))


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_batches_do_not_depend_on_the_workers_nor_on_where_the_iterator_starts(photographs: Path, workers: int) -> None:
    dataset = FolderDataset(photographs)  # 21 images: batches of 8 run across the epochs' borders
    base = DataIterator(dataset, SMALL, 8, seed=4, workers=1)
    expected = [base.next() for _ in range(9)]
    late = DataIterator(dataset, SMALL, 8, seed=4, workers=workers, start_iteration=5)
    for images, targets in expected[5:]:
        got_images, got_targets = late.next()
        assert torch.equal(got_images, images)
        assert torch.equal(got_targets, targets)
    assert all(images.shape == (8, 3, 32, 32) and images.dtype == torch.uint8 for images, _ in expected)
    assert all(targets.shape == (8,) and targets.dtype == torch.int64 for _, targets in expected)


def test_the_samples_of_any_iteration_can_be_named(photographs: Path) -> None:
    dataset = FolderDataset(photographs)
    batches = DataIterator(dataset, SMALL, 8, seed=4, workers=1)
    labels = {dataset.name(index): target for index, target in enumerate(dataset.targets)}
    for iteration in range(1, 6):
        assert [labels[name] for name in batches.sample_names(iteration)] == batches.next()[1].tolist()


def test_a_batch_stays_what_it_was_while_others_are_made() -> None:
    batches = DataIterator(Digits("train"), SMALL, 16, workers=2)
    kept, _ = batches.next()
    copy = kept.clone()
    for _ in range(20):
        batches.next()
    assert torch.equal(kept, copy)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth_from_batch_200_to_1000() -> int:
    batches = DataIterator(Digits("train"), SMALL, 8, workers=2)
    for _ in range(200):
        batches.next()
    before = resident_bytes()
    for _ in range(800):
        batches.next()
    growth = resident_bytes() - before
    batches.close()
    return growth


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the size of a process from Linux's /proc")
def test_a_thousand_batches_take_no_more_memory_than_two_hundred() -> None:
    """In a process of its own, where no hole left by other tests hides what is kept."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        growth = process.submit(growth_from_batch_200_to_1000).result()
    assert growth < 1_000_000  # it is 0.1 MB at most; every tenth of the batches, 25 kB each, would be 2


def test_the_far_end_of_a_long_run_is_as_near_as_its_start() -> None:
    images, _ = DataIterator(Digits("train"), SMALL, 1024, start_iteration=299_999, workers=2).next()
    assert len(images) == 1024


def test_another_seed_is_another_stream() -> None:
    first, second = (DataIterator(Digits("train"), SMALL, 16, seed=seed).next() for seed in (0, 1))
    assert not torch.equal(first[1], second[1])


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 3), (8, 2), (21, 1), (100, 4)])
def test_evaluation_sees_every_image_once_and_in_order(photographs: Path, batch_size: int, workers: int) -> None:
    dataset: Dataset = FolderDataset(photographs)
    batches = list(evaluation_batches(dataset, EvaluationTransform(32, 36), batch_size, workers=workers))
    assert torch.cat([targets for _, targets in batches]).tolist() == dataset.targets.tolist()
    one_by_one = [images[0] for images, _ in evaluation_batches(dataset, EvaluationTransform(32, 36), 1, workers=1)]
    assert torch.equal(torch.cat([images for images, _ in batches]), torch.stack(one_by_one))


def test_an_unreadable_image_ends_the_iteration_by_name(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "bad.jpg").write_bytes(b"not a picture")
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        DataIterator(FolderDataset(tmp_path), SMALL, 2).next()


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader-")]


def test_threads_end_when_the_iterator_is_closed_or_forgotten() -> None:
    gc.collect()
    before = set(loader_threads())
    closed, forgotten = (DataIterator(Digits("train"), SMALL, 4, workers=3) for _ in range(2))
    closed.next()
    mine = [thread for thread in loader_threads() if thread not in before]
    assert len(mine) == 6
    closed.close()
    del forgotten
    gc.collect()
    for thread in mine:
        thread.join(timeout=30)
        assert not thread.is_alive()
    with pytest.raises(ValueError, match="closed"):
        closed.next()
