"""Kills a run again and again, and compares the bits of its result with those of a run that was never touched.

Digits, small, with everything on that has a state or draws at random: momentum, averaged weights, batch norm,
label smoothing, jitter, dropout. A process is killed with SIGKILL at an instant drawn at random: any time, or
shortly after a save, a validation or the recalibration has begun; the number of workers changes from attempt to
attempt. What a kill fell into is read off what was there: a half-written file, a validation or a recalibration
that was announced and not yet reported.

    python benchmarks/kill_test.py [--kills 25] [--seed 0]
    python benchmarks/kill_test.py --processes 2      one of two that torchrun starts, and starts again

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
from measuring import machine

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
    """The command, run once, and what it has printed since something was last killed."""

    def __init__(self, folder: Path, workers: int, processes: int) -> None:
        self.models = folder / "models"
        command = [
            "train.py",
            *OPTIONS,
            "--workers",
            str(workers),
            "--save",
            str(self.models),
            "--log-dir",
            str(folder / "logs"),
        ]
        if processes > 1:
            torchrun = ["-m", "torch.distributed.run", "--standalone", "--max-restarts", "1000"]
            command = [*torchrun, "--nproc-per-node", str(processes), *command]
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if processes > 1 else None,  # torchrun is long-winded about each kill
            text=True,
        )
        self.alone = processes == 1
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def has_begun(self, aim: str) -> bool:
        if not any("training on" in line for line in self.lines):
            return False
        if aim == "save":
            return any(self.models.glob(".*.tmp"))
        return aim == "any time" or self.phase() == aim

    def phase(self) -> str:
        """What it is in the middle of, as far as it has said."""
        for line in reversed(self.lines):
            if "recalibrating" in line:
                return "recalibration"
            if "TEST Iter" in line:
                break
            if "TRAIN Iter" in line:
                return "validation" if int(line.split("TRAIN Iter ")[1].split(":")[0]) % VAL_INTERVAL == 0 else "training"
        return "training"

    def kill(self, chance: random.Random) -> str | None:
        """Kills the process, or one of torchrun's; says what that fell into, None if it came too late."""
        try:
            if self.alone:
                self.process.kill()
                if self.process.wait() != -signal.SIGKILL:
                    return None
                self._reader.join()
            else:
                pid = self.process.pid
                os.kill(int(chance.choice(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())), signal.SIGKILL)
        except (OSError, IndexError):
            return None
        kind = "save" if any(self.models.glob(".*.tmp")) else self.phase()
        self.lines.clear()
        return kind

    def end(self) -> int:
        """Waits until it is gone and all it printed is read; gives its exit status."""
        self._reader.join()
        return self.process.wait()


def killed_run(folder: Path, kills: int, processes: int, chance: random.Random) -> dict[str, int]:
    """Runs to the end with so many kills on the way; returns how many fell into what."""
    fell: collections.Counter[str] = collections.Counter()
    attempt: Attempt | None = None
    while sum(fell.values()) < kills:
        if attempt is None or not attempt.is_alive():
            # In the results of the attempt before; one that got through is made to repeat its end, or more.
            for name in RESULTS:
                (folder / "models" / name).unlink(missing_ok=True)
            if (folder / f"models/checkpoint-{ITERATIONS:06}.pth.tar").exists():
                back_to = chance.randrange(ITERATIONS)
                for path in (folder / "models").glob("*checkpoint-*"):
                    if int(path.name.split("-")[-1].split(".")[0]) > back_to:
                        path.unlink()
            attempt = Attempt(folder, chance.randint(1, 3), processes)
        aim = chance.choice(AIMS)
        while attempt.is_alive() and not attempt.has_begun(aim):
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, 1.0 if aim == "any time" else 0.03))
        if kind := attempt.kill(chance):
            fell[kind] += 1
            print(f"kill {sum(fell.values())} of {kills}: aimed at {aim}, fell into {kind}", flush=True)
            if kind == "recalibration" and processes > 1 and chance.random() < 0.5:
                attempt.process.terminate()  # there would be nothing but the recalibration left to be killed
                attempt.end()
    assert attempt is not None
    if attempt.end() != 0 and Attempt(folder, 2, processes).end() != 0:
        sys.exit("the last attempt failed")
    return dict(fell)


def result(folder: Path) -> dict[str, torch.Tensor]:
    files = {name: torch.load(folder / "models" / name, weights_only=True) for name in RESULTS}
    return {f"{name}: {key}": tensor for name, content in files.items() for key, tensor in content["state_dict"].items()}


def main() -> int:
    parser = argparse.ArgumentParser(description="Kills a run again and again and compares the bits of its result.")
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    parser.add_argument("--processes", type=int, default=1, help="that torchrun starts; 1 is without torchrun")
    arguments = parser.parse_args()
    several = arguments.processes > 1
    output = Path(__file__).parent / f"results/kill_test{'_processes' * several}.json"
    with tempfile.TemporaryDirectory() as name:
        untouched, killed = Path(name) / "untouched", Path(name) / "killed"
        (killed / "models").mkdir(parents=True)
        if Attempt(untouched, 2, arguments.processes).end() != 0:
            sys.exit("the untouched run failed")
        fell = killed_run(killed, arguments.kills, arguments.processes, random.Random(arguments.seed))
        expected, found = result(untouched), result(killed)
    differing = [key for key in expected if not torch.equal(expected[key], found[key])]
    report = {
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/kill_test.py --kills {arguments.kills} --seed {arguments.seed}"
        + f" --processes {arguments.processes}" * several,
        "machine": machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "kills that fell into": fell,
        "tensors compared": len(expected),
        "tensors that differ": differing,
    }
    output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{arguments.kills} kills, which fell into {fell}; {len(expected)} tensors, {len(differing)} differ")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
