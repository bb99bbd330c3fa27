"""Measure how long `configs/own-images.yaml` takes to the accuracy that torchvision's reference reaches on small tasks.

The tasks are those of small_tasks.py: about 500 images each, seen at 64 x 64 pixels. Three programs train in turn, for every
seed of every task:

- torchvision: torchvision's shufflenet_v2_x0_5 with the defaults of its reference (torchvision_reference.py), validated after
  every epoch. Its time is that of training, without imports and without validations.
- own-images: `python train.py --config configs/own-images.yaml` with 0.5x. Its time is that of the whole process: imports,
  training, ten validations, recalibration of batch norm, saving.
- published: the published recipe (the defaults of `train.py`), with as many iterations of 1,024 images as take as
  many images as own-images.yaml, so that it takes about the same time.

The accuracy to reach is that of torchvision's weights after the last epoch. Two times are compared: until the first validation
with at least this accuracy, and of the whole run. A run that never reaches the accuracy has no time to it, which counts as
longer than any other in the median.

    python benchmarks/time_to_accuracy.py [--seeds 3] [--tasks digits ...] [--quick] [--output FILE]
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from measuring import RESULTS, ROOT, OtherLoad, installed_versions, write_report
from small_tasks import TASKS, write_task

CONFIG = "configs/own-images.yaml"
COMMON = "--model-size 0.5x --input-size 64 --device cpu --no-memory-check"
PUBLISHED_BATCH_SIZE = 1024
POLL = 0.02  # seconds between two looks at the file of metrics
QUICK_EPOCHS = 2

Run = dict[str, Any]  # "seconds" and "top1" of the result, "validations": [{"seconds", "top1"}, ...]


def train_torchvision(folder: Path, seed: int, epochs: int | None) -> Run:
    """Train torchvision's network, and validate it after every epoch."""
    length = ["--epochs", str(epochs)] if epochs else []
    command = [sys.executable, "benchmarks/torchvision_reference.py", str(folder), "--seed", str(seed), *length]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    validations = json.loads(done.stdout)
    return {**validations[-1], "validations": validations}


def train(folder: Path, seed: int, options: str) -> Run:
    """Run train.py. The clock starts before the process; a validation counts when its row is in the file of metrics."""
    validations: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name, open(Path(name, "output"), "w+") as output:
        command = [
            sys.executable, "train.py", "--data-dir", str(folder), "--save", f"{name}/models", "--log-dir", f"{name}/logs",
            "--seed", str(seed), *COMMON.split(), *options.split(),
        ]  # fmt: skip
        metrics = Path(name, "logs/models/metrics.jsonl")
        lines_read = 0
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        running = True
        while running:
            time.sleep(POLL)
            running = process.poll() is None
            seconds = time.perf_counter() - started
            lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
            rows = [json.loads(line) for line in lines[lines_read:]]
            lines_read = len(lines)
            validations += [{"seconds": seconds, "top1": 1 - row["top1_error"]} for row in rows if row["kind"] != "train"]
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{' '.join(command)}\n{output.read()[-2000:]}")
    return {"seconds": seconds, "top1": max(row["top1"] for row in validations), "validations": validations}


def seconds_to(run: Run, accuracy: float) -> float:
    """Return the time until the first validation with at least this accuracy, infinite if there is none."""
    return min((row["seconds"] for row in run["validations"] if row["top1"] >= accuracy - 1e-6), default=math.inf)


def measure(folder: Path, images: int, seeds: int, quick: bool) -> dict[str, list[Run]]:
    """Train each program with each seed, in turn, with the time to the accuracy of torchvision with the same seed."""
    config = yaml.safe_load((ROOT / CONFIG).read_text())
    epochs = QUICK_EPOCHS if quick else config["epochs"]
    published_iters = max(1, round(epochs * images / PUBLISHED_BATCH_SIZE))
    runs: dict[str, list[Run]] = {"torchvision": [], "own-images": [], "published": []}
    for seed in range(seeds):
        reference = train_torchvision(folder, seed, QUICK_EPOCHS if quick else None)
        of_seed = {
            "torchvision": reference,
            "own-images": train(folder, seed, f"--config {CONFIG} --epochs {epochs}"),
            "published": train(folder, seed, f"--total-iters {published_iters}"),
        }
        for name, run in of_seed.items():
            to_accuracy = seconds_to(run, reference["top1"])
            runs[name].append({**run, "seconds to accuracy": to_accuracy})
            print(
                f"{folder.name}, seed {seed}, {name}: {run['top1']:.1%} in {run['seconds']:.1f} s, "
                f"{reference['top1']:.1%} after {to_accuracy:.1f} s",
                flush=True,
            )
    return runs


def summarize(runs: list[Run]) -> dict[str, Any]:
    """Return medians over the seeds, and the values of each; None stands for a time that is infinite."""
    to_accuracy = [run["seconds to accuracy"] for run in runs]
    return {
        "top1": statistics.median(run["top1"] for run in runs),
        "seconds": statistics.median(run["seconds"] for run in runs),
        "seconds to accuracy": finite(statistics.median(to_accuracy)),
        "of each seed": [
            {"top1": run["top1"], "seconds": run["seconds"], "seconds to accuracy": finite(run["seconds to accuracy"])}
            for run in runs
        ],
    }


def finite(seconds: float) -> float | None:
    return round(seconds, 2) if math.isfinite(seconds) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each task, counted from 0 (default: %(default)s)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--quick", action="store_true", help="train for two epochs, to see whether everything runs")
    parser.add_argument("--output", type=Path, default=RESULTS / "time_to_accuracy.json")
    arguments = parser.parse_args()

    results: dict[str, dict[str, Any]] = {}
    load, started = OtherLoad(), time.perf_counter()
    for task in arguments.tasks:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name, task)
            write_task(task, folder)
            counts = {split: len(list((folder / split).rglob("*.jpg"))) for split in ("train", "val")}
            runs = measure(folder, counts["train"], arguments.seeds, arguments.quick)
        results[task] = {
            "classes": TASKS[task][0],
            "images": counts,
            **{name: summarize(of_program) for name, of_program in runs.items()},
        }
    write_report(
        arguments.output,
        ["python benchmarks/time_to_accuracy.py", *sys.argv[1:]],
        {
            "versions": installed_versions("torch", "torchvision"),
            "config": yaml.safe_load((ROOT / CONFIG).read_text()),
            "options of train.py": COMMON,
            "seeds": arguments.seeds,
            "minutes": round((time.perf_counter() - started) / 60, 1),
            "cores lost to other processes": round(load.cores_lost(), 2),
            "results": results,
        },
    )
    for task, result in results.items():
        print(task, {name: result[name]["seconds to accuracy"] for name in runs})


if __name__ == "__main__":
    main()
