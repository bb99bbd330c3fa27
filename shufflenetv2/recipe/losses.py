"""Loss functions of logits (N, n_class) and targets: class indices, int64 (N,), or class probabilities, float (N, n_class)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional

from ..config import AugmentationConfig, DistillationConfig, OptimizationConfig
from ..errors import UserError
from ..extensions import create, load_object
from .weighted_loss import BinaryCrossEntropy, WeightedLoss

LossFunction = Callable[[Tensor, Any], Tensor]


def build_loss(
    optimization: OptimizationConfig,
    augmentation: AugmentationConfig,
    distillation: DistillationConfig,
    class_weights: Tensor | None = None,
) -> LossFunction:
    """Build the loss: cross-entropy with label smoothing, as published, or one of the alternatives.

    Args:
        class_weights: weight of each class in the loss of the targets, float (n_class,), on the device of the logits. The
            teacher's part of the loss and the divergence between views are not weighted.

    Returns:
        A function of (logits, targets); with a teacher, a function of (logits, (targets, teacher's logits)).
    """
    smoothing = optimization.label_smooth
    loss: LossFunction
    if optimization.loss:
        loss = user_loss(optimization.loss)
    elif class_weights is not None or optimization.focal_gamma:
        loss = WeightedLoss(smoothing, optimization.bce_loss, class_weights, optimization.focal_gamma)
    elif optimization.bce_loss:
        loss = BinaryCrossEntropy(smoothing, optimization.bce_target_thresh)
    else:
        loss = nn.CrossEntropyLoss(label_smoothing=smoothing)
    if optimization.jsd:
        loss = JensenShannon(augmentation.aug_splits, loss)
    if distillation.teacher:
        loss = DistillationLoss(loss, distillation.distill_alpha, distillation.distill_temperature)
    return loss


def user_loss(reference: str) -> LossFunction:
    """Return the loss function that 'package.module:Name' names; a class is instantiated without arguments.

    It is called with logits (N, n_class) and targets: class indices, int64 (N,), or with mixup and cutmix probabilities, float
    (N, n_class). It returns a scalar, the mean over the images. Label smoothing is left to it.

    Raises:
        UserError: it cannot be imported or called.
    """
    loss = load_object("loss", reference)
    loss = create("loss", reference) if isinstance(loss, type) else loss
    if not callable(loss):
        raise UserError(f"`loss` {reference} cannot be called; it is called as f(logits, targets)")
    return cast(LossFunction, loss)


@dataclass(frozen=True)
class JensenShannon:
    """Cross-entropy of the first view of each image, plus the Jensen-Shannon divergence between all views.

    This is the loss of AugMix (https://arxiv.org/abs/1912.02781). Its values equal those of timm's JsdCrossEntropy; unlike
    timm's, its gradient is finite where a probability underflows.

    Args:
        views: number of views. The logits are (views * N, n_class): first those of all first views, and so on.
        hard_loss: cross-entropy, a function of (logits, targets).
        weight: weight of the divergence; 12 in the paper.
    """

    views: int
    hard_loss: LossFunction
    weight: float = 12

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        log_p = functional.log_softmax(logits, dim=1).view(self.views, -1, logits.shape[1])  # (views, N, n_class)
        log_mean = log_p.exp().mean(dim=0).clamp(1e-7, 1).log()
        divergence = (log_p.exp() * (log_p - log_mean)).sum(dim=2).mean()
        count = log_p.shape[1]
        return self.hard_loss(logits[:count], targets[:count]) + self.weight * divergence


@dataclass(frozen=True)
class DistillationLoss:
    """Weighted sum of `hard_loss` and the divergence from a teacher: (1 - alpha) * hard_loss + alpha * divergence.

    Args:
        hard_loss: loss of (logits, targets), without the teacher.
        alpha: weight of the divergence, 0 to 1.
        temperature: above 0; see `distillation_loss`.
    """

    hard_loss: LossFunction
    alpha: float
    temperature: float

    def __call__(self, logits: Tensor, targets: tuple[Any, Tensor]) -> Tensor:
        """Return the loss of logits (N, n_class); `targets` are (targets of `hard_loss`, teacher's logits (N, n_class))."""
        hard_targets, teacher_logits = targets
        divergence = distillation_loss(logits, teacher_logits, self.temperature)
        return (1 - self.alpha) * self.hard_loss(logits, hard_targets) + self.alpha * divergence


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return the Kullback-Leibler divergence of the student from the teacher (https://arxiv.org/abs/1503.02531).

    The logits of both networks are divided by the temperature T. The divergence, averaged over the batch, is multiplied by T
    squared, so that the scale of the gradients does not depend on T (section 2 of the paper).

    Args:
        logits, teacher_logits: (N, n_class), any floating-point type.

    Returns:
        A scalar, float32.
    """
    student = functional.log_softmax(logits.float() / temperature, dim=1)
    teacher = functional.log_softmax(teacher_logits.float() / temperature, dim=1)
    return temperature**2 * functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
