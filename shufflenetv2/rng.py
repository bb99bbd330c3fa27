"""Random streams that are pure functions of a seed, a purpose and an index, such as the number of an epoch.

The generators are counter-based (Philox): every stream can be started in constant time, and no generator state is ever saved.
"""

import threading

import numpy as np

# Purposes of random streams. The purpose is part of a stream's key, so that streams of different purposes are independent.
ORDER, SAMPLE, DEVICE, MIXING, HELD_OUT, CLASS_ROUND, CLASS_ORDER, REPLACEMENT = 1, 2, 3, 4, 5, 6, 7, 8


def generator(seed: int, purpose: int, index: int, part: int = 0) -> np.random.Generator:
    """Return the random stream of (seed, purpose, index, part).

    Args:
        seed: seed of the run.
        purpose: one of the constants of this module.
        index: iteration, epoch, or position in the sequence of samples.
        part: second index, for instance the rank of a process.
    """
    # The first word of the counter counts the numbers drawn from the stream.
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, index, part, 0]))


class RandomStreams(threading.local):
    """Return `generator(seed, purpose, index)` for many indices, reusing one generator per thread.

    Constructing a generator takes longer than all random draws of a sample; setting the state of an existing generator is fast.
    A returned generator is valid until the same thread's next call.
    """

    def __init__(self, seed: int, purpose: int) -> None:
        self._generator = generator(seed, purpose, 0)
        self._start = self._generator.bit_generator.state

    def __call__(self, index: int) -> np.random.Generator:
        self._start["state"]["counter"][1] = index
        self._generator.bit_generator.state = self._start
        return self._generator
