"""The memory that a run needs: estimated before it begins, compared with what is free, and used to choose the batch size."""

import contextlib
import json
import math
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from shufflenetv2 import UserError, files
from shufflenetv2.cli.command import training_parser
from shufflenetv2.config import Config
from shufflenetv2.engine import choose_devices, estimate_memory
from shufflenetv2.engine.free_memory import UNKNOWN, free_host_memory
from shufflenetv2.engine.memory import Demand, MemoryEstimate, Place
from tests.support import ONE_THREAD, ROOT, SHORT, Stop, Train, same_tensors

GB, MB = 10**9, 10**6
CLASSES = [str(number) for number in range(10)]


def estimate(**options: object) -> MemoryEstimate:
    values = {"dataset": "digits", "model_size": "0.5x", "input_size": 64, "resize_size": 64, "batch_size": 256} | options
    config = Config.from_values(values).with_length(1000)
    return estimate_memory(config, choose_devices("cpu", config.execution), CLASSES, None)


def total(**options: object) -> int:
    """Return the bytes that are estimated for a run."""
    batch_size, accum_steps = int(str(options.get("batch_size", 256))), int(str(options.get("grad_accum_steps", 1)))
    return sum(place.bytes(batch_size, accum_steps) for place in estimate(**options).places)


def machine(free: int, processes: int = 1) -> MemoryEstimate:
    """Return the estimate for a network of about the size 1.5x on a machine with this much free memory."""
    demand = Demand(fixed=200 * MB, per_sample=1 * MB, per_prepared=5 * MB, per_stepped=40 * MB, per_validated=5 * MB)
    return MemoryEstimate((Place("memory", free, demand, processes, processes, None),), processes)


def refusal(estimate: MemoryEstimate, batch_size: int, accum_steps: int) -> str:
    """Return the message for a run that does not fit, as the user sees it."""
    with pytest.raises(UserError) as caught:
        estimate.require_fit(batch_size, accum_steps)
    assert caught.value.status == 2
    message = training_parser().spell(str(caught.value))
    assert "\n" not in message
    assert "`" not in message
    return message


class Begun(Stop):
    """Lift the limit of `limited_memory` when the run begins, and stop it after its first iteration.

    The address space that is limited includes much that is reserved and never used, such as stacks of threads.
    """

    after = 1

    def before_run(self, run: object) -> None:
        resource.setrlimit(resource.RLIMIT_AS, resource.getrlimit(resource.RLIMIT_AS)[1:] * 2)


