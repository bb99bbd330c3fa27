"""A run beside other processes: how its threads wait for each other, and the line that says why it is slow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shufflenetv2.engine.contention import CoreContention
from tests.support import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the cores and libgomp are read as on Linux")
CORES = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []


def write_proc(folder: Path, *, busy: float, own: float, waiting: float) -> None:
    """Write what the kernel reports: seconds of all cores together, of the process, and of its two waiting threads."""
    ticks = os.sysconf("SC_CLK_TCK")
    each = round(busy / len(CORES) * ticks)
    (folder / "stat").write_text("cpu 0 0 0 0\n" + "".join(f"cpu{core} {each} 0 0 777 55 0 0 0 0 0\n" for core in CORES))
    for thread in ("1", "2"):
        (folder / "self/task" / thread).mkdir(parents=True, exist_ok=True)
        (folder / "self/task" / thread / "schedstat").write_text(f"123 {round(waiting / 2 * 1e9)} 7\n")
    numbers = f"{round(own * ticks)} 0 0 0"  # utime and stime are fields 14 and 15
    (folder / "self/stat").write_text(f"1 (python (3)) R {'0 ' * 10}{numbers}\n")


@pytest.mark.parametrize(
    ("others", "own", "waiting", "processes", "is_reported"),
    [
        (0.9, 0.9, 0.8, 1, True),
        (0.0, 2.0, 1.5, 1, False),  # quiet cores: the threads of the run wait for each other
        (0.9, 0.1, 0.0, 1, False),  # the run needs little
        (0.4, 0.4, 0.8, 2, False),  # the others are the second process of the run
    ],
)
def test_waiting_for_cores_that_others_use_is_reported_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    others: float,
    own: float,
    waiting: float,
    processes: int,
    is_reported: bool,
) -> None:
    """`others` and `own` are shares of the cores; `waiting` is the number of threads that wait."""
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    write_proc(tmp_path, busy=0, own=0, waiting=0)
    contention = CoreContention(processes, tmp_path)
    lines = [contention.check()]
    for number in range(1, 4):
        now += 10
        seconds = 10 * number * len(CORES)
        write_proc(tmp_path, busy=(others + own) * seconds, own=own * seconds, waiting=waiting * 10 * number)
        lines.append(contention.check())
    assert [bool(line) for line in lines] == [False, is_reported, False, False]
    if is_reported:
        assert f"other processes use {others * len(CORES):.1f} of the {len(CORES)} cores" in lines[1]
        assert "OMP_NUM_THREADS=" in lines[1]


def test_a_system_without_these_figures_reports_nothing(tmp_path: Path) -> None:
    assert CoreContention(proc=tmp_path / "absent").check() == ""
    (tmp_path / "stat").write_text("cpu 1 2 3 4\n")  # no single cores
    contention = CoreContention(proc=tmp_path)
    assert [contention.check(), contention.check()] == ["", ""]


@pytest.mark.parametrize(
    ("command", "environment", "expected"),
    [
        (["train.py", "--train-dir", "absent"], {}, "GOMP_SPINCOUNT = '5000'"),
        (["-m", "shufflenetv2", "info", "absent"], {"GOMP_SPINCOUNT": "77"}, "GOMP_SPINCOUNT = '77'"),
        (["-m", "shufflenetv2", "info", "absent"], {"OMP_WAIT_POLICY": "active"}, "GOMP_SPINCOUNT = '30000000000'"),
    ],
)
def test_libgomp_spins_briefly_unless_the_user_says_otherwise(
    command: list[str], environment: dict[str, str], expected: str
) -> None:
    """libgomp prints the values with which it was loaded."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=inherited | environment | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("torch uses another OpenMP than libgomp")
    assert expected in done.stderr
