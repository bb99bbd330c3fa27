"""Compare the options for unequal classes: class weights, balanced sampling, focal loss.

The task `digits` is made of the built-in digits: of the ten classes some keep 140 training images, some 40 and some 8. It is
validated on the 359 held-out digits, about 36 of each class, so that the balanced accuracy is nearly the top-1 accuracy. The
task `textures` is generated (small_tasks.py): six classes of 500, 100 or 20 training images, and 50 validation images of each.
Which classes are small depends on the seed: over three seeds every class is once large, once of middle size and once small.
Every variant is trained with each seed.

    python benchmarks/unequal_classes.py [--task digits] [--seeds 3] [--jobs 2]
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from measuring import RESULTS, ROOT, OtherLoad, installed_versions, write_report
from PIL import Image
from small_tasks import draw_texture, write_images

from shufflenetv2.data import Digits

ALL = "--device cpu --workers 1 --no-memory-check"
TEXTURES, VAL_TEXTURES = 6, 50  # classes; validation images of each


CLASS_WEIGHTS = {"class weights, square root": "--class-weights sqrt", "class weights": "--class-weights balanced"}
BALANCED_SAMPLING = {"balanced sampling": "--balanced-sampling"}
FOCAL_LOSS = {
    "focal loss": "--focal-gamma 2",
    "balanced sampling, focal loss": "--balanced-sampling --focal-gamma 2",
}


@dataclass(frozen=True)
class Task:
    """A task, and how it is trained.

    Attributes:
        sizes: training images of a large, a middle and a small class.
        iterations, batch_size: iterations of a run; images of an iteration.
        options: of train.py, for all variants.
        variants: name -> further options.
    """

    sizes: tuple[int, int, int]
    iterations: int
    batch_size: int
    options: str
    variants: dict[str, str]

    def size_of_class(self, label: int, seed: int) -> int:
        return self.sizes[(label + seed) % len(self.sizes)]


TASKS = {
    "digits": Task(
        (140, 40, 8), 200, 64,
        f"--config configs/digits.yaml --dataset folder --input-size 32 --resize-size 32 --batch-size 64 --lr 0.02 {ALL}",
        {"as published": "", **CLASS_WEIGHTS, **BALANCED_SAMPLING, **FOCAL_LOSS},
    ),
    "textures": Task(
        (500, 100, 20), 300, 32, f"--config configs/own-images.yaml --model-size 0.5x --input-size 64 --batch-size 32 {ALL}",
        {"without": "", "class weights, square root": "--class-weights sqrt", **BALANCED_SAMPLING},
    ),
}  # fmt: skip


def write_data(name: str, folder: Path, seeds: Sequence[int]) -> None:
    """Write the validation images into `folder`/val and the training images of each seed into `folder`/SEED/train."""
    if name == "digits":
        write_digits(folder / "val", "val")
        for seed in seeds:
            write_digits(folder / str(seed) / "train", "train", seed)
    else:
        write_images(folder / "val", draw_texture(TEXTURES), [VAL_TEXTURES] * TEXTURES)
        for seed in seeds:
            counts = [TASKS[name].size_of_class(label, seed) for label in range(TEXTURES)]
            write_images(folder / str(seed) / "train", draw_texture(TEXTURES), counts)


def write_digits(folder: Path, split: str, seed: int | None = None) -> None:
    """Write digits as PNG files into class folders; with a seed, only the first images of each class."""
    digits = Digits(split)
    counts = dict.fromkeys(range(len(digits.class_names)), 0)
    for pixels, label in zip(digits.images, digits.targets.tolist(), strict=True):
        if seed is not None and counts[label] == TASKS["digits"].size_of_class(label, seed):
            continue
        path = folder / digits.class_names[label] / f"{counts[label]:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        counts[label] += 1


def train(folder: Path, task: Task, options: str, seed: int) -> dict[str, Any]:
    """Train and return the results: metrics in percent, and the mean recall of the classes of each size."""
    run = folder / f"run-{seed}-{options.replace(' ', '')}"
    command = [
        sys.executable, "train.py", *task.options.split(), *options.split(), "--seed", str(seed),
        "--total-iters", str(task.iterations), "--val-interval", str(task.iterations),
        "--train-dir", str(folder / str(seed) / "train"), "--val-dir", str(folder / "val"),
        "--save", str(run / "models"), "--log-dir", str(run / "logs"),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    accuracy = torch.load(run / "models/model.pkl", weights_only=True)["accuracy"]
    with open(run / "logs/models/per_class.csv", encoding="utf-8") as file:
        recalls = [float(row["recall"]) for row in csv.DictReader(file)]  # in the order of the labels
    by_size = {
        f"recall of classes with {size} images": mean(
            recall for label, recall in enumerate(recalls) if task.size_of_class(label, seed) == size
        )
        for size in task.sizes
    }
    names = {"balanced accuracy": "balanced_accuracy", "macro F1": "macro_f1", "top-1": "top1"}
    metrics = {**{name: accuracy[key] for name, key in names.items()}, **by_size}
    print(f"seed {seed}, {options or 'without'}: {metrics}", flush=True)
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, with one thread each")
    parser.add_argument("--out", type=Path, help="default: unequal_classes.json or unequal_textures.json")
    options = parser.parse_args()
    seeds, task = range(options.seeds), TASKS[options.task]
    load, started = OtherLoad(), time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(options.jobs) as pool:
        folder = Path(temporary)
        write_data(options.task, folder, seeds)
        runs = {name: [pool.submit(train, folder, task, text, seed) for seed in seeds] for name, text in task.variants.items()}
        results = {
            name: summarize(task.variants[name], [run.result() for run in of_variant]) for name, of_variant in runs.items()
        }
    report = write_report(
        options.out or RESULTS / f"unequal_{'classes' if options.task == 'digits' else options.task}.json",
        ["python", "benchmarks/unequal_classes.py", *sys.argv[1:]],
        {
            "results": results,
            "options of all": task.options,
            "training images per class": task.sizes,
            "iterations": task.iterations,
            "batch size": task.batch_size,
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
