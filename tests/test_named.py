"""Each named data set is read from files in its real layout as torchvision reads it, and what is wrong is one line."""

import csv
import gzip
import hashlib
import http.server
import json
import pickle
import socket
import subprocess
import sys
import tarfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets

from shufflenetv2.data import (
    Dataset,
    DecodedImage,
    Digits,
    EvaluationTransform,
    Subset,
    evaluation_batches,
    hold_out,
    named,
    open_named,
    read_class_map,
)
from shufflenetv2.data.named import NAMED
from shufflenetv2.errors import UserError
from tests.support import photograph

TRAIN, VAL = 10, 6  # images in a data set's first split, and in its second
FROM_TORCHVISION = [name for name, source in NAMED.items() if source.torchvision_class]
Build = Callable[[Path, pytest.MonkeyPatch], None]


# The files of each data set, small, in the layout of the real ones. Where torchvision compares checksums, its
# table gets those of the files here: that it compares is its own promise.


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
    """A photograph, each of another size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(path.name.encode())
    photograph(33 + seed % 11, 34 + seed % 7, seed).save(path)


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


def mnist_files(train: str = "train", test: str = "t10k") -> dict[str, bytes]:
    return {
        f"{prefix}-{kind}": idx(array)
        for prefix, number in ((train, TRAIN), (test, VAL))
        for kind, array in (("images-idx3-ubyte", noise(number, 28, 28)), ("labels-idx1-ubyte", labels(number)))
    }


def mnist(kind: str, *prefixes: str) -> Build:
    def build(root: Path, patch: pytest.MonkeyPatch) -> None:
        for name, content in mnist_files(*prefixes).items():
            write(root / kind / "raw" / name, content)

    return build


def cifar(kind: str, key: str) -> Build:
    def build(root: Path, patch: pytest.MonkeyPatch) -> None:
        cls = getattr(torchvision.datasets, kind)
        folder = root / cls.base_folder
        for files, number in ((cls.train_list, TRAIN), (cls.test_list, VAL)):
            each = number // len(files)
            for name, _ in files:
                content = {"data": noise(each, 3072), key: labels(each).tolist()}
                write(folder / name, pickle.dumps(content, protocol=2))
        write(folder / cls.meta["filename"], pickle.dumps({cls.meta["key"]: ["owl", "cat", "dog"]}, protocol=2))
        for table in ("train_list", "test_list"):
            patch.setattr(cls, table, [[name, md5(folder / name)] for name, _ in getattr(cls, table)])
        patch.setattr(cls, "meta", {**cls.meta, "md5": md5(folder / cls.meta["filename"])})

    return build


def svhn(root: Path, patch: pytest.MonkeyPatch) -> None:
    cls, table = torchvision.datasets.SVHN, {}
    for split, number in (("train", TRAIN), ("test", VAL), ("extra", 3)):
        url, name, _ = cls.split_list[split]
        # The digit 0 has the label 10.
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
        paths: dict[str, list[str]] = {"waffles": [], "apple_pie": []}  # not in the order of the labels
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


def folders(first: str, second: str, classes: tuple[str, ...], suffix: str) -> Build:
    def build(root: Path, patch: pytest.MonkeyPatch) -> None:
        for folder, number in ((first, TRAIN), (second, VAL)):
            for image in range(number if folder else 0):
                save(root / folder / classes[image % len(classes)] / f"{image}{suffix}")

    return build


def imagenette(folder: str) -> Build:
    return folders(f"{folder}/train", f"{folder}/val", ("n01440764", "n02102040", "n03888257"), ".JPEG")


BUILD: dict[str, Build] = {
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

CLASSES = {
    "mnist": (10, "0 - zero"),
    "emnist_balanced": (47, "0"),
    "cifar10": (3, "owl"),
    "svhn": (10, "0"),
    "stl10": (3, "airplane"),
    "food101": (2, "apple_pie"),
    "flowers102": (102, "pink primrose"),
    "oxford_pet": (3, "Abyssinian"),
    "fgvc_aircraft": (3, "707-320"),
    "gtsrb": (43, "0"),
    "imagenette": (3, "tench"),
    "eurosat": (2, "Forest"),
}


def pixels(dataset: Dataset, index: int) -> np.ndarray:
    image = dataset.image(index)
    return image.crop(0, 0, image.height, image.width).copy()


@pytest.mark.parametrize("name", FROM_TORCHVISION)
def test_pixels_and_labels_are_torchvisions(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BUILD[name](tmp_path, monkeypatch)
    source = NAMED[name]
    for split, own, number in zip(("train", "val"), source.splits, (TRAIN, VAL), strict=False):
        dataset = open_named(name, split, str(tmp_path))
        reference = getattr(torchvision.datasets, source.torchvision_class)(str(tmp_path), **source.splits[own])
        assert len(dataset) == len(dataset.targets) == len(reference) == number
        assert dataset.targets.dtype == np.int64
        for index in range(number):
            image, label = reference[index]
            assert dataset.targets[index] == label
            assert np.array_equal(pixels(dataset, index), np.asarray(image.convert("RGB"))[:, :, ::-1])
            path = Path(dataset.name(index))
            assert path.is_file() or str(path) == f"{name}/{own}/{index}"
        assert len(set(map(dataset.name, range(number)))) == number
        if name in CLASSES:
            assert (len(dataset.class_names), dataset.class_names[0]) == CLASSES[name]
        assert len(set(dataset.targets.tolist())) > 1


@pytest.mark.parametrize("name", ["mnist", "stl10", "imagenette"])  # grey pixels, coloured ones, files
def test_several_threads_get_the_batches_that_one_gets(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BUILD[name](tmp_path, monkeypatch)
    dataset = open_named(name, "train", str(tmp_path))
    (one, targets), (several, _) = (
        next(evaluation_batches(dataset, EvaluationTransform(32, 36), TRAIN, workers=n)) for n in (1, 4)
    )
    assert one.equal(several)
    assert targets.tolist() == dataset.targets.tolist()
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda index: pixels(dataset, index), range(TRAIN)))
    assert all(np.array_equal(pixels(dataset, index), image) for index, image in enumerate(found))


def test_the_digits_are_the_built_in_ones() -> None:
    for split in ("train", "val"):
        dataset = open_named("digits", split, "")
        assert dataset.targets.tolist() == Digits(split).targets.tolist()


def test_a_split_may_be_called_as_the_data_set_calls_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fgvc_aircraft(tmp_path, monkeypatch)
    assert len(open_named("fgvc_aircraft", "trainval", str(tmp_path))) == 3
    oxford_pet(tmp_path, monkeypatch)
    assert len(open_named("oxford_pet", "trainval", str(tmp_path))) == TRAIN


def refused(*arguments: Any, download: bool = False) -> str:
    """The error's text, which is one line."""
    with pytest.raises(UserError) as error:
        open_named(*arguments, download=download)
    text = str(error.value)
    assert "\n" not in text
    assert error.value.status == (1 if "could not download" in text else 2)
    return text


