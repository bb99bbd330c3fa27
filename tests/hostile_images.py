"""Damaged image files of every format, read as training and the command `check` read them."""

import functools
import io
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from PIL import Image

from shufflenetv2.cli.parser import OptionParser
from shufflenetv2.config import CheckConfig
from shufflenetv2.data import EvaluationTransform, TrainTransform, limit_pixels
from shufflenetv2.data.headers import image_size
from shufflenetv2.data.images import open_image
from shufflenetv2.data.similarity import signature
from shufflenetv2.rng import generator
from tests.mutation import Mutator, end, repair_png, workplace

MAX_PIXELS = 2**20  # of an image that is decoded here, so that the memory of an input is limited
PROFILE = {"icc_profile": bytes(200), "exif": b"Exif\0\0II*\0" + bytes(20)}
Image.init()
SIZES = ((61, 47), (16, 8))


def _pillow(format: str, *variants: tuple[str, dict[str, Any]]) -> list[bytes]:
    """Return files of a format for each mode and options of Pillow."""
    files: list[bytes] = []
    if format not in Image.SAVE:  # an old version of Pillow
        return files
    for width, height in SIZES:
        for mode, options in variants:
            rng = np.random.default_rng(width)
            image = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(
                (width, height), Image.Resampling.BICUBIC
            )
            image = (
                Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 256)
                if mode == "I;16"
                else image.convert(mode)
            )
            buffer = io.BytesIO()
            more = [image.rotate(180)] if options.get("save_all") else []
            image.save(buffer, format, **options, **({"append_images": more} if more else {}))
            files.append(buffer.getvalue())
    return files


def _opencv(suffix: str, *variants: tuple[type, int]) -> list[bytes]:
    """Return files of a format for each data type and number of channels."""
    rng = np.random.default_rng(0)
    return [
        cv2.imencode(suffix, (rng.random((47, 61, channels)) * (255 if dtype is np.uint8 else 1)).astype(dtype))[1].tobytes()
        for dtype, channels in variants
    ]


def _tiff() -> list[bytes]:
    compressions = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    return [
        *_pillow("TIFF", *(("RGB", {"compression": name}) for name in compressions), ("1", {"compression": "group4"})),
        *_pillow("TIFF", ("L", {}), ("P", {}), ("CMYK", {}), ("I;16", {}), ("F", {}), ("RGBA", {"save_all": True})),
    ]


def _portable() -> list[bytes]:
    plain = [
        b"P1\n# c\n4 3\n1 0 1 0\n0 1 0 1\n1 1 1 1\n",
        b"P2 4 2 255\n1 2 3 4\n5 6 7 8\n",
        b"P3\n2 2\n15\n1 2 3 4 5 6 7 8 9 10 11 12\n",
    ]
    return [
        *plain,
        *_pillow("PPM", ("1", {}), ("L", {}), ("RGB", {}), ("I;16", {})),
        *_opencv(".pam", (np.uint8, 3), (np.uint8, 1)),
    ]


def _others() -> list[bytes]:
    return [
        *_opencv(".hdr", (np.float32, 3)), *_opencv(".pfm", (np.float32, 3), (np.float32, 1)),
        *_opencv(".ras", (np.uint8, 3), (np.uint8, 1)), *_pillow("DIB", ("RGB", {}), ("P", {})),
        *_pillow("DDS", ("RGBA", {})), *_pillow("QOI", ("RGB", {})), *_pillow("MPO", ("RGB", {"save_all": True})),
        *_pillow("ICNS", ("RGBA", {})),
    ]  # fmt: skip


SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "JPEG": lambda: _pillow(
        "JPEG",
        *(("RGB", options) for options in ({}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 3})),
        *(("L", {}), ("L", {"progressive": True}), ("CMYK", {})),
    ),
    "PNG": lambda: _pillow(
        "PNG",
        *((mode, {}) for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")),
        *(("RGB", {"save_all": True}), ("RGB", {"dpi": (72, 72), **PROFILE})),
    ),
    "WebP": lambda: _pillow(
        "WEBP",
        *(("RGB", {}), ("RGB", {"lossless": True}), ("RGBA", {}), ("RGBA", {"lossless": True}), ("RGB", {"save_all": True})),
        ("RGB", PROFILE),
    ),
    "BMP": lambda: _pillow("BMP", *((mode, {}) for mode in ("RGB", "RGBA", "L", "P", "1"))),
    "GIF": lambda: _pillow(
        "GIF", ("P", {}), ("L", {}), ("P", {"interlace": 0}), ("P", {"save_all": True}), ("L", {"transparency": 0})
    ),
    "TIFF": _tiff,
    "AVIF": lambda: _pillow("AVIF", ("RGB", {"speed": 10}), ("RGBA", {"speed": 10})),
    "JPEG 2000": lambda: [
        *_pillow("JPEG2000", ("RGB", {}), ("L", {}), ("RGBA", {}), ("RGB", {"tile_size": (16, 16), "irreversible": True})),
        *_pillow("JPEG2000", ("RGB", {"no_jp2": True})),
    ],
    "PPM, PGM, PBM, PAM": _portable,
    "TGA": lambda: _pillow(
        "TGA", *((mode, {"compression": name}) for mode in ("RGB", "RGBA", "L", "P") for name in (None, "tga_rle"))
    ),
    "ICO": lambda: _pillow("ICO", ("RGBA", {"sizes": [(16, 8)]}), ("RGBA", {"sizes": [(16, 8)], "bitmap_format": "bmp"})),
    "PCX": lambda: _pillow("PCX", ("RGB", {}), ("L", {}), ("P", {}), ("1", {})),
    "SGI": lambda: _pillow("SGI", ("RGB", {}), ("RGBA", {}), ("L", {})),
    "other image formats": _others,
}  # fmt: skip


@functools.cache
def _tools() -> tuple[OptionParser, TrainTransform, EvaluationTransform, np.ndarray]:
    return (
        OptionParser("shufflenetv2 check", CheckConfig),
        TrainTransform(32),
        EvaluationTransform(32, 40),
        np.empty((32, 32, 3), np.uint8),
    )


def end_image(content: bytes) -> int:
    """Open, crop and resize an image file."""
    parser, train, evaluate, out = _tools()
    path = workplace() / "image"
    path.write_bytes(content)
    limit_pixels(MAX_PIXELS)

    def run() -> None:
        image = open_image(path)
        train(image, out, generator(0, 99, len(content)))
        evaluate(image, out)
        pixels = image.crop(0, 0, image.height, image.width)
        signature(pixels)
        assert pixels.shape == (image.height, image.width, 3)
        # The limit of pixels was applied to the size in the header.
        assert image_size(content) in (None, pixels.shape[:2]), (image_size(content), pixels.shape)
        assert image.height * image.width <= MAX_PIXELS

    return end(parser, run)


IMAGES: dict[str, tuple[Mutator, Callable[[bytes], int]]] = {
    f"images: {name}": (Mutator(functools.cache(seeds), repair=repair_png if name == "PNG" else None), end_image)
    for name, seeds in SEEDS.items()
    if name != "AVIF" or name in Image.SAVE
}
