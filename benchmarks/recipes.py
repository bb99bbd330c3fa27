"""Train recipes on the built-in digits: check that each learns, and that interruptions do not change a bit of its result.

Every recipe is trained twice. One run is not interrupted. The other is stopped by SIGKILL at a random instant after its
first checkpoint and by SIGTERM at a later one, and each time started again with another number of workers. Then every
tensor in model.pkl, model-ema.pkl and the last checkpoint is compared bit for bit (the checkpoint holds the optimizer's
state and the batch-norm statistics from before the recalibration), and every row of metrics.csv except for the times.

    python benchmarks/recipes.py [--jobs 2]
    python benchmarks/recipes.py --only jsd [--iterations 40]     one recipe; does not write the results

The exit status is 1 if a recipe fails, differs in a bit, or classifies less than 95 % of the held-out digits correctly.
"""

import argparse
import csv
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from measuring import RESULTS, ROOT, OtherLoad, installed_versions, write_report

MIN_TOP1 = 0.95
DISPLAY_INTERVAL = 5
WORKERS = (1, 3, 1, 2)  # of the uninterrupted run, and of the three starts of the interrupted run
TIMES = ("data_time", "train_time", "images_per_second", "val_time")  # columns of metrics.csv

COMMON = "--config configs/digits.yaml --input-size 32 --resize-size 32 --batch-size 64 --lr 0.02 --device cpu"
ADAMW = "--opt adamw --lr 0.002 --weight-decay 0.05 --sched cosine --warmup-iters 20 --model-ema --model-ema-decay 0.98"
RECIPES = {  # name: (iterations, options)
    "mixup, cutmix": (300, "--mixup 0.2 --cutmix 1.0 --label-smooth 0.1"),
    "randaugment": (500, "--warmup-iters 50 --aa rand-m9-mstd0.5 --reprob 0.25 --remode pixel --aug-repeats 2"),
    "jsd": (
        400,
        "--batch-size 32 --lr 0.01 --warmup-iters 50 --aa augmix-m3 --aug-splits 3 --jsd --split-bn --reprob 0.1 --resplit",
    ),
    "adamw, norm": (200, f"{ADAMW} --model-ema-warmup --clip-grad 1 --clip-mode norm"),
    "adamw, value": (200, f"{ADAMW} --clip-grad 0.1 --clip-mode value"),
    "adamw, agc": (200, f"{ADAMW} --clip-grad 0.05 --clip-mode agc"),
    "accumulation": (200, "--grad-accum-steps 4"),
    "plateau": (200, "--sched plateau --val-interval 10 --patience-iters 10 --decay-rate 0.3"),
    "distillation": (200, "--teacher {teacher} --distill-alpha 0.5 --distill-temperature 4"),
    "drop": (250, "--drop-path 0.1 --drop-block 0.1"),
    "catavgmax": (250, "--gp catavgmax"),
    "amp": (180, "--batch-size 32 --lr 0.01 --scale 0.95 1 --color-jitter 0 --amp"),  # 0.5 s per iteration
    "torchscript": (200, "--torchscript"),
    "torchcompile": (200, "--torchcompile"),
    "all at once": (
        500,
        "--warmup-iters 50 --aa rand-m9-mstd0.5 --mixup 0.1 --mixup-prob 0.5 --reprob 0.1 "
        "--drop-path 0.05 --aug-repeats 2 --model-ema --model-ema-decay 0.98",
    ),
}
TEACHER = (200, "--model-size 1.0x")


class RunError(Exception):
    """A run did not end as expected. The message has the last lines that it printed."""


