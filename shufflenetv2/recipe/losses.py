"""What is minimised: functions of logits (N, n_class) and goals, classes int64 (N,) or their shares float (N, n_class)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

LossFunction = Callable[[Tensor, Any], Tensor]


def build_loss(label_smooth: float = 0.1, *, bce: bool = False, jsd_splits: int = 0) -> LossFunction:
    """Cross-entropy with smoothed labels, as published; or one of the others.

    Args:
        label_smooth: share of the goal that is spread over all classes.
        bce: binary cross-entropy of each class instead, its mean over the classes (timm's; Wightman et al. 2021).
        jsd_splits: add the Jensen-Shannon divergence of so many views of each image, of which the first is
            not augmented (AugMix, https://arxiv.org/abs/1912.02781); the logits of all views are (views * N, n_class).
    """
    if jsd_splits:
        return _JensenShannon(jsd_splits, label_smooth)
    return _BinaryCrossEntropy(label_smooth) if bce else nn.CrossEntropyLoss(label_smoothing=label_smooth)


class _JensenShannon:
    """timm's JsdCrossEntropy, whose gradient however is not a number where a share is too small for a float."""

    WEIGHT = 12  # of the divergence

    def __init__(self, views: int, label_smooth: float) -> None:
        self.views, self.label_smooth = views, label_smooth

    def __call__(self, logits: Tensor, goal: Tensor) -> Tensor:
        log_shares = functional.log_softmax(logits, dim=1).view(self.views, -1, logits.shape[1])
        log_mean = log_shares.exp().mean(dim=0).clamp(1e-7, 1).log()
        divergence = (log_shares.exp() * (log_shares - log_mean)).sum(dim=2).mean()
        count = log_shares.shape[1]  # the first views are those that the labels are learned from
        hard = functional.cross_entropy(logits[:count], goal[:count], label_smoothing=self.label_smooth)
        return hard + self.WEIGHT * divergence


class _BinaryCrossEntropy:
    def __init__(self, label_smooth: float) -> None:
        self.label_smooth = label_smooth

    def __call__(self, logits: Tensor, goal: Tensor) -> Tensor:
        n_class = logits.shape[1]
        shares = goal.float() if goal.is_floating_point() else functional.one_hot(goal, n_class).float()
        return functional.binary_cross_entropy_with_logits(
            logits, shares * (1 - self.label_smooth) + self.label_smooth / n_class
        )
