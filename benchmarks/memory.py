"""Measure the memory that training uses, and compare it with the estimate that `train.py` makes before the first iteration.

Each case is a process (or two, with torchrun) of its own: it makes the estimate, notes the memory that it holds, trains on the
built-in digits with validations and checkpoints, and reads its peak memory. On a GPU it is the memory that torch's allocator
has reserved at most.

    python benchmarks/memory.py [--device cpu] [--largest 5] [--output FILE]
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from measuring import RESULTS, ROOT, installed_versions, write_report

# Options of each case; all have the options of COMMON, which each case may repeat with other values.
CASES = (
    "--model-size 0.5x --batch-size 16",
    "--model-size 0.5x --batch-size 64",
    "--model-size 0.5x --batch-size 64 --channels-last",
    "--model-size 0.5x --batch-size 32 --amp",
    "--model-size 0.5x --batch-size 96 --grad-accum-steps 4",
    "--model-size 0.5x --batch-size 512 --input-size 64 --resize-size 64",
    "--model-size 0.5x --batch-size 16 --input-size 32 --resize-size 32",
    "--model-size 1.0x --batch-size 32",
    "--model-size 1.0x --batch-size 48 --mixup 0.2 --model-ema",
    "--model-size 1.5x --batch-size 16",
    "--model-size 1.5x --batch-size 64",
    "--model-size 1.5x --batch-size 64 --channels-last",
    "--model-size 2.0x --batch-size 32",
    "--model-size 2.0x --batch-size 32 --channels-last",
    "--model-size 0.5x --batch-size 64 --processes 2",
)
CASES_GPU = (
    *(f"--model-size {size} --batch-size {batch}" for size in ("0.5x", "1.5x", "2.0x") for batch in (256, 1024)),
    "--model-size 1.5x --batch-size 1024 --channels-last --amp",
    "--model-size 1.5x --batch-size 512 --mixup 0.2 --model-ema",
    "--model-size 1.5x --batch-size 1024 --grad-accum-steps 4",
)
# No figures: they are drawn after the training has freed its memory. They need up to 0.2 GB, most of it for libraries.
COMMON = (
    "--input-size 224 --resize-size 224 --total-iters 40 --val-interval 20 --save-interval 8 --display-interval 100 "
    "--learning-rate 0.01 --no-memory-check --no-figures"
)


def measure_here(argv: Sequence[str], output: Path) -> None:
    """Train in this process, and write the estimate and the peak of its memory in bytes to a file."""
    import torch

    from shufflenetv2.cli import build
    from shufflenetv2.cli.command import main, parse
    from shufflenetv2.engine import choose_devices, distributed, estimate_memory

    config = parse(argv)
    devices = choose_devices(config.common.device, config.execution)
    with distributed.init_process_group(devices.first):
        train_set, _ = build.open_datasets(config)
        config = config.with_length(len(train_set))
        estimate = estimate_memory(config, devices, train_set.class_names, None)
    place = estimate.places[0]
    on_gpu = devices.first.type == "cuda"
    before = 0 if on_gpu else status("VmRSS")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(devices.first)
    if main(argv):
        sys.exit("the training failed")
    after = torch.cuda.max_memory_reserved(devices.first) if on_gpu else status("VmHWM")
    estimated = place.bytes(config.optimization.batch_size, config.optimization.grad_accum_steps) // place.sharers
    output.write_text(json.dumps({"estimated": estimated, "measured": after - before}))


def status(name: str) -> int:
    """Return a size of this process in bytes, from /proc/self/status."""
    (kilobytes,) = re.findall(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024


def measure(case: str, device: str) -> dict[str, float]:
    """Run a case; return the megabytes that were estimated and measured, over all its processes."""
    options, _, processes = case.partition(" --processes ")
    with tempfile.TemporaryDirectory() as folder:
        start = [sys.executable]
        if processes:
            start += ["-m", "torch.distributed.run", "--nproc-per-node", processes]
        words = [str(ROOT / "benchmarks/memory.py"), "--measure-here", f"{folder}/result"]
        words += ["--config", str(ROOT / "configs/digits.yaml"), *COMMON.split(), *options.split()]
        words += ["--device", device, "--save", f"{folder}/models", "--log-dir", f"{folder}/logs"]
        done = subprocess.run([*start, *words], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        results = [json.loads(path.read_text()) for path in Path(folder).glob("result-*.json")]
    estimated, measured = (sum(result[name] for result in results) for name in ("estimated", "measured"))
    return {
        "estimated MB": round(estimated / 1e6),
        "measured MB": round(measured / 1e6),
        "ratio": round(estimated / measured, 3),
    }


def main() -> None:
    if sys.argv[1:2] == ["--measure-here"]:
        measure_here(sys.argv[3:], Path(f"{sys.argv[2]}-{os.environ.get('RANK', 0)}.json"))
        return
    parser = argparse.ArgumentParser(description="The memory of training, estimated and measured.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--cases", default="", help="regular expression; the others keep their results in the output")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/memory.json, or memory_gpu.json")
    arguments = parser.parse_args()
    cases = CASES if arguments.device == "cpu" else CASES_GPU
    output = arguments.output or RESULTS / ("memory.json" if arguments.device == "cpu" else "memory_gpu.json")
    results = json.loads(output.read_text())["results"] if arguments.cases and output.exists() else {}
    for case in cases:
        if re.search(arguments.cases, case):
            results[case] = measure(case, arguments.device)
            print(case, results[case], flush=True)
    write_report(
        output,
        ["python benchmarks/memory.py", "--device", arguments.device],
        {
            "versions": installed_versions("torch") | {"C library": " ".join(platform.libc_ver())},
            "options of all": COMMON,
            "results": results,
        },
    )


if __name__ == "__main__":
    main()
