"""Make class folders of JPEG photographs like those of ImageNet, to measure how fast they are loaded.

The pixels come from the photographs in the wheels of scikit-image and scikit-learn; nothing is downloaded. Each image is a
random crop of one of them at a random scale, about 500 x 375 pixels (a quarter of them portraits), saved as baseline JPEG with
4:2:0 chroma subsampling at the quality that gives ImageNet's mean file size, 67 kB. The draws are seeded: the same version of
Pillow makes the same files. The labels are arbitrary.

With --long-side 4000 the images have the size of a phone's photographs. Since the sources are smaller, noise like that of a
camera sensor is added; otherwise these images would be as cheap to decode as blank paper.

    python benchmarks/photographs.py FOLDER [--count 512] [--classes 8] [--long-side 500]
"""

import argparse
from pathlib import Path

import numpy as np
import skimage
import sklearn
from PIL import Image

SKIMAGE, SKLEARN = Path(skimage.__file__).parent, Path(sklearn.__file__).parent
SOURCES = [
    SKIMAGE / "data/astronaut.png",
    SKIMAGE / "data/chelsea.png",
    SKIMAGE / "data/coffee.png",
    SKIMAGE / "data/hubble_deep_field.jpg",
    SKIMAGE / "data/motorcycle_left.png",
    SKIMAGE / "data/retina.jpg",
    SKIMAGE / "data/rocket.jpg",
    SKLEARN / "datasets/images/china.jpg",
    SKLEARN / "datasets/images/flower.jpg",
]
LONG_SIDE = 500
SHORT_SIDES = (0.66, 0.84)  # smallest and largest short side relative to the long side, drawn uniformly
PORTRAITS = 0.25  # fraction of the images
MIN_CROP = 0.65  # side length relative to the largest crop that fits into the source
QUALITY = 95  # gives a mean of 67 kB
LARGE = 2000  # pixels of the long side from which noise is added
NOISE = 4.0  # its standard deviation, on a scale of 0..255
LARGE_QUALITY = 92
SEED = 0


def photograph(sources: list[Image.Image], rng: np.random.Generator, long_side: int) -> Image.Image:
    """Draw a random crop of a random source, RGB."""
    source = sources[rng.integers(len(sources))]
    short = int(rng.integers(round(SHORT_SIDES[0] * long_side), round(SHORT_SIDES[1] * long_side) + 1))
    width, height = (short, long_side) if rng.random() < PORTRAITS else (long_side, short)
    scale = min(source.width / width, source.height / height) * rng.uniform(MIN_CROP, 1)
    left, top = rng.random() * (source.width - width * scale), rng.random() * (source.height - height * scale)
    box = (left, top, left + width * scale, top + height * scale)
    image = source.resize((width, height), Image.Resampling.BICUBIC, box)
    if long_side < LARGE:
        return image
    noise = rng.standard_normal((height, width, 3), np.float32) * NOISE
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description="Make class folders of JPEG photographs like ImageNet's.")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--count", type=int, default=512, help="number of images (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=8, help="number of class folders (default: %(default)s)")
    parser.add_argument("--long-side", type=int, default=LONG_SIDE, help="long side in pixels (default: %(default)s)")
    arguments = parser.parse_args()

    rng = np.random.Generator(np.random.Philox(SEED))
    sources = [Image.open(path).convert("RGB") for path in SOURCES]
    widths, heights, sizes = [], [], []
    for number in range(arguments.count):
        image = photograph(sources, rng, arguments.long_side)
        path = arguments.folder / f"class-{number % arguments.classes}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=LARGE_QUALITY if arguments.long_side >= LARGE else QUALITY, subsampling="4:2:0")
        widths.append(image.width)
        heights.append(image.height)
        sizes.append(path.stat().st_size)
    print(
        f"{len(sizes)} photographs in {arguments.classes} classes, on average "
        f"{np.mean(widths):.0f} x {np.mean(heights):.0f} pixels and {np.mean(sizes) / 1000:.1f} kB"
    )


if __name__ == "__main__":
    main()
