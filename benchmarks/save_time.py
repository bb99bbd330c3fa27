"""Measure by how much saving a checkpoint slows training: compare iterations during which a checkpoint is written with others.

The command `train` runs on the built-in digits, enlarged to 224 pixels, and saves after every fourth iteration. The time of an
iteration is the time from the end of the previous iteration to its own end. The first 8 iterations are not counted.

    python benchmarks/save_time.py [--model-size 1.5x] [--batch-size 16] [--iterations 80]
"""

import argparse
import importlib
import itertools
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import ClassVar

import torch
from measuring import RESULTS, ROOT, write_report
from torch import Tensor

from shufflenetv2.cli import command
from shufflenetv2.engine import Hook, choose_devices

SAVE_INTERVAL, WARM_UP = 4, 8  # iterations


class IterationTimes(Hook):
    """Record the time in seconds at which each iteration ends."""

    ends: ClassVar[list[float]] = []

    def after_iteration(self, iteration: int, loss: Tensor, logits: Tensor) -> None:
        loss.item()  # waits for the device
        self.ends.append(time.perf_counter())


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the time of iterations with and without saving a checkpoint.")
    parser.add_argument("--model-size", default="1.5x", help="(default: %(default)s)")
    parser.add_argument("--batch-size", default="16", help="(default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=80, help="(default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = (
            f"--model-size {arguments.model_size} --input-size 224 --resize-size 224 --batch-size {arguments.batch_size} "
            f"--total-iters {arguments.iterations} --save-interval {SAVE_INTERVAL} --val-interval 1000000 "
            f"--display-interval 1000000 --hook save_time:IterationTimes --save {folder}/models --log-dir {folder}/logs"
        )
        status = command.main(["--config", str(ROOT / "configs/digits.yaml"), *options.split()])
        if status:
            return status
        megabytes = next(Path(folder, "models").glob("checkpoint-*")).stat().st_size / 1e6
    # The option `--hook` imports this file a second time, as the module `save_time`, whose class has recorded the times.
    ends = importlib.import_module("save_time").IterationTimes.ends
    # The checkpoint after iteration k is written during iteration k + 1.
    seconds = {k: end - start for k, (start, end) in enumerate(itertools.pairwise(ends), 2)}
    with_save = [time for k, time in seconds.items() if k > WARM_UP and (k - 1) % SAVE_INTERVAL == 0]
    without = [time for k, time in seconds.items() if k > WARM_UP and (k - 1) % SAVE_INTERVAL != 0]
    words = ["python benchmarks/save_time.py", "--model-size", arguments.model_size, "--batch-size", arguments.batch_size]
    report = write_report(
        RESULTS / "save_time.json",
        [*words, "--iterations", arguments.iterations],
        {
            "machine": {"device": str(choose_devices("auto"))},
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "checkpoint MB": round(megabytes, 1),
            "iterations with a save": len(with_save),
            "median seconds with a save": statistics.median(with_save),
            "median seconds without": statistics.median(without),
            "ratio": statistics.median(with_save) / statistics.median(without),
        },
    )
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
