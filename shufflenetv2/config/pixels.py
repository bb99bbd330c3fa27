"""Size, channels and normalization of images: how their options are read, checked, and filled in."""

from collections.abc import Mapping
from typing import Any

from ..errors import UserError
from .data import DataConfig
from .fields import in_words
from .types import MAX_SIDE, Size, contains, height_width


def read_channels(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the values of options with the channels before an input size, as in timm's `3 224 224`, as `in_chans`.

    Raises:
        UserError: `in_chans` is given as well, and differs.
    """
    size = values.get("input_size")
    numbers = size.split() if isinstance(size, str) else size
    if not (isinstance(numbers, list | tuple) and len(numbers) == 3 and str(numbers[0]) in ("1", "3")):
        return values
    channels, *sides = numbers
    if str(values.get("in_chans") or channels) != str(channels):
        raise UserError(f"`input_size` {in_words(numbers)} begins with the channels, and `in_chans` is {values['in_chans']}")
    return {**values, "in_chans": channels, "input_size": sides}


def normalization_constraints(data: DataConfig, in_chans: int, *, evaluates: bool) -> list[tuple[bool, str]]:
    """Return the constraints of `mean` and `std`: whether each is violated, and the message in that case.

    Args:
        evaluates: the channels are those of a weight file, and not of the option.
    """
    mean, std = data.mean or (), data.std or ()
    is_fraction = bool(mean) and 0 < max(mean) <= 1
    return [
        (
            in_chans == 1 and not evaluates and max(len(mean), len(std)) > 1,
            "`mean` and `std` of grey images (`in_chans=1`) are a single number each",
        ),
        (
            is_fraction and len(mean) == 1,
            f"`mean` {in_words(mean)} is for pixels of 0..1; here pixels are 0..255, so multiply `mean` and `std` by 255",
        ),
        (
            is_fraction,
            f"`mean` {in_words(mean)} is for pixels of 0..1 in RGB; here pixels are 0..255 in BGR, "
            "so reverse `mean` and `std`, and multiply them by 255",
        ),
    ]


def resolve_pixels(data: DataConfig, in_chans: int, *, evaluates: bool, starts_from_weights: bool) -> dict[str, Any]:
    """Return the values of `resize_size`, `mean` and `std`, by name.

    Args:
        evaluates: the size of the images may be that of a weight file.
        starts_from_weights: a mean and standard deviation that are not given are those of the weights, and stay None.

    Raises:
        UserError: `resize_size` is smaller than `input_size`.
    """
    resize_size = data.resize_size or _enlarged(data.input_size, data.crop_pct)
    if max(height_width(resize_size)) > MAX_SIDE and not data.resize_size:
        raise UserError(
            f"`input_size` / `crop_pct` is {in_words(resize_size)}, more than {MAX_SIDE} pixels; give `resize_size`"
        )
    if not contains(resize_size, data.input_size) and not evaluates:
        raise UserError(f"`resize_size` {in_words(resize_size)} is smaller than `input_size` {in_words(data.input_size)}")
    mean = data.mean or (None if starts_from_weights else (0.0,))
    std = data.std or (None if starts_from_weights else (1.0,))
    return {"resize_size": resize_size, "mean": _for_each_channel(mean, in_chans), "std": _for_each_channel(std, in_chans)}


def _enlarged(size: Size, crop_pct: float) -> Size:
    if isinstance(size, int):
        return int(size / crop_pct + 0.5)
    height, width = (int(side / crop_pct + 0.5) for side in size)
    return height, width


def _for_each_channel(values: tuple[float, ...] | None, channels: int) -> tuple[float, ...] | None:
    """Repeat a single number for every channel; None and other values stay as they are."""
    return values * channels if values and len(values) == 1 else values
