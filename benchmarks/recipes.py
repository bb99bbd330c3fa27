"""Recipes on the built-in digits: whether each finishes, learns, and goes on after an interruption as if there had been none.

Every recipe is trained twice. One run is left alone. The other is stopped by SIGKILL at a random moment after its first
checkpoint, by SIGTERM at a later one, and each time started again with another number of workers. Then the bits of
every tensor in model.pkl, model-ema.pkl and the last checkpoint (the optimizer's state, and what batch norm had before its
recalibration) are compared, and the rows of metrics.csv but for the times.

    python benchmarks/recipes.py [--jobs 2]
    python benchmarks/recipes.py --only jsd [--iterations 40]     looks at one; writes no results

Ends with status 1 if a recipe fails, differs in a bit, or knows less than 95 % of the held-out digits.
"""

import argparse
import csv
import datetime
import importlib.metadata
import json
import os
import platform
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
from measuring import USABLE_CORES, machine, seconds_of_others

ROOT = Path(__file__).resolve().parents[1]
LEAST_TOP1 = 0.95
DISPLAY_INTERVAL = 5
WORKERS = (1, 3, 1, 2)  # of the run that is left alone, and of the other's three attempts
TIMES = ("data_time", "train_time", "images_per_second", "val_time")  # columns of metrics.csv

# fmt: off
COMMON = "--config configs/digits.yaml --input-size 32 --resize-size 32 --batch-size 64 --lr 0.02 --device cpu"
ADAMW = "--opt adamw --lr 0.002 --weight-decay 0.05 --sched cosine --warmup-iters 20 --model-ema --model-ema-decay 0.98"
RECIPES = {  # name: (iterations, options)
    "mixup, cutmix": (300, "--mixup 0.2 --cutmix 1.0 --label-smooth 0.1"),
    "randaugment":   (500, "--warmup-iters 50 --aa rand-m9-mstd0.5 --reprob 0.25 --remode pixel --aug-repeats 2"),
    "jsd":           (400, "--batch-size 32 --lr 0.01 --warmup-iters 50 "
                           "--aa augmix-m3 --aug-splits 3 --jsd --split-bn --reprob 0.1 --resplit"),
    "adamw, norm":   (200, f"{ADAMW} --model-ema-warmup --clip-grad 1 --clip-mode norm"),
    "adamw, value":  (200, f"{ADAMW} --clip-grad 0.1 --clip-mode value"),
    "adamw, agc":    (200, f"{ADAMW} --clip-grad 0.05 --clip-mode agc"),
    "accumulation":  (200, "--grad-accum-steps 4"),
    "plateau":       (200, "--sched plateau --val-interval 10 --patience-iters 10 --decay-rate 0.3"),
    "distillation":  (200, "--teacher {teacher} --distill-alpha 0.5 --distill-temperature 4"),
    "drop":          (250, "--drop-path 0.1 --drop-block 0.1"),
    "catavgmax":     (250, "--gp catavgmax"),
    "amp":           (180, "--batch-size 32 --lr 0.01 --scale 0.95 1 --color-jitter 0 --amp"),  # half a second an iteration
    "torchscript":   (200, "--torchscript"),
    "torchcompile":  (200, "--torchcompile"),
    "all at once":   (500, "--warmup-iters 50 --aa rand-m9-mstd0.5 --mixup 0.1 --mixup-prob 0.5 --reprob 0.1 "
                           "--drop-path 0.05 --aug-repeats 2 --model-ema --model-ema-decay 0.98"),
}
TEACHER = (200, "--model-size 1.0x")
# fmt: on


class FailedError(Exception):
    """A run did not do what it was to do; the text has what it printed last."""


