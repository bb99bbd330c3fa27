"""What an exported file states about itself, so that a program can use it without any other file."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import FiniteFloat, StrictStr
from torch import Tensor
from typing_extensions import Required, TypedDict

from .. import __version__
from ..config import Interpolation, as_size, height_width
from ..errors import UserError
from ..weights import ImageSize, Preprocessing, check_metadata

# Crop mode: name of the height and width to which images are resized
RESIZE_KEYS = {"center": "resize_to_cover", "squash": "resize_to", "border": "resize_to_fit"}
KEYS = ("shufflenetv2", "model_size", "class_names", "preprocessing", "input")

UNSEALED = "shufflenetv2 sha256 " + "0" * 64  # in the place of the checksum of a file
SEAL = re.compile(rb"shufflenetv2 sha256 ([0-9a-f]{64})")


class StepsRecord(TypedDict, total=False):
    """How an image is resized and cropped; the sizes stand under the names in RESIZE_KEYS."""

    crop_mode: Literal["center", "squash", "border"]
    resize_short_side: ImageSize
    resize_to_cover: ImageSize
    resize_to: ImageSize
    resize_to_fit: ImageSize
    border_color: tuple[FiniteFloat, ...]
    interpolation: Required[Interpolation]
    center_crop: Required[ImageSize]


class InputRecord(TypedDict):
    """Format of a batch of images."""

    channels: Literal["bgr", "rgb", "grey"]
    layout: Literal["nchw", "nhwc"]
    dtype: Literal["float32", "uint8"]
    shape: tuple[Literal[1] | None, int, int, int]


class ExportRecord(TypedDict):
    """What `ExportMetadata.to_strings` writes, apart from the version."""

    model_size: Literal["0.5x", "1.0x", "1.5x", "2.0x"]
    class_names: list[StrictStr] | None
    preprocessing: StepsRecord
    input: InputRecord


@dataclass(frozen=True)
class ExportMetadata:
    """Classes, preprocessing and input format of an exported file.

    Attributes:
        model_size: '0.5x', '1.0x', '1.5x' or '2.0x'.
        class_names: in the order of the logits; None if the weight file did not contain them.
        preprocessing: how an image is resized and cropped before it is passed to the file, which normalizes it itself.
        channels: 'bgr', 'rgb' or 'grey'.
        layout: 'nchw' or 'nhwc'.
        dtype: 'float32' or 'uint8'; the values are on the scale 0..255 in both.
        batch_size: the only batch size that the file accepts, or None if it accepts any.
    """

    model_size: str
    class_names: list[str] | None
    preprocessing: Preprocessing
    channels: str = "bgr"
    layout: str = "nchw"
    dtype: str = "float32"
    batch_size: int | None = 1

    @property
    def input_shape(self) -> list[int | None]:
        """Shape of a batch of images; None where it may be any."""
        size = height_width(self.preprocessing.input_size)
        channels = self.preprocessing.channels
        return [self.batch_size, channels, *size] if self.layout == "nchw" else [self.batch_size, *size, channels]

    def __str__(self) -> str:
        shape = " x ".join("N" if length is None else str(length) for length in self.input_shape)
        return f"{self.channels.upper()} images, {self.dtype}, 0..255, {shape} ({self.layout.upper()})"

    def to_strings(self) -> dict[str, str]:
        """Return the metadata as a JSON text for each of KEYS, in which form every format can store it.

        Mean and standard deviation are omitted, because a program that reads them would normalize a second time.
        """
        values = {
            "shufflenetv2": __version__,
            "model_size": self.model_size,
            "class_names": self.class_names,
            "preprocessing": {
                "crop_mode": self.preprocessing.crop_mode,
                **self._describe_resizing(),
                "interpolation": self.preprocessing.interpolation,
                "antialias": False,
                "center_crop": self.preprocessing.input_size,
                "normalize": "in the model",
            },
            "input": {
                "channels": self.channels,
                "layout": self.layout,
                "dtype": self.dtype,
                "range": [0, 255],
                "shape": self.input_shape,
            },
        }
        return {key: json.dumps(values[key], ensure_ascii=False) for key in KEYS}

    def _describe_resizing(self) -> dict[str, Any]:
        """Return the size of resized images under a name that says what it means, and the colour of the padding, if any."""
        preprocessing = self.preprocessing
        if preprocessing.crop_mode == "center" and isinstance(preprocessing.resize_size, int):
            return {"resize_short_side": preprocessing.resize_size}
        resizing: dict[str, Any] = {RESIZE_KEYS[preprocessing.crop_mode]: height_width(preprocessing.resize_size)}
        if preprocessing.crop_mode == "border":
            color = preprocessing.border_color
            resizing["border_color"] = color[::-1] if self.channels == "rgb" else color
        return resizing

    @classmethod
    def from_strings(cls, strings: Mapping[str, str], name: str = "the exported file") -> "ExportMetadata":
        """Restore what `to_strings` returned.

        Args:
            name: name of the file, for error messages.

        Raises:
            UserError: for anything else.
        """
        try:
            values = {key: json.loads(strings[key]) for key in KEYS[1:]}
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise UserError(
                f"{name} does not describe its input and classes; export it with `shufflenetv2 export`", status=1
            ) from error
        record = check_metadata(name, ExportRecord, values)
        images, steps = record["input"], record["preprocessing"]
        sizes: Mapping[str, Any] = steps
        crop_mode = steps.get("crop_mode", "center")  # version 0.1.0 had no other
        resize_size = sizes.get("resize_short_side") or sizes.get(RESIZE_KEYS[crop_mode])
        # The file normalizes images itself: of the mean, only the colour of the padding is left.
        channels = 1 if images["channels"] == "grey" else 3
        mean = steps.get("border_color", (0.0,) * channels)
        if resize_size is None or len(mean) != channels:
            raise UserError(f"{name} does not say how its input is resized and padded; export it again", status=1)
        preprocessing = Preprocessing(
            as_size(steps["center_crop"]),
            as_size(resize_size),
            mean=mean[::-1] if images["channels"] == "rgb" else mean,
            std=(1.0,) * channels,
            interpolation=steps["interpolation"],
            crop_mode=crop_mode,
        )
        metadata = cls(
            record["model_size"],
            record["class_names"],
            preprocessing,
            channels=images["channels"],
            layout=images["layout"],
            dtype=images["dtype"],
            batch_size=images["shape"][0],
        )
        if tuple(metadata.input_shape) != images["shape"]:
            raise UserError(
                f"{name} gives the shape of its input and the size of images differently; export it again", status=1
            )
        return metadata

    def to_input(self, images: Tensor) -> Tensor:
        """Convert images from uint8 (N, C, H, W), BGR or grey, to the input format of the file."""
        if self.channels == "rgb":
            images = images.flip(1)
        if self.layout == "nhwc":
            images = images.permute(0, 2, 3, 1)
        return images.to(getattr(torch, self.dtype)).contiguous()

    def input_batches(self, images: Tensor) -> Iterator[Tensor]:
        """Convert images as `to_input` does and yield them in batches of a size that the file accepts."""
        batch_size = self.batch_size or len(images)
        return (self.to_input(images[start : start + batch_size]) for start in range(0, len(images), batch_size))


def seal(content: bytes) -> bytes:
    """Replace UNSEALED in the content of a file by the checksum of this content."""
    return content.replace(UNSEALED.encode(), UNSEALED[:-64].encode() + hashlib.sha256(content).hexdigest().encode())


def require_seal(content: bytes) -> None:
    """Check the checksum in the content of a file; files of version 0.1.0 have none.

    Raises:
        ValueError: the content has changed since `seal`.
    """
    if match := SEAL.search(content):
        original = content[: match.start(1)] + b"0" * 64 + content[match.end(1) :]
        if hashlib.sha256(original).hexdigest().encode() != match[1]:
            raise ValueError("its content does not match its checksum")
