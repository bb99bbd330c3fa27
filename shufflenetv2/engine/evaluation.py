"""Evaluate models: compute loss and accuracy, and write them as a TEST line to the log."""

import math
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..data import Dataset, Transform, evaluation_batches
from ..report import RunLog, write_confusion
from .distributed import all_reduce_max, all_reduce_sum, rank, world_size
from .signals import GracefulShutdown

MAX_CONFUSION_CLASSES = 2_000  # a confusion matrix of this many classes takes 32 MB


@dataclass(frozen=True)
class EvaluationResult:
    """The result of an evaluation, averaged over the images of a data set.

    Attributes:
        loss: cross-entropy.
        top1_error: fraction of images whose class does not have the highest logit.
        top5_error: fraction of images whose class is not among the five highest logits.
        images: number of images.
        confusion: int64 (n_class, n_class), number of images by true class (row) and predicted class (column); None unless
            requested.
    """

    loss: float
    top1_error: float
    top5_error: float
    images: int
    confusion: Tensor | None = None

    def accuracy(self) -> dict[str, float]:
        """Return 'top1' and 'top5' accuracy, and the 'loss', as weight files record them."""
        return {"top1": 1 - self.top1_error, "top5": 1 - self.top5_error, "loss": self.loss}

    def score(self, metric: str) -> float:
        """Return minus the error by a metric, 'top1', 'top5' or 'loss': higher is better, and NaN counts as minus infinity."""
        error = {"top1": self.top1_error, "top5": self.top5_error, "loss": self.loss}[metric]
        return -math.inf if math.isnan(error) else -error


def count_correct(logits: Tensor, targets: Tensor) -> Tensor:
    """Count the targets with the highest logit, and the targets among the five highest logits.

    Returns:
        int64 (2,), on the device. With five classes or fewer, the second count is the number of targets.
    """
    guesses = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (N, 5), best first
    hits = guesses == targets[:, None]
    return torch.stack((hits[:, 0].sum(), hits.sum()))


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, confusion: bool = False) -> EvaluationResult:
    """Evaluate a model in eval mode, and restore the mode that it had.

    Every image has the same weight, whatever the batch sizes, and the images of all processes are counted together.

    Args:
        model: maps images to logits (N, n_class).
        batches: pairs (images, targets) as in `train_step`, on any device. A batch with V times as many images as targets
            holds V views of each image, ordered by view; the probabilities are averaged over the views.
        confusion: also count the images for each pair of true and predicted class, which takes 8 bytes per pair.

    Raises:
        ValueError: there are no images.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    losses, correct, count = [torch.zeros((), device=device)], [torch.zeros(2, dtype=torch.int64, device=device)], 0
    matrix: Tensor | None = None  # (n_class * n_class,)
    for images, targets in batches:
        if not len(targets):  # possible if the last batch has fewer images than there are processes
            continue
        images, targets = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        logits = model(images).float()
        if len(images) > len(targets):
            logits = _sum_of_probabilities(logits, len(targets))
        losses.append(functional.cross_entropy(logits, targets, reduction="sum"))
        correct.append(count_correct(logits, targets))
        count += len(targets)
        if confusion:
            n_class = logits.shape[1]
            matrix = torch.zeros(n_class * n_class, dtype=torch.int64, device=device) if matrix is None else matrix
            matrix.scatter_add_(0, targets * n_class + logits.argmax(dim=1), torch.ones_like(targets))
    model.train(was_training)
    top1, top5 = torch.stack(correct).sum(dim=0).tolist()  # the first operation that waits for the device
    loss = torch.stack(losses).cpu().double().sum().item()
    loss, top1, top5, count = all_reduce_sum(torch.tensor([loss, top1, top5, count], dtype=torch.float64)).tolist()
    if not count:
        raise ValueError("there are no images to evaluate on")
    summed = _sum_confusion(matrix) if confusion else None
    return EvaluationResult(loss / count, 1 - top1 / count, 1 - top5 / count, int(count), summed)


def _sum_of_probabilities(logits: Tensor, images: int) -> Tensor:
    """Return the logarithm of the sum of probabilities over the views: (views * images, n_class) -> (images, n_class).

    The sum need not be divided by the number of views, since cross-entropy normalizes. logsumexp is finite for probabilities
    that underflow.
    """
    return logits.view(-1, images, logits.shape[1]).log_softmax(dim=2).logsumexp(dim=0)


def _sum_confusion(matrix: Tensor | None) -> Tensor:
    """Sum confusion matrices over all processes; a process without images passes None."""
    n_class = all_reduce_max(0 if matrix is None else int(len(matrix) ** 0.5 + 0.5))
    counts = torch.zeros(n_class * n_class, dtype=torch.int64) if matrix is None else matrix.cpu()
    return all_reduce_sum(counts).view(n_class, n_class)


class Evaluator:
    """Evaluate models on a data set, and write TEST lines.

    Args:
        dataset: images and labels.
        transform: transforms a decoded image into the pixels that the network receives.
        batch_size: number of images in a batch, per process.
        workers: number of threads that load images.
        pin_memory: load the batches into pinned memory.
        log: receives the TEST line, and the confusion matrix.
        shutdown: checked before each batch, so that a signal ends the evaluation.
    """

    def __init__(
        self,
        dataset: Dataset,
        transform: Transform,
        log: RunLog,
        *,
        batch_size: int,
        workers: int,
        pin_memory: bool = False,
        shutdown: GracefulShutdown | None = None,
    ) -> None:
        self._dataset, self._transform, self._log, self._shutdown = dataset, transform, log, shutdown
        self._batch_size, self._workers, self._pin_memory = batch_size, workers, pin_memory

    def __call__(self, model: nn.Module, iteration: int, *, prefix: str = "", final: bool = False) -> EvaluationResult:
        """Evaluate a model, write the TEST line, and return the result.

        Args:
            iteration: number of the training iteration after which the model is evaluated.
            prefix: precedes TEST in the log, for instance 'EMA '.
            final: also write the confusion matrix, unless there is a prefix or are more than MAX_CONFUSION_CLASSES classes.

        Raises:
            ShutdownRequested: a signal arrived.
        """
        started = time.perf_counter()
        batches = evaluation_batches(
            self._dataset, self._transform, self._batch_size * world_size(), workers=self._workers,
            pin_memory=self._pin_memory, rank=rank(), world_size=world_size(),
        )  # fmt: skip
        with closing(batches):
            confusion = final and not prefix and len(self._dataset.class_names) <= MAX_CONFUSION_CLASSES
            source = self._shutdown.interruptible(batches) if self._shutdown else batches
            result = evaluate(model, source, confusion=confusion)
        self._log.test(
            iteration, loss=result.loss, top1_error=result.top1_error, top5_error=result.top5_error,
            val_time=time.perf_counter() - started, prefix=prefix, final=final,
        )  # fmt: skip
        if result.confusion is not None and self._log.folder:
            write_confusion(self._log.folder, result.confusion.numpy(), self._dataset.class_names)
        return result
