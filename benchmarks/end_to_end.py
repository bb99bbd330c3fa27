"""The command as a whole, as processes of its own on class folders of photographs: how soon, how fast, how large.

One repeat is three processes. The first trains from start to end; its TRAIN lines say how fast it was and how long
it waited for images, and its first line is left out of that. The second is stopped by SIGTERM half way, and the third
is the same command again, which goes on; both print every iteration, and from the start of each to its first TRAIN
line is the time to the first iteration, new and resumed; the third is then stopped as well. Peak memory is that of
the first process. A short run before all others is not counted: it brings the files into memory.

    python benchmarks/photographs.py FOLDER
    python benchmarks/end_to_end.py FOLDER [--model-size 0.5x] [--batch-size 32] [--total-iters 30] [--repeats 3]
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Not torch: to what a process is said to have used at most belongs what this one, which started it, had in use.
from measuring import USABLE_CORES, machine, seconds_of_others

ROOT = Path(__file__).resolve().parents[1]
TRAIN_LINE = re.compile(r"TRAIN Iter (\d+):.*data_time = ([\d.]+),\s+train_time = ([\d.]+)")
UNITS = {
    "to the first iteration": "s",
    "to the first iteration after SIGTERM": "s",
    "to the end": "s",
    "images per second": "",
    "share of the time waiting for images": "",
    "peak memory": "MB",
}


@dataclasses.dataclass
class Finished:
    """A process that has ended: what it printed and when, and what it took. Times are seconds from its start."""

    lines: list[tuple[float, str]]
    status: int
    seconds: float
    peak_megabytes: float

    def train_lines(self) -> list[tuple[float, float, float]]:
        """When each was printed; its data_time and train_time."""
        found = ((at, TRAIN_LINE.search(line)) for at, line in self.lines)
        return [(at, float(match[2]), float(match[3])) for at, match in found if match]

    def find(self, text: str) -> str:
        """What follows the text in the first line that has it; "" if none has."""
        return next((line.split(text)[1].strip() for _, line in self.lines if text in line), "")


def train(options: list[str], *more: str, stop_after: int | None = None) -> Finished:
    """Runs train.py to its end, or sends it SIGTERM when it has printed so many TRAIN lines."""
    start, lines = time.perf_counter(), []
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *options, *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        lines.append((time.perf_counter() - start, line))
        if "TRAIN Iter" in line and sum("TRAIN Iter" in earlier for _, earlier in lines) == stop_after:
            process.terminate()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    finished = Finished(lines, process.returncode, time.perf_counter() - start, peak / 1e6)
    if finished.status != (0 if stop_after is None else 128 + signal.SIGTERM):
        sys.exit("".join(line for _, line in lines[-20:]) + f"train.py ended with status {finished.status}")
    return finished


def measure(options: list[str], batch_size: int, total_iters: int, display_interval: int) -> dict[str, float]:
    """The figures of one repeat."""
    with tempfile.TemporaryDirectory() as folder:
        options = [*options, "--log-dir", f"{folder}/logs"]
        whole = train(options, "--save", f"{folder}/whole", "--display-interval", str(display_interval))
        parts = [*options, "--save", f"{folder}/parts", "--display-interval", "1"]
        stopped = train(parts, stop_after=total_iters // 2)
        resumed = train(parts, stop_after=1)
    assert resumed.find("going on from"), "it started over"
    steady = whole.train_lines()[1:]
    data_time, train_time = (statistics.mean(line[column] for line in steady) for column in (1, 2))
    figures = (
        stopped.train_lines()[0][0],
        resumed.train_lines()[0][0],
        whole.seconds,
        batch_size / train_time,
        data_time / train_time,
        whole.peak_megabytes,
    )
    return dict(zip(UNITS, figures, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description="train.py as a whole: how soon, how fast, how large.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="class folders of images (see photographs.py)")
    parser.add_argument("--model-size", default="0.5x", help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument("--total-iters", type=int, default=30, help="(default: %(default)s)")
    parser.add_argument("--display-interval", type=int, default=10, help="of the first process (default: %(default)s)")
    parser.add_argument("--save-interval", default="20", help="(default: %(default)s)")
    parser.add_argument("--device", default="auto", help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=len(USABLE_CORES), help="of torch (default: the usable cores)")
    parser.add_argument("--repeats", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results/end_to_end.json")
    arguments = parser.parse_args()
    if arguments.total_iters < 2 * arguments.display_interval:
        parser.error("--total-iters is at least twice --display-interval: the first TRAIN line is not counted")

    names = ("model_size", "batch_size", "total_iters", "save_interval", "device")
    given = [text for name in names for text in (f"--{name.replace('_', '-')}", str(getattr(arguments, name)))]
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # for train.py
    options = ["--train-dir", str(arguments.folder), *given]
    with tempfile.TemporaryDirectory() as folder:
        warm_up = train(options, "--total-iters", "1", "--save", f"{folder}/models", "--log-dir", f"{folder}/logs")
    device = warm_up.find("training on")
    repeats: list[dict[str, float]] = []
    start, taken_before = time.perf_counter(), seconds_of_others(USABLE_CORES)
    for repeat in range(arguments.repeats):
        repeats.append(measure(options, arguments.batch_size, arguments.total_iters, arguments.display_interval))
        print(f"repeat {repeat + 1}:", {name: round(figure, 3) for name, figure in repeats[-1].items()}, flush=True)
    lost = max(0.0, seconds_of_others(USABLE_CORES) - taken_before) / (time.perf_counter() - start)

    results = {
        name: {
            "unit": unit,
            "median": round(statistics.median(figures[name] for figures in repeats), 4),
            "repeats": [round(figures[name], 4) for figures in repeats],
        }
        for name, unit in UNITS.items()
    }
    print(f"\nmedians of {arguments.repeats}, on {device}; {lost:.2f} of {len(USABLE_CORES)} cores lost to others")
    for name, result in results.items():
        print(f"{name:38}{result['median']:>10.2f} {result['unit']}")

    command = ["python benchmarks/end_to_end.py FOLDER", *given, "--display-interval", arguments.display_interval]
    command += ["--threads", arguments.threads, "--repeats", arguments.repeats]
    report = {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(map(str, command)),
        "machine": {**machine(), "device": device},
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("torch", "opencv-python-headless")},
        },
        "model size": arguments.model_size,
        "batch size": arguments.batch_size,
        "iterations": arguments.total_iters,
        "threads": arguments.threads,
        "cores lost to other processes": round(lost, 3),
        "results": results,
    }
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
