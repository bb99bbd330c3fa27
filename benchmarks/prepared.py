"""Whether training on what `shufflenetv2 prepare` makes costs accuracy: the same training from originals and from copies.

The data set is made first, seeded. The photographs and textures inside the wheels of scikit-image and scikit-learn are
cut into tiles of 128 pixels; the four with the most fine detail of each are the classes. Every image is a random view of
its tile, 500 x 375 pixels at about the source's own resolution: mirrored where the tile ends, turned, tilted, recoloured,
with a little noise. The tiles of a texture differ in nothing coarse. Training and validation images are different views.

`prepare` then makes copies of the training images: a short side of 256 at the default quality, and two controls, at JPEG
quality 10 and with a short side of 64, to learn what harm this would see. train.py trains from each with the same options
and seeds; all are evaluated on the original validation images, those trained on the originals or the default copies on
prepared ones as well. Differences are paired by seed: same initial weights, same order of images, same random numbers.

    python benchmarks/prepared.py [--seeds 8] [--control-seeds 3] [--jobs 2]
"""

import argparse
import datetime
import importlib.metadata
import itertools
import json
import math
import os
import platform
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
from measuring import machine
from photographs import QUALITY, SKIMAGE, SOURCES
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
TEXTURES = [SKIMAGE / "data" / name for name in ("brick.png", "grass.png", "gravel.png")]
TILE, TILES = 128, 4  # pixels; of a source
SIZE = (500, 375)  # width and height
IMAGES = {"train": 32, "val": 32}  # of a class
TURN, TILT = 30, 0.0004  # degrees; change of scale per pixel
SCALE = (0.8, 1.25)  # pixels of the source per pixel of the image
GAIN, NOISE = (0.7, 1.3), 4  # of each colour; standard deviation, of 255
SEED = 0

PREPARED = "--short-side 256"
VARIANTS = {"originals": "", "prepared": PREPARED}  # name: what the training images were prepared with
CONTROLS = {"too coarse": f"{PREPARED} --quality 10", "too small": "--short-side 64"}
TRAINING = (
    "--model-size 0.5x --input-size 224 --channels-last --device cpu --workers 1 --color-jitter 0 --no-validate "
    "--batch-size 32 --total-iters 250 --opt adamw --lr 0.003 --weight-decay 0.05 --warmup-iters 20"
)


