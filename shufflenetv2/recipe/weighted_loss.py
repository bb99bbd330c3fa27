"""Losses that make probabilities of the targets: binary cross-entropy, class weights, focal loss."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


def _probabilities(targets: Tensor, logits: Tensor) -> Tensor:
    """Return targets as probabilities of the classes, in the shape and data type of the logits."""
    if targets.is_floating_point():
        return targets.to(logits.dtype)
    # torch's one_hot would read the targets on the CPU, and so wait for the device.
    return (targets[:, None] == torch.arange(logits.shape[1], device=targets.device)).to(logits.dtype)


def _smooth(probabilities: Tensor, label_smooth: float) -> Tensor:
    return probabilities * (1 - label_smooth) + label_smooth / probabilities.shape[1]


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Binary cross-entropy, averaged over classes and images, as in timm (Wightman et al. 2021, arXiv:2110.00476).

    Args:
        label_smooth: fraction of the target spread over all classes.
        target_threshold: smoothed and mixed targets above it become 1, and the others 0; None keeps them.
    """

    label_smooth: float
    target_threshold: float | None = None

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        smoothed = _smooth(_probabilities(targets, logits), self.label_smooth)
        if self.target_threshold is not None:
            smoothed = smoothed.gt(self.target_threshold).to(smoothed.dtype)
        return functional.binary_cross_entropy_with_logits(logits, smoothed)


@dataclass(frozen=True)
class WeightedLoss:
    """Cross-entropy, or binary cross-entropy, in which images count differently: by their class, by their difficulty, or both.

    Class weights: the loss of a batch is the sum of weight * loss over its images, divided by their number. torch's
    `CrossEntropyLoss` divides by the sum of the weights instead, so that the weight of an image would depend on the other
    images of its batch, and a batch that is divided (`grad_accum_steps`, several processes) would have another gradient.
    The weight multiplies the loss of an image as a whole, with the smoothed part of its target. In torch each class of the
    smoothed target has its own weight: for an image of a class of weight 0.2, smoothing by 0.1 over six classes would make
    a class of weight 10 almost as probable a target as the class of the image. A mixture of two images,
    lam * a + (1 - lam) * b, has the loss lam * weight(a) * loss(a) + (1 - lam) * weight(b) * loss(b).

    Focal loss (https://arxiv.org/abs/1708.02002): the loss is multiplied by (1 - p) ** gamma, where p is the probability that
    the network gives to the target: the mean over the target's probabilities, if it is smoothed or mixed. For binary
    cross-entropy p and the factor are those of each class, and the values those of torchvision's `sigmoid_focal_loss` without
    its `alpha`.

    Args:
        label_smooth: fraction of the target spread over all classes.
        binary: use binary cross-entropy, averaged over the classes.
        class_weights: float (n_class,); None for equal weights.
        focal_gamma: 0 for no focal loss.
    """

    label_smooth: float
    binary: bool = False
    class_weights: Tensor | None = None
    focal_gamma: float = 0.0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        probabilities = _probabilities(targets, logits)  # (N, n_class)
        if self.class_weights is None:
            return self._losses(logits, _smooth(probabilities, self.label_smooth)).mean()
        weighted = probabilities * self.class_weights
        weights = weighted.sum(dim=1)  # (N,)
        smoothed = _smooth(weighted / weights[:, None], self.label_smooth)
        return (weights * self._losses(logits, smoothed)).mean()

    def _losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each image, (N,), for probabilities of the classes, (N, n_class)."""
        if self.binary:
            losses = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
            p = logits.sigmoid()
            return (losses * self._focal_factor(p * targets + (1 - p) * (1 - targets))).mean(dim=1)
        log_p = functional.log_softmax(logits, dim=1)
        return -(targets * log_p).sum(dim=1) * self._focal_factor((targets * log_p.exp()).sum(dim=1))

    def _focal_factor(self, p: Tensor) -> Tensor | float:
        if not self.focal_gamma:
            return 1.0
        # The power has no gradient at 0 for a gamma below 1.
        return (1 - p).clamp(min=torch.finfo(p.dtype).eps) ** self.focal_gamma
