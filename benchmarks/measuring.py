"""What the benchmarks ran on, and how much of it was theirs. Imports nothing heavy."""

import os
import platform
from pathlib import Path

USABLE_CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def machine() -> dict[str, object]:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    return {"cpu": models[0] if models else platform.machine(), "cores": len(USABLE_CORES)}


def seconds_of_others(cores: list[int]) -> float:
    """Time that these cores have spent on neither idling nor this process and its ended children."""
    lines = (line.split() for line in Path("/proc/stat").read_text().splitlines())
    counts = {name: [int(count) for count in rest] for name, *rest in lines if name.startswith("cpu")}
    # user, nice, system, idle, iowait, irq, softirq, steal
    busy = sum(sum(counts[f"cpu{core}"][:8]) - sum(counts[f"cpu{core}"][3:5]) for core in cores)
    return busy / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])
