"""Measure the options that configs/own-images.yaml was chosen from, one training each.

The tasks are those of small_tasks.py with 500 training images. Every row is one run of 60 passes over these images with the
options that all rows have in common (COMMON) and those of the row. A row says little by itself, since there is one seed; large
differences are what the choice was made by.

    python benchmarks/own_images_options.py [--jobs 2] [--only TEXT] [--output FILE]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from measuring import RESULTS, ROOT, installed_versions, write_report
from photographs import SOURCES
from small_tasks import SPLITS, draw_digit, draw_drawing, draw_photograph, draw_texture, write_images

COMMON = (
    "--model-size 0.5x --input-size 64 --mean 103.53 116.28 123.675 --std 57.375 57.12 58.395 --sched cosine --epochs 60 "
    "--channels-last --device cpu --workers 1 --no-memory-check"
)
# task: (classes, training images per class, validation images per class, function that draws an image)
TASKS = {
    "digits": (10, 50, 28, draw_digit()),
    "photographs": (len(SOURCES), 55, 45, draw_photograph()),
    "textures": (12, 42, 35, draw_texture(12)),
    "drawings": (100, 5, 4, draw_drawing(100)),
}
ROWS = [
    ("drawings", "--init original --lr 0.1 --batch-size 32 --scale 0.35 1 --warmup-iters 50"),
    ("drawings", "--init original --lr 0.02 --batch-size 32 --scale 0.35 1 --warmup-iters 50"),
    ("drawings", "--init original --lr 0.005 --batch-size 32 --scale 0.35 1"),
    ("drawings", "--init original --lr 0.02 --batch-size 32 --scale 0.35 1 --color-jitter 0"),
    ("drawings", "--init original --lr 0.01 --batch-size 16 --scale 0.35 1"),
    ("drawings", "--init torch --lr 0.3 --batch-size 32 --scale 0.35 1 --warmup-iters 50"),
    ("drawings", "--init torch --lr 0.1 --batch-size 32 --scale 0.35 1 --warmup-iters 50"),
    ("drawings", "--init torch --lr 0.03 --batch-size 32 --scale 0.35 1"),
    ("drawings", "--init torch --lr 0.01 --batch-size 32 --scale 0.35 1"),
    ("drawings", "--init torch --lr 0.015 --batch-size 16 --scale 0.35 1"),
    ("drawings", "--init torch --opt adamw --lr 0.002 --weight-decay 0.05 --batch-size 32 --scale 0.35 1"),
    ("drawings", "--init torch --lr 0.03 --batch-size 32 --scale 0.35 1 --color-jitter 0.1"),
    ("drawings", "--init torch --lr 0.03 --batch-size 32 --scale 0.2 1 --color-jitter 0"),
    ("photographs", "--init original --lr 0.02 --batch-size 32 --scale 0.35 1 --warmup-iters 50"),
    ("photographs", "--init original --lr 0.02 --batch-size 32 --scale 0.08 1"),
    ("photographs", "--init torch --lr 0.1 --batch-size 32 --scale 0.35 1 --warmup-iters 50"),
    ("photographs", "--init torch --lr 0.03 --batch-size 32 --scale 0.2 1"),
    ("photographs", "--init torch --lr 0.03 --batch-size 32 --scale 0.35 1 --color-jitter 0.1"),
    ("photographs", "--init torch --lr 0.03 --batch-size 32 --scale 0.2 1 --color-jitter 0"),
    ("photographs", "--init torch --lr 0.03 --batch-size 32 --scale 0.08 1 --color-jitter 0"),
]


def write_tasks(folder: Path) -> None:
    for task, (classes, train_images, val_images, draw) in TASKS.items():
        for split, count in zip(SPLITS, (train_images, val_images), strict=True):
            write_images(folder / task / split, draw, [count] * classes)


def measure(folder: Path, task: str, options: str) -> dict[str, Any]:
    """Train. Return the top-1 accuracy of model.pkl and the CPU time of the process."""
    with tempfile.TemporaryDirectory() as run:
        command = [
            sys.executable, "train.py", *COMMON.split(), *options.split(), "--data-dir", str(folder / task),
            "--save", f"{run}/models", "--log-dir", f"{run}/logs",
        ]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} has failed")
        top1 = torch.load(f"{run}/models/model.pkl", weights_only=True)["accuracy"]["top1"]
    result = {"task": task, "options": options, "top1": round(top1, 4), "CPU seconds": round(usage.ru_utime + usage.ru_stime)}
    print(result, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, with one thread each (default: %(default)s)")
    parser.add_argument("--only", default="", help="run only the rows whose task or options contain this text")
    parser.add_argument("--output", type=Path, default=RESULTS / "own_images.json")
    arguments = parser.parse_args()
    rows = [(task, options) for task, options in ROWS if arguments.only in f"{task} {options}"]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(arguments.jobs) as pool:
        write_tasks(Path(name))
        results = list(pool.map(lambda row: measure(Path(name), *row), rows))
    write_report(
        arguments.output,
        ["python benchmarks/own_images_options.py", *sys.argv[1:]],
        {
            "versions": installed_versions("torch"),
            "options of all": COMMON,
            "images": {task: {"classes": classes, "train": train} for task, (classes, train, *_) in TASKS.items()},
            "minutes": round((time.perf_counter() - started) / 60, 1),
            "results": results,
        },
    )


if __name__ == "__main__":
    main()
