"""The order of the training samples: pure functions from a position in the endless stream to a sample of the data set."""

from functools import lru_cache

import numpy as np

from ..rng import CLASS_ORDER, CLASS_ROUND, ORDER, generator


class SampleOrder:
    """Map positions of the endless training stream to dataset indices.

    Each epoch is a permutation of the data set, drawn from the stream of (seed, epoch). Epochs are concatenated, so a
    batch may contain the end of one epoch and the start of the next.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        # Threads load samples of at most two epochs at the same time.
        self._permutation = lru_cache(maxsize=2)(lambda epoch: generator(seed, ORDER, epoch).permutation(length))

    def __call__(self, position: int) -> int:
        epoch, offset = divmod(position, self.length)
        return int(self._permutation(epoch)[offset])


class BalancedOrder:
    """Map positions of the endless training stream to dataset indices, with every class equally often.

    With K classes, the positions r * K to (r + 1) * K - 1 (round r) have one image of each class; the order of the classes is
    a permutation, drawn from the stream of (seed, r). Round r has the r-th image of each class in the class's own order: as in
    `SampleOrder`, permutations of its images are concatenated, each drawn from the stream of (seed, class, number of the
    permutation). An image therefore appears again only after all images of its class have appeared.

    Args:
        targets: labels of the dataset, int64 (N,). Classes without images are left out.
    """

    def __init__(self, targets: np.ndarray, seed: int) -> None:
        counts = np.bincount(targets)
        images = np.split(np.argsort(targets, kind="stable"), np.cumsum(counts)[:-1])  # dataset indices by label
        labels = np.flatnonzero(counts)

        def draw_images(label: int, number: int) -> np.ndarray:
            return generator(seed, CLASS_ORDER, number, label).permutation(images[label])

        self._counts, self._classes = counts, len(labels)
        self._labels = lru_cache(maxsize=256)(lambda number: generator(seed, CLASS_ROUND, number).permutation(labels))
        self._images = lru_cache(maxsize=2 * len(labels))(draw_images)

    def __call__(self, position: int) -> int:
        round_number, place = divmod(position, self._classes)
        label = int(self._labels(round_number)[place])
        number, offset = divmod(round_number, int(self._counts[label]))
        return int(self._images(label, number)[offset])
