"""Evaluate models: compute loss and accuracy, and write them as a TEST line to the log."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..data import BadImages, Dataset, Transform, evaluation_batches
from ..report import (
    MAX_PROBABILITIES,
    TOP,
    ClassCounts,
    Predictions,
    RunLog,
    ValidationMetrics,
    write_confusion,
    write_per_class,
    write_predictions,
    write_summary,
)
from ..terminal import progress
from .distributed import all_reduce_max, all_reduce_sum, gather_lists, gather_rows, rank, world_size
from .free_memory import release_freed_memory
from .signals import GracefulShutdown

MAX_CONFUSION_CLASSES = 2_000  # a confusion matrix of this many classes takes 32 MB


@dataclass(frozen=True)
class EvaluationResult:
    """Means over the images of a dataset, or over its classes.

    Attributes:
        loss: cross-entropy.
        top1_error, top5_error: fraction of images whose class is not the first guess, not among the first five guesses.
        images: number of images.
        balanced_accuracy: mean over the classes with images of the fraction of correct first guesses (the recall).
        macro_f1: mean F1 over the classes that have images or were guessed first.
        classes: numbers of images by class, from which these two follow; None if the result was read from a file.
        predictions: for every image; None unless requested.
        left_out: indices of the images that could not be decoded, which are not among `images`.
    """

    loss: float
    top1_error: float
    top5_error: float
    images: int
    balanced_accuracy: float = math.nan
    macro_f1: float = math.nan
    classes: ClassCounts | None = None
    predictions: Predictions | None = None
    left_out: frozenset[int] = frozenset()

    def accuracy(self) -> dict[str, float]:
        """Return the metrics by the names that `eval_metric` and weight files have for them."""
        metrics = {"top1": 1 - self.top1_error, "top5": 1 - self.top5_error, "loss": self.loss}
        by_class = {"balanced_accuracy": self.balanced_accuracy, "macro_f1": self.macro_f1}
        return metrics | {name: value for name, value in by_class.items() if not math.isnan(value)}

    def score(self, metric: str) -> float:
        """Return minus the error by a metric of `eval_metric`: higher is better, and NaN counts as minus infinity."""
        errors = {
            "top1": self.top1_error,
            "top5": self.top5_error,
            "loss": self.loss,
            "balanced_accuracy": 1 - self.balanced_accuracy,
            "macro_f1": 1 - self.macro_f1,
        }
        error = errors[metric]
        return -math.inf if math.isnan(error) else -error


def count_correct(logits: Tensor, targets: Tensor) -> Tensor:
    """Count the targets that are the first guess, and those among the first five guesses.

    Returns:
        int64 (2,), on the device. With fewer than five classes the second count is over all classes.
    """
    return _count_hits(_top_guesses(logits), targets)


def _top_guesses(logits: Tensor) -> Tensor:
    """Return the classes of the five largest logits, best first: int64 (N, 5), or fewer columns with fewer classes."""
    return logits.topk(min(TOP, logits.shape[1]), dim=1).indices


def _count_hits(guesses: Tensor, targets: Tensor) -> Tensor:
    hits = guesses == targets[:, None]
    return torch.stack((hits[:, 0].sum(), hits.sum()))


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, predictions: bool = False) -> EvaluationResult:
    """Evaluate a model in eval mode, and restore its mode.

    Every image counts once for any batch size, and the images of all processes are counted together.

    Args:
        model: takes the images, gives logits (N, n_class).
        batches: pairs (images, targets) as in `train_step`, on any device. A batch with V times as many images as targets
            holds V views of each image, ordered by view; the probabilities are averaged over the views.
        predictions: also return the predictions for every image. All processes must get the same number of batches.

    Raises:
        ValueError: there are no images.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    was_training = model.training
    model.eval()
    losses, correct, count = [torch.zeros((), device=device)], [torch.zeros(2, dtype=torch.int64, device=device)], 0
    by_class: Tensor | None = None  # (3, n_class): support, predicted, correct
    recorder = _PredictionRecorder() if predictions else None
    for images, targets in batches:
        if recorder:
            recorder.lengths.append(len(targets))
        if not len(targets):  # the last batch, if it has fewer images than there are processes
            continue
        images, targets = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        logits = model(images).float()
        if len(images) > len(targets):
            logits = _sum_of_probabilities(logits, len(targets))
        losses.append(functional.cross_entropy(logits, targets, reduction="sum"))
        guesses = _top_guesses(logits)
        correct.append(_count_hits(guesses, targets))
        count += len(targets)
        n_class, predicted = logits.shape[1], guesses[:, 0]
        ones = torch.ones_like(targets)
        if by_class is None:
            by_class = torch.zeros(3, n_class, dtype=torch.int64, device=device)
        by_class[0].scatter_add_(0, targets, ones)
        by_class[1].scatter_add_(0, predicted, ones)
        by_class[2].scatter_add_(0, targets, (predicted == targets).long())
        if recorder:
            recorder.record(logits, targets, guesses)
    model.train(was_training)
    top1, top5 = torch.stack(correct).sum(dim=0).tolist()  # the first operation that waits for the device
    loss = torch.stack(losses).cpu().double().sum().item()
    loss, top1, top5, count = all_reduce_sum(torch.tensor([loss, top1, top5, count], dtype=torch.float64)).tolist()
    if not count:
        raise ValueError("there are no images to evaluate on")
    n_class = all_reduce_max(0 if by_class is None else by_class.shape[1])
    classes = ClassCounts(*_sum_over_processes(by_class, 3, n_class).numpy())
    return EvaluationResult(
        loss / count, 1 - top1 / count, 1 - top5 / count, int(count),
        classes.balanced_accuracy, classes.macro_f1, classes, recorder.gather(n_class) if recorder else None,
    )  # fmt: skip


