"""Kills a run again and again, and compares the bits of its result with those of a run that was never touched.

Digits, small, with everything on that has a state or draws at random: momentum, averaged weights, batch norm,
label smoothing, jitter, dropout. Each attempt is a process of its own, killed with SIGKILL at an instant drawn at
random: any time, or shortly after a save, a validation or the recalibration has begun; the number of workers
changes from attempt to attempt. What a kill fell into is read off what it left behind: a half-written file, a
validation or a recalibration that was announced and never reported.

    python benchmarks/kill_test.py [--kills 25] [--seed 0]

Ends with status 1 if a single bit differs.
"""

import argparse
import collections
import datetime
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
# fmt: off
ITERATIONS, VAL_INTERVAL = 100, 8
OPTIONS = [
    "--config", "configs/digits.yaml", "--input-size", "32", "--resize-size", "32", "--batch-size", "16",
    "--total-iters", str(ITERATIONS), "--display-interval", "1", "--val-interval", str(VAL_INTERVAL), "--save-interval", "2",
    "--model-ema", "--model-ema-decay", "0.95", "--drop", "0.2", "--label-smooth", "0.1", "--color-jitter", "0.4",
    "--device", "cpu",
]
# fmt: on
RESULTS = ("model.pkl", "model-ema.pkl")
AIMS = ("any time", "save", "validation", "recalibration")


class Attempt:
    """One process of the run, and what it has printed so far."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.models = folder / "models"
        command = [sys.executable, "train.py", *OPTIONS, "--workers", str(workers)]
        command += ["--save", str(self.models), "--log-dir", str(folder / "logs")]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    def has_begun(self, aim: str) -> bool:
        if aim == "save":
            return any(self.models.glob(".*.tmp"))
        if aim in ("validation", "recalibration"):
            return self.phase() == aim
        return any("training on" in line for line in self.lines)

    def phase(self) -> str:
        """What the process is in the middle of, as far as it has said."""
        for line in reversed(self.lines):
            if "recalibrating" in line:
                return "recalibration"
            if "TEST Iter" in line:
                break
            if "TRAIN Iter" in line:
                return "validation" if int(line.split("TRAIN Iter ")[1].split(":")[0]) % VAL_INTERVAL == 0 else "training"
        return "training"

    def end(self) -> None:
        """Waits until the process is gone and all it printed is read."""
        self.process.wait()
        self._reader.join()


def killed_run(folder: Path, kills: int, chance: random.Random) -> dict[str, int]:
    """Runs to the end with so many kills on the way; returns how many fell into what."""
    fell: collections.Counter[str] = collections.Counter()
    while sum(fell.values()) < kills:
        # Each attempt starts in the results of the one before; one that got through is made to repeat its end.
        for name in RESULTS:
            (folder / "models" / name).unlink(missing_ok=True)
        attempt, aim = Attempt(folder, chance.randint(1, 3)), chance.choice(AIMS)
        while attempt.process.poll() is None and not attempt.has_begun(aim):
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, 1.0 if aim == "any time" else 0.03))
        attempt.process.kill()
        attempt.end()
        if attempt.process.returncode != -signal.SIGKILL:
            continue  # it was through before the instant came
        kind = "save" if attempt.has_begun("save") else attempt.phase()
        fell[kind] += 1
        print(f"kill {sum(fell.values())} of {kills}: aimed at {aim}, fell into {kind}", flush=True)
        if (folder / f"models/checkpoint-{ITERATIONS:06}.pth.tar").exists():
            back_to = chance.randrange(ITERATIONS)  # so that training can be killed again
            for path in (folder / "models").glob("*checkpoint-*"):
                if int(path.name.split("-")[-1].split(".")[0]) > back_to:
                    path.unlink()
    last = Attempt(folder, 2)
    last.end()
    if last.process.returncode != 0:
        sys.exit("the last attempt failed")
    return dict(fell)


def result(folder: Path) -> dict[str, torch.Tensor]:
    files = {name: torch.load(folder / "models" / name, weights_only=True) for name in RESULTS}
    return {f"{name}: {key}": tensor for name, content in files.items() for key, tensor in content["state_dict"].items()}


def main() -> int:
    parser = argparse.ArgumentParser(description="Kills a run again and again and compares the bits of its result.")
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results/kill_test.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        untouched, killed = Path(name) / "untouched", Path(name) / "killed"
        (killed / "models").mkdir(parents=True)
        whole = Attempt(untouched, 2)
        whole.end()
        fell = killed_run(killed, arguments.kills, random.Random(arguments.seed))
        expected, found = result(untouched), result(killed)
    differing = [key for key in expected if not torch.equal(expected[key], found[key])]
    report = {
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/kill_test.py --kills {arguments.kills} --seed {arguments.seed}",
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "kills that fell into": fell,
        "tensors compared": len(expected),
        "tensors that differ": differing,
    }
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{arguments.kills} kills, which fell into {fell}; {len(expected)} tensors, {len(differing)} differ")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
