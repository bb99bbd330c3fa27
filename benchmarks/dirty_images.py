"""Train on a data set with damaged files, and compare the accuracy with that of the clean one.

The digits are written as PNG files. In the copy "dirty", each kind of damage in DIRT replaces 0.5 % of the training and of the
validation files. The copy "removed" lacks these files, and the copy "clean" lacks these validation files only, so that all
three are validated on the same images. Each seed trains on each copy. A second run on the dirty one is stopped by SIGTERM in
the middle and continued.

    python benchmarks/dirty_images.py [--seeds 3] [--iterations 200]
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from measuring import RESULTS, ROOT, OtherLoad, installed_versions, write_report
from PIL import Image

from shufflenetv2.data import Digits

FRACTION = 0.005  # of the files, for each kind of damage
DIRT: dict[str, Callable[[bytes], bytes]] = {
    "empty file": lambda content: b"",
    "first half of the file": lambda content: content[: len(content) // 2],
    "web page": lambda content: b"<!DOCTYPE html><title>404 Not Found</title>",
    "zeros": lambda content: bytes(len(content)),
    "random bytes": lambda content: random.Random(0).randbytes(len(content)),
}
COMMON = (
    "--config configs/digits.yaml --dataset folder --input-size 32 --resize-size 32 --batch-size 64 --lr 0.02 --device cpu "
    "--workers 1 --max-bad-images 0.1"
)


def write_digits(folder: Path, name: str) -> None:
    """Write the digits as PNG files: 'clean', 'removed' or 'dirty'."""
    for split in ("train", "val"):
        digits, paths = Digits(split), []
        for index, (pixels, label) in enumerate(zip(digits.images, digits.targets.tolist(), strict=True)):
            path = folder / split / str(label) / f"{index:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            paths.append(path)
        count = max(1, round(FRACTION * len(paths)))
        damaged = iter(random.Random(split).sample(paths, count * len(DIRT)))
        for damage in DIRT.values():
            for _ in range(count):
                path = next(damaged)
                if name == "dirty":
                    path.write_bytes(damage(path.read_bytes()))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=200)
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
            continued = train(folder / "dirty", folder / f"continued-{seed}", seed, options.iterations, is_stopped=True)
            tensors = result["state_dict"]  # of the last copy, the dirty one
            is_exact &= all(torch.equal(tensor, tensors[key]) for key, tensor in continued["state_dict"].items())
        with open(folder / "dirty-0" / "logs" / "bad_images.csv", encoding="utf-8") as file:
            listed = [line.partition(",")[0] for line in file]
    report = write_report(
        RESULTS / "dirty_images.json",
        ["python", "benchmarks/dirty_images.py", *sys.argv[1:]],
        {
            "kinds of damage": list(DIRT),
            "fraction of each kind": FRACTION,
            "bad images listed": {split: listed.count(split) for split in ("training", "validation")},
            "iterations": options.iterations,
            "top-1": accuracy,
            "interrupted runs have the same bits": is_exact,
            "versions": installed_versions("torch", "numpy", "opencv-python-headless"),
            "machine": {"cores lost to other processes": round(load.cores_lost(), 2)},
        },
    )
    for name, values in report["top-1"].items():
        print(f"{name}: top-1 {mean(values):.2%} ({', '.join(f'{value:.2%}' for value in values)})")
    print("interrupted runs have the same bits" if is_exact else "INTERRUPTED RUNS DIFFER")


if __name__ == "__main__":
    main()
