"""Measure how long `configs/own-images.yaml` takes to the accuracy that torchvision's reference reaches on small tasks.

The tasks are those of small_tasks.py: about 300 images each, seen at 64 x 64 pixels. For every seed of every task the first two
of these programs train in turn, and the third at the end:

- torchvision: torchvision's shufflenet_v2_x0_5 with the defaults of its reference (torchvision_reference.py), validated after
  every epoch. Its time is that of training, without imports and without validations.
- own-images: `python train.py --config configs/own-images.yaml` with 0.5x. Its time is that of the whole process: imports,
  training, ten validations, recalibration of batch norm, saving.
- published: the published recipe (the defaults of `train.py`), with as many iterations of 1,024 images as take as
  many images as own-images.yaml, so that it takes about the same time.

The accuracy to reach is that of torchvision's weights after the last epoch, with the same seed. Two times are compared: until
the first validation with at least this accuracy, and of the whole run. A run that never reaches the accuracy has no time to
it, which counts as longer than any other in the median. The CPU time of each whole process depends less on what else
the machine does. Every program computes with `--threads` threads and loads images with as many workers.

    python benchmarks/time_to_accuracy.py [--seeds 3] [--tasks digits ...] [--threads 1] [--jobs 2] [--quick] [--output FILE]
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml
from measuring import RESULTS, ROOT, OtherLoad, installed_versions, write_report
from small_tasks import TASKS, write_task

CONFIG = "configs/own-images.yaml"
COMMON = "--model-size 0.5x --input-size 64 --device cpu --no-memory-check"
PUBLISHED_BATCH_SIZE = 1024
POLL = 0.02  # seconds between two looks at the file of metrics
QUICK_EPOCHS = 2

Run = dict[str, Any]  # "seconds", "CPU seconds" and "top1" of the whole run, "validations": [{"seconds", "top1"}, ...]


@dataclass(frozen=True)
class Setting:
    """What all runs of the benchmark have in common."""

    threads: int
    quick: bool

    @property
    def epochs(self) -> float:
        """Return the length of own-images.yaml, in passes over the training images."""
        return QUICK_EPOCHS if self.quick else float(config()["epochs"])


def config() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((ROOT / CONFIG).read_text())
    return values


def start(words: Sequence[object], threads: int, output: IO[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True)


def cpu_seconds(process: subprocess.Popen[str]) -> float:
    """Wait for the process. Return the CPU time that it has used, with its own children.

    Raises:
        SystemExit: the process has failed.
    """
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{process.args!r} has failed")
    return usage.ru_utime + usage.ru_stime


def train_torchvision(folder: Path, seed: int, setting: Setting) -> Run:
    """Train torchvision's network, and validate it after every epoch."""
    length = ["--epochs", QUICK_EPOCHS] if setting.quick else []
    words = ["benchmarks/torchvision_reference.py", folder, "--seed", seed, "--workers", setting.threads, *length]
    with tempfile.TemporaryFile("w+") as output:
        used = cpu_seconds(start(words, setting.threads, output))
        output.seek(0)
        validations = json.loads(output.read().splitlines()[-1])
    return {**validations[-1], "CPU seconds": used, "validations": validations}


def train(folder: Path, seed: int, setting: Setting, options: str) -> Run:
    """Run train.py. The clock starts before the process; a validation counts when its row is in the file of metrics."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, open(Path(name, "output"), "w") as output:
        words = [
            "train.py", "--data-dir", folder, "--save", f"{name}/models", "--log-dir", f"{name}/logs", "--seed", seed,
            "--workers", setting.threads, *COMMON.split(), *options.split(),
        ]  # fmt: skip
        metrics = Path(name, "logs/models/metrics.jsonl")
        started = time.perf_counter()
        process = start(words, setting.threads, output)
        running = True
        while running:
            time.sleep(POLL)
            running = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
            seconds = time.perf_counter() - started
            lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
            rows += [json.loads(line) | {"seconds": seconds} for line in lines[len(rows) :]]
        used = cpu_seconds(process)
    validations = [
        {"seconds": row["seconds"], "kind": row["kind"], "top1": 1 - row["top1_error"]}
        for row in rows
        if "top1_error" in row and row["kind"] != "train"
    ]
    (result,) = (row for row in validations if row["kind"] == "test_bnps")  # of model.pkl
    return {"top1": result["top1"], "seconds": seconds, "CPU seconds": used, "validations": validations}


def seconds_to(run: Run, accuracy: float) -> float:
    """Return the time until the first validation with at least this accuracy, infinite if there is none."""
    return min((row["seconds"] for row in run["validations"] if row["top1"] >= accuracy - 1e-6), default=math.inf)


def measure(folder: Path, images: int, seed: int, setting: Setting) -> dict[str, Run]:
    """Train torchvision's network and that of own-images.yaml; which is first depends on the seed."""
    programs: dict[str, Callable[[], Run]] = {
        "torchvision": lambda: train_torchvision(folder, seed, setting),
        "own-images": lambda: train(folder, seed, setting, f"--config {CONFIG} --epochs {setting.epochs}"),
    }
    runs = {name: programs[name]() for name in sorted(programs, reverse=seed % 2 == 0)}
    for name, run in runs.items():
        run["seconds to accuracy"] = seconds_to(run, runs["torchvision"]["top1"])
        print(f"{folder.name}, seed {seed}, {name}: {describe(run)}", flush=True)
    return runs


