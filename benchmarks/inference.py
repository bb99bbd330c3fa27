"""Measure how many images per second the network classifies in eval mode on a CPU, for several ways of running it.

The images are random, float32, 224 x 224 pixels; the weights are random, with batch-norm statistics of random images. These
ways are compared:

  eager                  the network as load_model returns it
  folded                 a copy whose batch norms are folded into the convolutions before them
  channels last          a copy with weights and images in channels-last memory format
  folded, channels last  both
  compiled               torch.compile; only with --compile, since compiling takes a minute and needs a C++ compiler
  ONNX Runtime           exported to ONNX; omitted unless onnx, onnxscript and onnxruntime are installed

All use the same number of threads. First their logits are compared with those of eager; if they differ by more than rounding,
the script ends with status 1. One repeat measures each way once, in turn, for a fixed time; the result is the median over the
repeats.

    python benchmarks/inference.py [--model-size 1.5x] [--batch-sizes 1 16] [--threads N] [--compile]
"""

import argparse
import copy
import importlib.util
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import RESULTS, USABLE_CORES, OtherLoad, installed_versions, summarize_rates, write_report
from torch import Tensor, nn

from shufflenetv2.engine import recalibrate_batch_norm
from shufflenetv2.export import fold_batch_norms
from shufflenetv2.network import SIZES, ShuffleNetV2

SIZE = 224
TOLERANCE = 1e-3  # relative to the largest logit
BASE = "eager"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
HAS_ONNX = all(importlib.util.find_spec(name) for name in ONNX_PACKAGES)
if HAS_ONNX:
    import onnxruntime

Forward = Callable[[Tensor], Tensor]  # images (N, 3, 224, 224) -> logits (N, 1000)


def random_network(model_size: str) -> ShuffleNetV2:
    """Make a network in eval mode with random batch norms; with new batch norms the logits hardly depend on the images."""
    network = ShuffleNetV2(SIZE, model_size=model_size)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0.0, 0.1)
    recalibrate_batch_norm(network, [random_images(16)])
    return network


def random_images(count: int) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE) * 255


def channels_last(network: ShuffleNetV2) -> Forward:
    network = copy.deepcopy(network).to(memory_format=torch.channels_last)
    return lambda images: network(images.contiguous(memory_format=torch.channels_last))


def onnx_runtime(network: ShuffleNetV2, images: Tensor, threads: int) -> Forward:
    """Export the network for batches of the size of `images`, and return a function that runs it with ONNX Runtime."""
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/network.onnx"
        torch.onnx.export(network, (images,), path, input_names=["images"], dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, session_options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def ways_to_run(network: ShuffleNetV2, images: Tensor, threads: int, with_compiled: bool) -> dict[str, Forward]:
    ways: dict[str, Forward] = {
        BASE: network,
        "folded": fold_batch_norms(network),
        "channels last": channels_last(network),
        "folded, channels last": channels_last(fold_batch_norms(network)),
    }
    if with_compiled:
        ways["compiled"] = torch.compile(network, dynamic=False)
    if HAS_ONNX:
        ways["ONNX Runtime"] = onnx_runtime(network, images, threads)
    return ways


def images_per_second(forward: Forward, images: Tensor, seconds: float) -> float:
    """Call `forward` for at least `seconds`, and return the number of images per second."""
    forward(images)  # not timed: the processor's caches hold the data of the previous measurement
    calls, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        forward(images)
        calls += 1
    return calls * len(images) / elapsed


def main() -> int:
    parser = argparse.ArgumentParser(description="Images per second of the network in eval mode on the CPU.")
    parser.add_argument("--model-size", default="1.5x", choices=SIZES, help="(default: %(default)s)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16], help="(default: 1 16)")
    parser.add_argument("--threads", type=int, default=len(USABLE_CORES), help="number of threads (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile as well")
    parser.add_argument("--seconds", type=float, default=2.0, help="duration of a measurement (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="measurements of each way (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS / "inference.json")
    arguments = parser.parse_args()
    if not HAS_ONNX:
        print(f"ONNX Runtime is omitted, since not all of {', '.join(ONNX_PACKAGES)} are installed")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    network = random_network(arguments.model_size)
    results, cores_lost = {}, {}
    for batch_size in arguments.batch_sizes:
        images = random_images(batch_size)
        ways = ways_to_run(network, images, arguments.threads, arguments.compile)
        with torch.inference_mode():
            logits = network(images)
            differences = {
                name: float((forward(images) - logits).abs().max() / logits.abs().max()) for name, forward in ways.items()
            }
            if wrong := [name for name, difference in differences.items() if not difference <= TOLERANCE]:
                print(f"the logits of {', '.join(wrong)} differ from those of {BASE}: {differences}", file=sys.stderr)
                return 1
            rates: dict[str, list[float]] = {name: [] for name in ways}
            load = OtherLoad()
            for _ in range(arguments.repeats):
                for name, rates_of_way in rates.items():
                    rates_of_way.append(images_per_second(ways[name], images, arguments.seconds))
        cores_lost[str(batch_size)] = round(load.cores_lost(), 3)
        results[str(batch_size)] = {
            name: summary | {f"largest difference to {BASE}": differences[name]}
            for name, summary in summarize_rates(rates, BASE).items()
        }

        print(f"\n{arguments.model_size}, batches of {batch_size}, {arguments.threads} thread(s), ", end="")
        print(f"images/s; other processes occupied {cores_lost[str(batch_size)]:.2f} of {len(USABLE_CORES)} cores")
        print(f"{'':22}{'median':>8}{'min':>8}{'max':>8}   ratio to {BASE}   logits differ by")
        for name, row in results[str(batch_size)].items():
            print(f"{name:22}{row['median']:>8.1f}{row['min']:>8.1f}{row['max']:>8.1f}", end="")
            print(f"{row[f'ratio to {BASE}']:>17.2f}{differences[name]:>19.0e}")

    command = ["python benchmarks/inference.py", "--model-size", arguments.model_size]
    command += ["--batch-sizes", *arguments.batch_sizes, "--threads", arguments.threads, *["--compile"] * arguments.compile]
    command += ["--seconds", arguments.seconds, "--repeats", arguments.repeats]
    versions = {"torch": torch.__version__, **(installed_versions(*ONNX_PACKAGES) if HAS_ONNX else {})}
    write_report(
        arguments.output,
        command,
        {
            "versions": {"python": platform.python_version(), **versions},
            "model size": arguments.model_size,
            "threads": arguments.threads,
            "note": "images per second by batch size; float32, 224 pixels",
            "cores lost to other processes": cores_lost,
            "results": results,
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
