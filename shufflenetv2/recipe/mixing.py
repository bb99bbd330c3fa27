"""Mixup and cutmix: images that are two at once, and targets to match."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..rng import MIXING, generator


@dataclass(frozen=True)
class Mixing:
    """Mixes every image of a batch with the one as far from its end, with timm's meaning of each number.

    What is drawn follows from the seed, the iteration and the process. (Zhang et al. 2018,
    https://arxiv.org/abs/1710.09412; Yun et al. 2019, https://arxiv.org/abs/1905.04899)

    Args:
        n_class: length of the targets to come.
        seed: of the draws.
        mixup, cutmix: alpha of the Beta distribution of the shares; 0 for none. With both, one is drawn.
        cutmix_minmax: smallest and largest side of the rectangle, as a share of the image's; instead of cutmix's alpha.
        probability: that a mixture is drawn at all.
        switch_probability: of cutmix, where there are both.
        mode: 'batch', 'pair' or 'elem': what shares a draw.
        off_iter: the iteration from which on nothing is mixed any more; 0 for never.
    """

    n_class: int
    seed: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    cutmix_minmax: tuple[float, float] | None = None
    probability: float = 1.0
    switch_probability: float = 0.5
    mode: str = "batch"
    off_iter: int = 0

    def __call__(self, images: Tensor, targets: Tensor, iteration: int, process: int = 0) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) of any type and (N,) int64 -> float32 of the same shape and float32 (N, n_class), on the same device."""
        shares, boxes = self.draw(len(images), images.shape[2], images.shape[3], iteration, process)
        share = torch.from_numpy(shares).to(images.device, non_blocking=True)
        top, bottom, left, right = torch.from_numpy(boxes).to(images.device, non_blocking=True).view(4, -1, 1, 1, 1)
        rows = torch.arange(images.shape[2], device=images.device).view(1, 1, -1, 1)
        columns = torch.arange(images.shape[3], device=images.device)
        inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)  # (N, 1, H, W)
        # Within a box the other image is all there is. Without one, both are everywhere.
        boxed = (bottom > top) & (right > left)
        weight = torch.where(boxed, (~inside).float(), share.view(-1, 1, 1, 1))
        images = images.float()
        # Not torch's one_hot, which looks at the values and so may wait for the device.
        classes = (targets[:, None] == torch.arange(self.n_class, device=targets.device)).float()
        share = share[:, None]
        return images * weight + images.flip(0) * (1 - weight), classes * share + classes.flip(0) * (1 - share)

    def draw(self, count: int, height: int, width: int, iteration: int, process: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Each image's own share of the result, float32 (N,), and its box, int64 (4, N): top, bottom, left, right, or zeros."""
        rng = generator(self.seed, MIXING, iteration, process)
        draws = {"batch": 1, "pair": (count + 1) // 2, "elem": count}[self.mode]
        shares, boxes = np.ones(draws, np.float32), np.zeros((4, draws), np.int64)
        cuts = bool(self.cutmix or self.cutmix_minmax)
        if self.off_iter and iteration >= self.off_iter:
            draws = 0
        for i in range(draws):
            if rng.random() >= self.probability:
                continue
            if cuts and (not self.mixup or rng.random() < self.switch_probability):
                boxes[:, i] = self._draw_box(rng, height, width)
                top, bottom, left, right = boxes[:, i]
                shares[i] = 1 - (bottom - top) * (right - left) / (height * width)
            else:
                shares[i] = rng.beta(self.mixup, self.mixup)
        positions = np.arange(count)
        which = {"batch": positions * 0, "pair": np.minimum(positions, count - 1 - positions), "elem": positions}[self.mode]
        return shares[which], boxes[:, which]

    def _draw_box(self, rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
        if self.cutmix_minmax:
            low, high = self.cutmix_minmax
            tall, wide = (int(side * (low + (high - low) * rng.random())) for side in (height, width))
            top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
            return top, top + tall, left, left + wide
        ratio = (1 - rng.beta(self.cutmix, self.cutmix)) ** 0.5
        tall, wide = int(height * ratio), int(width * ratio)
        middle, centre = int(rng.integers(height)), int(rng.integers(width))
        # A box that reaches over the edge is cut off there.
        top, bottom = max(0, middle - tall // 2), min(height, middle + (tall + 1) // 2)
        left, right = max(0, centre - wide // 2), min(width, centre + (wide + 1) // 2)
        return top, bottom, left, right
