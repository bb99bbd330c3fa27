"""Write a small copy of each named data set, with generated images, in the layout in which torchvision expects its files.

Where torchvision verifies checksums, its table of checksums is replaced by those of the generated files.
"""

import csv
import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets

from tests.support import photograph

TRAIN, VAL = 10, 6  # number of images in the first and in the second split of each data set
WriteFiles = Callable[[Path, pytest.MonkeyPatch], None]  # (folder, patch of torchvision's tables) -> None


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def labels(number: int, classes: int = 3) -> np.ndarray:
    return np.arange(number) % classes


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def save(path: Path) -> None:
    """Write a photograph whose size depends on the name of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(path.name.encode())
    photograph(33 + seed % 11, 34 + seed % 7, seed).save(path)


def idx(array: np.ndarray) -> bytes:
    """Return an array of bytes in the IDX format of MNIST's files."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


def mnist_files(train: str = "train", test: str = "t10k") -> dict[str, bytes]:
    return {
        f"{prefix}-{kind}": idx(array)
        for prefix, number in ((train, TRAIN), (test, VAL))
        for kind, array in (("images-idx3-ubyte", noise(number, 28, 28)), ("labels-idx1-ubyte", labels(number)))
    }


def mnist(kind: str, *prefixes: str) -> WriteFiles:
    def write_files(root: Path, patch: pytest.MonkeyPatch) -> None:
        for name, content in mnist_files(*prefixes).items():
            write(root / kind / "raw" / name, content)

    return write_files


def cifar(kind: str, key: str) -> WriteFiles:
    def write_files(root: Path, patch: pytest.MonkeyPatch) -> None:
        cls = getattr(torchvision.datasets, kind)
        folder = root / cls.base_folder
        for files, number in ((cls.train_list, TRAIN), (cls.test_list, VAL)):
            images_per_file = number // len(files)
            for name, _ in files:
                content = {"data": noise(images_per_file, 3072), key: labels(images_per_file).tolist()}
                write(folder / name, pickle.dumps(content, protocol=2))
        write(folder / cls.meta["filename"], pickle.dumps({cls.meta["key"]: ["owl", "cat", "dog"]}, protocol=2))
        for table in ("train_list", "test_list"):
            patch.setattr(cls, table, [[name, md5(folder / name)] for name, _ in getattr(cls, table)])
        patch.setattr(cls, "meta", {**cls.meta, "md5": md5(folder / cls.meta["filename"])})

    return write_files


def svhn(root: Path, patch: pytest.MonkeyPatch) -> None:
    cls, table = torchvision.datasets.SVHN, {}
    for split, number in (("train", TRAIN), ("test", VAL), ("extra", 3)):
        url, name, _ = cls.split_list[split]
        # SVHN labels the digit 0 with 10.
        write_mat(root / name, X=noise(32, 32, 3, number), y=np.where(labels(number) == 0, 10, labels(number))[:, None])
        table[split] = [url, name, md5(root / name)]
    patch.setattr(cls, "split_list", table)


