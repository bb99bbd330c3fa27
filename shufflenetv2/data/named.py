"""Data sets by name, a part of one held out, and the order of the classes from a file.

Of a named data set torchvision knows the files, the labels and the checksums. The pixels are not left to it:
it would decode with Pillow, image by image, what `open_image` decodes as far as needed.
"""

import difflib
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..rng import HELD_OUT, generator
from .datasets import Dataset, DatasetError, Digits
from .images import DecodedImage, Image, open_image

# Without one, a server that accepts and says nothing would be waited for without end.
SECONDS_OF_SILENCE = 30.0

Splits = dict[str, dict[str, Any]]


def by_name(*names: str, **more: str) -> Splits:
    return {name: {"split": name, **more} for name in names}


def by_switch(**more: str) -> Splits:
    return {"train": {"train": True, **more}, "test": {"train": False, **more}}


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Args:
        kind: the class in torchvision.datasets; empty for the one that is built in.
        splits: what its own splits are called, and the arguments that ask for each. The first is the one to
            train on, the second the one to validate on.
        images: the attribute with the images: RGB or grey arrays; or paths; or pairs of path and label.
        labels: the attribute with the labels; empty where they come in pairs with the paths.
        classes: how many there are, where torchvision has no names for them.
        needs: a package that reads its files and does not come with torchvision.
    """

    kind: str
    splits: Splits
    images: str = ""
    labels: str = ""
    classes: int = 0
    needs: str = ""


# fmt: off
NAMED = {
    "digits":          Source("", by_name("train", "val")),
    "mnist":           Source("MNIST", by_switch(), "data", "targets"),
    "fashion_mnist":   Source("FashionMNIST", by_switch(), "data", "targets"),
    "kmnist":          Source("KMNIST", by_switch(), "data", "targets"),
    "emnist_balanced": Source("EMNIST", by_switch(split="balanced"), "data", "targets"),
    "emnist_byclass":  Source("EMNIST", by_switch(split="byclass"), "data", "targets"),
    "cifar10":         Source("CIFAR10", by_switch(), "data", "targets"),
    "cifar100":        Source("CIFAR100", by_switch(), "data", "targets"),
    "svhn":            Source("SVHN", by_name("train", "test", "extra"), "data", "labels", classes=10, needs="scipy"),
    "stl10":           Source("STL10", by_name("train", "test"), "data", "labels", classes=10),
    "food101":         Source("Food101", by_name("train", "test"), "_image_files", "_labels"),
    "flowers102":      Source("Flowers102", by_name("train", "val", "test"), "_image_files", "_labels", needs="scipy"),
    "oxford_pet":      Source("OxfordIIITPet", by_name("trainval", "test"), "_images", "_labels"),
    "dtd":             Source("DTD", by_name("train", "val", "test"), "_image_files", "_labels"),
    "fgvc_aircraft":   Source("FGVCAircraft", by_name("train", "val", "trainval", "test"), "_image_files", "_labels"),
    "gtsrb":           Source("GTSRB", by_name("train", "test"), "_samples", classes=43),
    "country211":      Source("Country211", by_name("train", "valid", "test"), "samples"),
    "imagenette":      Source("Imagenette", by_name("train", "val"), "_samples"),
    "imagenette_320":  Source("Imagenette", by_name("train", "val", size="320px"), "_samples"),
    "imagenette_160":  Source("Imagenette", by_name("train", "val", size="160px"), "_samples"),
    "eurosat":         Source("EuroSAT", {"all": {}}, "samples"),
}
# fmt: on


class DownloadError(DatasetError):
    """A data set that could not be fetched."""

    status = 1


class TorchvisionDataset:
    """What torchvision found of a data set.

    Args:
        label: what to call it, like 'cifar10/train'.
        found: the object of torchvision.
        source: where in it things are.

    Raises:
        ValueError: where images, labels and classes do not fit together.
    """

    def __init__(self, label: str, found: Any, source: Source) -> None:
        self.label = label
        images = getattr(found, source.images)
        labels = getattr(found, source.labels) if source.labels else [label for _, label in images]
        self.targets = np.asarray(labels).astype(np.int64)
        # Paths, or pixels of shape (N, H, W) or (N, H, W, 3), BGR.
        self.images: list[str] | np.ndarray
        if isinstance(images, list):
            self.images = [os.fspath(image if source.labels else image[0]) for image in images]
        else:
            self.images = _grey_or_bgr(np.asarray(images))
        # A class of Imagenette is a tuple of synonyms.
        names = getattr(found, "classes", None) or [str(label) for label in range(source.classes)]
        self.class_names = [name if isinstance(name, str) else name[0] for name in names]
        if not 0 < len(self.images) == len(self.targets):
            raise ValueError(f"{len(self.images)} images, {len(self.targets)} labels")
        if not 0 <= self.targets.min() <= self.targets.max() < len(self.class_names):
            raise ValueError(f"{len(self.class_names)} classes, labels {self.targets.min()} to {self.targets.max()}")

    def name(self, index: int) -> str:
        return self.images[index] if isinstance(self.images, list) else f"{self.label}/{index}"

    def image(self, index: int) -> Image:
        if isinstance(self.images, list):
            return open_image(self.images[index])
        pixels = self.images[index]
        return DecodedImage(pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2))

    def __len__(self) -> int:
        return len(self.targets)


def _grey_or_bgr(pixels: np.ndarray) -> np.ndarray:
    """From (N, H, W), or RGB as (N, H, W, 3) or (N, 3, H, W); the latter two become (N, H, W, 3), in one piece."""
    if pixels.ndim == 3:
        return pixels
    return np.ascontiguousarray((pixels if pixels.shape[3] == 3 else pixels.transpose(0, 2, 3, 1))[..., ::-1])


def open_named(name: str, split: str, root: str, *, download: bool = False) -> Dataset:
    """The data set of a name in NAMED. Where several processes may download into one folder, one of them has to come first.

    Args:
        split: one of its own splits; or 'train' or 'val', which stand for the first and the second of them.
        root: the folder that holds it, in torchvision's layout; without meaning for what is built in.
        download: whether to fetch what is not there.

    Raises:
        DatasetError: for an unknown name or split, for files that are absent or damaged or came with an interrupted
            download, for a package that is missing; a DownloadError for a download that fails.
    """
    if (source := NAMED.get(name)) is None:
        near = difflib.get_close_matches(name, NAMED, 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(NAMED)}"
        raise DatasetError(f"--dataset {name} is not known; {hint}")
    split = _own_split(name, split)
    if not source.kind:
        return Digits(split)
    if source.needs and find_spec(source.needs) is None:
        raise DatasetError(f"--dataset {name} needs the package {source.needs}; pip install {source.needs}")

    folder = Path(root).expanduser()
    # Most classes of torchvision take a folder that exists for one that is complete, though the process that
    # unpacked it was killed half-way.
    mark = folder / f".{name}-{split}.unfinished"
    dataset = _read(name, split, folder)
    if dataset is not None and mark.exists():
        raise DatasetError(
            f"a download of {name} into {folder} was interrupted; remove what it left there, then {mark}, "
            "and --dataset-download fetches it anew"
        )
    if dataset is None and download:
        _fetch(name, split, folder, mark)
        dataset = _read(name, split, folder)
    if dataset is None:
        raise DatasetError(f"--data-dir {folder} holds no intact {name}; --dataset-download fetches it")
    return dataset


def _own_split(name: str, split: str) -> str:
    """What the data set itself calls the split."""
    splits = list(NAMED[name].splits)
    if split in splits:
        return split
    if split == "val" and len(splits) == 1:
        raise DatasetError(f"--dataset {name} is a single split; --val-fraction 0.1 holds out a part of it")
    if split not in ("train", "val"):
        raise DatasetError(f"--dataset {name} has no split {split!r}, only {', '.join(splits)}")
    return splits[split == "val"]


def _construct(name: str, split: str, folder: Path, download: bool) -> Any:
    import torchvision.datasets  # takes its time, and most runs train on folders

    return getattr(torchvision.datasets, NAMED[name].kind)(str(folder), download=download, **NAMED[name].splits[split])


def _read(name: str, split: str, folder: Path) -> TorchvisionDataset | None:
    """What is in the folder already; None where torchvision says that the files are not, or have the wrong checksum."""
    try:
        return TorchvisionDataset(f"{name}/{split}", _construct(name, split, folder, download=False), NAMED[name])
    except Exception as error:  # damaged files make their parsers raise anything
        if isinstance(error, RuntimeError) and "not found" in str(error):
            return None
        raise DatasetError(
            f"--data-dir {folder}: {name} cannot be read ({_one_line(error)}); "
            "if it is damaged, remove it, and --dataset-download fetches it anew"
        ) from error


def _fetch(name: str, split: str, folder: Path, mark: Path) -> None:
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS_OF_SILENCE)  # torchvision passes none of its own
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
        _construct(name, split, folder, download=True)
        mark.unlink()
    except Exception as error:  # of the network, the disk, the archive, whatever their libraries raise
        with suppress(DatasetError):
            if _read(name, split, folder) is None:  # and so will be fetched again
                mark.unlink(missing_ok=True)
        raise DownloadError(f"--dataset-download could not fetch {name} into {folder}: {_one_line(error)}") from error
    finally:
        socket.setdefaulttimeout(patience)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class Subset:
    """Some of a data set's samples.

    Args:
        indices: (N,) int64, into the data set.
    """

    def __init__(self, dataset: Dataset, indices: np.ndarray) -> None:
        self.dataset, self.indices = dataset, indices
        self.class_names = dataset.class_names
        self.targets = dataset.targets[indices]

    def name(self, index: int) -> str:
        return self.dataset.name(int(self.indices[index]))

    def image(self, index: int) -> Image:
        return self.dataset.image(int(self.indices[index]))

    def __len__(self) -> int:
        return len(self.indices)


def hold_out(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Divides a data set in two, each with its order: what is left to train on, and what is held out to validate on.

    Of each class the fraction is held out, rounded, but at least one image and never all; of a class of one image,
    none. What is held out of a class is a function of the seed, the class and its number of images alone.

    Args:
        fraction: above 0, below 1.
        seed: 0 or more.

    Raises:
        DatasetError: where no class has two images.
    """
    held_out = np.zeros(len(dataset), bool)
    counts = np.bincount(dataset.targets, minlength=len(dataset.class_names))
    by_class = np.split(np.argsort(dataset.targets, kind="stable"), np.cumsum(counts)[:-1])
    for label, members in enumerate(by_class):
        if len(members) > 1:
            number = min(max(round(fraction * len(members)), 1), len(members) - 1)
            # The smallest draws, not a shuffle: images that are added behind the others leave most of the part as it was.
            draws = generator(seed, HELD_OUT, label).random(len(members))
            held_out[members[np.argsort(draws)[:number]]] = True
    if not held_out.any():
        raise DatasetError(f"--val-fraction {fraction:g} holds out nothing: no class has two images")
    return Subset(dataset, np.flatnonzero(~held_out)), Subset(dataset, np.flatnonzero(held_out))


def read_class_map(path: str | Path) -> list[str]:
    """The names of the classes in the order of their labels: one a line, in UTF-8. Empty lines are passed over.

    Raises:
        DatasetError: for a file that cannot be read, names nothing, or names a class twice.
    """
    try:
        lines = Path(path).read_text("utf-8-sig").split("\n")
    except OSError as error:
        raise DatasetError(f"--class-map {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"--class-map {path} is no text in UTF-8; it should hold one class name a line") from error
    found: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if name := line.strip():
            if name in found:
                raise DatasetError(f"--class-map {path} names {name!r} in line {found[name]} and again in line {number}")
            found[name] = number
    if not found:
        raise DatasetError(f"--class-map {path} is empty; it should hold one class name a line")
    return list(found)
