"""Measure what `shufflenetv2 check` takes for images that look alike: changed copies of photographs, and different photographs.

The photographs are those of photographs.py: random crops of nine sources, of which some overlap nearly wholly.

    python benchmarks/similar_images.py [--count 300]
"""

import argparse
import sys
import time
from collections.abc import Callable

import cv2
import numpy as np
from measuring import RESULTS, OtherLoad, installed_versions, write_report
from photographs import LONG_SIDE, SEED, SOURCES, photograph
from PIL import Image

from shufflenetv2.data.similarity import MAX_DISTANCE, close_pairs, signature, similar_pairs

DISTANCES = (4, MAX_DISTANCE, 8)
HASHES = 100_000


def compressed(pixels: np.ndarray, quality: int) -> np.ndarray:
    decoded = cv2.imdecode(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded


def scaled(pixels: np.ndarray, factor: float) -> np.ndarray:
    return cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


def cropped(pixels: np.ndarray, fraction: float) -> np.ndarray:
    """Cut a fraction of the height off at the top, and of the width on the left."""
    return pixels[round(fraction * pixels.shape[0]) :, round(fraction * pixels.shape[1]) :]


def rotated(pixels: np.ndarray, degrees: float) -> np.ndarray:
    height, width = pixels.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    return cv2.warpAffine(pixels, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "JPEG, quality 50": lambda pixels: compressed(pixels, 50),
    "JPEG, quality 20": lambda pixels: compressed(pixels, 20),
    "half the size": lambda pixels: scaled(pixels, 0.5),
    "a quarter of the size, quality 75": lambda pixels: compressed(scaled(pixels, 0.25), 75),
    "brighter by a fifth": lambda pixels: np.clip(pixels * 1.2, 0, 255).astype(np.uint8),
    "darker by a third": lambda pixels: (pixels * 0.67).astype(np.uint8),
    "grey": lambda pixels: cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR),
    "rotated by 1 degree": lambda pixels: rotated(pixels, 1),
    "cropped by 1 %": lambda pixels: cropped(pixels, 0.01),
    "cropped by 3 %": lambda pixels: cropped(pixels, 0.03),
    "mirrored": lambda pixels: pixels[:, ::-1],
}


def search_time(rng: np.random.Generator) -> float:
    """Return the seconds for the search among HASHES hashes, of which half differ from others in one bit."""
    hashes = rng.integers(0, 2**64, HASHES // 2, dtype=np.uint64)
    copies = hashes ^ (np.uint64(1) << rng.integers(0, 64, len(hashes), dtype=np.uint64))
    started = time.perf_counter()
    assert len(close_pairs(np.concatenate((hashes, copies)), MAX_DISTANCE)) >= len(hashes)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="number of photographs (default: %(default)s)")
    count = parser.parse_args().count
    load, rng = OtherLoad(), np.random.Generator(np.random.Philox(SEED))
    sources = [Image.open(path).convert("RGB") for path in SOURCES]
    originals = [np.asarray(photograph(sources, rng, LONG_SIDE))[:, :, ::-1].copy() for _ in range(count)]
    signatures = [signature(pixels) for pixels in originals]
    found = {}
    for name, change in CHANGES.items():
        changed = [signature(np.ascontiguousarray(change(pixels))) for pixels in originals]
        found[name] = {
            str(distance): sum(bool(similar_pairs([*pair], distance)) for pair in zip(signatures, changed, strict=True)) / count
            for distance in DISTANCES
        }
        print(name, found[name])
    different = {str(distance): len(similar_pairs(signatures, distance)) for distance in DISTANCES}
    print(f"of {count * (count - 1) // 2:,} pairs of different photographs: {different}")
    seconds = search_time(rng)
    write_report(
        RESULTS / "similar_images.json",
        ["python", "benchmarks/similar_images.py", *sys.argv[1:]],
        {
            "photographs": count,
            "changed copies found, by largest distance": found,
            "pairs of different photographs found": different,
            "hashes": HASHES,
            "seconds of the search": round(seconds, 2),
            "versions": installed_versions("numpy", "opencv-python-headless", "scikit-image", "scikit-learn"),
            "machine": {"cores lost to other processes": round(load.cores_lost(), 2)},
        },
    )
    print(f"search among {HASHES:,} hashes: {seconds:.1f} s")


if __name__ == "__main__":
    main()
