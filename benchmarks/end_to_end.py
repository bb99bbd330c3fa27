"""Measure `train.py` as a whole on class folders of photographs: time to the first iteration, speed, memory.

One repeat starts three processes:

1. One trains from start to end. Its TRAIN lines, except the first, give the speed and the share of time spent waiting for
   images. Its peak memory is recorded.
2. One prints every iteration, and is stopped by SIGTERM half way. The time until its first TRAIN line is the time to the first
   iteration of a new run.
3. The same command again continues the second run. The time until its first TRAIN line is the time to the first iteration of a
   resumed run. Then this process is stopped too.

Before the first repeat, a short run that is not counted makes the operating system read the files into memory.

    python benchmarks/photographs.py FOLDER
    python benchmarks/end_to_end.py FOLDER [--model-size 0.5x] [--batch-size 32] [--total-iters 30] [--repeats 3]
"""

import argparse
import dataclasses
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# torch is not imported: the peak memory of a child process includes what this process used when it started the child.
from measuring import RESULTS, ROOT, USABLE_CORES, OtherLoad, installed_versions, write_report

TRAIN_LINE = re.compile(r"TRAIN Iter \d+:.*data_time = ([\d.]+),\s+train_time = ([\d.]+)")  # in train.log
PRINTED_LINE = re.compile(r"iter +[\d,]+/")
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
    """A process that has ended.

    Attributes:
        lines: (time of printing in seconds after the start of the process, text) of each line.
        status: exit status.
        seconds: duration of the process.
        peak_megabytes: largest resident memory.
    """

    lines: list[tuple[float, str]]
    status: int
    seconds: float
    peak_megabytes: float

    def time_of_first_iterations(self) -> float:
        """Return the seconds from the start to the first line about iterations."""
        return next(time for time, line in self.lines if PRINTED_LINE.match(line))

    def text_after(self, text: str) -> str:
        """Return the rest of the first line that contains `text`, after `text`; "" if no line contains it."""
        return next((line.split(text)[1].strip() for _, line in self.lines if text in line), "")


def train(options: list[str], *more: str, stop_after: int | None = None) -> Finished:
    """Run train.py to its end, or send it SIGTERM after `stop_after` lines about iterations."""
    start, lines = time.perf_counter(), []
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *options, *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        lines.append((time.perf_counter() - start, line))
        if PRINTED_LINE.match(line) and sum(bool(PRINTED_LINE.match(earlier)) for _, earlier in lines) == stop_after:
            process.terminate()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    finished = Finished(lines, process.returncode, time.perf_counter() - start, peak / 1e6)
    if finished.status != (0 if stop_after is None else 128 + signal.SIGTERM):
        sys.exit("".join(line for _, line in lines[-20:]) + f"train.py ended with status {finished.status}")
    return finished


def measure(options: list[str], batch_size: int, total_iters: int, display_interval: int) -> dict[str, float]:
    """Run the three processes of one repeat, and return the value of every name in UNITS."""
    with tempfile.TemporaryDirectory() as folder:
        options = [*options, "--log-dir", f"{folder}/logs"]
        complete = train(options, "--save", f"{folder}/complete", "--display-interval", str(display_interval))
        times = TRAIN_LINE.findall(Path(folder, "logs/complete/train.log").read_text(encoding="utf-8"))
        interrupted = [*options, "--save", f"{folder}/interrupted", "--display-interval", "1"]
        stopped = train(interrupted, stop_after=total_iters // 2)
        resumed = train(interrupted, stop_after=1)
    assert resumed.text_after("continuing from"), "the third process started over instead of continuing"
    data_time, train_time = (statistics.mean(map(float, column)) for column in zip(*times[1:], strict=True))
    values = (
        stopped.time_of_first_iterations(),
        resumed.time_of_first_iterations(),
        complete.seconds,
        batch_size / train_time,
        data_time / train_time,
        complete.peak_megabytes,
    )
    return dict(zip(UNITS, values, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description="train.py as a whole: time to start, speed, memory.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="class folders of images (see photographs.py)")
    parser.add_argument("--model-size", default="0.5x", help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument("--total-iters", type=int, default=30, help="(default: %(default)s)")
    parser.add_argument("--display-interval", type=int, default=10, help="in the first process (default: %(default)s)")
    parser.add_argument("--save-interval", default="20", help="(default: %(default)s)")
    parser.add_argument("--device", default="auto", help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=len(USABLE_CORES), help="threads of torch (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS / "end_to_end.json")
    arguments = parser.parse_args()
    if arguments.total_iters < 2 * arguments.display_interval:
        parser.error("--total-iters must be at least twice --display-interval, since the first TRAIN line is not counted")

    names = ("model_size", "batch_size", "total_iters", "save_interval", "device")
    settings = [text for name in names for text in (f"--{name.replace('_', '-')}", str(getattr(arguments, name)))]
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # for train.py
    options = ["--train-dir", str(arguments.folder), *settings]
    with tempfile.TemporaryDirectory() as folder:
        warm_up = train(options, "--total-iters", "1", "--save", f"{folder}/models", "--log-dir", f"{folder}/logs")
    device = warm_up.text_after("  device ").split(";")[0]
    repeats: list[dict[str, float]] = []
    load = OtherLoad()
    for repeat in range(arguments.repeats):
        repeats.append(measure(options, arguments.batch_size, arguments.total_iters, arguments.display_interval))
        print(f"repeat {repeat + 1}:", {name: round(value, 3) for name, value in repeats[-1].items()}, flush=True)
    lost = load.cores_lost()

    results = {
        name: {
            "unit": unit,
            "median": round(statistics.median(values[name] for values in repeats), 4),
            "repeats": [round(values[name], 4) for values in repeats],
        }
        for name, unit in UNITS.items()
    }
    print(
        f"\nmedians of {arguments.repeats} repeats, on {device}; "
        f"other processes occupied {lost:.2f} of {len(USABLE_CORES)} cores"
    )
    for name, result in results.items():
        print(f"{name:38}{result['median']:>10.2f} {result['unit']}")

    command = ["python benchmarks/end_to_end.py FOLDER", *settings, "--display-interval", str(arguments.display_interval)]
    command += ["--threads", str(arguments.threads), "--repeats", str(arguments.repeats)]
    write_report(
        arguments.output,
        command,
        {
            "machine": {"device": device},
            "versions": installed_versions("torch", "opencv-python-headless"),
            "model size": arguments.model_size,
            "batch size": arguments.batch_size,
            "iterations": arguments.total_iters,
            "threads": arguments.threads,
            "cores lost to other processes": round(lost, 3),
            "results": results,
        },
    )


if __name__ == "__main__":
    main()