@contextlib.contextmanager
def limited_memory(size: int) -> Iterator[None]:
    """Let this process allocate only so many bytes more."""
    estimate()  # loads the libraries that a run needs
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(re.findall(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_a_run_that_cannot_fit_is_refused_with_numbers_that_are_then_accepted() -> None:
    message = refusal(machine(free=20 * GB), 1024, 1)
    assert "--batch-size 1024 needs about 42.2 GB of memory, and 20.0 GB are free" in message
    assert "use --batch-size 480 or less or --grad-accum-steps 4" in message
    assert "--no-memory-check" in message
    machine(free=20 * GB).require_fit(480, 1)
    machine(free=20 * GB).require_fit(1024, 4)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("accum_steps", [1, 2, 5])
@pytest.mark.parametrize("free", [400 * MB, GB, 3 * GB, 20 * GB])
def test_proposals_fit_and_can_be_divided(processes: int, accum_steps: int, free: int) -> None:
    case = machine(free, processes)
    batch_size = 1200 * processes
    assert not case.fits(batch_size, 1)
    smaller = case.largest_batch_size(batch_size, accum_steps)
    if smaller is None:
        assert not case.fits(processes * accum_steps, accum_steps)
    else:
        unit = processes * accum_steps
        step = math.lcm(8, unit) if smaller % 8 == 0 else unit
        assert smaller % unit == 0
        assert case.fits(smaller, accum_steps)
        assert not case.fits(smaller + step, accum_steps) or smaller + step > batch_size
    if steps := case.smallest_accum_steps(batch_size, 1):
        assert batch_size % (processes * steps) == 0
        assert case.fits(batch_size, steps)


def test_a_continued_run_and_a_hopeless_one_get_other_remedies() -> None:
    with pytest.raises(UserError, match="use `batch_size` 480 or less or `grad_accum_steps` 4, with `change_recipe`"):
        machine(free=20 * GB).require_fit(1024, 1, is_continued=True)
    assert "use a smaller --model-size, --input-size or --val-batch-size" in refusal(machine(free=100 * MB), 8, 1)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_free_memory_is_the_smallest_of_the_machine_and_all_control_groups(tmp_path: Path) -> None:
    assert free_host_memory(tmp_path) == UNKNOWN
    write(tmp_path / "proc/meminfo", "MemTotal: 64000000 kB\nMemFree: 1 kB\nMemAvailable:   8000000 kB\n")
    assert free_host_memory(tmp_path) == 8_000_000 * 1024
    group = tmp_path / "sys/fs/cgroup/job"
    write(tmp_path / "proc/self/cgroup", "0::/job/step\n")
    write(group / "step/memory.max", "max\n")
    write(group / "step/memory.current", "1000\n")
    assert free_host_memory(tmp_path) == 8_000_000 * 1024
    write(group / "memory.max", "4000000000\n")
    write(group / "memory.current", "3000000000\n")
    assert free_host_memory(tmp_path) == 1_000_000_000
    write(group / "memory.stat", "anon 1000000000\ninactive_file 500000000\nactive_file 100000000\n")
    assert free_host_memory(tmp_path) == 1_600_000_000
    write(tmp_path / "proc/self/cgroup", "3:cpu:/\n2:memory:/docker/abc\n")
    write(tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes", "2000000000\n")
    write(tmp_path / "sys/fs/cgroup/memory/memory.usage_in_bytes", "2500000000\n")
    write(tmp_path / "sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 700000000\n")
    assert free_host_memory(tmp_path) == 200_000_000


def test_a_limit_of_the_process_counts() -> None:
    with limited_memory(GB):
        assert free_host_memory() == pytest.approx(GB, rel=0.01)


def test_larger_runs_are_estimated_to_need_more() -> None:
    base = total()
    assert base < total(batch_size=512)
    assert base < total(model_size="1.0x")
    assert base < total(input_size=96, resize_size=96)
    assert base < total(model_ema=True, mixup=0.2)
    assert 2 * base < total(aug_splits=3, jsd=True)
    assert base > total(grad_accum_steps=2)


def test_the_estimate_is_the_same_for_a_small_batch_as_for_a_large_one() -> None:
    small, large = estimate(batch_size=16), estimate(batch_size=1024)
    assert small.places[0].bytes(16, 1) == pytest.approx(large.places[0].bytes(16, 1), rel=0.1)


def test_the_rehearsal_leaves_torchs_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    estimate(drop_path=0.1, mixup=0.2)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_check_can_be_turned_off(train_here: Train) -> None:
    done = train_here(*SHORT, "--total-iters", "1")
    assert done.returncode == 0, done.stderr
    assert "batches of 16 need" not in done.stdout


def test_nothing_is_written_for_a_run_that_cannot_fit(train_here: Train, tmp_path: Path) -> None:
    options = [*SHORT, "--memory-check", "--input-size", "64", "--resize-size", "64", "--total-iters", "1", "--workers", "1"]
    with limited_memory(600 * MB):
        refused = train_here(*options, "--batch-size", "1024")
        assert refused.returncode == 2
        assert list(tmp_path.iterdir()) == []
        match = re.search(r"--batch-size 1024 needs about .*; use --batch-size (\d+) or less", refused.stderr)
        assert match, refused.stderr
        smaller = int(match[1]) * 3 // 4  # the process itself may have grown
        accepted = train_here(*options, "--batch-size", str(smaller), "--hook", "tests.test_memory:Begun")
        assert accepted.returncode == 143, accepted.stderr
        assert re.search(rf"batches of {smaller} need about \d+ MB of \d+ MB free memory", accepted.stdout)


def test_the_estimate_covers_the_real_peak(tmp_path: Path) -> None:
    words = f"{ROOT}/benchmarks/memory.py --measure-here {tmp_path}/result --config {ROOT}/configs/digits.yaml --input-size 64 "
    words += "--resize-size 64 --batch-size 128 --total-iters 2 --val-interval 2 --device cpu --no-memory-check --no-figures"
    environment = os.environ | ONE_THREAD
    done = subprocess.run([sys.executable, *words.split()], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result-0.json").read_text())
    assert result["measured"] <= result["estimated"] <= 3 * result["measured"]


def test_auto_takes_the_largest_batch_that_fits_and_a_continued_run_keeps_it(train_here: Train, tmp_path: Path) -> None:
    options = [*SHORT, "--memory-check", "--total-iters", "2", "--val-interval", "2", "--workers", "1", "--save", "run"]
    with limited_memory(300 * MB):
        stopped = train_here(*options, "--batch-size", "auto", "--hook", "tests.test_memory:Begun")
    assert stopped.returncode == 143, stopped.stderr
    batch_size = yaml.safe_load((tmp_path / "run/logs/options.yaml").read_text())["batch-size"]
    assert 8 <= batch_size < 1024
    assert batch_size % 8 == 0
    rate = 0.05 * batch_size / 64
    assert f"learning rate {rate:g} for batch size {batch_size}" in stopped.stdout
    assert f"batches of {batch_size} need" in stopped.stdout
    continued = train_here(*options, "--batch-size", "auto")  # with all the memory of the machine
    assert continued.returncode == 0, continued.stderr
    assert "continuing from" in continued.stdout
    given = train_here(*options, "--batch-size", str(batch_size), "--save", "given")
    assert given.returncode == 0, given.stderr
    results = [files.read(tmp_path / folder / "model.pkl") for folder in ("run", "given")]
    assert [result["options"]["batch_size"] for result in results] == [batch_size] * 2
    assert same_tensors(*(result["state_dict"] for result in results))
    assert "this run is finished" in train_here(*options, "--batch-size", "auto").stdout
