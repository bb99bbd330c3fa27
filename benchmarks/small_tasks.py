"""Make classification tasks like the folders of people who train on their own images: some hundred JPEG files in class folders.

Nothing is downloaded: the digits are those of scikit-learn, the photographs come from the wheels of scikit-image and
scikit-learn, textures and drawings are generated. All images have 96 x 96 pixels. The draws are seeded.

- digits: 10 classes of 30 enlarged handwritten digits.
- photographs: 9 classes, one for each photograph; an image is a rotated crop of a twentieth of its area or more, recoloured.
  Training images are from the upper left part, validation images from the rest.
- textures: 12 classes of filtered noise, each with a spectrum and two colours of its own; every image varies them.
- drawings: 60 classes of 5 drawings each: three strokes per class, which every image bends and moves.

    python benchmarks/small_tasks.py FOLDER [--tasks digits photographs textures drawings]
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from measuring import ROOT
from photographs import SOURCES
from PIL import Image

SIDE = 96
QUALITY = 92
SPLITS = ("train", "val")
Pixels = np.ndarray  # uint8 (SIDE, SIDE, 3), RGB
Draw = Callable[[int, str, np.random.Generator], Pixels]  # (class, split, random numbers) -> image


def to_pixels(values: np.ndarray) -> Pixels:
    pixels: Pixels = np.clip(values, 0, 255).astype(np.uint8)
    return pixels


def digit_pixels() -> dict[tuple[int, str], list[Pixels]]:
    """Return the enlarged digits of each class and split."""
    file = np.load(ROOT / "shufflenetv2/data/digits.npz")
    pixels: dict[tuple[int, str], list[Pixels]] = {(label, split): [] for label in range(10) for split in SPLITS}
    for small, label, held_out in zip(file["images"], file["targets"], file["held_out"], strict=True):
        large = cv2.resize(small * (255 // small.max()), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        pixels[int(label), SPLITS[int(held_out)]].append(np.repeat(large[:, :, None], 3, axis=2))
    return pixels


def draw_digit() -> Draw:
    remaining = digit_pixels()
    return lambda label, split, rng: remaining[label, split].pop(0)


def draw_photograph() -> Draw:
    """Return a function that draws rotated, recoloured crops of a photograph; the splits use parts that do not overlap."""
    sources = [np.asarray(Image.open(path).convert("RGB")) for path in SOURCES]

    def draw(label: int, split: str, rng: np.random.Generator) -> Pixels:
        source = sources[label]
        border = round(0.6 * source.shape[1])
        part = source[:, :border] if split == "train" else source[:, border:]
        height, width = part.shape[:2]
        side = min(height, width) * rng.uniform(0.25, 0.5)
        reach = side / math.sqrt(2)  # of a rotated square
        centre = (rng.uniform(reach, width - reach), rng.uniform(reach, height - reach))
        matrix = cv2.getRotationMatrix2D(centre, rng.uniform(-45, 45), SIDE / side)
        to_centre = np.array([[0, 0, SIDE / 2 - centre[0]], [0, 0, SIDE / 2 - centre[1]]])
        crop = cv2.warpAffine(part, matrix + to_centre, (SIDE, SIDE), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT)
        grey = crop.mean(axis=2, keepdims=True)
        saturation = rng.uniform(0, 1)
        recoloured = (grey + saturation * (crop - grey)) * rng.uniform(0.6, 1.4, 3)
        return to_pixels(recoloured)

    return draw


def draw_texture(classes: int) -> Draw:
    """Return a function that draws noise filtered by a spectrum of its class, in two colours."""
    frequency = np.fft.fftfreq(SIDE)
    radius, angle = np.hypot(frequency[:, None], frequency), np.arctan2(frequency[:, None], frequency)
    of_classes = np.random.Generator(np.random.Philox(classes))
    spectra = [
        {
            "scale": of_classes.uniform(0.04, 0.16),
            "angle": of_classes.uniform(0, math.pi),
            "spread": of_classes.uniform(0.2, 1.2),
            "sharpness": of_classes.uniform(0.5, 4),
            "hue": of_classes.uniform(0, 1),
        }
        for _ in range(classes)
    ]

    def draw(label: int, split: str, rng: np.random.Generator) -> Pixels:
        spectrum = spectra[label]
        scale = spectrum["scale"] * rng.uniform(0.8, 1.25)
        turned = angle - spectrum["angle"] - rng.normal(0, 0.25)
        response = np.exp(-((np.log((radius + 1e-6) / scale) / 0.35) ** 2) - (np.sin(turned) / spectrum["spread"]) ** 2)
        noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((SIDE, SIDE))) * response).real
        pattern = 1 / (1 + np.exp(-spectrum["sharpness"] * noise / noise.std()))
        values = (rng.uniform(30, 120), rng.uniform(140, 250))
        hsv = [[180 * ((spectrum["hue"] + rng.normal(0, 0.12)) % 1), rng.uniform(60, 160), value] for value in values]
        colours = cv2.cvtColor(to_pixels(np.array([hsv])), cv2.COLOR_HSV2RGB)[0]
        mixed = pattern[:, :, None] * colours[0] + (1 - pattern[:, :, None]) * colours[1]
        return to_pixels(mixed + rng.normal(0, 12, mixed.shape))

    return draw


def draw_drawing(classes: int) -> Draw:
    """Return a function that draws the three strokes of a class on paper, bent, moved and turned."""
    of_classes = np.random.Generator(np.random.Philox(classes))
    points = of_classes.uniform(16, SIDE - 16, (classes, 3, 4, 2))  # control points of cubic Bézier curves
    time = np.linspace(0, 1, 24)[:, None]

    def draw(label: int, split: str, rng: np.random.Generator) -> Pixels:
        turn, size = rng.normal(0, 0.12), rng.uniform(0.8, 1.1)
        rotation = size * np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        moved = (points[label] + rng.normal(0, 3, (3, 4, 2)) - SIDE / 2) @ rotation + SIDE / 2 + rng.normal(0, 3, 2)
        paper = rng.uniform(200, 255, 3) * np.ones((SIDE, SIDE, 3))
        ink, width = rng.uniform(0, 110, 3), int(rng.integers(2, 5))
        for a, b, c, d in moved:
            curve = (1 - time) ** 3 * a + 3 * (1 - time) ** 2 * time * b + 3 * (1 - time) * time**2 * c + time**3 * d
            cv2.polylines(paper, [np.round(16 * curve).astype(np.int32)], False, ink.tolist(), width, cv2.LINE_AA, shift=4)
        return to_pixels(paper + rng.normal(0, 6, paper.shape))

    return draw


# task: (classes, training images per class, validation images per class, maker of the function that draws an image)
TASKS: dict[str, tuple[int, int, int, Callable[[], Draw]]] = {
    "digits": (10, 30, 28, draw_digit),
    "photographs": (len(SOURCES), 33, 30, draw_photograph),
    "textures": (12, 25, 25, lambda: draw_texture(12)),
    "drawings": (60, 5, 4, lambda: draw_drawing(60)),
}


def write_images(folder: Path, draw: Draw, counts: list[int], seed: int = 0) -> None:
    """Write `counts[label]` images of each class into the class folders of `folder`, whose name is that of the split."""
    for label, count in enumerate(counts):
        class_folder = folder / f"class-{label:03}"
        class_folder.mkdir(parents=True)
        rng = np.random.Generator(np.random.Philox([seed, 2 * label + SPLITS.index(folder.name)]))
        for number in range(count):
            image = Image.fromarray(draw(label, folder.name, rng))
            image.save(class_folder / f"{number:03}.jpg", quality=QUALITY, subsampling="4:2:0")


def write_task(name: str, folder: Path) -> None:
    """Write the task `name` into `folder`/train and `folder`/val."""
    classes, train_images, val_images, make_draw = TASKS[name]
    draw = make_draw()
    for split, count in zip(SPLITS, (train_images, val_images), strict=True):
        write_images(folder / split, draw, [count] * classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    arguments = parser.parse_args()
    for name in arguments.tasks:
        write_task(name, arguments.folder / name)


if __name__ == "__main__":
    main()
