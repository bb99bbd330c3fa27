"""Train for many iterations, and check that memory, file descriptors and threads of the process do not grow.

Every thousandth of the run the process is sampled, with validations and checkpoints in between. The first tenth is warm-up.

    python benchmarks/soak.py [--iterations 20000] [--batch-size 16] [--threads 1] [--output FILE]
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from measuring import RESULTS, ROOT, installed_versions, write_report

WARM_UP = 0.1  # part of the run
SMOOTHING = 50  # samples in a median: a sample falls into a validation, or into the writing of a checkpoint, at random


class Sample(NamedTuple):
    """State of a process."""

    megabytes: float  # resident memory
    descriptors: int
    threads: int


def sample(process: int) -> Sample:
    """Read the state of a process from /proc."""
    status = Path(f"/proc/{process}/status").read_text()
    (kilobytes,), (threads,) = re.findall(r"VmRSS:\s+(\d+) kB", status), re.findall(r"Threads:\s+(\d+)", status)
    return Sample(int(kilobytes) / 1024, len(os.listdir(f"/proc/{process}/fd")), int(threads))


def watch(options: argparse.Namespace, folder: Path) -> list[Sample]:
    """Train, and return the samples after the warm-up."""
    interval = max(1, options.iterations // 1000)
    command = [
        sys.executable, str(ROOT / "train.py"), "--dataset", "digits", "--model-size", "0.5x", "--input-size", "32",
        "--resize-size", "32", "--batch-size", str(options.batch_size), "--learning-rate", "0.01", "--model-ema",
        "--total-iters", str(options.iterations), "--display-interval", str(interval), "--val-interval", str(10 * interval),
        "--save-interval", str(10 * interval), "--checkpoint-hist", "3", "--save", str(folder), "--workers", "2",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    metrics, samples, seen = folder / "logs" / "metrics.jsonl", [], 0
    while process.poll() is None:
        time.sleep(0.1)
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        if len(lines) <= seen or not lines[-1].endswith("}"):
            continue
        seen = len(lines)
        iteration = json.loads(lines[-1])["iteration"]
        if WARM_UP * options.iterations <= iteration < options.iterations - 10 * interval:  # the end of a run is different
            samples.append(sample(process.pid))
    if process.returncode:
        sys.exit(f"the training ended with status {process.returncode}")
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--output", type=Path, default=RESULTS / "soak.json")
    options = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        samples = watch(options, Path(folder) / "run")
    size = max(1, min(SMOOTHING, len(samples) // 4))
    memory = [state.megabytes for state in samples]
    first, last = statistics.median(memory[:size]), statistics.median(memory[-size:])
    result = {
        "samples": len(samples),
        "megabytes at the start": round(first, 1),
        "megabytes at the end": round(last, 1),
        "growth in percent": round(100 * (last / first - 1), 2),
        "megabytes, smallest and largest": [round(min(memory), 1), round(max(memory), 1)],
        "descriptors, smallest and largest": [min(counts := [state.descriptors for state in samples]), max(counts)],
        "threads, smallest and largest": [min(counts := [state.threads for state in samples]), max(counts)],
        "seconds": round(time.perf_counter() - started),
    }
    print(json.dumps(result, indent=4))
    command = ["python benchmarks/soak.py --iterations", options.iterations, "--batch-size", options.batch_size]
    versions = installed_versions("torch", "numpy", "opencv-python-headless")
    write_report(options.output, [*command, "--threads", options.threads], {"soak": result, "versions": versions})


if __name__ == "__main__":
    main()
