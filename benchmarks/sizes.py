"""Measure how many images per second the four sizes of the network classify in eval mode on a CPU, with batches of one image.

Compares the network as `load_model` returns it with the same network exported to ONNX and run by ONNX Runtime, in turn, with
random images of 224 x 224 pixels. Parameters and multiply-adds are those of 1,000 classes.

    python benchmarks/sizes.py [--threads 1]
"""

import argparse
import platform

import torch
import torchinfo
from inference import BASE, ONNX_PACKAGES, SIZE, Forward, images_per_second, onnx_runtime, random_images, random_network
from measuring import RESULTS, OtherLoad, installed_versions, summarize_rates, write_report

from shufflenetv2.network import SIZES


def main() -> None:
    parser = argparse.ArgumentParser(description="Images per second of each size of the network on the CPU.")
    parser.add_argument("--threads", type=int, default=1, help="number of threads (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="duration of a measurement (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="measurements of each size (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    images = random_images(1)
    networks = {size: random_network(size) for size in SIZES}
    ways: dict[str, dict[str, Forward]] = {
        size: {BASE: network, "ONNX Runtime": onnx_runtime(network, images, arguments.threads)}
        for size, network in networks.items()
    }
    rates: dict[str, dict[str, list[float]]] = {size: {name: [] for name in ways[size]} for size in SIZES}
    load = OtherLoad()
    with torch.inference_mode():
        for _ in range(arguments.repeats):
            for size in SIZES:
                for name, forward in ways[size].items():
                    rates[size][name].append(images_per_second(forward, images, arguments.seconds))
    cores_lost = round(load.cores_lost(), 3)
    results = {
        size: {
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "mult-adds": torchinfo.summary(network, (1, 3, SIZE, SIZE), verbose=0).total_mult_adds,
            "images per second": summarize_rates(rates[size], BASE),
        }
        for size, network in networks.items()
    }
    for size in SIZES:
        print(size, {name: row["median"] for name, row in summarize_rates(rates[size], BASE).items()})

    write_report(
        RESULTS / "sizes.json",
        ["python benchmarks/sizes.py --threads", arguments.threads, "--seconds", arguments.seconds],
        {
            "versions": {"torch": torch.__version__, **installed_versions(*ONNX_PACKAGES), "python": platform.python_version()},
            "threads": arguments.threads,
            "note": "batches of one image; float32, 224 pixels",
            "cores lost to other processes": cores_lost,
            "results": results,
        },
    )


if __name__ == "__main__":
    main()
