"""What an exported file states about itself, so that a program can use it without any other file."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..config import as_size, height_width
from ..weights import Preprocessing

# Crop mode: name of the height and width to which images are resized
RESIZE_KEYS = {"center": "resize_to_cover", "squash": "resize_to", "border": "resize_to_fit"}
KEYS = ("shufflenetv2", "model_size", "class_names", "preprocessing", "input")


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
    def from_strings(cls, strings: Mapping[str, str]) -> "ExportMetadata":
        """Restore what `to_strings` returned.

        Raises:
            KeyError, ValueError, TypeError, AttributeError: for anything else.
        """
        model_size, class_names, steps, images = (json.loads(strings[key]) for key in KEYS[1:])
        crop_mode = steps.get("crop_mode", "center")  # version 0.1.0 had no other
        resize_size = steps["resize_short_side"] if "resize_short_side" in steps else steps[RESIZE_KEYS[crop_mode]]
        # The file normalizes images itself: of the mean, only the colour of the padding is left.
        channels = 1 if images["channels"] == "grey" else 3
        mean = tuple(steps.get("border_color", (0.0,) * channels))
        preprocessing = Preprocessing(
            as_size(steps["center_crop"]),
            as_size(resize_size),
            mean=mean[::-1] if images["channels"] == "rgb" else mean,
            std=(1.0,) * channels,
            interpolation=steps["interpolation"],
            crop_mode=crop_mode,
        )
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
