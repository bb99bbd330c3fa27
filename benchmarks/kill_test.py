"""Kill a run at random instants, and compare every tensor of its result with that of an uninterrupted run.

The run trains on the built-in digits with features that have a state or draw random numbers: momentum, averaged weights, batch
norm, colour jitter, dropout. SIGKILL is sent at a random instant: at any time, or shortly after a save, a validation or the
recalibration has begun. Every start uses a random number of workers (1 to 3).

The script derives what a kill interrupted from what is visible at that instant: a save from a temporary file; a validation or
the recalibration from printed lines that announce it, if its result is not printed yet.

    python benchmarks/kill_test.py [--kills 25] [--seed 0]
    python benchmarks/kill_test.py --processes 2      kill one of two processes; torchrun restarts both
    python benchmarks/kill_test.py --options="--device cuda --deterministic" --output FILE      other options of the run

The exit status is 1 if a single bit differs.
"""

import argparse
import collections
import csv
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from measuring import RESULTS, ROOT, write_report

ITERATIONS, VAL_INTERVAL = 100, 8
OPTIONS = (
    "--config configs/digits.yaml --input-size 32 --resize-size 32 --batch-size 16 --device cpu "
    f"--total-iters {ITERATIONS} --display-interval 1 --val-interval {VAL_INTERVAL} --save-interval 2 "
    "--model-ema --model-ema-decay 0.95 --drop 0.2 --label-smooth 0.1 --color-jitter 0.4"
).split()
TIMES = ("data_time", "train_time", "images_per_second", "val_time")
RESULT_FILES = ("model.pkl", "model-ema.pkl", "best.pkl")
AIMS = ("any time", "save", "validation", "recalibration")


class Attempt:
    """A started training command.

    Attributes:
        lines: the lines printed since the last kill.
    """

    def __init__(self, folder: Path, workers: int, processes: int, options: list[str]) -> None:
        self.models = folder / "models"
        command = ["train.py", *OPTIONS, *options, "--workers", str(workers)]
        command += ["--save", str(self.models), "--log-dir", str(folder / "logs")]
        if processes > 1:
            torchrun = ["-m", "torch.distributed.run", "--standalone", "--max-restarts", "1000"]
            command = [*torchrun, "--nproc-per-node", str(processes), *command]
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if processes > 1 else None,  # torchrun prints many lines about each kill
            text=True,
        )
        self.has_torchrun = processes > 1
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self.read_output)
        self.reader.start()

    def read_output(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def is_saving(self) -> bool:
        return any(self.models.glob(".*.tmp"))

    def has_begun(self, aim: str) -> bool:
        """Return whether the part of the run that a kill is aimed at, one of AIMS, has begun."""
        if not any("  device " in line for line in self.lines):
            return False
        return aim == "any time" or (self.is_saving() if aim == "save" else self.phase() == aim)

    def phase(self) -> str:
        """Return 'training', 'validation' or 'recalibration', according to the last printed lines."""
        for line in reversed(self.lines):
            if "recalibrating" in line:
                return "recalibration"
            if "validation at" in line:
                break
            if match := re.match(r"iter +(\d+)/", line):
                return "validation" if int(match[1]) % VAL_INTERVAL == 0 else "training"
        return "training"

    def kill(self, rng: random.Random) -> str | None:
        """Kill the process, or one of torchrun's processes.

        Returns:
            What the kill interrupted: 'save' or a phase; None if the process had already ended.
        """
        try:
            if self.has_torchrun:
                pid = self.process.pid
                os.kill(int(rng.choice(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())), signal.SIGKILL)
            else:
                self.process.kill()
                if self.process.wait() != -signal.SIGKILL:
                    return None
                self.reader.join()
        except (OSError, IndexError):
            return None
        interrupted = "save" if self.is_saving() else self.phase()
        self.lines.clear()
        return interrupted

    def wait(self) -> int:
        """Wait until the process has ended and its output is read. Return its exit status."""
        self.reader.join()
        return self.process.wait()


def remove_results(folder: Path, rng: random.Random) -> None:
    """Remove the result files, so that the next start continues the run.

    If the run was complete, remove the checkpoints after a random iteration as well.
    """
    for name in RESULT_FILES:
        (folder / "models" / name).unlink(missing_ok=True)
    if (folder / f"models/checkpoint-{ITERATIONS:06}.pth.tar").exists():
        last = rng.randrange(ITERATIONS)
        for path in (folder / "models").glob("*checkpoint-*"):
            if int(path.name.split("-")[-1].split(".")[0]) > last:
                path.unlink()


def killed_run(folder: Path, kills: int, processes: int, options: list[str], rng: random.Random) -> dict[str, int]:
    """Run the command to its end, with `kills` kills on the way. Return {what was interrupted: number of kills}."""
    counts: collections.Counter[str] = collections.Counter()
    attempt: Attempt | None = None
    while counts.total() < kills:
        if attempt is None or not attempt.is_alive():
            remove_results(folder, rng)
            attempt = Attempt(folder, rng.randint(1, 3), processes, options)
        aim = rng.choice(AIMS)
        while attempt.is_alive() and not attempt.has_begun(aim):
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 1.0 if aim == "any time" else 0.03))
        if interrupted := attempt.kill(rng):
            counts[interrupted] += 1
            print(f"kill {counts.total()} of {kills}: aimed at {aim}, fell into {interrupted}", flush=True)
            if interrupted == "recalibration" and processes > 1 and rng.random() < 0.5:
                # torchrun restarts the recalibration. Stop torchrun, or every further kill would interrupt the recalibration.
                attempt.process.terminate()
                attempt.wait()
    assert attempt is not None
    if attempt.wait() != 0 and Attempt(folder, 2, processes, options).wait() != 0:
        sys.exit("the last start of the command failed")
    return dict(counts)


