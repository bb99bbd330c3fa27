"""What a model says of images: from any weight file or exported file, through the evaluation's own loader."""

import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ..data import (
    Dataset,
    DecodedImage,
    Digits,
    EvaluationTransform,
    ImageError,
    ImageFiles,
    Subset,
    build_evaluation_transform,
    evaluation_batches,
    find_images,
)
from ..data.images import Image
from ..engine import choose_devices
from ..engine.evaluation import count_correct
from ..errors import UserError
from ..weights import Preprocessing, read_weights
from .formats import open_program

DIGITS = "digits"  # in place of a folder: those that are built in


class ModelError(UserError):
    """A file that is no model, or not one that this command runs; the text says which and why."""


@dataclass(frozen=True)
class Model:
    """What turns images into logits.

    Attributes:
        logits: of uint8 (N, 3, H, W), BGR; float32 (N, n_class), on the CPU.
        class_names: None where the file does not tell.
    """

    logits: Callable[[Tensor], Tensor]
    class_names: list[str] | None
    preprocessing: Preprocessing

    def name_of(self, label: int) -> str:
        return self.class_names[label] if self.class_names else str(label)


@dataclass(frozen=True)
class Prediction:
    """Of one image: the likeliest classes, best first, and what the model makes of them."""

    path: str
    labels: list[int]
    class_names: list[str]
    probabilities: list[float]

    def __str__(self) -> str:
        guesses = zip(self.class_names, self.probabilities, strict=True)
        return f"{self.path}: " + ", ".join(f"{name} {probability:.2%}" for name, probability in guesses)

    def to_json(self) -> str:
        guesses = zip(self.labels, self.class_names, self.probabilities, strict=True)
        predictions = [{"label": label, "class": name, "probability": round(p, 6)} for label, name, p in guesses]
        return json.dumps({"path": self.path, "predictions": predictions})


def open_model(path: str | Path, device: str = "auto") -> Model:
    """The model in a file: weights as `read_weights` knows them, or what `export` wrote: .onnx, .pt, .pt2 or .pte.

    TorchScript (.pt) and torch's exported programs (.pt2) are code, which this runs: open only those that you would
    run. All others are data.

    Raises:
        UserError, ExportError, ModelError: for a file that is missing, damaged or something else, or a program
            under a name that does not say so.
        DeviceError: for a device that is not there.
    """
    path = Path(path)
    if (format := _format_of(path)) is None:
        chosen = choose_devices(device).first
        weights = read_weights(path)
        preprocessing = weights.preprocessing or Preprocessing()
        network = weights.network(preprocessing).to(chosen)

        @torch.inference_mode()
        def logits(images: Tensor) -> Tensor:
            found: Tensor = network(images.to(chosen)).float().cpu()
            return found

        return Model(logits, weights.class_names, preprocessing)
    if device not in ("auto", "cpu"):
        raise ModelError(f"--device {device}: an exported file runs on the CPU here; give the weights instead")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    program = open_program(format, content, str(path))
    return Model(program, program.description.class_names, program.description.preprocessing)


