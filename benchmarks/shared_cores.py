"""Measure what it costs to train on cores that other processes use as well, by how long OpenMP's threads spin.

libgomp, PyTorch's OpenMP on Linux, lets a thread that waits for others spin before it sleeps. These cases are compared:

  shufflenetv2        the program as it is: the command sets GOMP_SPINCOUNT before it imports torch
  libgomp's default   GOMP_SPINCOUNT=300000, which is libgomp's value if no variable is set
  N                   GOMP_SPINCOUNT=N, for every N in --spin-counts

One repeat runs `train.py` on the built-in digits once per case, first alone, then beside busy processes that compute without
end. The time of an iteration is that between the first and the last TRAIN line, divided by the number of iterations. A run
that exceeds --limit seconds is killed, and its iterations so far are counted. The load by processes that do not belong to the
benchmark is measured as well: "alone" is only meaningful where it is near 0.

    python benchmarks/shared_cores.py [--iterations 60] [--repeats 3] [--busy 2] [--spin-counts N ...] [--output FILE]
"""

import argparse
import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from measuring import RESULTS, ROOT, USABLE_CORES, OtherLoad, installed_versions, summarize, write_report

from shufflenetv2.cli.command import SPIN_COUNT

TRAIN_LINE = re.compile(r"iter +(\d+)/")
LIBGOMP_SPIN_COUNT = "300000"
VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
ALONE = "alone"


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep this many cores busy during the block."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def seconds_per_iteration(spin_count: str, iterations: int, limit: float) -> float:
    """Run train.py on the digits, and return the mean time of its iterations after the first line about one.

    Args:
        spin_count: value of GOMP_SPINCOUNT; "" leaves it to the program.
        limit: seconds after that line, at which the run is killed.
    """
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    if spin_count:
        environment["GOMP_SPINCOUNT"] = spin_count
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), "--config", str(ROOT / "configs/digits.yaml"), "--save", folder]
        command += ["--total-iters", str(iterations), "--display-interval", "1", "--no-validate"]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        printed, rest = [], []
        for line in process.stdout:
            rest.append(line)
            if match := TRAIN_LINE.search(line):
                printed.append((int(match[1]), time.perf_counter()))
                if printed[-1][1] - printed[0][1] > limit:
                    process.kill()
        if process.wait() not in (0, -signal.SIGKILL):
            sys.exit("".join(rest[-5:]) + "train.py failed")
    (first, start), (last, end) = printed[0], printed[-1]
    return (end - start) / (last - first)


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds per iteration, alone and beside busy processes.")
    parser.add_argument("--iterations", type=int, default=60, help="(default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each case (default: %(default)s)")
    parser.add_argument("--busy", type=int, default=len(USABLE_CORES), help="busy processes (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=20, help="seconds after which a run is stopped (default: %(default)s)")
    parser.add_argument("--spin-counts", nargs="*", default=[], metavar="N", help="further values of GOMP_SPINCOUNT")
    parser.add_argument("--output", type=Path, default=RESULTS / "shared_cores.json")
    arguments = parser.parse_args()

    cases = {"shufflenetv2": "", "libgomp's default": LIBGOMP_SPIN_COUNT, **{count: count for count in arguments.spin_counts}}
    conditions = {ALONE: 0, f"beside {arguments.busy} busy processes": arguments.busy}
    times: dict[str, dict[str, list[float]]] = {case: {condition: [] for condition in conditions} for case in cases}
    loads: dict[str, list[float]] = {condition: [] for condition in conditions}
    for repeat in range(arguments.repeats):
        for condition, busy in conditions.items():
            for case, spin_count in cases.items():
                load = OtherLoad()
                with busy_processes(busy):
                    times[case][condition].append(seconds_per_iteration(spin_count, arguments.iterations, arguments.limit))
                loads[condition].append(load.cores_lost())
                print(
                    f"repeat {repeat + 1}, {condition}, {case}: {times[case][condition][-1]:.3f} s per iteration, "
                    f"{loads[condition][-1]:.1f} cores used by other programs",
                    flush=True,
                )
    words = ["python benchmarks/shared_cores.py", "--iterations", arguments.iterations, "--repeats", arguments.repeats]
    words += ["--busy", arguments.busy, "--limit", arguments.limit]
    words += ["--spin-counts", *arguments.spin_counts] if arguments.spin_counts else []
    results = {
        case: {
            **{condition: summarize(values, 4) for condition, values in by_condition.items()},
            "ratio to alone": round(
                statistics.median(by_condition[list(conditions)[1]]) / statistics.median(by_condition[ALONE]), 2
            ),
        }
        for case, by_condition in times.items()
    }
    write_report(
        arguments.output,
        words,
        {
            "versions": installed_versions("torch"),
            "note": "seconds per iteration of configs/digits.yaml, whole batches of 64 images",
            "spin count of shufflenetv2": int(SPIN_COUNT),
            "results": results,
            "cores lost to other processes": {condition: round(statistics.mean(v), 2) for condition, v in loads.items()},
        },
    )


if __name__ == "__main__":
    main()