def result_tensors(folder: Path) -> dict[str, torch.Tensor]:
    files = {name: torch.load(folder / "models" / name, weights_only=True) for name in RESULT_FILES}
    return {f"{name}: {key}": tensor for name, content in files.items() for key, tensor in content["state_dict"].items()}


def metrics_rows(folder: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv without the columns that are times."""
    with open(folder / "logs" / "models" / "metrics.csv", encoding="utf-8", newline="") as file:
        return [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def main() -> int:
    description = "Kill a run at random instants, and compare the bits of its result and the rows of its metrics.csv."
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--kills", type=int, default=25, help="number of kills (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random instants (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="processes that torchrun starts; 1: without torchrun")
    parser.add_argument("--options", default="", help="further options of the run")
    parser.add_argument("--output", type=Path, help="default: a file in benchmarks/results")
    arguments = parser.parse_args()
    has_torchrun, run_options = arguments.processes > 1, arguments.options.split()
    with tempfile.TemporaryDirectory() as folder:
        untouched, killed = Path(folder) / "untouched", Path(folder) / "killed"
        (killed / "models").mkdir(parents=True)
        if Attempt(untouched, 2, arguments.processes, run_options).wait() != 0:
            sys.exit("the uninterrupted run failed")
        counts = killed_run(killed, arguments.kills, arguments.processes, run_options, random.Random(arguments.seed))
        expected, actual = result_tensors(untouched), result_tensors(killed)
        expected_rows, actual_rows = metrics_rows(untouched), metrics_rows(killed)
    differing = [key for key in expected if not torch.equal(expected[key], actual[key])]
    command = ["python benchmarks/kill_test.py", "--kills", arguments.kills, "--seed", arguments.seed]
    command += ["--processes", arguments.processes] * has_torchrun
    command += [f'--options="{arguments.options}"'] * bool(run_options)
    write_report(
        arguments.output or RESULTS / f"kill_test{'_processes' * has_torchrun}.json",
        command,
        {
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "kills that fell into": counts,
            "tensors compared": len(expected),
            "tensors that differ": differing,
            "rows of metrics.csv": len(expected_rows),
            "rows are equal": actual_rows == expected_rows,
        },
    )
    print(f"{arguments.kills} kills, which fell into {counts}; {len(expected)} tensors, {len(differing)} differ")
    print(
        f"the {len(expected_rows)} rows of metrics.csv are {'' if actual_rows == expected_rows else 'NOT '}equal, without times"
    )
    return 1 if differing or actual_rows != expected_rows else 0


if __name__ == "__main__":
    sys.exit(main())
