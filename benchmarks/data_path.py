"""Measure how many images per second this loader and others load, from the same photographs on the same cores.

Each loader turns JPEG files into batches of random crops of 224 x 224 pixels in the training process, without a network and a
GPU. These loaders are compared:

  shufflenetv2   DataIterator with TrainTransform's defaults: crop, flip, colour jitter; uint8 batches
  torchvision    the preset of torchvision's reference (references/classification/presets.py, PIL) in a DataLoader:
                 crop, flip, normalization, NO colour jitter; float32 batches
  original       the original trainer's PIL pipeline in a DataLoader: crop, flip, colour jitter; float32 batches
  timm           create_loader's defaults (crop, flip, colour jitter), up to the uint8 batches that it moves to
                 the device; omitted if timm is not installed
  dali           NVIDIA DALI's CPU operators, decoding only the crop: crop, flip, colour jitter, up to uint8 batches;
                 omitted if DALI is not installed
  decode alone   cv2.imdecode in threads, on files already in memory: an upper limit for loaders that use cv2.imdecode
  prepared       (only with --prepared) shufflenetv2 on the output of `python -m shufflenetv2 prepare FOLDER PREPARED`

With W workers, shufflenetv2, dali and `decode alone` use W threads, the others W processes, and the benchmark with all its
children is pinned to W cores: with 1 worker everything shares one core. Every measurement starts a loader, consumes batches
until the workers are the bottleneck, then times a fixed number of images while no other loader is running. One repeat measures
each loader once, in turn; the result is the median over the repeats. The script also prints how many cores other processes have
occupied: the result is only reliable if that number is near 0.

    python benchmarks/photographs.py FOLDER
    python benchmarks/data_path.py FOLDER [--workers 1 2] [--images 2048] [--repeats 5] [--batch-size 64]
        [--prepared PREPARED] [--output FILE]
"""

import argparse
import importlib.util
import os
import platform
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
import torch
import torchvision
from measuring import RESULTS, USABLE_CORES, OtherLoad, summarize_rates, write_report
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from shufflenetv2.data import DataIterator, FolderDataset, TrainTransform

SIZE = 224
HAS_TIMM = importlib.util.find_spec("timm") is not None
if HAS_TIMM:
    import timm
    from timm.data.loader import create_loader

HAS_DALI = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
if HAS_DALI:
    import nvidia.dali as dali
    from nvidia.dali import fn

Batches = Generator[object, None, None]
Loader = Callable[[Path, int, int, int], Batches]  # (folder, workers, batch size, number of batches) -> batches


def shufflenetv2_loader(folder: Path, workers: int, batch_size: int, batches: int) -> Batches:
    loader = DataIterator(FolderDataset(folder), TrainTransform(SIZE), batch_size, workers=workers)
    try:
        for _ in range(batches):
            yield loader.next()
    finally:
        loader.close()


def torchvision_loader(folder: Path, workers: int, batch_size: int, batches: int) -> Batches:
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, interpolation=transforms.InterpolationMode.BILINEAR, antialias=True),
            transforms.RandomHorizontalFlip(0.5),
            transforms.PILToTensor(),
            transforms.ConvertImageDtype(torch.float),
            transforms.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        ]
    )
    yield from data_loader(repeated_dataset(folder, batch_size * batches, transform), workers, batch_size)


def original_loader(folder: Path, workers: int, batch_size: int, batches: int) -> Batches:
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE),
            transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4),
            transforms.RandomHorizontalFlip(0.5),
            to_bgr_tensor,
        ]
    )
    yield from data_loader(repeated_dataset(folder, batch_size * batches, transform), workers, batch_size)


def to_bgr_tensor(image: Image.Image) -> torch.Tensor:
    bgr = np.asarray(image)[:, :, ::-1]
    return torch.from_numpy(np.ascontiguousarray(bgr.transpose(2, 0, 1))).float()


def timm_loader(folder: Path, workers: int, batch_size: int, batches: int) -> Batches:
    dataset = repeated_dataset(folder, batch_size * batches, None)  # create_loader sets the transform
    loader = create_loader(
        dataset, (3, SIZE, SIZE), batch_size, is_training=True, num_workers=workers, device=torch.device("cpu")
    )
    yield from loader.loader  # the DataLoader inside, without timm's normalization on the device


def dali_loader(folder: Path, workers: int, batch_size: int, batches: int) -> Batches:
    @dali.pipeline_def(batch_size=batch_size, num_threads=workers, device_id=None)  # type: ignore[untyped-decorator]
    def define_pipeline() -> Any:
        uniform = fn.random.uniform
        encoded, labels = fn.readers.file(file_root=str(folder), random_shuffle=True)
        images = fn.decoders.image_random_crop(
            encoded, device="cpu", output_type=dali.types.BGR, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
        )
        images = fn.resize(images, size=[SIZE, SIZE], interp_type=dali.types.INTERP_LINEAR, antialias=False)
        images = fn.flip(images, horizontal=fn.random.coin_flip())
        factors = {name: uniform(range=[0.6, 1.4]) for name in ("brightness", "contrast", "saturation")}
        return fn.color_twist(images, **factors), labels

    pipeline = define_pipeline()
    pipeline.build()
    for _ in range(batches):
        yield pipeline.run()


def decode_alone(folder: Path, workers: int, batch_size: int, batches: int) -> Batches:
    files = [np.fromfile(path, np.uint8) for path, _ in datasets.ImageFolder(folder).samples]

    def decode(first: int) -> None:
        for index in range(first, first + batch_size):
            cv2.imdecode(files[index % len(files)], cv2.IMREAD_COLOR)

    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(decode, range(0, batches * batch_size, batch_size))


