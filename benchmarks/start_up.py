"""How long a start waits for its images to be found, and how soon a mistyped option is told.

A tree of class folders with empty files stands in for a data set: only names matter here. The sides:

  torchvision               datasets.ImageFolder, which lists everything at every start
  first start               FolderDataset without an index: lists everything, and writes the index
  later start               FolderDataset with the index: one `stat` per folder
  later start, 1 image new  the same after an image was added to one of the folders

One repeat measures each side once, in turn; medians. The kernel has the folders in memory throughout, as after
an earlier start on a local disk; a network file system, for which the index is made, is not measured.
Beside them, the seconds of `python train.py --help`, as a process.

    python benchmarks/start_up.py [--images 200000] [--classes 1000] [--repeats 7]
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torchvision
from measuring import machine
from torchvision import datasets

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shufflenetv2.data import FolderDataset, index

ROOT = Path(__file__).resolve().parents[1]


def make_tree(folder: Path, images: int, classes: int) -> None:
    """Class folders and files named like those of ImageNet."""
    for label in range(classes):
        name = f"n{label:08}"
        (folder / name).mkdir(parents=True)
        for number in range(images // classes):
            (folder / name / f"{name}_{number * 37 % 30_000}.JPEG").touch()


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(folder: Path, repeats: int) -> dict[str, list[float]]:
    """The seconds of each side."""
    taken: dict[str, list[float]] = {
        "torchvision": [], "first start": [], "later start": [], "later start, 1 image new": []
    }  # fmt: skip
    for repeat in range(repeats):
        index.cache_file(folder).unlink(missing_ok=True)
        taken["torchvision"].append(seconds(lambda: datasets.ImageFolder(folder)))
        taken["first start"].append(seconds(lambda: FolderDataset(folder)))
        taken["later start"].append(seconds(lambda: FolderDataset(folder)))
        known = FolderDataset(folder)
        new = folder / known.class_names[repeat % len(known.class_names)] / "new.JPEG"
        new.touch()
        taken["later start, 1 image new"].append(seconds(lambda: FolderDataset(folder)))
        assert len(FolderDataset(folder)) == len(known) + 1
        new.unlink()
        time.sleep(index.MIN_AGE_NS / 1e9 + 1)  # until the folder's times are trusted again
        print(f"repeat {repeat + 1}:", {side: round(every[-1], 3) for side, every in taken.items()}, flush=True)
    return taken


def summary(taken: list[float]) -> dict[str, float | list[float]]:
    return {
        "median": round(statistics.median(taken), 4),
        "min": round(min(taken), 4),
        "max": round(max(taken), 4),
        "repeats": [round(each, 4) for each in taken],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds that a start waits for its images to be found.")
    parser.add_argument("--images", type=int, default=200_000, help="empty files to make (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=1000, help="folders they are in (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="measurements of each side (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results/start_up.json")
    arguments = parser.parse_args()
    if arguments.images // arguments.classes * arguments.classes < index.MIN_CACHED_IMAGES:
        parser.error(f"there is no index of fewer than {index.MIN_CACHED_IMAGES:,} images")

    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder, "cache"))
        tree = Path(folder, "tree")
        print(f"making {arguments.images:,} files in {arguments.classes:,} folders", flush=True)
        make_tree(tree, arguments.images, arguments.classes)
        time.sleep(index.MIN_AGE_NS / 1e9 + 1)
        results = measure(tree, arguments.repeats)
        index_bytes = index.cache_file(tree).stat().st_size
    command = [sys.executable, str(ROOT / "train.py"), "--help"]
    told = [seconds(lambda: subprocess.run(command, capture_output=True, check=True)) for _ in range(arguments.repeats)]

    report = {
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/start_up.py --images {arguments.images} --classes {arguments.classes} "
        f"--repeats {arguments.repeats}",
        "machine": machine(),
        "versions": {"python": platform.python_version(), "torchvision": torchvision.__version__},
        "images": arguments.images // arguments.classes * arguments.classes,
        "class folders": arguments.classes,
        "bytes of the index": index_bytes,
        "note": "seconds; the folders are on a local disk and in the kernel's memory",
        "results": {side: summary(taken) for side, taken in results.items()},
        "train.py --help": summary(told),
    }
    for side, taken in (results | {"train.py --help": told}).items():
        print(f"{side:26}{statistics.median(taken):>8.3f} s  ({min(taken):.3f} to {max(taken):.3f})")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