def test_an_unknown_name_or_split_names_those_that_exist(tmp_path: Path) -> None:
    assert "did you mean cifar10?" in refused("cifr10", "train", str(tmp_path))
    assert "must be folder or one of digits, mnist, " in refused("zzz", "train", str(tmp_path))
    assert "has no split 'tset', only train, test" in refused("cifar10", "tset", str(tmp_path))
    assert "has no split 'test', only train, val" in refused("digits", "test", "")
    assert "`val_fraction`" in refused("eurosat", "val", str(tmp_path))


@pytest.mark.parametrize("name", FROM_TORCHVISION)
@pytest.mark.parametrize("folder", ["", "absent"])
def test_a_folder_without_the_data_set_is_refused_with_the_remedy(name: str, folder: str, tmp_path: Path) -> None:
    if NAMED[name].requires:
        pytest.importorskip(NAMED[name].requires)
    text = refused(name, "train", str(tmp_path / folder))
    assert text == f"`data_dir` {tmp_path / folder} holds no complete {name}; `dataset_download` downloads it"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but this machine can be reached."""
    for protocol in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(protocol, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(urllib.request, "_opener", None)  # what it knows of proxies


@pytest.fixture
def server(network: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """An address, and the folder whose files it gives."""
    folder = tmp_path_factory.mktemp("served")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/", folder
        httpd.shutdown()


@pytest.mark.parametrize("name", FROM_TORCHVISION)
@pytest.mark.usefixtures("network")
def test_a_download_without_a_network_is_one_line_and_leaves_no_mark(name: str, tmp_path: Path) -> None:
    if NAMED[name].requires:
        pytest.importorskip(NAMED[name].requires)
    text = refused(name, "train", str(tmp_path / "new"), download=True)
    assert text.startswith(f"`dataset_download` could not download {name} into {tmp_path / 'new'}: ")
    assert "refused" in text
    assert "holds no complete" in refused(name, "train", str(tmp_path / "new"))
    assert not [path for path in (tmp_path / "new").rglob("*") if path.is_file()]


def test_a_server_that_says_nothing_is_not_waited_for_without_end(
    network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(named, "SOCKET_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts, nobody answers
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"])
        monkeypatch.setattr(torchvision.datasets.Food101, "_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/food.tar.gz")
        for name in ("mnist", "food101"):
            assert "timed out" in refused(name, "train", str(tmp_path), download=True)
    assert socket.getdefaulttimeout() is None


def test_what_is_not_there_is_downloaded_once(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, served = server
    for name, content in mnist_files().items():
        write(served / f"{name}.gz", gzip.compress(content))
    cls = torchvision.datasets.MNIST
    monkeypatch.setattr(cls, "mirrors", [address])
    monkeypatch.setattr(cls, "resources", [(name, md5(served / name)) for name, _ in cls.resources])

    dataset = open_named("mnist", "train", str(tmp_path / "a/new/folder"), download=True)
    assert dataset.targets.tolist() == labels(TRAIN).tolist()
    for file in served.iterdir():
        file.unlink()
    for download in (True, False):  # and asks for nothing any more
        assert len(open_named("mnist", "train", str(tmp_path / "a/new/folder"), download=download)) == TRAIN
    assert not list((tmp_path / "a/new/folder").glob(".*"))


def test_archives_that_are_there_need_no_network(network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cls, raw = torchvision.datasets.MNIST, tmp_path / "MNIST/raw"
    for name, content in mnist_files().items():
        write(raw / f"{name}.gz", gzip.compress(content))
    monkeypatch.setattr(cls, "resources", [(name, md5(raw / name)) for name, _ in cls.resources])
    assert "`dataset_download`" in refused("mnist", "train", str(tmp_path))
    assert len(open_named("mnist", "train", str(tmp_path), download=True)) == TRAIN


def test_half_a_data_set_that_a_broken_download_left_is_never_trained_on(
    network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is there and its lists are, which is all that torchvision looks for."""
    food101(tmp_path / "whole", monkeypatch)
    root, archive = tmp_path / "root", tmp_path / "root" / "food-101.tar.gz"
    root.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        for part in ("meta", "images"):
            tar.add(tmp_path / "whole/food-101" / part, f"food-101/{part}")
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    monkeypatch.setattr(torchvision.datasets.Food101, "_MD5", md5(archive))

    assert "could not download" in refused("food101", "train", str(root), download=True)
    assert len(torchvision.datasets.Food101(str(root))) == TRAIN  # this is what is guarded against
    mark = root / ".food101-train.unfinished"
    for download in (True, False):
        text = refused("food101", "train", str(root), download=download)
        assert "interrupted" in text
        assert str(mark) in text
    mark.unlink()
    assert len(open_named("food101", "train", str(root))) == TRAIN


