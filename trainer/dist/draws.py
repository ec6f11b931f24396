"""Random numbers that are a pure function of where they are used; no generator outlives a row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainer.dist.seeds import seed_of


class Draws:
    """A stream of uniform numbers named by `parts`, say ("mask", seed, step, row).

    Made of the raw 64-bit words of Philox: NumPy keeps those fixed for ever, but not what its
    Generator makes of them (NEP 19), and a resumed run may meet another NumPy.
    """

    def __init__(self, *parts: int | str) -> None:
        self._bits = np.random.Philox(key=seed_of(*parts))

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """In [0, 1), with 53 random bits each."""
        words: NDArray[np.uint64] = self._bits.random_raw(count)
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def uniform(self) -> float:
        return float(self.uniforms(1)[0])

    def order(self, count: int) -> NDArray[np.int64]:
        """A permutation of 0..count-1."""
        return np.argsort(self.uniforms(count), kind="stable").astype(np.int64)

    def below(self, limit: int, count: int) -> NDArray[np.int64]:
        """`count` integers in [0, limit); biased by less than limit / 2**53."""
        return (self.uniforms(count) * limit).astype(np.int64)
