"""Predict classes of images with a weight file or an exported file, reading images as an evaluation does."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..data import Dataset, EvaluationTransform, build_evaluation_transform, evaluation_batches
from ..engine import choose_devices
from ..engine.evaluation import count_correct
from ..errors import UserError
from ..weights import Preprocessing, read_weights
from .images import SkipUnreadable
from .runtimes import identify_format, open_program


@dataclass(frozen=True)
class Model:
    """A model from a weight file or an exported file.

    Attributes:
        logits: function from images, uint8 (N, 3, H, W), BGR, to logits (N, n_class), float32, on the CPU.
        class_names: None if the file does not contain them.
        preprocessing: how images are resized and cropped.
    """

    logits: Callable[[Tensor], Tensor]
    class_names: list[str] | None
    preprocessing: Preprocessing

    def class_name(self, label: int) -> str:
        return self.class_names[label] if self.class_names else str(label)


@dataclass(frozen=True)
class Prediction:
    """The most likely classes of one image, in decreasing order of probability.

    Attributes:
        path: of the image.
        labels, class_names, probabilities: one element per class.
    """

    path: str
    labels: list[int]
    class_names: list[str]
    probabilities: list[float]

    def __str__(self) -> str:
        classes = zip(self.class_names, self.probabilities, strict=True)
        return f"{self.path}: " + ", ".join(f"{name} {probability:.2%}" for name, probability in classes)

    def to_json(self) -> str:
        """Return the prediction as one line of JSON."""
        classes = zip(self.labels, self.class_names, self.probabilities, strict=True)
        predictions = [{"label": label, "class": name, "probability": round(p, 6)} for label, name, p in classes]
        return json.dumps({"path": self.path, "predictions": predictions})


def open_model(path: str | Path, device: str = "auto", *, use_ema: bool = False) -> Model:
    """Open a weight file as `read_weights` does, or a file that `export` wrote, for `predict`.

    TorchScript (.pt) and torch's exported programs (.pt2) are code, which this function executes: open only files that you
    trust. All other files are data and are not executed.

    Args:
        path: the file.
        device: 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'. Exported files run on the CPU only.
        use_ema: take the averaged weights (EMA) of a checkpoint.

    Raises:
        UserError: if the file is missing, damaged or something else, the file is a program but its suffix is not that of a
            program, or the device does not exist.

    Example:
        >>> model = open_model("models/model.pkl")
        >>> model.logits(images).argmax(dim=1)
    """
    path = Path(path)
    format = identify_format(path)
    if format is None:
        return _open_weights(path, device, use_ema)
    if use_ema:
        raise UserError(f"{path}: `use_ema` is for checkpoints; leave it out, or give it to `shufflenetv2 export`")
    if device not in ("auto", "cpu"):
        raise UserError(f"`device` {device}: an exported file runs on the CPU only; use the weight file instead")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    program = open_program(format, content, str(path))
    return Model(program, program.metadata.class_names, program.metadata.preprocessing)


def _open_weights(path: Path, device: str, use_ema: bool) -> Model:
    torch_device = choose_devices(device).first
    weights = read_weights(path, use_ema=use_ema)
    preprocessing = weights.preprocessing or Preprocessing()
    network = weights.network(preprocessing).to(torch_device)

    @torch.inference_mode()
    def logits(images: Tensor) -> Tensor:
        output: Tensor = network(images.to(torch_device)).float().cpu()
        return output

    return Model(logits, weights.class_names, preprocessing)


def predict(
    model: Model,
    images: Dataset,
    *,
    top: int = 5,
    batch_size: int = 64,
    workers: int | None = None,
    warn: Callable[[str], object] = print,
) -> Iterator[Prediction]:
    """Predict the most likely classes of images, and yield the predictions batch by batch in the order of the data set.

    Args:
        model: from `open_model`.
        images: a data set, such as `shufflenetv2.data.FolderDataset("DIR")`.
        top: number of classes per image, at most the number of classes of the model.
        batch_size: images in a batch.
        workers: number of threads that load images; None for the usable cores.
        warn: called with a message for each unreadable image, for which no prediction is yielded.

    Example:
        >>> for prediction in predict(open_model("models/model.pkl"), FolderDataset("val"), top=1):
        ...     print(prediction)
    """
    preprocessing = model.preprocessing
    readable = SkipUnreadable(images, build_evaluation_transform(preprocessing))
    # The images of `readable` are already resized and cropped.
    unchanged = EvaluationTransform(preprocessing.input_size, preprocessing.input_size)
    start = 0
    for pixels, _ in evaluation_batches(readable, unchanged, batch_size, workers=workers):
        probabilities, labels = model.logits(pixels).softmax(dim=1).sort(dim=1, descending=True, stable=True)
        for number in range(len(pixels)):
            if (reason := readable.unreadable.pop(start + number, None)) is not None:
                warn(reason)
                continue
            top_labels = labels[number, :top].tolist()
            class_names = [model.class_name(label) for label in top_labels]
            yield Prediction(images.name(start + number), top_labels, class_names, probabilities[number, :top].tolist())
        start += len(pixels)


def accuracy(logits: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Return the top-1 and top-5 accuracy of a model.

    Args:
        logits: function from images, uint8 (N, 3, H, W), BGR, to logits (N, n_class).
        batches: of images and targets.
    """
    correct, count = torch.zeros(2, dtype=torch.int64), 0
    with torch.inference_mode():
        for images, targets in batches:
            correct += count_correct(logits(images), targets)
            count += len(targets)
    top1, top5 = (correct / count).tolist()
    return top1, top5
