"""What a checkpoint costs: the time of iterations during which one is copied and written, against all others.

The trainer itself, on the built-in digits enlarged to 224 pixels; every fourth iteration is followed by a save. An
iteration's time is from the end of one to the end of the next, with all that happens in between.

    python benchmarks/save_time.py [--model-size 1.5x] [--batch-size 16] [--iterations 80]
"""

import argparse
import datetime
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from measuring import machine

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from shufflenetv2.cli import build  # noqa: E402
from shufflenetv2.cli.command import parse  # noqa: E402
from shufflenetv2.engine import GracefulShutdown, choose_devices  # noqa: E402
from shufflenetv2.engine.trainer import TrainingRun  # noqa: E402
from shufflenetv2.report import RunLog  # noqa: E402

SAVE_INTERVAL, WARM_UP = 4, 8


class Timed(TrainingRun):
    """Notes when each iteration ended."""

    ends: list[float]

    def check(self) -> None:
        self.ends.append(time.perf_counter())
        super().check()


def main() -> int:
    parser = argparse.ArgumentParser(description="The time of iterations with a save and without.")
    parser.add_argument("--model-size", default="1.5x")
    parser.add_argument("--batch-size", default="16")
    parser.add_argument("--iterations", type=int, default=80)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, RunLog(silent=True) as log:
        options = parse(
            ["--config", str(ROOT / "configs/digits.yaml"), "--model-size", arguments.model_size, "--input-size", "224",
             "--resize-size", "224", "--batch-size", arguments.batch_size, "--total-iters", str(arguments.iterations),
             "--save-interval", str(SAVE_INTERVAL), "--val-interval", "1000000", "--display-interval", "1000000"]
        )  # fmt: skip
        train_set, _ = build.data_sets(options)
        devices = choose_devices(options.device)
        timed = Timed(options, devices, train_set, None, None, Path(name), log, GracefulShutdown())
        timed.ends = []
        timed.train()
        megabytes = next(Path(name).glob("checkpoint-*")).stat().st_size / 1e6
    # The save after iteration k falls into the time of iteration k + 1.
    seconds = {k + 1: end - start for k, (start, end) in enumerate(zip(timed.ends, timed.ends[1:], strict=False), 1)}
    saving = [time for k, time in seconds.items() if k > WARM_UP and (k - 1) % SAVE_INTERVAL == 0]
    others = [time for k, time in seconds.items() if k > WARM_UP and (k - 1) % SAVE_INTERVAL != 0]
    report = {
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/save_time.py --model-size {arguments.model_size} --batch-size {arguments.batch_size} "
        f"--iterations {arguments.iterations}",
        "machine": machine() | {"device": str(devices)},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "checkpoint MB": round(megabytes, 1),
        "iterations with a save": len(saving),
        "median seconds with a save": statistics.median(saving),
        "median seconds without": statistics.median(others),
        "ratio": statistics.median(saving) / statistics.median(others),
    }
    (Path(__file__).parent / "results/save_time.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
