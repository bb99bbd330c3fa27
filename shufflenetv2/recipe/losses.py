"""Loss functions of logits (N, n_class) and targets: classes, int64 (N,), or their probabilities, float (N, n_class)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from ..config import AugmentationConfig, DistillationConfig, OptimizationConfig

LossFunction = Callable[[Tensor, Any], Tensor]


def build_loss(
    optimization: OptimizationConfig, augmentation: AugmentationConfig, distillation: DistillationConfig
) -> LossFunction:
    """Build the loss: cross-entropy with label smoothing, as published, or one of the alternatives.

    Returns:
        A function of (logits, targets); with a teacher, of (logits, (targets, teacher's logits)).
    """
    smoothing = optimization.label_smooth
    loss: LossFunction
    if optimization.jsd:
        loss = JensenShannon(augmentation.aug_splits, smoothing)
    elif optimization.bce_loss:
        loss = BinaryCrossEntropy(smoothing)
    else:
        loss = nn.CrossEntropyLoss(label_smoothing=smoothing)
    if distillation.teacher:
        loss = DistillationLoss(loss, distillation.distill_alpha, distillation.distill_temperature)
    return loss


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Binary cross-entropy of each class, averaged over classes and images (timm's; Wightman et al. 2021)."""

    label_smooth: float

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        n_class = logits.shape[1]
        probabilities = targets.float() if targets.is_floating_point() else functional.one_hot(targets, n_class).float()
        smoothed = probabilities * (1 - self.label_smooth) + self.label_smooth / n_class
        return functional.binary_cross_entropy_with_logits(logits, smoothed)


@dataclass(frozen=True)
class JensenShannon:
    """Cross-entropy of the first view of each image, plus the Jensen-Shannon divergence between all views.

    The loss of AugMix (https://arxiv.org/abs/1912.02781). The values are those of timm's JsdCrossEntropy, whose gradient
    is not a number, however, where a probability underflows.

    Args:
        views: number of views; the logits are (views * N, n_class), those of the first views come first.
    """

    views: int
    label_smooth: float
    weight: float = 12  # of the divergence, as in the paper

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        log_p = functional.log_softmax(logits, dim=1).view(self.views, -1, logits.shape[1])  # (views, N, n_class)
        log_mean = log_p.exp().mean(dim=0).clamp(1e-7, 1).log()
        divergence = (log_p.exp() * (log_p - log_mean)).sum(dim=2).mean()
        count = log_p.shape[1]
        cross_entropy = functional.cross_entropy(logits[:count], targets[:count], label_smoothing=self.label_smooth)
        return cross_entropy + self.weight * divergence


@dataclass(frozen=True)
class DistillationLoss:
    """Weighted sum of the loss of the targets and the divergence from a teacher: (1 - alpha) * hard + alpha * soft.

    Args:
        hard_loss: function of (logits, targets).
        alpha: weight of the teacher, 0 to 1.
        temperature: above 0; see `distillation_loss`.
    """

    hard_loss: LossFunction
    alpha: float
    temperature: float

    def __call__(self, logits: Tensor, targets: tuple[Any, Tensor]) -> Tensor:
        """Return the loss of logits (N, n_class) for (targets of `hard_loss`, teacher's logits (N, n_class))."""
        hard_targets, teacher_logits = targets
        soft = distillation_loss(logits, teacher_logits, self.temperature)
        return (1 - self.alpha) * self.hard_loss(logits, hard_targets) + self.alpha * soft


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return the Kullback-Leibler divergence of the student from the teacher (https://arxiv.org/abs/1503.02531).

    Both networks' logits are divided by the temperature T. The mean over the batch is multiplied by T squared, which
    keeps the scale of the gradients when T changes (section 2 of the paper).

    Args:
        logits, teacher_logits: (N, n_class), any floating-point type.

    Returns:
        A scalar, float32.
    """
    student = functional.log_softmax(logits.float() / temperature, dim=1)
    teacher = functional.log_softmax(teacher_logits.float() / temperature, dim=1)
    return temperature**2 * functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
