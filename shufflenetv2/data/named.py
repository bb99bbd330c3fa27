"""Data sets that are selected by name, such as cifar10 (option `dataset`).

torchvision downloads them, verifies checksums and reads the labels. This program decodes the images, because torchvision would
decode each image completely with Pillow, where `open_image` decodes only the part that a crop needs.
"""

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, nearest, one_line
from ..extensions import is_reference
from ..terminal import show_downloads
from .custom import UserDataset
from .datasets import Dataset, Digits
from .images import DecodedImage, Image, open_image

SOCKET_TIMEOUT = 30.0  # seconds; without a timeout a download waits forever for a server that stops sending

Splits = dict[str, dict[str, Any]]  # name of a split -> arguments of torchvision's class


def _split_argument(*names: str, **arguments: str) -> Splits:
    """Return the splits of a class that selects them by the argument `split`."""
    return {name: {"split": name, **arguments} for name in names}


def _train_argument(**arguments: str) -> Splits:
    """Return the splits of a class that selects them by the argument `train`, True or False."""
    return {"train": {"train": True, **arguments}, "test": {"train": False, **arguments}}


@dataclass(frozen=True)
class Source:
    """Describe how to read a data set with torchvision.

    Args:
        torchvision_class: name of the class in torchvision.datasets; empty for the built-in digits.
        splits: names of the splits, each with the class's arguments that select it. The first split is the default for
            training, the second for validation.
        images: attribute of the class that holds the images: RGB or grey arrays, paths, or (path, label) pairs.
        labels: attribute of the class that holds the labels; empty if `images` holds (path, label) pairs.
        n_class: number of classes, for a class of torchvision without class names.
        requires: package that torchvision needs for this data set and does not install.
    """

    torchvision_class: str
    splits: Splits
    images: str = ""
    labels: str = ""
    n_class: int = 0
    requires: str = ""


NAMED = {
    "digits": Source("", _split_argument("train", "val")),
    "mnist": Source("MNIST", _train_argument(), "data", "targets"),
    "fashion_mnist": Source("FashionMNIST", _train_argument(), "data", "targets"),
    "kmnist": Source("KMNIST", _train_argument(), "data", "targets"),
    "emnist_balanced": Source("EMNIST", _train_argument(split="balanced"), "data", "targets"),
    "emnist_byclass": Source("EMNIST", _train_argument(split="byclass"), "data", "targets"),
    "cifar10": Source("CIFAR10", _train_argument(), "data", "targets"),
    "cifar100": Source("CIFAR100", _train_argument(), "data", "targets"),
    "svhn": Source("SVHN", _split_argument("train", "test", "extra"), "data", "labels", n_class=10, requires="scipy"),
    "stl10": Source("STL10", _split_argument("train", "test"), "data", "labels", n_class=10),
    "food101": Source("Food101", _split_argument("train", "test"), "_image_files", "_labels"),
    "flowers102": Source("Flowers102", _split_argument("train", "val", "test"), "_image_files", "_labels", requires="scipy"),
    "oxford_pet": Source("OxfordIIITPet", _split_argument("trainval", "test"), "_images", "_labels"),
    "dtd": Source("DTD", _split_argument("train", "val", "test"), "_image_files", "_labels"),
    "fgvc_aircraft": Source("FGVCAircraft", _split_argument("train", "val", "trainval", "test"), "_image_files", "_labels"),
    "gtsrb": Source("GTSRB", _split_argument("train", "test"), "_samples", n_class=43),
    "country211": Source("Country211", _split_argument("train", "valid", "test"), "samples"),
    "imagenette": Source("Imagenette", _split_argument("train", "val"), "_samples"),
    "imagenette_320": Source("Imagenette", _split_argument("train", "val", size="320px"), "_samples"),
    "imagenette_160": Source("Imagenette", _split_argument("train", "val", size="160px"), "_samples"),
    "eurosat": Source("EuroSAT", {"all": {}}, "samples"),
}


class TorchvisionDataset:
    """The images and labels of a torchvision data set.

    Args:
        name: prefix of the sample names, for example 'cifar10/train'.
        torchvision_dataset: instance of a class in torchvision.datasets.
        source: names the attributes of that class.

    Raises:
        ValueError: if the numbers of images, labels and classes are inconsistent.
    """

    def __init__(self, name: str, torchvision_dataset: Any, source: Source) -> None:
        self._name = name
        images = getattr(torchvision_dataset, source.images)
        labels = getattr(torchvision_dataset, source.labels) if source.labels else [label for _, label in images]
        self.targets = np.asarray(labels).astype(np.int64)
        # Paths, or uint8 pixels: grey (N, H, W), or BGR (N, H, W, 3).
        self.images: list[str] | np.ndarray
        if isinstance(images, list):
            self.images = [os.fspath(image if source.labels else image[0]) for image in images]
        else:
            self.images = _grey_or_bgr(np.asarray(images))
        # Imagenette's class names are tuples of synonyms.
        names = getattr(torchvision_dataset, "classes", None) or [str(label) for label in range(source.n_class)]
        self.class_names = [name if isinstance(name, str) else name[0] for name in names]
        if not 0 < len(self.images) == len(self.targets):
            raise ValueError(f"{len(self.images)} images, {len(self.targets)} labels")
        if not 0 <= self.targets.min() <= self.targets.max() < len(self.class_names):
            raise ValueError(f"{len(self.class_names)} classes, labels {self.targets.min()} to {self.targets.max()}")

    def name(self, index: int) -> str:
        return self.images[index] if isinstance(self.images, list) else f"{self._name}/{index}"

    def image(self, index: int) -> Image:
        if isinstance(self.images, list):
            return open_image(self.images[index])
        pixels = self.images[index]
        return DecodedImage(pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2))

    def __len__(self) -> int:
        return len(self.targets)


