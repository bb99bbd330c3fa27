"""Compare the options for unequal classes: class weights, balanced sampling, focal loss.

The task is made of the built-in digits: of the ten classes some keep 140 training images, some 40 and some 8. Which classes are
small depends on the seed: over three seeds every digit is once large, once of middle size and once small. Every variant is
trained with each seed, and validated on the 359 held-out digits. About 36 of these belong to each class, so that the balanced
accuracy is nearly the top-1 accuracy.

    python benchmarks/unequal_classes.py [--seeds 3] [--iterations 200] [--jobs 2]
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from measuring import RESULTS, ROOT, OtherLoad, installed_versions, write_report
from PIL import Image

from shufflenetv2.data import Digits

SIZES = (140, 40, 8)
COMMON = (
    "--config configs/digits.yaml --dataset folder --input-size 32 --resize-size 32 --batch-size 64 --lr 0.02 --device cpu "
    "--workers 1 --no-memory-check"
)
VARIANTS = {
    "as published": "",
    "class weights, square root": "--class-weights sqrt",
    "class weights": "--class-weights balanced",
    "balanced sampling": "--balanced-sampling",
    "focal loss": "--focal-gamma 2",
    "balanced sampling, focal loss": "--balanced-sampling --focal-gamma 2",
}


def size_of_class(label: int, seed: int) -> int:
    return SIZES[(label + seed) % len(SIZES)]


def write_digits(folder: Path, split: str, seed: int | None = None) -> Path:
    """Write digits as PNG files into class folders; with a seed, only the first images of each class."""
    digits = Digits(split)
    counts = dict.fromkeys(range(len(digits.class_names)), 0)
    for pixels, label in zip(digits.images, digits.targets.tolist(), strict=True):
        if seed is not None and counts[label] == size_of_class(label, seed):
            continue
        path = folder / digits.class_names[label] / f"{counts[label]:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        counts[label] += 1
    return folder


def train(folder: Path, options: str, seed: int, iterations: int) -> dict[str, Any]:
    """Train and return the results: metrics in percent, and the mean recall of the classes of each size."""
    run = folder / f"run-{seed}-{options.replace(' ', '')}"
    command = [
        sys.executable, "train.py", *COMMON.split(), *options.split(), "--seed", str(seed), "--total-iters", str(iterations),
        "--val-interval", str(iterations), "--train-dir", str(folder / f"train-{seed}"), "--val-dir", str(folder / "val"),
        "--save", str(run / "models"), "--log-dir", str(run / "logs"),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    accuracy = torch.load(run / "models/model.pkl", weights_only=True)["accuracy"]
    with open(run / "logs/models/per_class.csv", encoding="utf-8") as file:
        recalls = {int(row["class"]): float(row["recall"]) for row in csv.DictReader(file)}
    by_size = {
        f"recall of classes with {size} images": mean(
            recall for label, recall in recalls.items() if size_of_class(label, seed) == size
        )
        for size in SIZES
    }
    names = {"balanced accuracy": "balanced_accuracy", "macro F1": "macro_f1", "top-1": "top1"}
    return {**{name: accuracy[key] for name, key in names.items()}, **by_size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, with one thread each")
    parser.add_argument("--out", type=Path, default=RESULTS / "unequal_classes.json")
    options = parser.parse_args()
    seeds = range(options.seeds)
    load, started = OtherLoad(), time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(options.jobs) as pool:
        folder = Path(temporary)
        write_digits(folder / "val", "val")
        for seed in seeds:
            write_digits(folder / f"train-{seed}", "train", seed)
        runs = {
            name: [pool.submit(train, folder, text, seed, options.iterations) for seed in seeds]
            for name, text in VARIANTS.items()
        }
        results = {name: summarize(VARIANTS[name], [run.result() for run in of_variant]) for name, of_variant in runs.items()}
    report = write_report(
        options.out,
        ["python", "benchmarks/unequal_classes.py", *sys.argv[1:]],
        {
            "results": results,
            "options of all": COMMON,
            "training images per class": SIZES,
            "iterations": options.iterations,
            "seeds": list(seeds),
            "seconds": round(time.perf_counter() - started),
            "cores lost to other processes": round(load.cores_lost(), 2),
            "versions": installed_versions("torch"),
        },
    )
    for name, result in report["results"].items():
        print(f"{name:30}", "  ".join(f"{key} {value['mean']:.3f}" for key, value in result["metrics"].items()))


def summarize(options: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean, the standard deviation and the values of each metric over the seeds."""
    metrics = {}
    for name in runs[0]:
        values = [run[name] for run in runs]
        deviation = stdev(values) if len(values) > 1 else 0.0
        metrics[name] = {
            "mean": round(mean(values), 4),
            "standard deviation": round(deviation, 4),
            "values": [round(value, 4) for value in values],
        }
    return {"options": options, "metrics": metrics}


if __name__ == "__main__":
    main()
