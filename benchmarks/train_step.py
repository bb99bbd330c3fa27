"""Images per second of one training step (forward, backward, update), this network beside others, with random images.

  reference      the original's unit as it was written: reshape, permute, reshape; planar float32 (NCHW)
  shufflenetv2   this network with its defaults, in this trainer's step
  channels-last  the same with --channels-last
  compiled       with --compile: the same with --channels-last --torchcompile; needs a C++ compiler and a minute each
  amp            with --amp, and on a GPU: the same with --channels-last --amp, and compiled where that is
  torchvision    torchvision's network in its reference's loop

Every side has a process of its own, as it would have at its users': of the reference and of torchvision it is as torch
leaves it, of the others as `train.py` sets it up. Each repeat does one step of every side in turn; the table has medians.

Beside the time, where torch's own operations do everything: the memory that they read and write in a step, each tensor
once per operation, and how much of the bandwidth that copying a large tensor reaches this is.

    python benchmarks/train_step.py [--model-sizes 0.5x 1.0x 1.5x 2.0x] [--batch-sizes 16 64] [--repeats 9]
        [--compile] [--amp] [--output FILE]
"""

import argparse
import datetime
import itertools
import json
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
from measuring import machine
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from shufflenetv2 import ShuffleNetV2  # noqa: E402
from shufflenetv2.engine import Devices, Execution, choose_devices, train_step  # noqa: E402
from shufflenetv2.recipe import parameter_groups  # noqa: E402

SIZE, CLASSES = 224, 1000
BASE = "reference"
Step = Callable[[], Tensor]
aten = torch.ops.aten
ONLY_WRITE = (aten.copy_, aten.fill_, aten.zero_)  # what they change, they do not read
ONLY_ALLOCATE = (aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided)
COPIED = 256 * 2**20  # bytes


def reshaping_forward(unit: nn.Module, x: Tensor) -> Tensor:
    """The original's unit, with the channel shuffle as it is usually written."""
    if unit.branch_proj is not None:
        return torch.cat((unit.branch_proj(x), unit.branch_main(x)), 1)  # type: ignore[operator]
    n, channels, height, width = x.shape
    halves = x.reshape(n * channels // 2, 2, height * width).permute(1, 0, 2).reshape(2, -1, channels // 2, height, width)
    return torch.cat((halves[0], unit.branch_main(halves[1])), 1)


def ours(size: str, images: Tensor, targets: Tensor, devices: Devices, *, reshaping: bool = False) -> Step:
    network = ShuffleNetV2(SIZE, CLASSES, size)
    if reshaping:
        for unit in network.features:
            unit.forward = MethodType(reshaping_forward, unit)
    model = network.to(devices.first) if reshaping else devices.place(network, training=True)
    optimizer = torch.optim.SGD(parameter_groups(network, 4e-5), lr=0.01, momentum=0.9)
    loss_function, scaler = nn.CrossEntropyLoss(label_smoothing=0.1), devices.scaler()
    model.train()
    return lambda: train_step(model, images, targets, loss_function, optimizer, scaler)[0]


def torchvisions(size: str, images: Tensor, targets: Tensor, devices: Devices) -> Step:
    model = getattr(torchvision.models, f"shufflenet_v2_x{size[:-1].replace('.', '_')}")(num_classes=CLASSES)
    model.to(devices.first).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=4e-5)
    loss_function = nn.CrossEntropyLoss(label_smoothing=0.1)
    normalised = images.float().contiguous() / 255  # its loader delivers floats

    def step() -> Tensor:
        loss: Tensor = loss_function(model(normalised), targets)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        return loss.detach()

    return step


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes that operations read and write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        made = operation(*arguments, **(named or {}))
        schema, packet = operation._schema, operation.overloadpacket
        is_view = any(each.alias_info is not None and not each.alias_info.is_write for each in schema.returns)
        if is_view or packet in ONLY_ALLOCATE:
            return made
        given = {**dict(zip((each.name for each in schema.arguments), arguments, strict=False)), **(named or {})}
        changed = [
            given.get(each.name) for each in schema.arguments if each.alias_info is not None and each.alias_info.is_write
        ]
        read = given if packet not in ONLY_WRITE else [value for value in given.values() if value is not changed[0]]
        for tensor in tree_leaves((read, changed or made)):
            if isinstance(tensor, Tensor):
                self.bytes += min(tensor.nbytes, tensor.untyped_storage().nbytes())  # fewer, where it is expanded
        return made


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written."""
    from_, to = (torch.ones(COPIED, dtype=torch.uint8, device=device) for _ in range(2))
    times = []
    for _ in range(10):
        start = time.perf_counter()
        to.copy_(from_)[0].item()
        times.append(time.perf_counter() - start)
    return 2 * COPIED / statistics.median(times)


def side(name: str, size: str, batch_size: int, device: torch.device, compiles: bool) -> Step:
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, SIZE, SIZE, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2).to(device)
    targets = torch.randint(0, CLASSES, (batch_size,), generator=generator).to(device)
    backend = "inductor" if compiles else ""
    executions = {
        "shufflenetv2": Execution(),
        "channels-last": Execution(channels_last=True),
        "compiled": Execution(channels_last=True, backend=backend),
        "amp": Execution(channels_last=True, amp_dtype=torch.bfloat16, backend=backend),
    }
    if name in executions:
        return ours(size, images, targets, choose_devices(str(device), executions[name]))
    if name == BASE:
        return ours(size, images, targets, Devices(device), reshaping=True)
    return torchvisions(size, images, targets, Devices(device))


def is_counted(name: str, device: torch.device, compiles: bool) -> bool:
    """Whether torch's own operations do everything: not where they are compiled, or branch.c takes their place."""
    return name != "compiled" and not (name == "amp" and compiles) and not (name == "channels-last" and device.type == "cpu")