def _format_of(path: Path) -> str | None:
    """The format of an exported file; None for what should be weights. Nothing in the file is run."""
    if path.suffix in (".onnx", ".pte"):
        return "onnx" if path.suffix == ".onnx" else "executorch"
    try:
        with zipfile.ZipFile(path) as archive:
            inside = {name.partition("/")[2] for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        return "exported" if path.suffix == ".pt2" else None
    format, suffix, what = None, "", ""
    if "archive_format" in inside:
        format, suffix, what = "exported", ".pt2", "an exported program of torch"
    elif "constants.pkl" in inside:
        format, suffix, what = "torchscript", ".pt", "a TorchScript program"
    if format and path.suffix != suffix:
        raise ModelError(f"{path} holds {what}, which is code and no weights; to run it nevertheless, name it *{suffix}")
    return format


# ---- the images


def selection(dataset: Dataset, count: int) -> Subset:
    """So many samples of a data set, evenly spread over it; all where there are not as many."""
    return Subset(dataset, np.unique(np.linspace(0, len(dataset) - 1, count).round().astype(np.int64)))


class Tolerant:
    """A data set as the evaluation sees it, black where an image is unreadable.

    Attributes:
        unreadable: why, by the number of the sample, for those that were asked for.
    """

    def __init__(self, dataset: Dataset, transform: EvaluationTransform) -> None:
        self.dataset, self.transform = dataset, transform
        self.class_names, self.targets, self.name = dataset.class_names, dataset.targets, dataset.name
        self.unreadable: dict[int, str] = {}

    def image(self, index: int) -> Image:
        pixels = np.zeros((self.transform.size, self.transform.size, 3), np.uint8)
        try:
            self.transform(self.dataset.image(index), pixels)
        except ImageError as error:
            self.unreadable[index] = str(error)
        except cv2.error:
            self.unreadable[index] = f"{self.name(index)} is too long and thin to be resized; remove it or replace it"
        return DecodedImage(pixels)

    def __len__(self) -> int:
        return len(self.dataset)


def image_paths(paths: Iterable[str | Path], warn: Callable[[str], object]) -> list[str]:
    """Return the files among `paths`, with any suffix, and the images below the folders among them, at any depth.

    The order is that of `paths`; images of one folder are sorted.

    Args:
        warn: called with a message for each folder that holds no images or cannot be listed.
    """
    images: list[str] = []
    for path in [os.fspath(path) for path in paths]:
        if not os.path.isdir(path):
            images.append(path)
        elif names := find_images(path, lambda error: warn(f"{error.filename} cannot be read: {error.strerror}")):
            images += [os.path.join(path, name) for name in names]
        else:
            warn(f"{path} holds no images")
    return images


def images_of(source: str, split: str, option: str) -> Dataset:
    """The images below a folder, or the built-in digits of a split for 'digits'.

    Raises:
        ModelError: where there is no such folder, or no image in it; `option` is where it was given.
    """
    if source == DIGITS and not os.path.exists(source):
        return Digits(split)
    if not os.path.isdir(source):
        raise ModelError(f"{option} {source} is not a folder; it should hold images, at any depth")
    complaints: list[str] = []
    paths = image_paths([source], complaints.append)
    if not paths:
        raise ModelError(f"{option} {complaints[0]}")
    return ImageFiles(paths)


def predict(
    model: Model,
    images: Dataset,
    *,
    top: int = 5,
    batch_size: int = 64,
    workers: int | None = None,
    complain: Callable[[str], object] = print,
) -> Iterator[Prediction]:
    """The likeliest classes of each image, batch by batch as they are computed, in the order of the data set.

    Args:
        top: how many classes, or as many as there are.
        workers: threads that load, the usable cores if None.
        complain: told of every unreadable image, by name. It yields no prediction.
    """
    use = model.preprocessing
    readable = Tolerant(images, build_evaluation_transform(use))
    as_it_is = EvaluationTransform(use.input_size, use.input_size)
    start = 0
    for pixels, _ in evaluation_batches(readable, as_it_is, batch_size, workers=workers):
        probabilities, labels = model.logits(pixels).softmax(dim=1).sort(dim=1, descending=True, stable=True)
        for number in range(len(pixels)):
            if (reason := readable.unreadable.pop(start + number, None)) is not None:
                complain(reason)
                continue
            best = labels[number, :top].tolist()
            names = [model.name_of(label) for label in best]
            yield Prediction(images.name(start + number), best, names, probabilities[number, :top].tolist())
        start += len(pixels)


def accuracy(model: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """The shares of the images whose class is the first guess, and among the first five.

    Args:
        model: of uint8 (N, 3, H, W), BGR.
        batches: images and targets.
    """
    correct, count = torch.zeros(2, dtype=torch.int64), 0
    with torch.inference_mode():
        for images, targets in batches:
            correct += count_correct(model(images), targets)
            count += len(targets)
    top1, top5 = (correct / count).tolist()
    return top1, top5
