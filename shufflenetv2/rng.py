"""Randomness as a pure function: every draw follows from the seed, its purpose and a number.

The generators are counter-based (Philox): any stream is reached in constant time, and no generator state is ever saved.
"""

import threading

import numpy as np

# The purpose is part of a stream's key, so that two purposes never share numbers.
ORDER, SAMPLE, DEVICE, MIXING, HELD_OUT = 1, 2, 3, 4, 5


def generator(seed: int, purpose: int, index: int, part: int = 0) -> np.random.Generator:
    """Return the random stream of (seed, purpose, index, part).

    Args:
        seed: seed of the run.
        purpose: one of the constants of this module.
        index: iteration, epoch, or position in the sequence of samples.
        part: subdivision of the index, for instance the rank of a process.
    """
    # The lowest word of the counter counts within the stream.
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, index, part, 0]))


class RandomStreams(threading.local):
    """Return `generator(seed, purpose, index)` for many indices, reusing one generator per thread.

    Constructing a generator takes longer than all random draws of a sample; setting the state of an existing one does not.
    A generator is valid until the same thread asks for the next one.
    """

    def __init__(self, seed: int, purpose: int) -> None:
        self._generator = generator(seed, purpose, 0)
        self._start = self._generator.bit_generator.state

    def __call__(self, index: int) -> np.random.Generator:
        self._start["state"]["counter"][1] = index
        self._generator.bit_generator.state = self._start
        return self._generator