def serve(pipe: Connection, name: str, size: str, batch_size: int, device: torch.device, compiles: bool) -> None:
    """The process of a side: tells the traffic of a step, then does one when asked to, and answers how many seconds it took."""
    step = side(name, size, batch_size, device, compiles)
    step()
    traffic = Traffic() if is_counted(name, device, compiles) else None
    with traffic or nullcontext():
        step()
    pipe.send(traffic and traffic.bytes)
    while pipe.recv():
        start = time.perf_counter()
        step().item()  # waits for the device
        pipe.send(time.perf_counter() - start)


def measure(names: list[str], repeats: int, *arguments: Any) -> tuple[dict[str, list[float]], dict[str, int | None]]:
    """The seconds of each side's steps, and the bytes that one moves where they are counted."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    for name in names:
        pipes[name], other = context.Pipe()
        processes.append(context.Process(target=serve, args=(other, name, *arguments), daemon=True))
        processes[-1].start()
        other.close()  # should the process end early, so does its pipe
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
    parser = argparse.ArgumentParser(description="Images per second of a training step, this network beside others.")
    parser.add_argument("--model-sizes", nargs="+", default=["0.5x", "1.0x", "1.5x", "2.0x"])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--repeats", type=int, default=9, help="steps of each side (default: %(default)s)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true", help="measure the compiled network too")
    parser.add_argument("--amp", action="store_true", help="measure bfloat16 too; on a GPU it always is")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results/train_step.json")
    arguments = parser.parse_args()
    first = choose_devices(arguments.device).first
    names = [BASE, "shufflenetv2", "channels-last", "torchvision"]
    names += ["compiled"] * arguments.compile + ["amp"] * (arguments.amp or first.type == "cuda")

    bandwidth = copy_bandwidth(first)
    results: dict[str, dict[str, Any]] = {}
    for batch_size, size in itertools.product(arguments.batch_sizes, arguments.model_sizes):
        times, moved = measure(names, arguments.repeats, size, batch_size, first, arguments.compile)
        base = statistics.median(times[BASE])
        results.setdefault(str(batch_size), {})[size] = found = {}
        for name, repeats in times.items():
            median, in_all = statistics.median(repeats), moved[name]
            found[name] = {
                "images per second": round(batch_size / median, 1),
                f"ratio to {BASE}": round(base / median, 3),
                "gigabytes moved": in_all and round(in_all / 1e9, 2),
                "share of copy bandwidth": in_all and round(in_all / median / bandwidth, 3),
                "seconds": [round(each, 4) for each in repeats],
            }
        print(batch_size, size, {name: (side["images per second"], side[f"ratio to {BASE}"]) for name, side in found.items()})
    report = {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", "benchmarks/train_step.py", *sys.argv[1:]]),
        "machine": machine() | {"device": str(first)},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__},
        "copied gigabytes per second": round(bandwidth / 1e9, 1),
        "results": results,
    }
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
