"""Mixup and cutmix: train on mixtures of two images, with mixtures of their targets."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..config import AugmentationConfig
from ..rng import MIXING, generator


def build_mixing(config: AugmentationConfig, n_class: int, seed: int) -> "Mixing | None":
    """Build the mixing of batches; return None if the options enable neither mixup nor cutmix."""
    return Mixing(config, n_class, seed) if config.mixup or config.cutmix or config.cutmix_minmax else None


@dataclass(frozen=True)
class Mixing:
    """Mix image i of a batch of N with image N - 1 - i, by mixup or cutmix. The options have timm's meaning.

    Mixup (https://arxiv.org/abs/1710.09412) is a weighted sum of two images. Cutmix (https://arxiv.org/abs/1905.04899)
    replaces a rectangle of an image (the box) by the same rectangle of another image. All random draws are a function of
    (seed, iteration, rank).

    Args:
        config: `mixup`, `cutmix`, `cutmix_minmax` and the options whose names begin with `mixup_`.
        n_class: number of classes.
    """

    config: AugmentationConfig
    n_class: int
    seed: int = 0

    def __call__(self, images: Tensor, targets: Tensor, iteration: int, rank: int = 0) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: (N, C, H, W), any dtype.
            targets: class indices, int64 (N,).
            iteration: number of the iteration, from 1.
            rank: number of this process, from 0.

        Returns:
            Images, float32 (N, C, H, W), and probabilities of the classes, float32 (N, n_class), on the device of `images`.
        """
        lams, boxes = self.draw(len(images), images.shape[2], images.shape[3], iteration, rank)
        lam = torch.from_numpy(lams).to(images.device, non_blocking=True)
        top, bottom, left, right = torch.from_numpy(boxes).to(images.device, non_blocking=True).view(4, -1, 1, 1, 1)
        rows = torch.arange(images.shape[2], device=images.device).view(1, 1, -1, 1)
        columns = torch.arange(images.shape[3], device=images.device)
        in_box = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)  # (N, 1, H, W)
        has_box = (bottom > top) & (right > left)  # (N, 1, 1, 1)
        weight = torch.where(has_box, (~in_box).float(), lam.view(-1, 1, 1, 1))  # of image i; image N - 1 - i has 1 - weight
        images = images.float()
        # torch's one_hot would read the targets on the CPU, and so wait for the device.
        one_hot = (targets[:, None] == torch.arange(self.n_class, device=targets.device)).float()
        lam = lam[:, None]
        return images * weight + images.flip(0) * (1 - weight), one_hot * lam + one_hot.flip(0) * (1 - lam)

    def draw(self, count: int, height: int, width: int, iteration: int, rank: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Draw the mixture of each image.

        Returns:
            lam, the weight or area that each image keeps, float32 (N,); and the boxes that cutmix replaces, int64 (4, N):
            top, bottom, left, right, or zeros for mixup.
        """
        config = self.config
        rng = generator(self.seed, MIXING, iteration, rank)
        draws = {"batch": 1, "pair": (count + 1) // 2, "elem": count}[config.mixup_mode]
        lam, boxes = np.ones(draws, np.float32), np.zeros((4, draws), np.int64)
        has_cutmix = bool(config.cutmix or config.cutmix_minmax)
        if config.mixup_off_iter and iteration >= config.mixup_off_iter:
            draws = 0
        for i in range(draws):
            if rng.random() >= config.mixup_prob:
                continue
            if has_cutmix and (not config.mixup or rng.random() < config.mixup_switch_prob):
                boxes[:, i] = self._draw_box(rng, height, width)
                top, bottom, left, right = boxes[:, i]
                lam[i] = 1 - (bottom - top) * (right - left) / (height * width)
            else:
                lam[i] = rng.beta(config.mixup, config.mixup)
        images = np.arange(count)
        draw_of_image = {"batch": images * 0, "pair": np.minimum(images, count - 1 - images), "elem": images}[config.mixup_mode]
        return lam[draw_of_image], boxes[:, draw_of_image]

    def _draw_box(self, rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
        if self.config.cutmix_minmax:
            low, high = self.config.cutmix_minmax
            box_height, box_width = (int(side * (low + (high - low) * rng.random())) for side in (height, width))
            top, left = int(rng.integers(height - box_height + 1)), int(rng.integers(width - box_width + 1))
            return top, top + box_height, left, left + box_width
        ratio = (1 - rng.beta(self.config.cutmix, self.config.cutmix)) ** 0.5
        box_height, box_width = int(height * ratio), int(width * ratio)
        centre_y, centre_x = int(rng.integers(height)), int(rng.integers(width))
        # A box that extends beyond the edge of the image is cut off there.
        top, bottom = max(0, centre_y - box_height // 2), min(height, centre_y + (box_height + 1) // 2)
        left, right = max(0, centre_x - box_width // 2), min(width, centre_x + (box_width + 1) // 2)
        return top, bottom, left, right