class Run:
    """One training of a recipe, with its results in `folder`."""

    def __init__(self, folder: Path, iterations: int, options: str) -> None:
        self.folder, self.iterations = folder, iterations
        self.save_interval = max(1, iterations // 5)
        options = (
            f"{COMMON} --val-interval {self.save_interval} {options} --total-iters {iterations} "
            f"--save-interval {self.save_interval} --display-interval {DISPLAY_INTERVAL}"
        )
        self.command = [sys.executable, "train.py", *options.split()]
        self.command += ["--save", str(folder / "models"), "--log-dir", str(folder / "logs")]

    def attempt(self, workers: int, stop: tuple[signal.Signals, int, float] | None = None) -> list[str]:
        """Run the command to its end, or until it is stopped. Return the lines that it printed.

        Args:
            workers: value of --workers.
            stop: signal to send; iteration of the line after which it is sent; delay after that line, as a
                multiple of the time between two lines.

        Raises:
            RunError: the exit status is not the expected one.
        """
        # Every run compiles anew: with a shared cache two runs could agree only because they share compiled code.
        environment = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "compiled")}
        process = subprocess.Popen(
            [*self.command, "--workers", str(workers)],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        expected, lines, last, sent = 0, [], time.perf_counter(), False
        for line in process.stdout:
            lines.append(line)
            if not (match := re.match(r"iter +(\d+)/", line)):
                continue
            since_last, last = time.perf_counter() - last, time.perf_counter()
            if stop and not sent and int(match[1]) >= stop[1]:
                time.sleep(stop[2] * since_last)
                process.send_signal(stop[0])
                sent, expected = True, 128 + stop[0] if stop[0] == signal.SIGTERM else -stop[0]
        if process.wait() != expected or (stop and not sent):
            raise RunError(f"{''.join(lines[-10:])}ended with status {process.returncode}, not {expected}")
        return lines

    def train_uninterrupted(self) -> float:
        """Train to the end. Return the seconds that it took."""
        start = time.perf_counter()
        self.attempt(WORKERS[0])
        return time.perf_counter() - start

    def train_interrupted(self, rng: random.Random) -> list[dict[str, Any]]:
        """Train with two interruptions.

        Returns:
            of each interruption the signal, the last iteration printed, and the iteration at which the run continued.
        """
        fifth = self.iterations // 5
        interruptions = ((signal.SIGKILL, fifth + DISPLAY_INTERVAL, 3 * fifth), (signal.SIGTERM, 3 * fifth, 4 * fifth))
        stops: list[dict[str, Any]] = []
        for number, workers in enumerate(WORKERS[1:]):
            stop = None
            if number < len(interruptions):
                signum, earliest, latest = interruptions[number]
                stop = (signum, rng.randint(earliest, latest), rng.random())
            text = "".join(self.attempt(workers, stop))
            if stops:
                if not (match := re.search(r"continuing from \S*checkpoint-(\d+)", text)):
                    raise RunError(f"{text}the run did not continue from a checkpoint")
                stops[-1]["went on from"] = int(match[1])
            if stop:
                stops.append({"signal": stop[0].name, "after": int(re.findall(r"^iter +(\d+)/", text, re.M)[-1])})
        return stops

    def results(self) -> dict[str, Any]:
        """Return the contents of model.pkl, of model-ema.pkl if there is one, and of the last checkpoint."""
        names = ("model.pkl", "model-ema.pkl", f"checkpoint-{self.iterations:06}.pth.tar")
        paths = (self.folder / "models" / name for name in names)
        return {path.name: torch.load(path, weights_only=True) for path in paths if path.exists()}

    def rows(self) -> list[dict[str, str]]:
        """Return the rows of metrics.csv without the times, which differ from run to run."""
        with open(self.folder / "logs/models/metrics.csv", encoding="utf-8", newline="") as file:
            return [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors in nested dictionaries and lists, with their paths."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(item, f"{name}/{key}")


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return tensor.dtype, tensor.shape, tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def compare(uninterrupted: Run, interrupted: Run) -> dict[str, Any]:
    """Compare two runs of a recipe that should be equal."""
    contents = uninterrupted.results()
    expected, actual = dict(tensors(contents)), dict(tensors(interrupted.results()))
    rows, interrupted_rows = uninterrupted.rows(), interrupted.rows()
    rates = list(dict.fromkeys(float(row["learning_rate"]) for row in rows if row["learning_rate"]))
    return {
        "top-1": {name: content["accuracy"]["top1"] for name, content in contents.items() if "accuracy" in content},
        "learning rates": {"different": len(rates), "highest": max(rates), "lowest": min(rates)},
        "tensors compared": len(expected.keys() | actual.keys()),
        "tensors that differ": sorted(
            name
            for name in expected.keys() | actual.keys()
            if name not in expected or name not in actual or bits(expected[name]) != bits(actual[name])
        ),
        "rows of metrics.csv": len(rows),
        "rows that differ": sum(a != b for a, b in zip(rows, interrupted_rows, strict=False))
        + abs(len(rows) - len(interrupted_rows)),
    }


def find_problems(result: dict[str, Any], options: str) -> list[str]:
    """Return a line for each result that is not as it should be."""
    problems = [f"{name} has a top-1 of only {top1:.1%}" for name, top1 in result["top-1"].items() if top1 < MIN_TOP1]
    if differing := result["tensors that differ"]:
        problems.append(f"{len(differing)} tensors differ, {differing[0]} first")
    if result["rows that differ"]:
        problems.append(f"{result['rows that differ']} rows of metrics.csv differ")
    if "plateau" in options and result["learning rates"]["different"] == 1:
        problems.append("the learning rate never dropped")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description="Check that recipes learn, and that interruptions change nothing.")
    parser.add_argument("--only", choices=RECIPES, metavar="NAME", help=f"one of: {'; '.join(RECIPES)}")
    parser.add_argument("--iterations", type=int, help="iterations of every run (default: different for each recipe)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, with one thread each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the instants (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS / "recipes.json")
    arguments = parser.parse_args()

    recipes = {arguments.only: RECIPES[arguments.only]} if arguments.only else RECIPES
    results: dict[str, dict[str, Any]] = {}
    failures = 0
    start, load = time.perf_counter(), OtherLoad()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(arguments.jobs) as pool:
        folder = Path(name)
        teacher = Run(folder / "teacher", arguments.iterations or TEACHER[0], TEACHER[1])
        if any("{teacher}" in options for _, options in recipes.values()):
            teacher.train_uninterrupted()
        started: dict[str, tuple[Run, Future[float], Run, Future[list[dict[str, Any]]]]] = {}
        for recipe, (iterations, options) in recipes.items():
            options = options.format(teacher=teacher.folder / "models/model.pkl")
            uninterrupted, interrupted = (
                Run(folder / recipe.replace(" ", "-") / kind, arguments.iterations or iterations, options)
                for kind in ("uninterrupted", "interrupted")
            )
            started[recipe] = (
                uninterrupted,
                pool.submit(uninterrupted.train_uninterrupted),
                interrupted,
                pool.submit(interrupted.train_interrupted, random.Random(f"{arguments.seed} {recipe}")),
            )
        for recipe, (uninterrupted, seconds_future, interrupted, stops_future) in started.items():
            try:
                seconds, stops = seconds_future.result(), stops_future.result()
            except RunError as error:
                failures += 1
                print(f"{recipe}: FAILED\n{error}", flush=True)
                continue
            comparison = compare(uninterrupted, interrupted)
            results[recipe] = {
                "iterations": uninterrupted.iterations,
                "options": recipes[recipe][1],
                "seconds": round(seconds, 1),
                "stops": stops,
                **comparison,
            }
            problems = find_problems(comparison, recipes[recipe][1])
            failures += bool(problems)
            top1 = ", ".join(f"{name} {top1:.2%}" for name, top1 in comparison["top-1"].items())
            tensor_counts = f"{comparison['tensors compared']} tensors, {len(comparison['tensors that differ'])} differ"
            print(f"{recipe}: {top1}; {tensor_counts}; {seconds:.0f} s; {stops}", *problems, sep="\n  ", flush=True)
    elapsed = time.perf_counter() - start
    if len(results) == len(RECIPES):
        command = ["python benchmarks/recipes.py", "--jobs", arguments.jobs, "--seed", arguments.seed]
        write_report(
            arguments.output,
            command + ["--iterations", arguments.iterations] * bool(arguments.iterations),
            {
                "versions": installed_versions("torch", "timm", "opencv-python-headless"),
                "options of all": COMMON,
                "teacher": {"iterations": TEACHER[0], "options": TEACHER[1]},
                "runs at a time": arguments.jobs,
                "minutes": round(elapsed / 60, 1),
                "cores lost to other processes": round(load.cores_lost(), 2),
                "results": results,
            },
        )
    print(f"{len(recipes)} recipes in {elapsed / 60:.1f} minutes; {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
