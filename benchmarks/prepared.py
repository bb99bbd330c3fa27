"""Measure whether training on images shrunk by `shufflenetv2 prepare` costs accuracy, compared with the originals.

The data set is made first, with seeded random numbers, so that fine detail matters. The photographs and textures inside
scikit-image and scikit-learn are divided into tiles of 128 x 128 pixels; the four tiles of each source with the most fine
detail are the classes. Every image is a random view of its tile, 500 x 375 pixels at about the resolution of the source:
continued by mirror images beyond the tile, rotated, tilted, recoloured, with some noise. The tiles of a texture differ in
nothing but detail. Training and validation images are different views.

`prepare` then makes copies of the training images: one with a short side of 256 at the default quality, and two controls
that show what the measurement can detect: JPEG quality 10, and a short side of 64. train.py trains on each with the same
options and seeds. All results are evaluated on the original validation images; those trained on the originals and on the
default copies also on prepared ones. Differences are paired by seed: same initial weights, same order of the images, same
random numbers.

    python benchmarks/prepared.py [--seeds 8] [--control-seeds 3] [--jobs 2] [--output FILE]
"""

import argparse
import itertools
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from measuring import RESULTS, ROOT, installed_versions, write_report
from photographs import QUALITY, SKIMAGE, SOURCES
from PIL import Image

TEXTURES = [SKIMAGE / "data" / name for name in ("brick.png", "grass.png", "gravel.png")]
TILE, TILES = 128, 4  # side of a tile in pixels; tiles per source
SIZE = (500, 375)  # width and height of an image
IMAGES = {"train": 32, "val": 32}  # images per class
TURN, TILT = 30, 0.0004  # largest rotation in degrees; largest change of scale per pixel
SCALE = (0.8, 1.25)  # pixels of the source per pixel of the image
GAIN, NOISE = (0.7, 1.3), 4  # factor of each colour; standard deviation of the noise, on a scale of 0..255
SEED = 0

PREPARED = "--short-side 256"
VARIANTS = {"originals": "", "prepared": PREPARED}  # name of the training images: options of `prepare`
CONTROLS = {"too coarse": f"{PREPARED} --quality 10", "too small": "--short-side 64"}
TRAINING = (
    "--model-size 0.5x --input-size 224 --channels-last --device cpu --workers 1 --color-jitter 0 --no-validate "
    "--batch-size 32 --total-iters 250 --opt adamw --lr 0.003 --weight-decay 0.05 --warmup-iters 20"
)


