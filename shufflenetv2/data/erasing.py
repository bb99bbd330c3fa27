"""Random erasing: paint rectangles over a training image. https://arxiv.org/abs/1708.04896"""

import math
from dataclasses import dataclass

import numpy as np

from ..errors import UserError

MODES = ("const", "rand", "pixel")
ATTEMPTS = 10


@dataclass(frozen=True)
class RandomErasing:
    """Paint over 1 to `count` rectangles of an image, with timm's distribution of positions, sizes and colours.

    All rectangles together cover 1/50 to 1/3 of the image, less if they overlap. The ratio height / width of a rectangle is
    drawn log-uniformly from 0.3..1/0.3. If ten attempts give no rectangle that fits into the image, that rectangle is omitted.

    Args:
        probability: probability of erasing anything in an image, 0..1.
        mode: 'const' paints with the mean colour, 'rand' with one normally distributed colour per rectangle, 'pixel' with
            one such colour per pixel.
        count: largest number of rectangles; the number is drawn uniformly from 1..count.
        mean, std: mean and standard deviation of the colours, BGR, 0..255, or a single number for grey images; ImageNet's by
            default. Colours are clipped to 0..255; timm, which erases after normalization, does not clip.

    Raises:
        UserError: if the mode is unknown, the probability is outside 0..1 or the count is below 1.
    """

    probability: float
    mode: str = "const"
    count: int = 1
    mean: tuple[float, ...] = (103.53, 116.28, 123.675)
    std: tuple[float, ...] = (57.375, 57.12, 58.395)

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise UserError(f"`reprob` {self.probability}: a probability must be between 0 and 1")
        if self.mode not in MODES:
            raise UserError(f"`remode` {self.mode}: must be one of {', '.join(MODES)}")
        if self.count < 1:
            raise UserError(f"`recount` {self.count}: must be at least 1; to disable erasing set `reprob` to 0")

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> None:
        """Erase rectangles of an image in place.

        Args:
            pixels: uint8 (H, W, C), BGR or grey.
            rng: source of all random draws.
        """
        if rng.random() >= self.probability:
            return
        count = 1 + int(rng.random() * self.count)
        for _ in range(count):
            rectangle = self._draw_rectangle(pixels.shape[0], pixels.shape[1], count, rng)
            if rectangle is not None:
                rows, columns = rectangle
                pixels[rows, columns] = self._draw_colours(rows.stop - rows.start, columns.stop - columns.start, rng)

    def _draw_rectangle(self, height: int, width: int, count: int, rng: np.random.Generator) -> tuple[slice, slice] | None:
        """Return the rows and columns of one rectangle out of `count`, or None if no attempt fits into the image."""
        for _ in range(ATTEMPTS):
            area = height * width * rng.uniform(0.02, 1 / 3) / count
            aspect = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
            rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if rows < height and columns < width:
                top = int(rng.random() * (height - rows + 1))
                left = int(rng.random() * (width - columns + 1))
                return slice(top, top + rows), slice(left, left + columns)
        return None

    def _draw_colours(self, rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
        """Return the colours to paint with: uint8 (C,), or (rows, columns, C) in mode 'pixel'."""
        channels = len(self.mean)
        if self.mode == "const":
            deviations = np.zeros(channels, np.float32)
        else:
            deviations = rng.standard_normal((rows, columns, channels) if self.mode == "pixel" else channels, np.float32)
        colours: np.ndarray = np.array(self.mean, np.float32) + np.array(self.std, np.float32) * deviations
        return colours.round().clip(0, 255).astype(np.uint8)