def damage_mnist(root: Path) -> None:
    file = root / "MNIST/raw/train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])


def other_labels(root: Path) -> None:
    (root / "MNIST/raw/train-labels-idx1-ubyte").write_bytes(idx(labels(TRAIN - 1)))


def labels_beyond_the_classes(root: Path) -> None:
    (root / "MNIST/raw/train-labels-idx1-ubyte").write_bytes(idx(labels(TRAIN) + 9))


def remove_the_list(root: Path) -> None:
    (root / "food-101/meta/train.json").unlink()


def cut_the_list(root: Path) -> None:
    (root / "food-101/meta/train.json").write_text('{"waffles": [')


def cut_a_batch(root: Path) -> None:
    file = root / "cifar-10-batches-py/data_batch_3"
    file.write_bytes(file.read_bytes()[:-1])


def empty_a_class(root: Path) -> None:
    for file in (root / "eurosat/2750/Forest").iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("name", "damage", "text"),
    [
        ("mnist", damage_mnist, "mnist cannot be read (shape "),
        ("mnist", other_labels, "mnist cannot be read (10 images, 9 labels)"),
        ("mnist", labels_beyond_the_classes, "mnist cannot be read (10 classes, labels 9 to 11)"),
        ("food101", remove_the_list, "food101 cannot be read ([Errno 2] No such file"),
        ("food101", cut_the_list, "food101 cannot be read (Expecting value"),
        ("cifar10", cut_a_batch, "holds no complete cifar10; `dataset_download`"),
        ("eurosat", empty_a_class, "eurosat cannot be read (Found no valid file for the classes Forest"),
    ],
)
def test_damaged_files_are_named_in_one_line(
    name: str, damage: Callable[[Path], None], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    BUILD[name](tmp_path, monkeypatch)
    assert len(open_named(name, "train", str(tmp_path))) == TRAIN
    damage(tmp_path)
    assert text in refused(name, "train", str(tmp_path))


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    for name in ("svhn", "flowers102"):
        assert (
            refused(name, "train", str(tmp_path), download=True)
            == f"`dataset` {name} needs the package scipy; pip install scipy"
        )


def test_torchvision_is_loaded_only_for_its_data_sets() -> None:
    code = "import sys; from shufflenetv2.data.named import open_named; open_named('digits', 'val', ''); "
    code += "sys.exit('torchvision.datasets' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


class Labelled:
    """A data set of nothing but labels."""

    def __init__(self, counts: dict[str, int], seed: int = 0) -> None:
        self.class_names = list(counts)
        names = np.repeat(np.arange(len(counts)), list(counts.values()))
        self.targets = np.random.default_rng(seed).permutation(names)

    def name(self, index: int) -> str:
        """The class, and the number in it."""
        label = self.targets[index]
        return f"{self.class_names[label]}{(self.targets[:index] == label).sum()}"

    def image(self, index: int) -> DecodedImage:
        return DecodedImage(np.full((1, 1, 3), index, np.uint8))

    def __len__(self) -> int:
        return len(self.targets)


def names(dataset: Dataset) -> list[str]:
    return [dataset.name(index) for index in range(len(dataset))]


@pytest.mark.parametrize(("fraction", "expected"), [(0.1, [10, 1, 1, 0, 0]), (0.5, [50, 2, 1, 0, 0]), (0.99, [99, 3, 1, 0, 0])])
def test_of_each_class_the_fraction_is_held_out_and_something_is_left(fraction: float, expected: list[int]) -> None:
    dataset = Labelled({"a": 100, "b": 4, "c": 2, "d": 1, "e": 0})
    train, val = hold_out(dataset, fraction, 3)
    assert np.bincount(val.targets, minlength=5).tolist() == expected
    assert np.bincount(train.targets, minlength=5).tolist() == [100 - expected[0], 4 - expected[1], 1, 1, 0]
    assert train.class_names == val.class_names == dataset.class_names
    # Every sample once, each part in the order of the whole.
    assert sorted(names(train) + names(val)) == sorted(names(dataset))
    for part in (train, val):
        assert names(part) == [name for name in names(dataset) if name in set(names(part))]
        assert [pixels(part, index)[0, 0, 0] for index in range(len(part))] == [
            names(dataset).index(name) for name in names(part)
        ]
        assert [name[0] for name in names(part)] == [part.class_names[label] for label in part.targets]


def test_the_same_seed_holds_out_the_same_and_another_seed_another_part() -> None:
    dataset = Labelled({"a": 50, "b": 50})
    first, again, other = (names(hold_out(dataset, 0.2, seed)[1]) for seed in (1, 1, 2))
    assert first == again != other
    # Two classes of one size are not divided alike.
    assert {name[1:] for name in first if name[0] == "a"} != {name[1:] for name in first if name[0] == "b"}
    assert first[:4] == ["b1", "a3", "b5", "b6"]  # nor does it change from one release to the next


def test_what_is_added_to_one_class_changes_nothing_in_another() -> None:
    before = hold_out(Labelled({"a": 50, "b": 50, "c": 50}), 0.2, 1)[1]
    after = hold_out(Labelled({"a": 50, "b": 71, "c": 50}, seed=1), 0.2, 1)[1]
    for name in ("a", "c"):
        held = [{each for each in names(part) if each[0] == name} for part in (before, after)]
        assert held[0] == held[1]
        assert len(held[0]) == 10


def test_nothing_to_hold_out_is_an_error() -> None:
    with pytest.raises(UserError, match=r"`val_fraction` 0\.5 holds out nothing"):
        hold_out(Labelled({"a": 1, "b": 1}), 0.5, 0)


def test_a_subset_of_real_images_has_their_pixels() -> None:
    digits = Digits("val")
    subset = Subset(digits, np.array([7, 300], np.int64))
    assert subset.targets.tolist() == digits.targets[[7, 300]].tolist()
    assert [subset.name(index) for index in range(len(subset))] == ["digits/val/7", "digits/val/300"]
    assert np.array_equal(pixels(subset, 1), pixels(digits, 300))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_class_map_gives_the_classes_in_its_order(encoding: str, newline: str, tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_bytes(newline.join(["zebra", "great white shark ", "", "#1", "Käfer", ""]).encode(encoding))
    assert read_class_map(file) == ["zebra", "great white shark", "#1", "Käfer"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"cat\ndog\n\ncat\n", "names 'cat' in line 1 and again in line 4"),
        (b"\n \n", "is empty"),
        (b"", "is empty"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_class_map_that_cannot_be_meant_is_refused(content: bytes | None, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_class_map(file)
    assert str(error.value).startswith(f"`class_map` {file} {reason}")
    assert "\n" not in str(error.value)
