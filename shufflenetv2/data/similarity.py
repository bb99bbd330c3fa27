"""Find images that look alike: copies that were scaled, compressed again, or changed a little in brightness.

An image is described by a difference hash of 64 bits: it is reduced to 9 x 8 grey pixels, and each bit says whether a pixel is
brighter than its right neighbour. Two images are alike if their hashes differ in at most a few bits, and if their reduced
images of 16 x 16 pixels also correlate: the hash alone takes many drawings on an empty ground for copies.
"""

from itertools import combinations, pairwise
from typing import NamedTuple

import cv2
import numpy as np

BITS = 64
HASH_SIZE = (9, 8)  # width and height of the image that is hashed
THUMBNAIL_SIDE = 16
MIN_CORRELATION = 0.98
MAX_DISTANCE = 6  # bits, see benchmarks/README.md
MAX_NEIGHBOURS = 100  # with how many others that agree in two blocks a hash is compared, so that the time is bounded
PAIRS_AT_ONCE = 10_000
MIN_CONTRAST = 4.0  # standard deviation of the thumbnail's pixels; images of one colour are not compared


class Signature(NamedTuple):
    """Description of an image.

    Attributes:
        hash: difference hash, 64 bits.
        thumbnail: uint8 (16, 16), grey.
    """

    hash: int
    thumbnail: np.ndarray


def signature(pixels: np.ndarray) -> Signature:
    """Describe an image, uint8 (H, W, 3), BGR."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    small = cv2.resize(grey, HASH_SIZE, interpolation=cv2.INTER_AREA).astype(np.int16)
    bits = np.packbits(small[:, :-1] > small[:, 1:])
    side = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    return Signature(int.from_bytes(bits.tobytes(), "big"), cv2.resize(grey, side, interpolation=cv2.INTER_AREA))


def similar_pairs(signatures: list[Signature], max_distance: int) -> list[tuple[int, int]]:
    """Return the pairs of images that look alike, as indices, the smaller first.

    Args:
        max_distance: largest number of bits in which two hashes may differ.
    """
    if not signatures:
        return []
    thumbnails = np.stack([each.thumbnail for each in signatures]).reshape(len(signatures), -1)
    has_contrast = np.flatnonzero(thumbnails.std(axis=1) >= MIN_CONTRAST)
    hashes = np.array([each.hash for each in signatures], np.uint64)[has_contrast]
    pairs = has_contrast[close_pairs(hashes, max_distance)]
    similar = []
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        part = pairs[start : start + PAIRS_AT_ONCE]
        is_similar = _correlations(thumbnails[part[:, 0]], thumbnails[part[:, 1]]) >= MIN_CORRELATION
        similar += [(int(a), int(b)) for a, b in part[is_similar]]
    return similar


def close_pairs(hashes: np.ndarray, max_distance: int) -> np.ndarray:
    """Return the pairs of hashes that differ in at most `max_distance` bits: int64 (N, 2), the smaller index first, sorted.

    The bits are divided into `max_distance + 2` blocks. Two such hashes agree in at least two blocks, so that only hashes with
    two equal blocks are compared, which takes seconds for 100,000 images. Where more than MAX_NEIGHBOURS hashes agree in two
    blocks, as for drawings on an empty ground, pairs can be missed.

    Args:
        hashes: uint64 (N,).
    """
    edges = np.linspace(0, BITS, max_distance + 3).round().astype(int)
    masks = [np.uint64((1 << int(end)) - (1 << int(start))) for start, end in pairwise(edges)]
    found = [np.empty((0, 2), np.int64)]
    for one, other in combinations(masks, 2):
        keys = hashes & (one | other)
        order = np.lexsort((hashes, keys))
        keys = keys[order]
        firsts = np.arange(len(keys))
        # Equal keys are neighbours: compare each with the next, then with the one after it, and so on.
        for offset in range(1, MAX_NEIGHBOURS + 1):
            firsts = firsts[: np.searchsorted(firsts, len(keys) - offset)]
            firsts = firsts[keys[firsts] == keys[firsts + offset]]
            if not len(firsts):
                break
            a, b = order[firsts], order[firsts + offset]
            is_close = count_bits(hashes[a] ^ hashes[b]) <= max_distance
            found.append(np.stack((a[is_close], b[is_close]), axis=1))
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def count_bits(words: np.ndarray) -> np.ndarray:
    """Return the number of ones in each word, uint64 (N,)."""
    # Sums of 2, 4, 8 neighbouring bits, then of the eight bytes, since NumPy 1 has no function for it.
    words = words - ((words >> np.uint64(1)) & np.uint64(0x5555555555555555))
    words = (words & np.uint64(0x3333333333333333)) + ((words >> np.uint64(2)) & np.uint64(0x3333333333333333))
    words = (words + (words >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (words * np.uint64(0x0101010101010101)) >> np.uint64(56)


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the correlation of each row of one array with the same row of the other; both have contrast."""
    a, b = (each - each.mean(axis=1, keepdims=True, dtype=np.float64) for each in (a, b))
    products: np.ndarray = np.einsum("ij,ij->i", a, b) / np.sqrt(np.einsum("ij,ij->i", a, a) * np.einsum("ij,ij->i", b, b))
    return products