class _Rows:
    """Rows of a table that grows, on the device of the rows.

    One tensor holds them all: a small tensor for each batch would lie between the large ones of the network, whose memory the
    C library could then not use again (300 MB for 50,000 images of 1,000 classes).
    """

    def __init__(self) -> None:
        self._table, self._used = torch.empty(0), 0

    def append(self, rows: Tensor) -> None:
        if not self._used:
            self._table = rows.new_empty(max(4096, len(rows)), *rows.shape[1:])
        while self._used + len(rows) > len(self._table):
            self._table = torch.cat((self._table, torch.empty_like(self._table)))
        self._table[self._used : self._used + len(rows)] = rows
        self._used += len(rows)

    def read(self) -> Tensor:
        """Return the rows in host memory."""
        return self._table[: self._used].cpu()

    def __len__(self) -> int:
        return self._used


class _PredictionRecorder:
    """Keeps the predictions of each batch, on the device, so that no batch waits for the device.

    Attributes:
        lengths: number of images in each batch of this process, which may be 0.
    """

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self._labels = _Rows()  # int64 (N, 1 + K): target, guesses
        self._probabilities = _Rows()  # float32 (N, 1 + K) or (N, 1 + K + n_class), in the same order

    def record(self, logits: Tensor, targets: Tensor, guesses: Tensor) -> None:
        """Keep the predictions of a batch with images."""
        labels = torch.cat((targets[:, None], guesses), dim=1)
        probabilities = logits.softmax(dim=1)
        columns = [probabilities.gather(1, labels)]
        if logits.shape[1] <= MAX_PROBABILITIES:
            columns.append(probabilities)
        self._labels.append(labels)
        self._probabilities.append(torch.cat(columns, dim=1))

    def gather(self, n_class: int) -> Predictions:
        """Return the predictions of all processes, in the order of the data set."""
        width, keeps_all = 1 + min(TOP, n_class), n_class <= MAX_PROBABILITIES
        labels, probabilities = torch.zeros(0, width, dtype=torch.int64), torch.zeros(0, width + n_class * keeps_all)
        if len(self._labels):
            labels, probabilities = self._labels.read(), self._probabilities.read()
        labels, probabilities = (gather_rows(rows, self.lengths) for rows in (labels, probabilities))
        of_labels, of_all = probabilities.numpy()[:, :width], probabilities.numpy()[:, width:]
        return Predictions(
            labels.numpy()[:, 0], labels.numpy()[:, 1:], of_labels[:, 1:], of_labels[:, 0], of_all if keeps_all else None
        )


def _sum_of_probabilities(logits: Tensor, images: int) -> Tensor:
    """Combine the views of each image: (views * images, n_class) -> logarithms (images, n_class).

    The sum serves as well as the mean, since cross-entropy normalizes it; logsumexp is finite for tiny probabilities.
    """
    return logits.view(-1, images, logits.shape[1]).log_softmax(dim=2).logsumexp(dim=0)


def _sum_over_processes(counts: Tensor | None, *shape: int) -> Tensor:
    """Sum counts of this shape over all processes; those of a process without images are None."""
    return all_reduce_sum(torch.zeros(shape, dtype=torch.int64) if counts is None else counts.cpu())


