"""Measure the images per second of the network in eval mode on a CPU, in the ways in which it can be run.

Random float32 images of 224 x 224 pixels, random weights, batch-norm statistics of random images. The sides:

  eager                  the network as load_model returns it
  folded                 a copy whose batch norms are folded into the convolutions before them
  channels last          a copy with weights and images in channels-last memory format
  folded, channels last  both
  compiled               torch.compile; only with --compile, since compiling takes a minute and needs a C++ compiler
  ONNX Runtime           exported to ONNX; left out where onnx, onnxscript or onnxruntime is not installed

All sides have the same number of threads. First the logits of every side are compared with eager's: if they differ by
more than rounding, the script ends with status 1. One repeat measures each side once, in turn, for a fixed time; the
result is the median over the repeats.

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
from measuring import RESULTS, USABLE_CORES, OtherLoad, installed_versions, summarize_sides, write_report
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

Side = Callable[[Tensor], Tensor]  # images (N, 3, 224, 224) -> logits (N, 1000)


def random_network(model_size: str) -> ShuffleNetV2:
    """Make a network in eval mode with random batch norms: with new ones the logits hardly depend on the images."""
    network = ShuffleNetV2(SIZE, model_size=model_size)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0.0, 0.1)
    recalibrate_batch_norm(network, [random_images(16)])
    return network


def random_images(count: int) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE) * 255


def channels_last(network: ShuffleNetV2) -> Side:
    network = copy.deepcopy(network).to(memory_format=torch.channels_last)
    return lambda images: network(images.contiguous(memory_format=torch.channels_last))


def onnx_runtime(network: ShuffleNetV2, images: Tensor, threads: int) -> Side:
    """Export the network for batches of the size of `images`, and return its ONNX Runtime session as a side."""
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/network.onnx"
        torch.onnx.export(network, (images,), path, input_names=["images"], dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, session_options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def make_sides(network: ShuffleNetV2, images: Tensor, threads: int, with_compiled: bool) -> dict[str, Side]:
    sides: dict[str, Side] = {
        BASE: network,
        "folded": fold_batch_norms(network),
        "channels last": channels_last(network),
        "folded, channels last": channels_last(fold_batch_norms(network)),
    }
    if with_compiled:
        sides["compiled"] = torch.compile(network, dynamic=False)
    if HAS_ONNX:
        sides["ONNX Runtime"] = onnx_runtime(network, images, threads)
    return sides


def images_per_second(side: Side, images: Tensor, seconds: float) -> float:
    """Return the rate over at least `seconds`."""
    side(images)  # fills the caches, which hold data of the previous side
    calls, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        side(images)
        calls += 1
    return calls * len(images) / elapsed


def main() -> int:
    parser = argparse.ArgumentParser(description="Images per second of the network in eval mode on the CPU.")
    parser.add_argument("--model-size", default="1.5x", choices=SIZES, help="(default: %(default)s)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16], help="(default: 1 16)")
    parser.add_argument("--threads", type=int, default=len(USABLE_CORES), help="threads of each side (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile as well")
    parser.add_argument("--seconds", type=float, default=2.0, help="duration of a measurement (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="measurements of each side (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS / "inference.json")
    arguments = parser.parse_args()
    if not HAS_ONNX:
        print(f"not all of {', '.join(ONNX_PACKAGES)} are installed; the side ONNX Runtime is left out")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    network = random_network(arguments.model_size)
    results, cores_lost = {}, {}
    for batch_size in arguments.batch_sizes:
        images = random_images(batch_size)
        sides = make_sides(network, images, arguments.threads, arguments.compile)
        with torch.inference_mode():
            logits = network(images)
            differences = {
                name: float((side(images) - logits).abs().max() / logits.abs().max()) for name, side in sides.items()
            }
            if wrong := [name for name, difference in differences.items() if not difference <= TOLERANCE]:
                print(f"the logits of {', '.join(wrong)} differ from those of {BASE}: {differences}", file=sys.stderr)
                return 1
            rates: dict[str, list[float]] = {name: [] for name in sides}
            load = OtherLoad()
            for _ in range(arguments.repeats):
                for name, side_rates in rates.items():
                    side_rates.append(images_per_second(sides[name], images, arguments.seconds))
        cores_lost[str(batch_size)] = round(load.cores_lost(), 3)
        results[str(batch_size)] = {
            name: side | {f"largest difference to {BASE}": differences[name]}
            for name, side in summarize_sides(rates, BASE).items()
        }

        print(f"\n{arguments.model_size}, batches of {batch_size}, {arguments.threads} thread(s), ", end="")
        print(f"{cores_lost[str(batch_size)]:.2f} of {len(USABLE_CORES)} cores lost to others; images/s")
        print(f"{'':22}{'median':>8}{'min':>8}{'max':>8}   ratio to {BASE}   logits differ by")
        for name, side in results[str(batch_size)].items():
            print(f"{name:22}{side['median']:>8.1f}{side['min']:>8.1f}{side['max']:>8.1f}", end="")
            print(f"{side[f'ratio to {BASE}']:>17.2f}{differences[name]:>19.0e}")

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
