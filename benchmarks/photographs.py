"""Makes a tree of class folders with JPEG photographs like ImageNet's, for measuring how fast they are read.

The pixels come from the real photographs inside the wheels of scikit-image and scikit-learn; nothing is
downloaded. Every image is a random crop of one of them at a random scale, about 500 x 375 pixels (a quarter
portrait), saved as baseline JPEG with 4:2:0 chroma at the quality that gives ImageNet's mean size, 67 kB.
The draws are seeded: the same Pillow makes the same files. The labels mean nothing.

    python benchmarks/photographs.py FOLDER [--count 512] [--classes 8]
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
SHORT_SIDES = (330, 420)  # smallest and largest, drawn uniformly
PORTRAITS = 0.25
SMALLEST_CROP = 0.65  # of the largest that fits into the source, in length
QUALITY = 95  # gives a mean of 67 kB
SEED = 0


def photograph(sources: list[Image.Image], rng: np.random.Generator) -> Image.Image:
    """One random crop of a random source, RGB."""
    source = sources[rng.integers(len(sources))]
    short = int(rng.integers(SHORT_SIDES[0], SHORT_SIDES[1] + 1))
    width, height = (short, LONG_SIDE) if rng.random() < PORTRAITS else (LONG_SIDE, short)
    share = min(source.width / width, source.height / height) * rng.uniform(SMALLEST_CROP, 1)
    left, top = rng.random() * (source.width - width * share), rng.random() * (source.height - height * share)
    box = (left, top, left + width * share, top + height * share)
    return source.resize((width, height), Image.Resampling.BICUBIC, box)


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes class folders of JPEG photographs like ImageNet's.")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--count", type=int, default=512, help="images in all (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=8, help="class folders (default: %(default)s)")
    arguments = parser.parse_args()

    rng = np.random.Generator(np.random.Philox(SEED))
    sources = [Image.open(path).convert("RGB") for path in SOURCES]
    widths, heights, sizes = [], [], []
    for number in range(arguments.count):
        image = photograph(sources, rng)
        path = arguments.folder / f"class-{number % arguments.classes}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=QUALITY, subsampling="4:2:0")
        widths.append(image.width)
        heights.append(image.height)
        sizes.append(path.stat().st_size)
    print(
        f"{len(sizes)} photographs in {arguments.classes} classes, on average "
        f"{np.mean(widths):.0f} x {np.mean(heights):.0f} pixels and {np.mean(sizes) / 1000:.1f} kB"
    )


if __name__ == "__main__":
    main()
