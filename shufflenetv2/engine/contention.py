"""Detect that threads of a run wait for cores which other processes use; on Linux, where /proc shows it."""

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

WINDOW = 5.0  # seconds between two readings
MIN_OTHERS = 0.25  # share of the usable cores that other processes use
MIN_WAITING = 0.3  # threads of this process that wait for a core, on average


@dataclass(frozen=True)
class _Reading:
    """Times in seconds.

    Attributes:
        now: monotonic clock.
        busy: time that the usable cores have been busy, by any process.
        own: time that this process has used.
        waiting: time that its threads have waited for a core although they could have run.
    """

    now: float
    busy: float
    own: float
    waiting: float


class CoreContention:
    """Report once when other processes keep the threads of this run waiting; report nothing on quiet cores.

    Args:
        processes: number of processes of the run on this machine; the cores that this process uses are counted for each.
        proc: the proc file system; without it, as on macOS and Windows, nothing is reported.
    """

    def __init__(self, processes: int = 1, proc: Path = Path("/proc")) -> None:
        self._processes, self._proc = processes, proc
        self._last: _Reading | None = None
        self._is_active = (proc / "stat").exists()

    def check(self) -> str:
        """Return a warning for the log if the cores are contended, once; '' otherwise. Reads nothing more often than needed."""
        now, last = time.monotonic(), self._last
        if not self._is_active or (last and now - last.now < WINDOW):
            return ""
        try:
            reading = self._last = self._read(now)
        except (OSError, KeyError, ValueError):  # a container may hide the files, or some of the cores
            self._is_active = False
            return ""
        if last is None:
            return ""
        seconds, cores = reading.now - last.now, len(os.sched_getaffinity(0))
        others = (reading.busy - last.busy - self._processes * (reading.own - last.own)) / seconds
        waiting = (reading.waiting - last.waiting) / seconds
        if others < MIN_OTHERS * cores or waiting < MIN_WAITING:
            return ""
        self._is_active = False
        threads = max(1, int(cores - others))
        return (
            f"other processes use {others:.1f} of the {cores} cores, and {waiting:.1f} threads of this run wait for "
            f"one, which slows the run down; free the cores, or use fewer threads: OMP_NUM_THREADS={threads} for the network, "
            "and fewer loader workers"
        )

    def _read(self, now: float) -> _Reading:
        ticks = os.sysconf("SC_CLK_TCK")
        counts = {name: list(map(int, rest)) for name, *rest in map(str.split, self._lines("stat")) if name.startswith("cpu")}
        # Columns of a core: user, nice, system, idle, iowait, irq, softirq, steal.
        busy = sum(sum(counts[f"cpu{core}"][:8]) - sum(counts[f"cpu{core}"][3:5]) for core in os.sched_getaffinity(0))
        own = self._lines("self/stat")[0].rpartition(")")[2].split()
        waiting = 0
        for file in (self._proc / "self/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):  # the thread has ended
                waiting += int(file.read_text().split()[1])
        return _Reading(now, busy / ticks, (int(own[11]) + int(own[12])) / ticks, waiting / 1e9)

    def _lines(self, name: str) -> list[str]:
        return (self._proc / name).read_text().splitlines()