def write_mat(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pytest.importorskip("scipy.io").savemat(path, arrays)


def stl10(root: Path, patch: pytest.MonkeyPatch) -> None:
    cls = torchvision.datasets.STL10
    folder = root / cls.base_folder
    for split, number in (("train", TRAIN), ("test", VAL)):
        write(folder / f"{split}_X.bin", noise(number, 3, 96, 96).tobytes())
        write(folder / f"{split}_y.bin", (labels(number) + 1).astype(np.uint8).tobytes())
    write(folder / "unlabeled_X.bin", b"")
    write(folder / "class_names.txt", "airplane\nbird\ncar\n")
    for table in ("train_list", "test_list"):
        patch.setattr(cls, table, [[name, md5(folder / name)] for name, _ in getattr(cls, table)])


def food101(root: Path, patch: pytest.MonkeyPatch) -> None:
    for split, number in (("train", TRAIN), ("test", VAL)):
        paths: dict[str, list[str]] = {"waffles": [], "apple_pie": []}  # torchvision labels classes in alphabetical order
        for image in range(number):
            food = list(paths)[image % 2]
            paths[food].append(f"{food}/{split}{image}")
            save(root / "food-101/images" / f"{food}/{split}{image}.jpg")
        write(root / "food-101/meta" / f"{split}.json", json.dumps(paths))


def flowers102(root: Path, patch: pytest.MonkeyPatch) -> None:
    cls, folder = torchvision.datasets.Flowers102, root / "flowers-102"
    number = TRAIN + VAL + 2
    for image in range(1, number + 1):
        save(folder / "jpg" / f"image_{image:05d}.jpg")
    ids = np.random.default_rng(0).permutation(number) + 1
    write_mat(folder / "imagelabels.mat", labels=labels(number, 102)[None] + 1)
    write_mat(folder / "setid.mat", trnid=ids[:TRAIN], valid=ids[TRAIN : TRAIN + VAL], tstid=ids[TRAIN + VAL :])
    table = {id: (name, md5(folder / name)) for id, (name, _) in cls._file_dict.items() if id != "image"}
    patch.setattr(cls, "_file_dict", {**cls._file_dict, **table})


def oxford_pet(root: Path, patch: pytest.MonkeyPatch) -> None:
    breeds = ["Abyssinian", "american_bulldog", "Bengal"]
    for split, number in (("trainval", TRAIN), ("test", VAL)):
        names = [f"{breeds[label]}_{split}{image}" for image, label in enumerate(labels(number))]
        for name in names:
            save(root / "oxford-iiit-pet/images" / f"{name}.jpg")
        lines = [f"{name} {label + 1} 1 1\n" for name, label in zip(names, labels(number), strict=True)]
        write(root / "oxford-iiit-pet/annotations" / f"{split}.txt", "".join(lines))


def dtd(root: Path, patch: pytest.MonkeyPatch) -> None:
    for split, number in (("train", TRAIN), ("val", VAL), ("test", 4)):
        textures = [f"{('zigzagged', 'banded')[image % 2]}/{split}_{image}.jpg" for image in range(number)]
        for texture in textures:
            save(root / "dtd/dtd/images" / texture)
        write(root / "dtd/dtd/labels" / f"{split}1.txt", "\n".join(textures) + "\n")


def fgvc_aircraft(root: Path, patch: pytest.MonkeyPatch) -> None:
    data = root / "fgvc-aircraft-2013b/data"
    variants = ["707-320", "A340 200", "Tu-154"]
    write(data / "variants.txt", "\n".join(variants) + "\n")
    for start, (split, number) in zip(
        (0, 100, 200, 300), (("train", TRAIN), ("val", VAL), ("trainval", 3), ("test", 3)), strict=True
    ):
        lines = [f"{start + image:07d} {variants[label]}\n" for image, label in enumerate(labels(number))]
        for line in lines:
            save(data / "images" / f"{line.split()[0]}.jpg")
        write(data / f"images_variant_{split}.txt", "".join(lines))


def gtsrb(root: Path, patch: pytest.MonkeyPatch) -> None:
    for image, label in enumerate(labels(TRAIN)):
        save(root / "gtsrb/GTSRB/Training" / f"{label:05d}" / f"00000_{image:05d}.ppm")
    with (root / "gtsrb/GT-final_test.csv").open("w", newline="") as file:
        rows = csv.writer(file, delimiter=";")
        rows.writerow(["Filename", "Width", "Height", "ClassId"])
        for image, label in enumerate(labels(VAL, 43)):
            save(root / "gtsrb/GTSRB/Final_Test/Images" / f"{image:05d}.ppm")
            rows.writerow([f"{image:05d}.ppm", 40, 40, label])


def folders(first: str, second: str, classes: tuple[str, ...], suffix: str) -> WriteFiles:
    def write_files(root: Path, patch: pytest.MonkeyPatch) -> None:
        for folder, number in ((first, TRAIN), (second, VAL)):
            for image in range(number if folder else 0):
                save(root / folder / classes[image % len(classes)] / f"{image}{suffix}")

    return write_files


def imagenette(folder: str) -> WriteFiles:
    return folders(f"{folder}/train", f"{folder}/val", ("n01440764", "n02102040", "n03888257"), ".JPEG")


WRITE_FILES: dict[str, WriteFiles] = {
    "mnist": mnist("MNIST"),
    "fashion_mnist": mnist("FashionMNIST"),
    "kmnist": mnist("KMNIST"),
    "emnist_balanced": mnist("EMNIST", "emnist-balanced-train", "emnist-balanced-test"),
    "emnist_byclass": mnist("EMNIST", "emnist-byclass-train", "emnist-byclass-test"),
    "cifar10": cifar("CIFAR10", "labels"),
    "cifar100": cifar("CIFAR100", "fine_labels"),
    "svhn": svhn,
    "stl10": stl10,
    "food101": food101,
    "flowers102": flowers102,
    "oxford_pet": oxford_pet,
    "dtd": dtd,
    "fgvc_aircraft": fgvc_aircraft,
    "gtsrb": gtsrb,
    "country211": folders("country211/train", "country211/valid", ("AD", "ZW"), ".jpg"),
    "imagenette": imagenette("imagenette2"),
    "imagenette_320": imagenette("imagenette2-320"),
    "imagenette_160": imagenette("imagenette2-160"),
    "eurosat": folders("eurosat/2750", "", ("Forest", "River"), ".jpg"),
}
