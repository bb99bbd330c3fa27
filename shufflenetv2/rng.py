"""Randomness as a function: every draw follows from the seed, what it is for, and a number. No state is ever saved."""

import threading

import numpy as np

# What a random stream is for; part of its key, so that no two uses share numbers.
ORDER, SAMPLE, DEVICE, MIXING, HELD_OUT = 1, 2, 3, 4, 5


def generator(seed: int, purpose: int, index: int, part: int = 0) -> np.random.Generator:
    """The random stream of (seed, purpose, index, part); counter-based, so any stream is as near as any other."""
    # The lowest word of the counter counts within the stream.
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, index, part, 0]))


class Streams(threading.local):
    """`generator(seed, purpose, index)` for many indices: each thread has one generator, which is turned to the next stream.

    Making one takes longer than all the draws of a sample.
    """

    def __init__(self, seed: int, purpose: int) -> None:
        self._generator = generator(seed, purpose, 0)
        self._start = self._generator.bit_generator.state

    def __call__(self, index: int) -> np.random.Generator:
        self._start["state"]["counter"][1] = index
        self._generator.bit_generator.state = self._start
        return self._generator
