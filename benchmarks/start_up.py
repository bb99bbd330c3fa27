"""Measure how long it takes to list the images of a data set at the start of a run, and how long `train.py --help` takes.

The data set is a tree of class folders with empty files, because only the names matter. These cases are compared:

  torchvision               datasets.ImageFolder, which lists every folder at every start
  first start               FolderDataset without a cached listing: lists every folder and writes the cache (data/index.py)
  later start               FolderDataset with the cache: one `stat` per folder
  later start, 1 image new  FolderDataset with the cache, after an image was added to one of the folders

One repeat measures each case once, in turn; the result is the median over the repeats. The operating system has the folders in
memory, as after an earlier start on a local disk. The cache helps most on network file systems, which are not measured.
`train.py --help` runs as a new process.

    python benchmarks/start_up.py [--images 200000] [--classes 1000] [--repeats 7] [--output FILE]
"""

import argparse
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
from measuring import RESULTS, ROOT, summarize, write_report
from torchvision import datasets

from shufflenetv2.data import FolderDataset, index


def make_tree(folder: Path, images: int, classes: int) -> None:
    """Make class folders and files named like those of ImageNet."""
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
    """Return the seconds of each case, one value per repeat."""
    cases = ("torchvision", "first start", "later start", "later start, 1 image new")
    times: dict[str, list[float]] = {case: [] for case in cases}
    for repeat in range(repeats):
        index.cache_file(folder).unlink(missing_ok=True)
        times["torchvision"].append(seconds(lambda: datasets.ImageFolder(folder)))
        times["first start"].append(seconds(lambda: FolderDataset(folder)))
        times["later start"].append(seconds(lambda: FolderDataset(folder)))
        dataset = FolderDataset(folder)
        new_image = folder / dataset.class_names[repeat % len(dataset.class_names)] / "new.JPEG"
        new_image.touch()
        times["later start, 1 image new"].append(seconds(lambda: FolderDataset(folder)))
        assert len(FolderDataset(folder)) == len(dataset) + 1
        new_image.unlink()
        time.sleep(index.MIN_AGE_NS / 1e9 + 1)  # listings of folders that changed more recently are not cached
        print(f"repeat {repeat + 1}:", {case: round(values[-1], 3) for case, values in times.items()}, flush=True)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds to list the images of a data set at the start of a run.")
    parser.add_argument("--images", type=int, default=200_000, help="empty files to make (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=1000, help="class folders to make (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="measurements of each case (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS / "start_up.json")
    arguments = parser.parse_args()
    if arguments.images // arguments.classes * arguments.classes < index.MIN_CACHED_IMAGES:
        parser.error(f"--images must be at least {index.MIN_CACHED_IMAGES:,}; smaller data sets are not cached")

    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder, "cache"))
        tree = Path(folder, "tree")
        print(f"making {arguments.images:,} files in {arguments.classes:,} folders", flush=True)
        make_tree(tree, arguments.images, arguments.classes)
        time.sleep(index.MIN_AGE_NS / 1e9 + 1)
        times = measure(tree, arguments.repeats)
        index_bytes = index.cache_file(tree).stat().st_size
    command = [sys.executable, str(ROOT / "train.py"), "--help"]
    help_times = [seconds(lambda: subprocess.run(command, capture_output=True, check=True)) for _ in range(arguments.repeats)]

    for case, values in (times | {"train.py --help": help_times}).items():
        print(f"{case:26}{statistics.median(values):>8.3f} s  ({min(values):.3f} to {max(values):.3f})")
    words = ["python benchmarks/start_up.py", "--images", arguments.images, "--classes", arguments.classes]
    write_report(
        arguments.output,
        [*words, "--repeats", arguments.repeats],
        {
            "versions": {"python": platform.python_version(), "torchvision": torchvision.__version__},
            "images": arguments.images // arguments.classes * arguments.classes,
            "class folders": arguments.classes,
            "bytes of the index": index_bytes,
            "note": "seconds; the folders are on a local disk and in the kernel's memory",
            "results": {case: summarize(values, 4) for case, values in times.items()},
            "train.py --help": summarize(help_times, 4),
        },
    )


if __name__ == "__main__":
    main()
