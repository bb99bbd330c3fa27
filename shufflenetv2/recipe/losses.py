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
        from timm.loss import JsdCrossEntropy  # here, since timm takes a second to load

        jsd: LossFunction = JsdCrossEntropy(num_splits=jsd_splits, smoothing=label_smooth)  # type: ignore[no-untyped-call]
        return jsd
    return _BinaryCrossEntropy(label_smooth) if bce else nn.CrossEntropyLoss(label_smoothing=label_smooth)


class _BinaryCrossEntropy:
    def __init__(self, label_smooth: float) -> None:
        self.label_smooth = label_smooth

    def __call__(self, logits: Tensor, goal: Tensor) -> Tensor:
        n_class = logits.shape[1]
        shares = goal.float() if goal.is_floating_point() else functional.one_hot(goal, n_class).float()
        return functional.binary_cross_entropy_with_logits(
            logits, shares * (1 - self.label_smooth) + self.label_smooth / n_class
        )
