"""How good a model is."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .distributed import all_reduce_max, all_reduce_sum


@dataclass(frozen=True)
class EvaluationResult:
    """Means over the images of a data set: cross-entropy, and the shares that the first (five) guesses missed.

    Attributes:
        confusion: int64 (n_class, n_class), how many of the class of the row were taken for that of the
            column; None unless asked for.
    """

    loss: float
    top1_error: float
    top5_error: float
    images: int
    confusion: Tensor | None = None


def count_correct(logits: Tensor, targets: Tensor) -> Tensor:
    """int64 (2,), on the device: how many targets are the first guess, and how many are among the first five.

    With fewer than five classes the second counts among all.
    """
    guesses = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (N, 5), best first
    hits = guesses == targets[:, None]
    return torch.stack((hits[:, 0].sum(), hits.sum()))


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, confusion: bool = False) -> EvaluationResult:
    """Runs the model in eval mode over batches of (images, targets), each as in `train_step`, on any device.

    Every image counts once, whatever the batch sizes, and those of all processes count together. Where
    there are more images than targets they are views of the same, first views first, and the mean of the
    probabilities counts. The model's mode is restored.

    Args:
        confusion: whether to count which class is taken for which; that takes 8 bytes per pair of classes.

    Raises:
        ValueError: where there are no batches.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    losses, correct, count = [torch.zeros((), device=device)], [torch.zeros(2, dtype=torch.int64, device=device)], 0
    pairs: Tensor | None = None
    for images, targets in batches:
        if not len(targets):  # the last batch, where there are more processes than images in it
            continue
        images, targets = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        logits = model(images).float()
        if len(images) > len(targets):
            # Their sum does, as cross-entropy divides by it; its logarithm is finite however small they are.
            logits = logits.view(-1, *targets.shape, logits.shape[1]).log_softmax(dim=2).logsumexp(dim=0)
        losses.append(functional.cross_entropy(logits, targets, reduction="sum"))
        correct.append(count_correct(logits, targets))
        count += len(targets)
        if confusion:
            n_class = logits.shape[1]
            pairs = torch.zeros(n_class * n_class, dtype=torch.int64, device=device) if pairs is None else pairs
            pairs.scatter_add_(0, targets * n_class + logits.argmax(dim=1), torch.ones_like(targets))
    model.train(was_training)
    # The first moment at which the device must have finished.
    top1, top5 = torch.stack(correct).sum(dim=0).tolist()
    loss = torch.stack(losses).cpu().double().sum().item()
    loss, top1, top5, count = all_reduce_sum(torch.tensor([loss, top1, top5, count], dtype=torch.float64)).tolist()
    if not count:
        raise ValueError("there are no images to evaluate on")
    counted = None
    if confusion:
        n_class = all_reduce_max(0 if pairs is None else int(len(pairs) ** 0.5 + 0.5))  # a process may have had no images
        counted = all_reduce_sum(torch.zeros(n_class * n_class, dtype=torch.int64) if pairs is None else pairs.cpu())
        counted = counted.view(n_class, n_class)
    return EvaluationResult(loss / count, 1 - top1 / count, 1 - top5 / count, int(count), counted)
