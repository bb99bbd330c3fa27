"""Random erasing: rectangles of the image are painted over. https://arxiv.org/abs/1708.04896"""

import math
from dataclasses import dataclass

import numpy as np

from ..errors import UserError

MODES = ("const", "rand", "pixel")
ATTEMPTS = 10


class ErasingError(UserError):
    """Settings that make no sense; the text names the option and the remedy."""


@dataclass(frozen=True)
class RandomErasing:
    """Paints over up to `count` rectangles, by timm's rule.

    Together they cover 1/50 to 1/3 of the image, less where they overlap; height / width of each is drawn
    log-uniformly from 0.3..1/0.3. One that does not fit in ten attempts is left out.

    Args:
        probability: of an image being touched at all, 0..1.
        mode: 'const' paints with the mean, 'rand' with one normal colour per rectangle, 'pixel' with one per pixel.
        count: the number of rectangles is drawn from 1..count.
        mean, std: of the colours, BGR, 0..255; ImageNet's by default. Colours outside 0..255 are clipped,
            where timm, which erases after normalising, keeps them.

    Raises:
        ErasingError: for another mode, a probability outside 0..1 or a count below 1.
    """

    probability: float
    mode: str = "const"
    count: int = 1
    mean: tuple[float, float, float] = (103.53, 116.28, 123.675)
    std: tuple[float, float, float] = (57.375, 57.12, 58.395)

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ErasingError(f"--reprob {self.probability}: a probability is between 0 and 1")
        if self.mode not in MODES:
            raise ErasingError(f"--remode {self.mode}: known are {', '.join(MODES)}")
        if self.count < 1:
            raise ErasingError(f"--recount {self.count}: at least 1; to erase nothing give --reprob 0")

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> None:
        """Erases in place in uint8 (H, W, 3), BGR, every draw from `rng`."""
        if rng.random() >= self.probability:
            return
        count = 1 + int(rng.random() * self.count)
        for _ in range(count):
            region = self._draw_region(pixels.shape[0], pixels.shape[1], count, rng)
            if region is not None:
                rows, columns = region
                pixels[rows, columns] = self._draw_colours(rows.stop - rows.start, columns.stop - columns.start, rng)

    def _draw_region(self, height: int, width: int, count: int, rng: np.random.Generator) -> tuple[slice, slice] | None:
        """Rows and columns of a rectangle, one of `count`; None if none was found that fits."""
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
        """What to paint with: uint8 (3,), or (rows, columns, 3)."""
        if self.mode == "const":
            deviations = np.zeros(3, np.float32)
        else:
            deviations = rng.standard_normal((rows, columns, 3) if self.mode == "pixel" else 3, np.float32)
        colours: np.ndarray = np.array(self.mean, np.float32) + np.array(self.std, np.float32) * deviations
        return colours.round().clip(0, 255).astype(np.uint8)
