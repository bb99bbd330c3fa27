"""Give the program many generated inputs of each kind, and count how it ends: well, with one line, or in a failure.

The inputs are those of tests/hostile.py. Each kind runs in a process of its own, which is watched: a traceback, an input that
takes longer than 20 seconds, one that grows the process by more than 256 MiB, and a crash of the process are failures. They
are printed, and the inputs are kept in build/hostile. Nothing is trained.

    python benchmarks/hostile_inputs.py [--only TEXT ...] [--inputs N] [--seed 0] [--output FILE]

With --only, the results of the kinds whose names contain one of the texts replace those in the file; several such commands may
run at the same time.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from measuring import RESULTS, ROOT, installed_versions, write_report

# Beginning of the name of a kind: number of inputs
INPUTS_OF = {
    **{"images": 30_000, "command lines": 20_000, "files of options": 20_000},
    **{"damaged weight files": 5_000, "checkpoints": 5_000, "ONNX": 3_000, "ExecuTorch": 3_000},
    **{"weight files": 2_000, "YAML": 2_000, "augmentation": 2_000, "metadata": 2_000},  # hypothesis generates them, slowly
}
OTHER_INPUTS = 10_000
FAILURES = ("traceback", "hang", "crash", "memory")
ENDS = {0: "accepted", 1: "refused", 2: "refused"}
MAX_SHOWN = 5  # failures of a kind of input
MAX_SECONDS = 20  # for an input
MAX_GROWTH = 256 * 2**20  # bytes by which an input may raise the memory of the process
MAX_ADDRESSES = 8 * 2**30  # bytes of address space beyond those at the start: more cannot be allocated
KEPT = ROOT / "build" / "hostile"


def kinds() -> dict[str, Any]:
    """Return the kinds of input: those of the tests, and exported files, which take long to make."""
    from tests.hostile import INPUTS
    from tests.hostile_runs import EXPORTED

    return INPUTS | EXPORTED


def memory() -> tuple[int, int]:
    """Return the resident memory of this process, and its maximum since the last call of `reset_peak`, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) * 1024, int(lines["VmHWM"].split()[0]) * 1024


def keep(kind: str, content: bytes) -> Path:
    """Write an input that failed to a file, and return its path."""
    KEPT.mkdir(parents=True, exist_ok=True)
    path = KEPT / f"{kind}-{zlib.crc32(content):08x}"
    path.write_bytes(content)
    return path


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def examples(source: Any, count: int, number: int, use: Callable[[Any], object]) -> None:
    """Call a function with each of the examples of a kind; `number` is their seed."""
    from hypothesis import HealthCheck, Phase, given, seed, settings

    if callable(source):  # hypothesis's strategies are not
        for index in range(count):
            use(source(random.Random(number << 32 | index)))
        return

    @seed(number)
    @settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(example=source)
    def run(example: Any) -> None:
        use(example)

    run()


def child(kind: str, count: int, number: int, folder: Path) -> None:
    """Run examples of a kind in this process, and print a line of JSON about each: how it ended, seconds, bytes."""
    output = os.fdopen(os.dup(1), "w", buffering=1)
    messages = os.open(folder / "messages", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(messages, 1)  # libraries write to the standard streams
    os.dup2(messages, 2)
    source, end = kinds()[kind]
    examples(source, 3, number + 1, lambda example: _end(end, example))  # imports, and makes what is made once
    pages = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (pages + MAX_ADDRESSES,) * 2)

    def use(example: Any) -> None:
        content = example if isinstance(example, bytes) else repr(example).encode(errors="backslashreplace")
        (folder / "input").write_bytes(content)
        output.write('"begin"\n')
        before, _ = memory()
        reset_peak()
        started = time.perf_counter()
        result, text = _end(end, example)
        seconds, growth = time.perf_counter() - started, memory()[1] - before
        if result in ENDS.values() and growth > MAX_GROWTH:
            result, text = "memory", f"the memory of the process grew by {growth / 2**20:,.0f} MiB"
        if result in FAILURES:
            text = f"{text}: {keep(result, content)}"
        output.write(json.dumps([result, seconds, growth, text]) + "\n")

    examples(source, count, number, use)
    output.write('"end"\n')


def _end(end: Callable[[Any], int], example: Any) -> tuple[str, str]:
    try:
        return ENDS[end(example)], ""
    except Exception as error:  # what a user would see as a traceback
        return "traceback", f"{type(error).__name__}: {error}"[:500]