def finest_tiles(path: Path) -> list[np.ndarray]:
    """Those of an image that lose most when they are halved, uint8 (TILE, TILE, 3)."""
    image = np.asarray(Image.open(path).convert("RGB"))
    corners = itertools.product(*(range(0, side - TILE + 1, TILE) for side in image.shape[:2]))
    tiles = [image[top : top + TILE, left : left + TILE] for top, left in corners]

    def detail(tile: np.ndarray) -> float:
        half = cv2.resize(tile, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        return float(cv2.absdiff(tile, cv2.resize(half, (TILE, TILE), interpolation=cv2.INTER_CUBIC)).mean())

    return sorted(tiles, key=detail)[-TILES:]


def view(mirrored: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """A random view of a tile that goes on in its mirror images on all sides."""
    (width, height), (rows, columns) = SIZE, mirrored.shape[:2]
    angle, scale = math.radians(rng.uniform(-TURN, TURN)), rng.uniform(*SCALE)
    cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
    centred = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]])
    seen = np.array([[cosine, -sine, 0], [sine, cosine, 0], [*rng.uniform(-TILT, TILT, 2), 1]])
    across, down = rng.uniform(-TILE / 2, TILE / 2, 2)
    placed = np.array([[1, 0, columns / 2 + across], [0, 1, rows / 2 + down], [0, 0, 1]])
    pixels = cv2.warpPerspective(mirrored, placed @ seen @ centred, SIZE, flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
    noise = rng.standard_normal((height, width, 1), np.float32) * NOISE
    return Image.fromarray(np.clip(pixels * rng.uniform(*GAIN, 3) + noise, 0, 255).astype(np.uint8))


def photograph(tile: np.ndarray, label: int, folder: Path) -> None:
    """Fills the tile's class folders in `folder`/train and `folder`/val."""
    rng = np.random.Generator(np.random.Philox([SEED, label]))
    mirrored = np.pad(tile, ((4 * TILE, 4 * TILE), (4 * TILE, 4 * TILE), (0, 0)), "symmetric")
    for part, count in IMAGES.items():
        place = folder / part / f"tile-{label:02}"
        place.mkdir(parents=True)
        for number in range(count):
            view(mirrored, rng).save(place / f"{number:03}.jpg", quality=QUALITY, subsampling="4:2:0")


def run(*command: str | Path) -> str:
    """What a Python command printed; raises RuntimeError if it fails."""
    own = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=own, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return done.stdout


def train_and_evaluate(folder: Path, variant: str, seed: int) -> dict[str, dict[str, float]]:
    """Top-1 in percent and loss, by the images it was evaluated on."""
    own = folder / "runs" / f"{variant}-{seed}"
    place = ("--save", own / "models", "--log-dir", own / "logs")
    run("train.py", *TRAINING.split(), "--seed", str(seed), "--train-dir", folder / variant, *place)
    found = {}
    for images in VARIANTS if variant in VARIANTS else ["originals"]:
        text = run("train.py", "--eval", *place, "--device", "cpu", "--workers", "1", "--val-dir", folder / f"val {images}")
        match = re.search(r"TEST Iter \d+: loss = ([\d.]+),\s+Top-1 err = ([\d.]+)", text)
        assert match, text
        found[images] = {"top-1": round(100 * (1 - float(match[2])), 4), "loss": float(match[1])}
    return found


def spread(values: list[float]) -> dict[str, Any]:
    """Mean, standard deviation and the values themselves."""
    return {
        "mean": round(statistics.mean(values), 4),
        "standard deviation": round(statistics.stdev(values), 4),
        "of each seed": [round(value, 4) for value in values],
    }


def paired(values: list[float], others: list[float]) -> dict[str, Any]:
    """What `values` are above `others`, seed by seed; there may be more of the others."""
    found = spread([value - other for value, other in zip(values, others, strict=False)])
    return {**found, "standard error": round(found["standard deviation"] / math.sqrt(len(values)), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Whether training on prepared images costs accuracy.")
    parser.add_argument("--seeds", type=int, default=8, help="of the trainings, 0 and up (default: %(default)s)")
    parser.add_argument("--control-seeds", type=int, default=3, help="of the controls (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, of one thread each (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results/prepared.json")
    arguments = parser.parse_args()
    if not 2 <= arguments.control_seeds <= arguments.seeds:
        parser.error("--control-seeds is at least 2, for a spread, and at most --seeds, for pairs")

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(arguments.jobs) as pool:
        folder = Path(name)
        tiles = [tile for path in SOURCES + TEXTURES for tile in finest_tiles(path)]
        list(pool.map(lambda label: photograph(tiles[label], label, folder), range(len(tiles))))
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
        figures: dict[str, list[dict[str, dict[str, float]]]] = {variant: [] for variant in variants}
        for (variant, seed), found in zip(runs, pool.map(lambda run: train_and_evaluate(folder, *run), runs), strict=True):
            figures[variant].append(found)
            print(f"{(time.perf_counter() - start) / 60:.1f} min: {variant}, seed {seed}: {found}", flush=True)

    results: dict[str, dict[str, Any]] = {}
    print(f"\n{'top-1, %':46}{'mean':>8}{'stdev':>8}{'difference':>12}{'s.e.':>7}")
    for variant, of_seeds in figures.items():
        results[variant] = {"options of prepare": variants[variant], "bytes per image": round(sizes[variant])}
        for images in of_seeds[0]:
            result: dict[str, Any] = {}
            for measure in ("top-1", "loss"):
                values = [found[images][measure] for found in of_seeds]
                base = [found["originals"][measure] for found in figures["originals"]]
                result[measure] = {**spread(values), "minus originals on originals": paired(values, base)}
            results[variant][f"evaluated on {images}"] = result
            top1, difference = result["top-1"], result["top-1"]["minus originals on originals"]
            print(
                f"trained on {variant}, evaluated on {images}".ljust(46)
                + f"{top1['mean']:8.2f}{top1['standard deviation']:8.2f}"
                + f"{difference['mean']:+12.2f}{difference['standard error']:7.2f}"
            )
    report = {
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/prepared.py --seeds {arguments.seeds} --control-seeds {arguments.control_seeds} "
        f"--jobs {arguments.jobs}",
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("torch", "opencv-python-headless", "pillow")},
        },
        "classes": len(tiles),
        "images": {part: count * len(tiles) for part, count in IMAGES.items()},
        "pixels": SIZE,
        "training": TRAINING,
        "trainings at a time": arguments.jobs,
        "minutes": round((time.perf_counter() - start) / 60, 1),
        "results": results,
    }
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
