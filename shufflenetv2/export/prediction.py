"""Predict classes of images with a weight file or an exported file, reading images as an evaluation does."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import (
    Dataset,
    EvaluationTransform,
    ImageError,
    InMemoryImages,
    build_evaluation_transform,
    evaluation_batches,
)
from ..engine import choose_devices
from ..engine.evaluation import count_correct
from ..errors import UserError
from ..files import MAX_TENSOR_BYTES, read_regular_file
from ..network import ShuffleNetV2
from ..weights import Preprocessing, describe_unreadable, read_weights
from .images import SkipUnreadable, open_images
from .runtimes import identify_format, open_program


@dataclass(frozen=True)
class Classifier:
    """A model from a weight file or an exported file; call it with images.

    Attributes:
        logits: function from images, uint8 (N, C, H, W), BGR or grey, to logits (N, n_class), float32, on the CPU.
        class_names: None if the file does not contain them.
        preprocessing: how images are resized and cropped.
        network: the network in eval mode; None for an exported file.
    """

    logits: Callable[[Tensor], Tensor]
    class_names: list[str] | None
    preprocessing: Preprocessing
    network: ShuffleNetV2 | None = None

    def class_name(self, label: int) -> str:
        return self.class_names[label] if self.class_names else str(label)

    def __call__(self, images: Any, *, top: int = 5) -> Any:
        """Classify images, read and resized as in validation.

        Args:
            images: an image, a list of images, or a folder, in which images are searched at any depth. An image is the path
                of a file, the bytes of a file, a PIL image, or a uint8 array, grey (H, W) or BGR (H, W, 3) as OpenCV reads it.
            top: number of classes per image, at most the number of classes of the model.

        Returns:
            The Prediction of an image; for a list or a folder a list of Predictions in the same order (a folder is sorted by
            path).

        Raises:
            ImageError: an image cannot be read.
            UserError: a folder holds no images.
            TypeError: an image has none of these forms.

        Example:
            >>> classifier = shufflenetv2.load("models/best.pkl")
            >>> classifier("cat.jpg").class_name
            'cat'
        """
        is_folder = isinstance(images, str | os.PathLike) and os.path.isdir(images)
        is_list = isinstance(images, list | tuple) or is_folder
        predictions = list(predict(self, _as_dataset(images), top=top, warn=_raise_image_error))
        return predictions if is_list else predictions[0]

    def features(self, images: Any) -> dict[str, Tensor]:
        """Return the feature maps of every stage, and an embedding of each image.

        Args:
            images: as for a call; or a tensor (N, C, H, W), BGR or grey, 0..255, which is used as it is.

        Returns:
            The maps of `ShuffleNetV2.forward_features`, and 'embedding', float32 (N, 1024), or (N, 2048) for size 2.0x: the
            input of the linear layer. On the CPU.

        Raises:
            UserError: the model is an exported file.
            ImageError, TypeError: see a call.
        """
        if self.network is None:
            raise UserError("an exported file gives no features; load the weight file instead")
        if not isinstance(images, Tensor):
            dataset, transform = _as_dataset(images), build_evaluation_transform(self.preprocessing)
            images = torch.cat([pixels for pixels, _ in evaluation_batches(dataset, transform, 64)])
        with torch.inference_mode():
            maps = self.network.forward_features(images.to(self.network.first_conv[0].weight.device))
            maps["embedding"] = self.network.pool(maps["conv_last"])
        return {name: tensor.float().cpu() for name, tensor in maps.items()}


def _as_dataset(images: Any) -> Dataset:
    if isinstance(images, str | os.PathLike) and os.path.isdir(images):
        return open_images(os.fspath(images), "val", "images")
    return InMemoryImages(list(images) if isinstance(images, list | tuple) else [images])


def _raise_image_error(message: str) -> None:
    raise ImageError(message)


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

    @property
    def class_name(self) -> str:
        """The most likely class."""
        return self.class_names[0]

    @property
    def probability(self) -> float:
        """The probability of the most likely class, from 0 to 1."""
        return self.probabilities[0]

    def __str__(self) -> str:
        classes = zip(self.class_names, self.probabilities, strict=True)
        return f"{self.path}: " + ", ".join(f"{name} {probability:.2%}" for name, probability in classes)

    def to_json(self) -> str:
        """Return the prediction as one line of JSON."""
        classes = zip(self.labels, self.class_names, self.probabilities, strict=True)
        predictions = [{"label": label, "class": name, "probability": round(p, 6)} for label, name, p in classes]
        return json.dumps({"path": self.path, "predictions": predictions})


def load(path: str | Path, device: str = "auto", *, use_ema: bool = False) -> Classifier:
    """Load a classifier from a weight file, as `read_weights` does, or from a file that `export` wrote.

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
        >>> classifier = load("models/best.pkl")
        >>> print(classifier("cat.jpg", top=2))
        cat.jpg: cat 98.20%, dog 1.10%
    """
    path = Path(path)
    format = identify_format(path)
    if format is None:
        return _load_weights(path, device, use_ema)
    if use_ema:
        raise UserError(f"{path}: `use_ema` is for checkpoints; leave it out, or give it to `shufflenetv2 export`")
    if device not in ("auto", "cpu"):
        raise UserError(f"`device` {device}: an exported file runs on the CPU only; use the weight file instead")
    try:
        content = read_regular_file(path, MAX_TENSOR_BYTES)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {describe_unreadable(path, error)}") from error
    program = open_program(format, content, str(path))
    return Classifier(program, program.metadata.class_names, program.metadata.preprocessing)


def _load_weights(path: Path, device: str, use_ema: bool) -> Classifier:
    torch_device = choose_devices(device).first
    weights = read_weights(path, use_ema=use_ema)
    preprocessing = weights.preprocessing_or_default()
    network = weights.network(preprocessing).to(torch_device)

    @torch.inference_mode()
    def logits(images: Tensor) -> Tensor:
        output: Tensor = network(images.to(torch_device)).float().cpu()
        return output

    return Classifier(logits, weights.class_names, preprocessing, network)


def predict(
    classifier: Classifier,
    images: Dataset,
    *,
    top: int = 5,
    batch_size: int = 64,
    workers: int | None = None,
    warn: Callable[[str], object] = print,
) -> Iterator[Prediction]:
    """Predict the most likely classes of images, and yield the predictions batch by batch in the order of the data set.

    Args:
        classifier: from `load`.
        images: a data set, such as `shufflenetv2.data.FolderDataset("DIR")`.
        top: number of classes per image, at most the number of classes of the model.
        batch_size: images in a batch.
        workers: number of threads that load images; None for the usable cores.
        warn: called with a message for each unreadable image, for which no prediction is yielded.

    Example:
        >>> for prediction in predict(load("models/model.pkl"), FolderDataset("val"), top=1):
        ...     print(prediction)
    """
    preprocessing = classifier.preprocessing
    readable = SkipUnreadable(images, build_evaluation_transform(preprocessing))
    # The images of `readable` are already resized and cropped.
    unchanged = EvaluationTransform(preprocessing.input_size, preprocessing.input_size, channels=preprocessing.channels)
    start = 0
    for pixels, _ in evaluation_batches(readable, unchanged, batch_size, workers=workers):
        logits = classifier.logits(pixels)
        if not (is_finite := logits.isfinite().all(dim=1)).all():
            name = images.name(start + int(is_finite.int().argmin()))
            raise UserError(f"the model gives NaN or infinite logits for {name}; use another file of the model", status=1)
        probabilities, labels = logits.softmax(dim=1).sort(dim=1, descending=True, stable=True)
        for number in range(len(pixels)):
            if (reason := readable.unreadable.pop(start + number, None)) is not None:
                warn(reason)
                continue
            top_labels = labels[number, :top].tolist()
            class_names = [classifier.class_name(label) for label in top_labels]
            yield Prediction(images.name(start + number), top_labels, class_names, probabilities[number, :top].tolist())
        start += len(pixels)


def accuracy(logits: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Return the top-1 and top-5 accuracy of a model.

    Args:
        logits: function from images, uint8 (N, C, H, W), BGR or grey, to logits (N, n_class).
        batches: of images and targets.
    """
    correct, count = torch.zeros(2, dtype=torch.int64), 0
    with torch.inference_mode():
        for images, targets in batches:
            correct += count_correct(logits(images), targets)
            count += len(targets)
    top1, top5 = (correct / count).tolist()
    return top1, top5