class Evaluator:
    """Evaluate models on a data set, and write TEST lines.

    Args:
        dataset: images and labels.
        transform: transforms a decoded image into the pixels that the network receives.
        batch_size: number of images in a batch, per process.
        workers: number of threads that load images.
        pin_memory: load the batches into pinned memory.
        log: receives the TEST line; its folder receives the files.
        shutdown: checked before each batch, so that a signal ends the evaluation.
        bad_images: receives the images that cannot be decoded, which are left out; None raises their error.
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
        bad_images: BadImages | None = None,
    ) -> None:
        self._bad_images = bad_images
        self._dataset, self._transform, self._log, self._shutdown = dataset, transform, log, shutdown
        self._batch_size, self._workers, self._pin_memory = batch_size, workers, pin_memory
        self._while_waiting = shutdown.check_while_waiting if shutdown else lambda: None

    def __call__(
        self,
        model: nn.Module,
        iteration: int,
        *,
        prefix: str = "",
        final: bool = False,
        is_best: Callable[[EvaluationResult], bool] = lambda result: False,
    ) -> EvaluationResult:
        """Evaluate a model, write the TEST line, and return the result.

        Args:
            iteration: number of the training iteration after which the model is evaluated.
            prefix: precedes TEST in the log, for instance 'EMA '.
            final: also write a line about the classes.
            is_best: returns whether a result is better than all before, for the log.

        Raises:
            ShutdownRequested: a signal arrived.
        """
        started = time.perf_counter()
        release_freed_memory()
        batches = evaluation_batches(
            self._dataset, self._transform, self._batch_size * world_size(), workers=self._workers,
            pin_memory=self._pin_memory, bad_images=self._bad_images, rank=rank(), world_size=world_size(),
            while_waiting=self._while_waiting,
        )  # fmt: skip
        with closing(batches):
            steps = progress(
                batches, f"{prefix}validation", len(self._dataset), "images", lambda batch: world_size() * len(batch[1])
            )
            source = self._shutdown.interruptible(steps) if self._shutdown else steps
            result = evaluate(model, source, predictions=True)
        if self._bad_images is not None:
            result = replace(result, left_out=frozenset(gather_lists(self._bad_images.take_left_out())))
        release_freed_memory()
        metrics = ValidationMetrics(
            iteration, result.loss, result.top1_error, result.top5_error, time.perf_counter() - started,
            result.balanced_accuracy, result.macro_f1,
        )  # fmt: skip
        self._log.test(metrics, prefix=prefix, final=final, best=is_best(result))
        if result.left_out:
            count, total = len(result.left_out), len(self._dataset)
            self._log.warning(f"{prefix}{count:,} of {total:,} validation images cannot be decoded and are left out")
        if final and result.classes:
            line = f"{prefix}{describe_classes(result.classes, self._dataset.class_names)}"
            self._log.detail(line) if prefix else self._log.info(line)
        return result

    def write_files(self, result: EvaluationResult, iteration: int, weights: str = "", *, final: bool = False) -> None:
        """Write predictions.csv and summary.json to the folder of the log, in process 0.

        Args:
            result: from a call.
            iteration: number of the training iteration after which the model had its weights.
            weights: name of the file that holds the weights.
            final: no validation follows: also write the figures and tables by class.
        """
        folder, class_names = self._log.folder, self._dataset.class_names
        if folder is None or result.classes is None or result.predictions is None:
            return
        images = [self._dataset.name(index) for index in range(len(self._dataset)) if index not in result.left_out]
        write_predictions(folder, result.predictions, images, class_names)
        figures = {"iteration": iteration, "final": final, "weights": weights, "images": result.images} | {
            "top1": 1 - result.top1_error,
            "top5": 1 - result.top5_error,
            "loss": result.loss,
            "balanced_accuracy": result.balanced_accuracy,
            "macro_f1": result.macro_f1,
            "calibration_error": result.predictions.calibration_error(),
        }
        write_summary(folder, figures, result.classes, class_names, result.predictions.confusion())
        if final and len(class_names) <= MAX_CONFUSION_CLASSES:
            write_confusion(folder, result.predictions.confusion_matrix(len(class_names)), class_names)
        elif final:
            write_per_class(folder, result.classes, class_names)


def describe_classes(classes: ClassCounts, class_names: Sequence[str]) -> str:
    """Return a line about the accuracy by class for the log."""
    lowest = classes.lowest_recall()
    return (
        f"balanced accuracy {classes.balanced_accuracy:.2%}, macro F1 {classes.macro_f1:.4f}; lowest recall "
        f"{classes.recall[lowest]:.2%} ({class_names[lowest]}, {classes.support[lowest]:,} images)"
    )
