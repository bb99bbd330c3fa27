"""Measure the images per second of a training step (forward, backward, update), for this and for other implementations.

The images are random, 224 x 224 pixels. These implementations are compared:

  reference      this network with the channel shuffle as the original writes it: reshape, permute, reshape; NCHW
  shufflenetv2   this network and `train_step`, with default options
  channels-last  this network and `train_step`, with --channels-last
  compiled       (only with --compile) with --channels-last --torchcompile; needs a C++ compiler, and a minute to compile
  amp            (only with --amp or on a GPU) with --channels-last --amp, and with --torchcompile if --compile is given
  torchvision    torchvision's network in the loop of torchvision's reference script

Each implementation runs in its own process: reference and torchvision with torch's default settings, the others with the
settings that `train.py` makes. One repeat does one step of each implementation, in turn; the result is the median over the
repeats.

For implementations that consist of torch's own operations, the script also counts the bytes that a step reads and writes
(each tensor once per operation), and relates bytes per second to the bandwidth of copying a large tensor.

    python benchmarks/train_step.py [--model-sizes 0.5x 1.0x 1.5x 2.0x] [--batch-sizes 16 64] [--repeats 9]
        [--compile] [--amp] [--output FILE]
"""

import argparse
import itertools
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torchvision
from measuring import RESULTS, write_report
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shufflenetv2 import ShuffleNetV2
from shufflenetv2.config import ExecutionConfig
from shufflenetv2.engine import Devices, choose_devices, train_step
from shufflenetv2.recipe import parameter_groups

SIZE, CLASSES = 224, 1000
BASE = "reference"
Step = Callable[[], Tensor]
aten = torch.ops.aten
ONLY_WRITE = (aten.copy_, aten.fill_, aten.zero_)  # operations that do not read the tensor that they change
ONLY_ALLOCATE = (aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided)
COPY_BYTES = 256 * 2**20


def reshaping_forward(unit: nn.Module, x: Tensor) -> Tensor:
    """Compute a unit with the channel shuffle as the original writes it."""
    if unit.branch_proj is not None:
        return torch.cat((unit.branch_proj(x), unit.branch_main(x)), 1)  # type: ignore[operator]
    n, channels, height, width = x.shape
    halves = x.reshape(n * channels // 2, 2, height * width).permute(1, 0, 2).reshape(2, -1, channels // 2, height, width)
    return torch.cat((halves[0], unit.branch_main(halves[1])), 1)


def shufflenetv2_step(size: str, images: Tensor, targets: Tensor, devices: Devices, *, reshaping: bool = False) -> Step:
    network = ShuffleNetV2(SIZE, CLASSES, size)
    if reshaping:
        for unit in network.features:
            unit.forward = MethodType(reshaping_forward, unit)
    model = network.to(devices.first) if reshaping else devices.place(network, training=True)
    optimizer = torch.optim.SGD(parameter_groups(network, 4e-5), lr=0.01, momentum=0.9)
    loss_function, scaler = nn.CrossEntropyLoss(label_smoothing=0.1), devices.scaler()
    model.train()
    return lambda: train_step(model, images, targets, loss_function, optimizer, scaler)[0]


def torchvision_step(size: str, images: Tensor, targets: Tensor, devices: Devices) -> Step:
    model = getattr(torchvision.models, f"shufflenet_v2_x{size[:-1].replace('.', '_')}")(num_classes=CLASSES)
    model.to(devices.first).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=4e-5)
    loss_function = nn.CrossEntropyLoss(label_smoothing=0.1)
    normalised = images.float().contiguous() / 255  # the loader of torchvision's reference delivers floats

    def step() -> Tensor:
        loss: Tensor = loss_function(model(normalised), targets)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        return loss.detach()

    return step


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes that operations read and write while this mode is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        output = operation(*arguments, **(named or {}))
        schema, packet = operation._schema, operation.overloadpacket
        is_view = any(each.alias_info is not None and not each.alias_info.is_write for each in schema.returns)
        if is_view or packet in ONLY_ALLOCATE:
            return output
        inputs = {**dict(zip((each.name for each in schema.arguments), arguments, strict=False)), **(named or {})}
        changed = [
            inputs.get(each.name) for each in schema.arguments if each.alias_info is not None and each.alias_info.is_write
        ]
        read = inputs if packet not in ONLY_WRITE else [value for value in inputs.values() if value is not changed[0]]
        for tensor in tree_leaves((read, changed or output)):
            if isinstance(tensor, Tensor):
                self.bytes += min(tensor.nbytes, tensor.untyped_storage().nbytes())  # an expanded tensor has less storage
        return output