LOADERS: dict[str, Loader] = {
    "shufflenetv2": shufflenetv2_loader,
    "torchvision": torchvision_loader,
    "original": original_loader,
    "timm": timm_loader,
    "dali": dali_loader,
    "decode alone": decode_alone,
}
if not HAS_TIMM:
    del LOADERS["timm"]
if not HAS_DALI:
    del LOADERS["dali"]
BASE = "torchvision"


def repeated_dataset(folder: Path, length: int, transform: object) -> datasets.ImageFolder:
    """Open the folder with its images repeated to at least `length` samples, so that no epoch ends during the measurement."""
    dataset = datasets.ImageFolder(folder, transform)
    dataset.samples *= -(-length // len(dataset.samples))
    return dataset


def data_loader(dataset: datasets.ImageFolder, workers: int, batch_size: int) -> DataLoader[object]:
    return DataLoader(dataset, batch_size, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True)


def images_per_second(loader: Loader, folder: Path, workers: int, batch_size: int, images: int) -> float:
    """Start a loader, measure its rate after a warm-up, and stop it."""
    warm_up = 4 * workers  # twice the number of batches that a DataLoader prefetches
    timed = images // batch_size
    # The batches after the timed ones keep every worker busy until the end of the measurement.
    batches = loader(folder, workers, batch_size, warm_up + timed + 4 * workers)
    for _ in range(warm_up):
        next(batches)
    start = time.perf_counter()
    for _ in range(timed):
        next(batches)
    elapsed = time.perf_counter() - start
    batches.close()  # ends the workers
    while threading.active_count() > 1:
        time.sleep(0.01)
    return timed * batch_size / elapsed


def measure(folder: Path, workers: int, batch_size: int, images: int, repeats: int) -> tuple[dict[str, list[float]], float]:
    """Return the rates of each loader in images per second, and the number of cores that other processes occupied."""
    cores = USABLE_CORES[:workers]
    os.sched_setaffinity(0, cores)
    load = OtherLoad(cores)
    rates: dict[str, list[float]] = {name: [] for name in LOADERS}
    for repeat in range(repeats):
        for name, loader_rates in rates.items():
            loader_rates.append(images_per_second(LOADERS[name], folder, workers, batch_size, images))
        print(f"workers {workers}, repeat {repeat + 1}:", {name: round(rate[-1]) for name, rate in rates.items()}, flush=True)
    return rates, load.cores_lost()


def describe_photographs(folder: Path) -> dict[str, float]:
    paths = [Path(path) for path, _ in datasets.ImageFolder(folder).samples]
    sizes = np.array([Image.open(path).size for path in paths])
    return {
        "count": len(paths),
        "mean width": round(float(sizes[:, 0].mean()), 1),
        "mean height": round(float(sizes[:, 1].mean()), 1),
        "mean kB": round(sum(path.stat().st_size for path in paths) / len(paths) / 1000, 1),
    }


def versions() -> dict[str, str | None]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cv2": cv2.__version__,
        "pillow": PIL.__version__,
        "timm": timm.__version__ if HAS_TIMM else None,
        "dali": dali.__version__ if HAS_DALI else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Images per second that this loader and others load.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="class folders of images (see photographs.py)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers and of cores")
    parser.add_argument("--images", type=int, default=2048, help="images per measurement (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each loader (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS / "data_path.json")
    parser.add_argument("--prepared", type=Path, metavar="PREPARED", help="the same images, shrunk by `prepare`")
    arguments = parser.parse_args()
    if arguments.prepared:
        LOADERS["prepared"] = lambda folder, *rest: shufflenetv2_loader(arguments.prepared, *rest)
    if max(arguments.workers) > len(USABLE_CORES):
        parser.error(f"{max(arguments.workers)} workers need as many cores to pin them to; {len(USABLE_CORES)} are usable")
    for name, is_installed in (("timm", HAS_TIMM), ("NVIDIA DALI", HAS_DALI)):
        if not is_installed:
            print(f"{name} is not installed, and its loader is omitted")
    torch.set_num_threads(1)  # in this process; the workers of a DataLoader do it themselves

    images = arguments.images // arguments.batch_size * arguments.batch_size
    results, cores_lost = {}, {}
    for workers in arguments.workers:
        rates, lost = measure(arguments.folder, workers, arguments.batch_size, images, arguments.repeats)
        results[str(workers)], cores_lost[str(workers)] = summarize_rates(rates, BASE), round(lost, 3)

    for cores, rows in results.items():
        busy = f"of which other processes occupied {cores_lost[cores]:.2f}"
        print(f"\n{cores} worker(s), pinned to {cores} core(s), {busy}; images/s")
        print(f"{'':14}{'median':>8}{'min':>8}{'max':>8}   ratio to {BASE}")
        for name, row in rows.items():
            print(f"{name:14}{row['median']:>8.0f}{row['min']:>8.0f}{row['max']:>8.0f}{row[f'ratio to {BASE}']:>8.2f}")
    print(f"\n{BASE} does no colour jitter; the others do. `decode alone` does nothing else.")

    command = ["python benchmarks/data_path.py FOLDER", "--workers", *arguments.workers]
    command += ["--prepared PREPARED"] * bool(arguments.prepared)
    command += ["--images", arguments.images, "--repeats", arguments.repeats, "--batch-size", arguments.batch_size]
    write_report(
        arguments.output,
        command,
        {
            "versions": versions(),
            "photographs": describe_photographs(arguments.folder),
            "images timed per repeat": images,
            "note": f"images per second by number of workers, which is also the number of cores; {BASE} does no colour "
            "jitter, the others do",
            "cores lost to other processes": cores_lost,
            "results": results,
        },
    )


if __name__ == "__main__":
    main()
