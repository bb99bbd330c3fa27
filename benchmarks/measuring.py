"""Functions that all benchmarks use: description of the machine, load by other processes, statistics, report file.

After importing this module, `import shufflenetv2` imports the package of this checkout, even if another one is installed. The
module does not import torch, because end_to_end.py measures the memory of processes that it starts.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
USABLE_CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

sys.path.insert(0, str(ROOT))


def describe_machine() -> dict[str, Any]:
    """Return the name of the processor and the number of cores that this process may use."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    return {"cpu": models[0] if models else platform.machine(), "cores": len(USABLE_CORES)}


def installed_versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of the packages, without importing them."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


class OtherLoad:
    """Measure how many cores other processes have occupied, on average, since this object was made.

    Timings are only reliable if the result of `cores_lost` is near 0.

    Args:
        cores: numbers of the cores to observe.
    """

    def __init__(self, cores: Sequence[int] = USABLE_CORES) -> None:
        self.cores = cores
        self.start, self.busy_before = time.perf_counter(), self.busy_seconds()

    def busy_seconds(self) -> float:
        """Return the time that the cores have been busy, without this process and its ended children."""
        lines = (line.split() for line in Path("/proc/stat").read_text().splitlines())
        counts = {name: [int(count) for count in rest] for name, *rest in lines if name.startswith("cpu")}
        # The columns are: user, nice, system, idle, iowait, irq, softirq, steal.
        busy = sum(sum(counts[f"cpu{core}"][:8]) - sum(counts[f"cpu{core}"][3:5]) for core in self.cores)
        return busy / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])

    def cores_lost(self) -> float:
        return max(0.0, self.busy_seconds() - self.busy_before) / (time.perf_counter() - self.start)


def summarize(values: Sequence[float], digits: int) -> dict[str, Any]:
    """Return median, minimum, maximum and the values themselves, rounded to `digits` decimal places."""
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
        "repeats": [round(value, digits) for value in values],
    }


def summarize_rates(rates: dict[str, list[float]], base: str) -> dict[str, dict[str, Any]]:
    """Summarize the rates of each program compared, with the ratio of its median to the median of the program `base`."""
    base_median = statistics.median(rates[base])
    return {
        name: {**summarize(values, 1), f"ratio to {base}": round(statistics.median(values) / base_median, 3)}
        for name, values in rates.items()
    }


def write_report(path: Path, command: Sequence[object], content: dict[str, Any]) -> dict[str, Any]:
    """Write the report of a benchmark as JSON, and return it.

    Args:
        path: the file to write.
        command: the words of the command with which the measurement can be repeated.
        content: what was measured, and under "versions" the versions of Python and of relevant packages. Entries under
            "machine" are added to the description of the machine.
    """
    report = {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(map(str, command)),
        **content,
        "machine": describe_machine() | content.get("machine", {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    return report