class Run:
    """A recipe in a folder of its own.

    Args:
        iterations, options: of the recipe.
    """

    def __init__(self, folder: Path, iterations: int, options: str) -> None:
        self.folder, self.iterations = folder, iterations
        self.save_interval = max(1, iterations // 5)
        self.command = [
            sys.executable, "train.py", *COMMON.split(), "--val-interval", str(self.save_interval), *options.split(),
            "--total-iters", str(iterations), "--save-interval", str(self.save_interval),
            "--display-interval", str(DISPLAY_INTERVAL), "--save", str(folder / "models"), "--log-dir", str(folder / "logs"),
        ]  # fmt: skip

    def attempt(self, workers: int, stop: tuple[signal.Signals, int, float] | None = None) -> list[str]:
        """Runs the command, to its end or until it is stopped; gives what it printed.

        Args:
            stop: by which signal, after which TRAIN line, and how much later, as a multiple of the time between two lines.

        Raises:
            FailedError: where it ends otherwise.
        """
        # Each run compiles for itself, lest one be like the other because it is the other's program.
        own = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "compiled")}
        process = subprocess.Popen(
            [*self.command, "--workers", str(workers)], cwd=ROOT, env=os.environ | own, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        expected, lines, last, sent = 0, [], time.perf_counter(), False
        for line in process.stdout:
            lines.append(line)
            if not (match := re.search(r"\] TRAIN Iter (\d+):", line)):
                continue
            since, last = time.perf_counter() - last, time.perf_counter()
            if stop and not sent and int(match[1]) >= stop[1]:
                time.sleep(stop[2] * since)
                process.send_signal(stop[0])
                sent, expected = True, 128 + stop[0] if stop[0] == signal.SIGTERM else -stop[0]
        if process.wait() != expected or (stop and not sent):
            raise FailedError(f"{''.join(lines[-10:])}ended with status {process.returncode}, not {expected}")
        return lines

    def left_alone(self) -> float:
        """Trains; gives the seconds that took."""
        start = time.perf_counter()
        self.attempt(WORKERS[0])
        return time.perf_counter() - start

    def interrupted(self, chance: random.Random) -> list[dict[str, Any]]:
        """Trains with two interruptions; gives what stopped it, the last iteration it told of, and where it went on."""
        share = self.iterations // 5
        moments = ((signal.SIGKILL, share + DISPLAY_INTERVAL, 3 * share), (signal.SIGTERM, 3 * share, 4 * share))
        stops: list[dict[str, Any]] = []
        for number, workers in enumerate(WORKERS[1:]):
            stop = None
            if number < len(moments):
                signum, earliest, latest = moments[number]
                stop = (signum, chance.randint(earliest, latest), chance.random())
            text = "".join(self.attempt(workers, stop))
            if stops:
                if not (match := re.search(r"going on from \S*checkpoint-(\d+)", text)):
                    raise FailedError(f"{text}did not go on from a checkpoint")
                stops[-1]["went on from"] = int(match[1])
            if stop:
                stops.append({"signal": stop[0].name, "after": int(re.findall(r"TRAIN Iter (\d+):", text)[-1])})
        return stops

    def results(self) -> dict[str, Any]:
        """Of model.pkl, model-ema.pkl if there is one, and the last checkpoint: their contents."""
        names = ("model.pkl", "model-ema.pkl", f"checkpoint-{self.iterations:06}.pth.tar")
        paths = (self.folder / "models" / name for name in names)
        return {path.name: torch.load(path, weights_only=True) for path in paths if path.exists()}

    def rows(self) -> list[dict[str, str]]:
        """Those of metrics.csv, without what differs from run to run."""
        with open(self.folder / "logs/models/metrics.csv", encoding="utf-8", newline="") as file:
            return [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All there are in nested dicts and lists, by their place."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(item, f"{name}/{key}")


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return tensor.dtype, tensor.shape, tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def compared(alone: Run, interrupted: Run) -> dict[str, Any]:
    """What there is to say about two runs of a recipe that should be the same."""
    contents = alone.results()
    one, other = (dict(tensors(each)) for each in (contents, interrupted.results()))
    rows, others = alone.rows(), interrupted.rows()
    rates = list(dict.fromkeys(float(row["learning_rate"]) for row in rows if row["learning_rate"]))
    return {
        "top-1": {name: content["accuracy"]["top1"] for name, content in contents.items() if "accuracy" in content},
        "learning rates": {"different": len(rates), "highest": max(rates), "lowest": min(rates)},
        "tensors compared": len(one.keys() | other.keys()),
        "tensors that differ": sorted(
            name
            for name in one.keys() | other.keys()
            if name not in one or name not in other or bits(one[name]) != bits(other[name])
        ),
        "rows of metrics.csv": len(rows),
        "rows that differ": sum(a != b for a, b in zip(rows, others, strict=False)) + abs(len(rows) - len(others)),
    }


def complaints(result: dict[str, Any], options: str) -> list[str]:
    """What is not as it should be."""
    found = [f"{name} knows only {top1:.1%}" for name, top1 in result["top-1"].items() if top1 < LEAST_TOP1]
    if differing := result["tensors that differ"]:
        found.append(f"{len(differing)} tensors differ, {differing[0]} first")
    if result["rows that differ"]:
        found.append(f"{result['rows that differ']} rows of metrics.csv differ")
    if "plateau" in options and result["learning rates"]["different"] == 1:
        found.append("the learning rate never dropped")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Whether recipes finish, learn, and go on exactly.")
    parser.add_argument("--only", choices=RECIPES, metavar="NAME", help=f"one of: {'; '.join(RECIPES)}")
    parser.add_argument("--iterations", type=int, help="of every run (default: the recipe's own)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results/recipes.json")
    arguments = parser.parse_args()

    recipes = {arguments.only: RECIPES[arguments.only]} if arguments.only else RECIPES
    results: dict[str, dict[str, Any]] = {}
    failures = 0
    start, taken_before = time.perf_counter(), seconds_of_others(USABLE_CORES)
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(arguments.jobs) as pool:
        folder = Path(name)
        teacher = Run(folder / "teacher", arguments.iterations or TEACHER[0], TEACHER[1])
        if any("{teacher}" in options for _, options in recipes.values()):
            teacher.left_alone()
        started: dict[str, tuple[Run, Future[float], Run, Future[list[dict[str, Any]]]]] = {}
        for recipe, (own, options) in recipes.items():
            iterations = arguments.iterations or own
            options = options.format(teacher=teacher.folder / "models/model.pkl")
            alone, interrupted = (Run(folder / recipe.replace(" ", "-") / kind, iterations, options) for kind in ("a", "b"))
            chance = random.Random(f"{arguments.seed} {recipe}")
            started[recipe] = (
                alone,
                pool.submit(alone.left_alone),
                interrupted,
                pool.submit(interrupted.interrupted, chance),
            )
        for recipe, (alone, seconds, interrupted, stops) in started.items():
            try:
                took, stopped = seconds.result(), stops.result()
            except FailedError as error:
                failures += 1
                print(f"{recipe}: FAILED\n{error}", flush=True)
                continue
            result = compared(alone, interrupted)
            results[recipe] = {"iterations": alone.iterations, "options": recipes[recipe][1], "seconds": round(took, 1)}
            results[recipe] |= {"stops": stopped, **result}
            wrong = complaints(result, recipes[recipe][1])
            failures += bool(wrong)
            top1 = ", ".join(f"{name} {top1:.2%}" for name, top1 in result["top-1"].items())
            said = f"{result['tensors compared']} tensors, {len(result['tensors that differ'])} differ"
            print(f"{recipe}: {top1}; {said}; {took:.0f} s; {stopped}" + "".join(f"\n  {text}" for text in wrong), flush=True)
    elapsed = time.perf_counter() - start
    report = {
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/recipes.py --jobs {arguments.jobs} --seed {arguments.seed}"
        + (f" --iterations {arguments.iterations}" if arguments.iterations else ""),
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("torch", "timm", "opencv-python-headless")},
        },
        "options of all": COMMON,
        "teacher": {"iterations": TEACHER[0], "options": TEACHER[1]},
        "runs at a time": arguments.jobs,
        "minutes": round(elapsed / 60, 1),
        "cores lost to other processes": round(max(0.0, seconds_of_others(USABLE_CORES) - taken_before) / elapsed, 2),
        "results": results,
    }
    if len(results) == len(RECIPES):
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{len(recipes)} recipes in {elapsed / 60:.1f} minutes; {failures} not as they should be")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
