"""What an exported file states about itself, so that a program can use it without any other file."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import __version__
from ..config import height_width
from ..weights import Preprocessing

KEYS = ("shufflenetv2", "model_size", "class_names", "preprocessing", "input")


@dataclass(frozen=True)
class ExportMetadata:
    """Classes, preprocessing and input format of an exported file.

    Attributes:
        model_size: '0.5x', '1.0x', '1.5x' or '2.0x'.
        class_names: in the order of the logits; None if the weight file did not contain them.
        preprocessing: how an image is resized and cropped before it is passed to the file, which normalizes it itself.
        channels: 'bgr' or 'rgb'.
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
        return [self.batch_size, 3, *size] if self.layout == "nchw" else [self.batch_size, *size, 3]

    def __str__(self) -> str:
        shape = " x ".join("N" if length is None else str(length) for length in self.input_shape)
        return f"{self.channels.upper()} images, {self.dtype}, 0..255, {shape} ({self.layout.upper()})"

    def to_strings(self) -> dict[str, str]:
        """Return the metadata as a JSON text for each of KEYS, in which form every format can store it.

        Mean and standard deviation are omitted, because a program that reads them would normalize a second time.
        """
        resize_size = self.preprocessing.resize_size
        values = {
            "shufflenetv2": __version__,
            "model_size": self.model_size,
            "class_names": self.class_names,
            "preprocessing": {
                "resize_short_side" if isinstance(resize_size, int) else "resize_to_cover": resize_size,
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

    @classmethod
    def from_strings(cls, strings: Mapping[str, str]) -> "ExportMetadata":
        """Restore what `to_strings` returned.

        Raises:
            KeyError, ValueError, TypeError, AttributeError: for anything else.
        """
        model_size, class_names, steps, images = (json.loads(strings[key]) for key in KEYS[1:])
        resize_size = steps["resize_short_side"] if "resize_short_side" in steps else tuple(steps["resize_to_cover"])
        input_size = steps["center_crop"]
        if isinstance(input_size, list):
            input_size = tuple(input_size)
        preprocessing = Preprocessing(input_size, resize_size, interpolation=steps["interpolation"])
        return cls(
            model_size,
            class_names,
            preprocessing,
            channels=images["channels"],
            layout=images["layout"],
            dtype=images["dtype"],
            batch_size=images["shape"][0],
        )

    def to_input(self, images: Tensor) -> Tensor:
        """Convert images from uint8 (N, 3, H, W), BGR, to the input format of the file."""
        if self.channels == "rgb":
            images = images.flip(1)
        if self.layout == "nhwc":
            images = images.permute(0, 2, 3, 1)
        return images.to(getattr(torch, self.dtype)).contiguous()

    def input_batches(self, images: Tensor) -> Iterator[Tensor]:
        """Convert images as `to_input` does and yield them in batches of a size that the file accepts."""
        batch_size = self.batch_size or len(images)
        return (self.to_input(images[start : start + batch_size]) for start in range(0, len(images), batch_size))