def measure_published(folder: Path, images: int, seed: int, setting: Setting, accuracy: float) -> dict[str, Run]:
    """Train the published recipe for as many images as own-images.yaml."""
    run = train(folder, seed, setting, f"--total-iters {max(1, round(setting.epochs * images / PUBLISHED_BATCH_SIZE))}")
    run["seconds to accuracy"] = seconds_to(run, accuracy)
    print(f"{folder.name}, seed {seed}, published: {describe(run)}", flush=True)
    return {"published": run}


def describe(run: Run) -> str:
    return (
        f"top-1 {run['top1']:.1%} in {run['seconds']:.1f} s ({run['CPU seconds']:.1f} s of CPU); "
        f"{run['seconds to accuracy']:.1f} s to the accuracy of torchvision's"
    )


def summarize(runs: list[Run]) -> dict[str, Any]:
    """Return medians over the seeds, and the values of each; None stands for a time that is infinite."""
    to_accuracy = [run["seconds to accuracy"] for run in runs]
    return {
        "top1": statistics.median(run["top1"] for run in runs),
        "seconds": round(statistics.median(run["seconds"] for run in runs), 2),
        "CPU seconds": round(statistics.median(run["CPU seconds"] for run in runs), 2),
        "seconds to accuracy": finite(statistics.median(to_accuracy)),
        "of each seed": [
            {key: finite(run[key]) for key in ("top1", "seconds", "CPU seconds", "seconds to accuracy")} for run in runs
        ],
    }


def finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each task, counted from 0 (default: %(default)s)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--threads", type=int, default=1, help="threads and workers of a run (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="train for two epochs, to see whether everything runs")
    parser.add_argument("--output", type=Path, default=RESULTS / "time_to_accuracy.json")
    arguments = parser.parse_args()

    setting = Setting(arguments.threads, arguments.quick)
    load, started = OtherLoad(), time.perf_counter()
    results: dict[str, dict[str, Any]] = {}

    def report() -> None:
        """Write the results so far: those of an interrupted benchmark are not lost."""
        write_report(
            arguments.output,
            ["python benchmarks/time_to_accuracy.py", *sys.argv[1:]],
            {
                "versions": installed_versions("torch", "torchvision"),
                "config": config(),
                "options of train.py": COMMON,
                "threads": arguments.threads,
                "runs at a time": arguments.jobs,
                "minutes": round((time.perf_counter() - started) / 60, 1),
                "cores lost to other processes": round(load.cores_lost(), 2),
                "results": {
                    task: result | {"programs": {name: summarize(runs) for name, runs in result["programs"].items()}}
                    for task, result in results.items()
                },
            },
        )

    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(arguments.jobs) as pool:
        for task in arguments.tasks:
            write_task(task, Path(name, task))
            counts = {split: len(list(Path(name, task, split).rglob("*.jpg"))) for split in ("train", "val")}
            results[task] = {"classes": TASKS[task][0], "images": counts, "programs": {}}
        jobs = [(seed, task) for seed in range(arguments.seeds) for task in arguments.tasks]

        def run(job: tuple[int, str], function: Callable[..., dict[str, Run]], *extra: float) -> dict[str, Run]:
            seed, task = job
            return function(Path(name, task), results[task]["images"]["train"], seed, setting, *extra)

        for function in (measure, measure_published):
            accuracies = [
                [results[task]["programs"]["torchvision"][seed]["top1"]] if function is measure_published else []
                for seed, task in jobs
            ]
            running = [pool.submit(run, job, function, *extra) for job, extra in zip(jobs, accuracies, strict=True)]
            for (_, task), future in zip(jobs, running, strict=True):
                for program, result in future.result().items():
                    results[task]["programs"].setdefault(program, []).append(result)
                report()


if __name__ == "__main__":
    main()