def finest_tiles(path: Path) -> list[np.ndarray]:
    """Return the tiles that lose most when shrunk to half their size, uint8 (TILE, TILE, 3)."""
    image = np.asarray(Image.open(path).convert("RGB"))
    corners = itertools.product(*(range(0, side - TILE + 1, TILE) for side in image.shape[:2]))
    tiles = [image[top : top + TILE, left : left + TILE] for top, left in corners]

    def detail(tile: np.ndarray) -> float:
        half = cv2.resize(tile, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        return float(cv2.absdiff(tile, cv2.resize(half, (TILE, TILE), interpolation=cv2.INTER_CUBIC)).mean())

    return sorted(tiles, key=detail)[-TILES:]


def view(mirrored: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Draw a random view of a tile, which mirror images of it continue on all sides."""
    (width, height), (rows, columns) = SIZE, mirrored.shape[:2]
    angle, scale = math.radians(rng.uniform(-TURN, TURN)), rng.uniform(*SCALE)
    cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
    to_centre = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]])
    turned = np.array([[cosine, -sine, 0], [sine, cosine, 0], [*rng.uniform(-TILT, TILT, 2), 1]])
    shift_x, shift_y = rng.uniform(-TILE / 2, TILE / 2, 2)
    to_tile = np.array([[1, 0, columns / 2 + shift_x], [0, 1, rows / 2 + shift_y], [0, 0, 1]])
    pixels = cv2.warpPerspective(mirrored, to_tile @ turned @ to_centre, SIZE, flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
    noise = rng.standard_normal((height, width, 1), np.float32) * NOISE
    return Image.fromarray(np.clip(pixels * rng.uniform(*GAIN, 3) + noise, 0, 255).astype(np.uint8))


def write_class(tile: np.ndarray, label: int, folder: Path) -> None:
    """Write the images of a class into `folder`/train and `folder`/val."""
    rng = np.random.Generator(np.random.Philox([SEED, label]))
    mirrored = np.pad(tile, ((4 * TILE, 4 * TILE), (4 * TILE, 4 * TILE), (0, 0)), "symmetric")
    for part, count in IMAGES.items():
        class_folder = folder / part / f"tile-{label:02}"
        class_folder.mkdir(parents=True)
        for number in range(count):
            view(mirrored, rng).save(class_folder / f"{number:03}.jpg", quality=QUALITY, subsampling="4:2:0")


def run(*command: str | Path) -> str:
    """Run a Python command and return what it printed. Raise RuntimeError if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(process.stdout[-2000:] + process.stderr[-2000:])
    return process.stdout


def train_and_evaluate(folder: Path, variant: str, seed: int) -> dict[str, dict[str, float]]:
    """Train once. Return top-1 in percent and loss, by the images that the result was evaluated on."""
    run_folder = folder / "runs" / f"{variant}-{seed}"
    output = ("--save", run_folder / "models", "--log-dir", run_folder / "logs")
    run("train.py", *TRAINING.split(), "--seed", str(seed), "--train-dir", folder / variant, *output)
    scores = {}
    for images in VARIANTS if variant in VARIANTS else ["originals"]:
        run("train.py", "--eval", *output, "--device", "cpu", "--workers", "1", "--val-dir", folder / f"val {images}")
        (log,) = run_folder.glob(f"logs/eval/*{images}/train.log")
        loss, error = re.findall(r"TEST Iter \d+: loss = ([\d.]+),\s+Top-1 err = ([\d.]+)", log.read_text("utf-8"))[-1]
        scores[images] = {"top-1": round(100 * (1 - float(error)), 4), "loss": float(loss)}
    return scores


def describe(values: list[float]) -> dict[str, Any]:
    """Return mean, standard deviation and the values themselves."""
    return {
        "mean": round(statistics.mean(values), 4),
        "standard deviation": round(statistics.stdev(values), 4),
        "of each seed": [round(value, 4) for value in values],
    }


def describe_differences(values: list[float], base: list[float]) -> dict[str, Any]:
    """Describe `values` minus `base`, paired by seed. `base` may have more seeds."""
    differences = describe([value - base_value for value, base_value in zip(values, base, strict=False)])
    return {**differences, "standard error": round(differences["standard deviation"] / math.sqrt(len(values)), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Whether training on prepared images costs accuracy.")
    parser.add_argument("--seeds", type=int, default=8, help="seeds of each training, counted from 0 (default: %(default)s)")
    parser.add_argument("--control-seeds", type=int, default=3, help="seeds of each control (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, with one thread each (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS / "prepared.json")
    arguments = parser.parse_args()
    if not 2 <= arguments.control_seeds <= arguments.seeds:
        parser.error("--control-seeds must be between 2 and --seeds")

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(arguments.jobs) as pool:
        folder = Path(name)
        tiles = [tile for path in SOURCES + TEXTURES for tile in finest_tiles(path)]
        list(pool.map(lambda label: write_class(tiles[label], label, folder), range(len(tiles))))
        (folder / "train").rename(folder / "originals")
        (folder / "val").rename(folder / "val originals")
        variants = VARIANTS | CONTROLS
        for variant, options in variants.items():
            if options:
                run("-m", "shufflenetv2", "prepare", folder / "originals", folder / variant, *options.split())
        run("-m", "shufflenetv2", "prepare", folder / "val originals", folder / "val prepared", *PREPARED.split())
        sizes = {
            variant: statistics.mean(path.stat().st_size for path in (folder / variant).rglob("*.jpg")) for variant in variants
        }
        seeds = {variant: arguments.seeds if variant in VARIANTS else arguments.control_seeds for variant in variants}
        runs = [(variant, seed) for seed in range(arguments.seeds) for variant in variants if seed < seeds[variant]]
        scores: dict[str, list[dict[str, dict[str, float]]]] = {variant: [] for variant in variants}
        run_scores = pool.map(lambda run: train_and_evaluate(folder, *run), runs)
        for (variant, seed), score in zip(runs, run_scores, strict=True):
            scores[variant].append(score)
            print(f"{(time.perf_counter() - start) / 60:.1f} min: {variant}, seed {seed}: {score}", flush=True)

    results: dict[str, dict[str, Any]] = {}
    print(f"\n{'top-1, %':46}{'mean':>8}{'stdev':>8}{'difference':>12}{'s.e.':>7}")
    for variant, variant_scores in scores.items():
        results[variant] = {"options of prepare": variants[variant], "bytes per image": round(sizes[variant])}
        for images in variant_scores[0]:
            result: dict[str, Any] = {}
            for measure in ("top-1", "loss"):
                values = [score[images][measure] for score in variant_scores]
                base = [score["originals"][measure] for score in scores["originals"]]
                result[measure] = {**describe(values), "minus originals on originals": describe_differences(values, base)}
            results[variant][f"evaluated on {images}"] = result
            top1, difference = result["top-1"], result["top-1"]["minus originals on originals"]
            print(
                f"trained on {variant}, evaluated on {images}".ljust(46)
                + f"{top1['mean']:8.2f}{top1['standard deviation']:8.2f}"
                + f"{difference['mean']:+12.2f}{difference['standard error']:7.2f}"
            )
    command = ["python benchmarks/prepared.py", "--seeds", arguments.seeds, "--control-seeds", arguments.control_seeds]
    write_report(
        arguments.output,
        [*command, "--jobs", arguments.jobs],
        {
            "versions": installed_versions("torch", "opencv-python-headless", "pillow"),
            "classes": len(tiles),
            "images": {part: count * len(tiles) for part, count in IMAGES.items()},
            "pixels": SIZE,
            "training": TRAINING,
            "trainings at a time": arguments.jobs,
            "minutes": round((time.perf_counter() - start) / 60, 1),
            "results": results,
        },
    )


if __name__ == "__main__":
    main()