def _grey_or_bgr(pixels: np.ndarray) -> np.ndarray:
    """Convert RGB images of shape (N, H, W, 3) or (N, 3, H, W) to BGR (N, H, W, 3); grey images (N, H, W) stay as they are."""
    if pixels.ndim == 3:
        return pixels
    return np.ascontiguousarray((pixels if pixels.shape[3] == 3 else pixels.transpose(0, 2, 3, 1))[..., ::-1])


def open_named(name: str, split: str, root: str, *, download: bool = False) -> Dataset:
    """Open a data set by its name in NAMED, or as a class of the user, 'package.module:Class' (see UserDataset).

    Processes that share a folder must not download at the same time: let one process call this function before the others.

    Args:
        split: name of one of the data set's splits; 'train' and 'val' also select its first and second split.
        root: the folder that holds the data set, in torchvision's layout; ignored for the built-in digits.
        download: download the data set if it is missing.

    Raises:
        UserError: if the name or the split is unknown, if the files are missing, damaged or left by an interrupted download,
            if a required package is missing, or (with exit status 1) if the download fails.
    """
    if is_reference(name):
        return UserDataset(name, split, root)
    if (source := NAMED.get(name)) is None:
        near = nearest(name, NAMED)
        hint = f"did you mean {near}?" if near else f"must be folder or one of {', '.join(NAMED)}"
        raise UserError(f"`dataset` {name} is unknown; {hint}")
    split = _resolve_split(name, split)
    if not source.torchvision_class:
        return Digits(split)
    if source.requires and find_spec(source.requires) is None:
        raise UserError(f"`dataset` {name} needs the package {source.requires}; pip install {source.requires}")

    folder = Path(root).expanduser()
    # Most classes of torchvision consider a folder complete if it exists, even if the process that unpacked it was killed.
    download_marker = folder / f".{name}-{split}.unfinished"
    dataset = _read(name, split, folder)
    if dataset is not None and download_marker.exists():
        raise UserError(
            f"a download of {name} into {folder} was interrupted; remove the files of {name} there and {download_marker}, "
            "then download again with `dataset_download`"
        )
    if dataset is None and download:
        _download(name, split, folder, download_marker)
        dataset = _read(name, split, folder)
    if dataset is None:
        raise UserError(f"`data_dir` {folder} holds no complete copy of {name}; `dataset_download` downloads it")
    return dataset


def _resolve_split(name: str, split: str) -> str:
    """Return the data set's own name of a split."""
    splits = list(NAMED[name].splits)
    if split in splits:
        return split
    if split == "val" and len(splits) == 1:
        raise UserError(f"`dataset` {name} has a single split; `val_fraction=0.1` holds out a part of it for validation")
    if split not in ("train", "val"):
        raise UserError(f"`dataset` {name} has no split {split!r}, only {', '.join(splits)}")
    return splits[split == "val"]


def _construct(name: str, split: str, folder: Path, download: bool) -> Any:
    import torchvision.datasets  # not at the top: the import is slow, and most runs train on folders

    source = NAMED[name]
    return getattr(torchvision.datasets, source.torchvision_class)(str(folder), download=download, **source.splits[split])


def _read(name: str, split: str, folder: Path) -> TorchvisionDataset | None:
    """Read the data set from the folder; None if torchvision reports that files are missing or have a wrong checksum."""
    try:
        return TorchvisionDataset(f"{name}/{split}", _construct(name, split, folder, download=False), NAMED[name])
    except Exception as error:  # the parsers of damaged files raise many types of errors
        if isinstance(error, RuntimeError) and "not found" in str(error):
            return None
        raise UserError(
            f"`data_dir` {folder}: {name} cannot be read ({one_line(error)}); "
            f"if files of {name} are damaged, remove them and download again with `dataset_download`"
        ) from error


def _download(name: str, split: str, folder: Path, marker: Path) -> None:
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SOCKET_TIMEOUT)  # torchvision sets no timeout
    try:
        folder.mkdir(parents=True, exist_ok=True)
        marker.touch()
        from torchvision.datasets import utils  # not at the top: the import is slow

        with show_downloads(utils):
            _construct(name, split, folder, download=True)
        marker.unlink()
    except Exception as error:  # network, disk and archive libraries raise many types of errors
        with suppress(UserError):
            # Where torchvision finds files missing, the next call downloads again, and needs no marker of the interruption.
            if _read(name, split, folder) is None:
                marker.unlink(missing_ok=True)
        raise UserError(f"`dataset_download` could not download {name} into {folder}: {one_line(error)}", status=1) from error
    finally:
        socket.setdefaulttimeout(timeout)