def copy_bandwidth(device: torch.device) -> float:
    """Return how many bytes per second copying a large tensor reads and writes, both counted."""
    source, target = (torch.ones(COPY_BYTES, dtype=torch.uint8, device=device) for _ in range(2))
    times = []
    for _ in range(10):
        start = time.perf_counter()
        target.copy_(source)[0].item()
        times.append(time.perf_counter() - start)
    return 2 * COPY_BYTES / statistics.median(times)


def make_step(name: str, size: str, batch_size: int, device: torch.device, with_compiled: bool) -> Step:
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, SIZE, SIZE, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2).to(device)
    targets = torch.randint(0, CLASSES, (batch_size,), generator=generator).to(device)
    backend = "inductor" if with_compiled else ""
    executions = {
        "shufflenetv2": ExecutionConfig(),
        "channels-last": ExecutionConfig(channels_last=True),
        "compiled": ExecutionConfig(channels_last=True, torchcompile=backend),
        "amp": ExecutionConfig(channels_last=True, amp=True, torchcompile=backend),
    }
    if name in executions:
        return shufflenetv2_step(size, images, targets, choose_devices(str(device), executions[name]))
    if name == BASE:
        return shufflenetv2_step(size, images, targets, Devices(device), reshaping=True)
    return torchvision_step(size, images, targets, Devices(device))


def is_counted(name: str, device: torch.device, with_compiled: bool) -> bool:
    """Return whether an implementation runs torch's own operations only, neither torch.compile's nor those written in C."""
    if name == "channels-last":
        return device.type != "cpu"
    return name != "compiled" and not (name == "amp" and with_compiled)


def serve(pipe: Connection, name: str, size: str, batch_size: int, device: torch.device, with_compiled: bool) -> None:
    """Run one implementation in a child process: send the bytes that a step moves, then time one step per request."""
    step = make_step(name, size, batch_size, device, with_compiled)
    step()
    traffic = Traffic() if is_counted(name, device, with_compiled) else None
    with traffic or nullcontext():
        step()
    pipe.send(traffic and traffic.bytes)
    while pipe.recv():
        start = time.perf_counter()
        step().item()  # waits for the device
        pipe.send(time.perf_counter() - start)


def measure(names: list[str], repeats: int, *arguments: Any) -> tuple[dict[str, list[float]], dict[str, int | None]]:
    """Return for each implementation the seconds of every step, and the bytes that a step moves (None if not counted)."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    for name in names:
        pipes[name], child_end = context.Pipe()
        processes.append(context.Process(target=serve, args=(child_end, name, *arguments), daemon=True))
        processes[-1].start()
        child_end.close()  # so that the pipe ends if the process fails
    moved = {name: pipe.recv() for name, pipe in pipes.items()}
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeats):
        for name, pipe in pipes.items():
            pipe.send(True)
            times[name].append(pipe.recv())
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(False)
        process.join()
    return times, moved


def main() -> None:
    parser = argparse.ArgumentParser(description="Images per second of a training step, for several implementations.")
    parser.add_argument("--model-sizes", nargs="+", default=["0.5x", "1.0x", "1.5x", "2.0x"])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--repeats", type=int, default=9, help="timed steps of each implementation (default: %(default)s)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true", help="measure the compiled network as well")
    parser.add_argument("--amp", action="store_true", help="measure bfloat16 as well; always measured on a GPU")
    parser.add_argument("--output", type=Path, default=RESULTS / "train_step.json")
    arguments = parser.parse_args()
    device = choose_devices(arguments.device).first
    names = [BASE, "shufflenetv2", "channels-last", "torchvision"]
    names += ["compiled"] * arguments.compile + ["amp"] * (arguments.amp or device.type == "cuda")

    bandwidth = copy_bandwidth(device)
    results: dict[str, dict[str, Any]] = {}
    for batch_size, size in itertools.product(arguments.batch_sizes, arguments.model_sizes):
        times, moved = measure(names, arguments.repeats, size, batch_size, device, arguments.compile)
        base = statistics.median(times[BASE])
        results.setdefault(str(batch_size), {})[size] = rows = {}
        for name, repeats in times.items():
            median, step_bytes = statistics.median(repeats), moved[name]
            rows[name] = {
                "images per second": round(batch_size / median, 1),
                f"ratio to {BASE}": round(base / median, 3),
                "gigabytes moved": step_bytes and round(step_bytes / 1e9, 2),
                "share of copy bandwidth": step_bytes and round(step_bytes / median / bandwidth, 3),
                "seconds": [round(each, 4) for each in repeats],
            }
        print(batch_size, size, {name: (row["images per second"], row[f"ratio to {BASE}"]) for name, row in rows.items()})
    versions = {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__}
    write_report(
        arguments.output,
        ["python", "benchmarks/train_step.py", *sys.argv[1:]],
        {
            "machine": {"device": str(device)},
            "versions": versions,
            "copied gigabytes per second": round(bandwidth / 1e9, 1),
            "results": results,
        },
    )


if __name__ == "__main__":
    main()
