"""Train on a data set with 0.5 % of every kind of dirt, and compare the accuracy with that of the clean one.

The digits are written as JPEG files. In the copy "dirty", each kind of dirt in DIRT replaces 0.5 % of the training and of the
validation files. The copy "removed" lacks these files, and the copy "clean" lacks these validation files only, so that all
three are validated on the same images. Each seed trains on each copy. A second run on the dirty one is stopped by SIGTERM in
the middle and continued.

    python benchmarks/dirty_images.py [--seeds 8] [--iterations 400]
"""

import argparse
import io
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import RESULTS, ROOT, OtherLoad, installed_versions, write_report
from PIL import Image

from shufflenetv2.data import Digits

FRACTION = 0.005  # of the files, for each kind of dirt
STOPPED_RUNS = 2  # number of seeds for which a run is stopped and continued
COMMON = (
    "--config configs/digits.yaml --dataset folder --input-size 32 --resize-size 32 --batch-size 64 --lr 0.02 --device cpu "
    "--workers 1 --max-bad-images 0.2 --no-figures"
)


def with_frame(content: bytes, height: int, width: int) -> bytes:
    """Return a JPEG file whose header claims another size."""
    frame = content.index(b"\xff\xc0") + 5
    return content[:frame] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + content[frame + 4 :]


def with_altered_bytes(content: bytes) -> bytes:
    """Return a JPEG file with ten other bytes in its second half."""
    altered, rng = bytearray(content), random.Random(zlib.crc32(content))
    for position in rng.sample(range(len(content) // 2, len(content) - 2), 10):
        altered[position] ^= 1 << rng.randrange(8)
    return bytes(altered)


def png(width: int, height: int) -> bytes:
    """Return a black PNG file, which is a thousandth as large as its pixels."""
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


BOMB = png(20_000, 20_000)
# kind of dirt: function of the content of a file, which returns the content of the dirty one
DIRTY_CONTENT: dict[str, Callable[[bytes], bytes]] = {
    "empty file": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "random bytes": lambda content: random.Random(0).randbytes(len(content)),
    "web page": lambda content: b"<!DOCTYPE html><title>404 Not Found</title>",
    "first half of the file": lambda content: content[: len(content) // 2],
    "first half of the file, and an end marker": lambda content: content[: len(content) // 2] + b"\xff\xd9",
    "altered bytes": with_altered_bytes,
    "header of a larger image": lambda content: with_frame(content, 64, 48),
    "header of a smaller image": lambda content: with_frame(content, 8, 16),
    "header of 65,500 x 65,500 pixels": lambda content: with_frame(content, 65500, 65500),
    "PNG of 20,000 x 20,000 pixels": lambda content: BOMB,
}
# kind of dirt: function of a path, which puts what is no file there
NO_FILES: dict[str, Callable[[Path], None]] = {
    "FIFO": os.mkfifo,
    "link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "link to nothing": lambda path: path.symlink_to("absent.jpg"),
}
DIRT = [*DIRTY_CONTENT, *NO_FILES]


def make_dirty(path: Path, kind: str) -> None:
    """Replace a file by dirt."""
    if kind in DIRTY_CONTENT:
        path.write_bytes(DIRTY_CONTENT[kind](path.read_bytes()))
    else:
        path.unlink()
        NO_FILES[kind](path)


def write_digits(folder: Path, name: str) -> None:
    """Write the digits as JPEG files: 'clean', 'removed' or 'dirty'."""
    for split in ("train", "val"):
        digits, paths = Digits(split), []
        for index, (pixels, label) in enumerate(zip(digits.images, digits.targets.tolist(), strict=True)):
            path = folder / split / str(label) / f"{index:04}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).resize((32, 32)).save(path, quality=95)
            paths.append(path)
        count = max(1, round(FRACTION * len(paths)))
        replaced = iter(random.Random(split).sample(paths, count * len(DIRT)))
        for kind in DIRT:
            for _ in range(count):
                path = next(replaced)
                if name == "dirty":
                    make_dirty(path, kind)
                elif name == "removed" or split == "val":
                    path.unlink()


def train(data: Path, save: Path, seed: int, iterations: int, *, is_stopped: bool = False) -> dict[str, Any]:
    """Train and return the content of model.pkl; with `is_stopped`, stop the run in the middle with SIGTERM and continue it."""
    command = [
        sys.executable, "train.py", *COMMON.split(), "--data-dir", str(data), "--save", str(save), "--seed", str(seed),
        "--total-iters", str(iterations), "--val-interval", str(iterations), "--display-interval", str(iterations // 2),
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if is_stopped:
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            next(line for line in process.stdout if f" {iterations // 2}/" in line)
            process.send_signal(signal.SIGTERM)
            process.communicate()
        assert process.returncode == 128 + signal.SIGTERM, process.returncode
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = torch.load(save / "model.pkl", weights_only=True)
    return content


def difference(values: list[float], others: list[float]) -> dict[str, float]:
    """Return the mean difference between the runs of the same seed, and its standard error."""
    differences = [value - other for value, other in zip(values, others, strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return {"mean": round(statistics.mean(differences), 5), "standard error": round(error, 5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=400)
    options = parser.parse_args()
    load, accuracy, is_exact = OtherLoad(), dict[str, list[float]](clean=[], removed=[], dirty=[]), True
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in accuracy:
            write_digits(folder / name, name)
        for seed in range(options.seeds):
            for name in accuracy:
                result = train(folder / name, folder / f"{name}-{seed}", seed, options.iterations)
                accuracy[name].append(result["accuracy"]["top1"])
            print(seed, {name: round(values[-1], 4) for name, values in accuracy.items()}, flush=True)
            if seed < STOPPED_RUNS:
                continued = train(folder / "dirty", folder / f"continued-{seed}", seed, options.iterations, is_stopped=True)
                tensors = result["state_dict"]  # of the last copy, the dirty one
                is_exact &= all(torch.equal(tensor, tensors[key]) for key, tensor in continued["state_dict"].items())
        with open(folder / "dirty-0" / "logs" / "bad_images.csv", encoding="utf-8") as file:
            listed = [line.partition(",")[0] for line in file]
    report = write_report(
        RESULTS / "dirty_images.json",
        ["python", "benchmarks/dirty_images.py", *sys.argv[1:]],
        {
            "kinds of dirt": DIRT,
            "fraction of each kind": FRACTION,
            "bad images listed": {split: listed.count(split) for split in ("training", "validation")},
            "iterations": options.iterations,
            "top-1": accuracy,
            "dirty minus others": {name: difference(accuracy["dirty"], accuracy[name]) for name in ("clean", "removed")},
            "interrupted runs have the same bits": is_exact,
            "versions": installed_versions("torch", "numpy", "opencv-python-headless"),
            "machine": {"cores lost to other processes": round(load.cores_lost(), 2)},
        },
    )
    for name, values in report["top-1"].items():
        print(f"{name}: top-1 {statistics.mean(values):.2%}")
    for name, values in report["dirty minus others"].items():
        print(f"dirty minus {name}: {100 * values['mean']:+.2f} +- {100 * values['standard error']:.2f} points")
    print("interrupted runs have the same bits" if is_exact else "INTERRUPTED RUNS DIFFER")


if __name__ == "__main__":
    main()
