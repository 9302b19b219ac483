"""Where random bits come from: the kernel, or (emulation and tests only) a seeded generator."""

from __future__ import annotations

import os
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class RandomSource(Protocol):
    """A source of random bytes. ``secure`` is False for anything predictable."""

    secure: bool

    def read(self, count: int) -> bytes:
        """Return `count` random bytes."""


class KernelRandom:
    """The operating system's generator (``getrandom(2)``)."""

    secure = True

    def read(self, count: int) -> bytes:
        """Return `count` bytes from the kernel."""
        return os.urandom(count)


class SeededRandom:
    """A reproducible generator for emulation and tests. Not for keys."""

    secure = False

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def read(self, count: int) -> bytes:
        """Return `count` bytes that depend only on the seed and the bytes read before."""
        return self._generator.bytes(count)


def random_uint8(source: RandomSource, count: int) -> NDArray[np.uint8]:
    """Return `count` uniform bytes as a ``uint8`` array."""
    return np.frombuffer(source.read(count), dtype=np.uint8)
