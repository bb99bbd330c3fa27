"""Each named data set has the pixels and labels of torchvision; errors and downloads are reported in one line."""

import gzip
import http.server
import re
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

from shufflenetv2 import terminal
from shufflenetv2.data import Digits, EvaluationTransform, evaluation_batches, named, open_named
from shufflenetv2.data.named import NAMED
from shufflenetv2.errors import UserError
from tests.named_files import TRAIN, VAL, WRITE_FILES, fgvc_aircraft, food101, idx, labels, md5, mnist_files, oxford_pet, write
from tests.support import pixels

FROM_TORCHVISION = [name for name, source in NAMED.items() if source.torchvision_class]

# Number of classes and name of the first class
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


@pytest.mark.parametrize("name", FROM_TORCHVISION)
def test_pixels_and_labels_match_torchvision(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WRITE_FILES[name](tmp_path, monkeypatch)
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


@pytest.mark.parametrize("name", ["mnist", "stl10", "imagenette"])  # grey arrays, colour arrays, files
def test_several_threads_load_the_same_batches_as_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WRITE_FILES[name](tmp_path, monkeypatch)
    dataset = open_named(name, "train", str(tmp_path))
    (one, targets), (several, _) = (
        next(evaluation_batches(dataset, EvaluationTransform(32, 36), TRAIN, workers=n)) for n in (1, 4)
    )
    assert one.equal(several)
    assert targets.tolist() == dataset.targets.tolist()
    with ThreadPoolExecutor(4) as threads:
        images = list(threads.map(lambda index: pixels(dataset, index), range(TRAIN)))
    assert all(np.array_equal(pixels(dataset, index), image) for index, image in enumerate(images))


def test_the_digits_are_built_in() -> None:
    for split in ("train", "val"):
        dataset = open_named("digits", split, "")
        assert dataset.targets.tolist() == Digits(split).targets.tolist()


def test_a_split_can_be_named_as_in_the_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fgvc_aircraft(tmp_path, monkeypatch)
    assert len(open_named("fgvc_aircraft", "trainval", str(tmp_path))) == 3
    oxford_pet(tmp_path, monkeypatch)
    assert len(open_named("oxford_pet", "trainval", str(tmp_path))) == TRAIN


def refused(*arguments: Any, download: bool = False) -> str:
    """Return the message of the error, which must be one line."""
    with pytest.raises(UserError) as error:
        open_named(*arguments, download=download)
    text = str(error.value)
    assert "\n" not in text
    assert error.value.status == (1 if "could not download" in text else 2)
    return text


def test_an_unknown_name_or_split_is_refused_with_the_valid_ones(tmp_path: Path) -> None:
    assert "did you mean cifar10?" in refused("cifr10", "train", str(tmp_path))
    assert "must be folder or one of digits, mnist, " in refused("zzz", "train", str(tmp_path))
    assert "has no split 'tset', only train, test" in refused("cifar10", "tset", str(tmp_path))
    assert "has no split 'test', only train, val" in refused("digits", "test", "")
    assert "`val_fraction=0.1`" in refused("eurosat", "val", str(tmp_path))


@pytest.mark.parametrize("name", FROM_TORCHVISION)
def test_a_folder_without_the_data_set_is_refused_with_the_remedy(name: str, tmp_path: Path) -> None:
    if NAMED[name].requires:
        pytest.importorskip(NAMED[name].requires)
    for folder in (tmp_path, tmp_path / "absent"):
        text = refused(name, "train", str(folder))
        assert text == f"`data_dir` {folder} holds no complete copy of {name}; `dataset_download` downloads it"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def local_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make all other machines unreachable."""
    opener = urllib.request.build_opener()
    for protocol in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(protocol, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    urllib.request.install_opener(urllib.request.build_opener())  # reads the proxies from the environment
    yield
    urllib.request.install_opener(opener)


@pytest.fixture
def server(local_network: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Return the URL of a web server, and the folder that it serves."""
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
@pytest.mark.usefixtures("local_network")
def test_a_failed_download_is_reported_in_one_line_and_leaves_no_files(name: str, tmp_path: Path) -> None:
    if NAMED[name].requires:
        pytest.importorskip(NAMED[name].requires)
    text = refused(name, "train", str(tmp_path / "new"), download=True)
    assert text.startswith(f"`dataset_download` could not download {name} into {tmp_path / 'new'}: ")
    assert "refused" in text
    assert "holds no complete copy" in refused(name, "train", str(tmp_path / "new"))
    assert not [path for path in (tmp_path / "new").rglob("*") if path.is_file()]


def test_a_download_from_a_silent_server_times_out(
    local_network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(named, "SOCKET_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts connections, and no program answers
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"])
        monkeypatch.setattr(torchvision.datasets.Food101, "_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/food.tar.gz")
        for name in ("mnist", "food101"):
            assert "timed out" in refused(name, "train", str(tmp_path), download=True)
    assert socket.getdefaulttimeout() is None


def test_a_missing_data_set_is_downloaded_once(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address, served = server
    for name, content in mnist_files().items():
        write(served / f"{name}.gz", gzip.compress(content))
    cls = torchvision.datasets.MNIST
    monkeypatch.setattr(cls, "mirrors", [address])
    monkeypatch.setattr(terminal, "PLAIN_INTERVAL", 0.0)
    monkeypatch.setattr(cls, "resources", [(name, md5(served / name)) for name, _ in cls.resources])

    dataset = open_named("mnist", "train", str(tmp_path / "a/new/folder"), download=True)
    assert dataset.targets.tolist() == labels(TRAIN).tolist()
    shown = capsys.readouterr()
    assert shown.err == ""  # torchvision's own bar is replaced
    assert re.search(r"^downloading \d/1 MB", shown.out, re.M)
    for file in served.iterdir():
        file.unlink()
    for download in (True, False):  # without any request to the server
        assert len(open_named("mnist", "train", str(tmp_path / "a/new/folder"), download=download)) == TRAIN
    assert not list((tmp_path / "a/new/folder").glob(".*"))


def test_archives_in_the_folder_are_unpacked_without_a_network(
    local_network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls, raw = torchvision.datasets.MNIST, tmp_path / "MNIST/raw"
    for name, content in mnist_files().items():
        write(raw / f"{name}.gz", gzip.compress(content))
    monkeypatch.setattr(cls, "resources", [(name, md5(raw / name)) for name, _ in cls.resources])
    assert "`dataset_download`" in refused("mnist", "train", str(tmp_path))
    assert len(open_named("mnist", "train", str(tmp_path), download=True)) == TRAIN


def test_an_incomplete_data_set_left_by_a_failed_download_is_refused(
    local_network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision accepts it, because the folder and its lists exist."""
    food101(tmp_path / "whole", monkeypatch)
    root, archive = tmp_path / "root", tmp_path / "root" / "food-101.tar.gz"
    root.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        for part in ("meta", "images"):
            tar.add(tmp_path / "whole/food-101" / part, f"food-101/{part}")
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    monkeypatch.setattr(torchvision.datasets.Food101, "_MD5", md5(archive))

    assert "could not download" in refused("food101", "train", str(root), download=True)
    assert len(torchvision.datasets.Food101(str(root))) == TRAIN  # torchvision does not notice
    marker = root / ".food101-train.unfinished"
    for download in (True, False):
        text = refused("food101", "train", str(root), download=download)
        assert "interrupted" in text
        assert str(marker) in text
    marker.unlink()
    assert len(open_named("food101", "train", str(root))) == TRAIN


def truncate_images(root: Path) -> None:
    file = root / "MNIST/raw/train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])


def remove_a_label(root: Path) -> None:
    (root / "MNIST/raw/train-labels-idx1-ubyte").write_bytes(idx(labels(TRAIN - 1)))


def labels_beyond_the_classes(root: Path) -> None:
    (root / "MNIST/raw/train-labels-idx1-ubyte").write_bytes(idx(labels(TRAIN) + 9))


def remove_the_list(root: Path) -> None:
    (root / "food-101/meta/train.json").unlink()


def truncate_the_list(root: Path) -> None:
    (root / "food-101/meta/train.json").write_text('{"waffles": [')


def truncate_a_batch(root: Path) -> None:
    file = root / "cifar-10-batches-py/data_batch_3"
    file.write_bytes(file.read_bytes()[:-1])


def empty_a_class(root: Path) -> None:
    for file in (root / "eurosat/2750/Forest").iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("name", "damage", "text"),
    [
        ("mnist", truncate_images, "mnist cannot be read (shape "),
        ("mnist", remove_a_label, "mnist cannot be read (10 images, 9 labels)"),
        ("mnist", labels_beyond_the_classes, "mnist cannot be read (10 classes, labels 9 to 11)"),
        ("food101", remove_the_list, "food101 cannot be read ([Errno 2] No such file"),
        ("food101", truncate_the_list, "food101 cannot be read (Expecting value"),
        ("cifar10", truncate_a_batch, "holds no complete copy of cifar10; `dataset_download`"),
        ("eurosat", empty_a_class, "eurosat cannot be read (Found no valid file for the classes Forest"),
    ],
)
def test_damaged_files_are_reported_in_one_line(
    name: str, damage: Callable[[Path], None], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITE_FILES[name](tmp_path, monkeypatch)
    assert len(open_named(name, "train", str(tmp_path))) == TRAIN
    damage(tmp_path)
    assert text in refused(name, "train", str(tmp_path))


def test_a_missing_package_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    for name in ("svhn", "flowers102"):
        assert (
            refused(name, "train", str(tmp_path), download=True)
            == f"`dataset` {name} needs the package scipy; pip install scipy"
        )


def test_torchvision_is_imported_only_for_its_data_sets() -> None:
    code = "import sys; from shufflenetv2.data.named import open_named; open_named('digits', 'val', ''); "
    code += "sys.exit('torchvision.datasets' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