class Watch:
    """Runs a kind of input in child processes, one after the other, and counts how the inputs ended."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.ends: Counter[str] = Counter()
        self.slowest, self.growth = 0.0, 0

    def run(self, count: int, number: int) -> dict[str, Any]:
        """Run `count` inputs; after a crash or a hang, a new process goes on with other inputs."""
        started = time.perf_counter()
        while (done := self.ends.total()) < count:
            self._run_child(count - done, number)
            number += 1_000
            if self.ends["crash"] + self.ends["hang"] > MAX_SHOWN:
                break
        return {
            "inputs": self.ends.total(),
            **{name: self.ends[name] for name in ("accepted", "refused", *FAILURES)},
            "seconds": round(time.perf_counter() - started),
            "slowest input, seconds": round(self.slowest, 3),
            "largest growth of memory, MiB": round(self.growth / 2**20),
        }

    def _run_child(self, count: int, number: int) -> None:
        words = [sys.executable, __file__, "--child", self.kind, "--inputs", count, "--seed", number, "--folder", self.folder]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENCV_LOG_LEVEL": "SILENT", "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        is_in_input = has_ended = False
        for line in _lines(process):
            if line is None:
                process.kill()
                self._fail("hang", f"longer than {MAX_SECONDS} seconds: {self._keep('hang')}")
                is_in_input, has_ended = False, True
                break
            entry = json.loads(line)
            has_ended, is_in_input = entry == "end", entry == "begin"
            if not isinstance(entry, list):
                continue
            result, seconds, growth, text = entry
            self.slowest, self.growth = max(self.slowest, seconds), max(self.growth, growth)
            if result in FAILURES:
                self._fail(result, text)
            else:
                self.ends[result] += 1
        status = process.wait()
        if is_in_input:
            self._fail("crash", f"the process ended with status {status}: {self._keep('crash')}")
        elif not has_ended:
            sys.exit(f"{self.kind}: the process ended with status {status}: {(self.folder / 'messages').read_text()[-3000:]}")

    def _fail(self, kind: str, text: str) -> None:
        self.ends[kind] += 1
        if self.ends[kind] <= MAX_SHOWN:
            print(f"{self.kind}: {kind}: {text}", file=sys.stderr)

    def _keep(self, kind: str) -> Path:
        return keep(kind, (self.folder / "input").read_bytes())


def _lines(process: subprocess.Popen[bytes]) -> Iterator[bytes | None]:
    """Yield the lines that a process prints; None if it is silent for too long after the first one."""
    import select

    assert process.stdout is not None
    descriptor, rest = process.stdout.fileno(), b""
    limit: float | None = None
    while True:
        if not select.select([descriptor], [], [], limit)[0]:
            yield None
            return
        data = os.read(descriptor, 2**16)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
        limit = MAX_SECONDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, help="of every kind; default: see INPUTS_OF")
    parser.add_argument("--only", nargs="*", default=[""], help="kinds whose names contain one of these texts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS / "hostile_inputs.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.inputs, options.seed, options.folder)
        return
    if options.only == [""]:
        options.output.unlink(missing_ok=True)
    for kind in kinds():
        if any(text in kind for text in options.only):
            with tempfile.TemporaryDirectory() as folder:
                result = Watch(kind, Path(folder)).run(options.inputs or inputs_of(kind), options.seed)
            print(kind, json.dumps(result), flush=True)
            save(options.output, kind, result, list(kinds()), options.seed)


def inputs_of(kind: str) -> int:
    """Return how many inputs of a kind are tried."""
    return next((count for beginning, count in INPUTS_OF.items() if kind.startswith(beginning)), OTHER_INPUTS)


def save(path: Path, kind: str, result: dict[str, Any], kinds: Sequence[str], seed: int) -> None:
    """Add the result of a kind to the file."""
    results = json.loads(path.read_text())["results"] if path.exists() else {}
    results = {name: {**results, kind: result}[name] for name in kinds if name in results or name == kind}
    totals = {name: sum(entry[name] for entry in results.values()) for name in ("inputs", *FAILURES, "seconds")}
    packages = ("torch", "pydantic", "hypothesis", "safetensors", "PyYAML", "opencv-python-headless", "pillow")
    command = ["python benchmarks/hostile_inputs.py --seed", seed]
    write_report(path, command, {"totals": totals, "results": results, "versions": installed_versions(*packages)})


if __name__ == "__main__":
    main()
