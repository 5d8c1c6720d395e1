"""Random numbers that belong to an example, whichever batch, worker or order it comes in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InvalidInputError
from ..types import FloatArray, Seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """Draws of the examples ``first``, ``first`` + 1, ... under one key.

    Every example owns streams of a counter-based generator (Philox 4×64), so that its draws do not
    depend on the size of the batch, on the worker, or on how many numbers the others take.

    Attributes
    ----------
    key : int
        128 bits made from the seed.
    first : int
        Number of the batch's first example within the data.

    Examples
    --------
    >>> whole = draws_of(0).uniforms(5, 2, 3)
    >>> bool((draws_of(0, first=3).uniforms(2, 2, 3) == whole[3:]).all())
    True
    """

    key: int
    first: int = 0

    def uniforms(self, n: int, k: int, width: int) -> FloatArray:
        """Numbers in [0, 1) (n, k, width); the first ones stay when ``width`` grows."""
        out = np.empty((n, k, width))
        for i in range(n):
            for j in range(k):
                # The upper words number example and draw, the lower ones count within the draw.
                counter = ((self.first + i) << 160) | (j << 128)
                stream = np.random.Philox(key=self.key, counter=counter)
                out[i, j] = np.random.Generator(stream).random(width)
        return out

    def signs(self, n: int, k: int, width: int) -> FloatArray:
        """Independent −1 and +1 with equal chances (n, k, width)."""
        return np.where(self.uniforms(n, k, width) < 0.5, -1.0, 1.0)


def draws_of(seed: Seed, *, first: int = 0) -> Draws:
    """Draws for a seed; a generator gives its next 128 bits as the key.

    Raises
    ------
    InvalidInputError
        If the seed is neither a whole number ≥ 0 nor a NumPy generator.
    """
    if isinstance(seed, np.random.Generator):
        words: Any = seed.integers(0, 2**64, size=2, dtype=np.uint64)
    elif isinstance(seed, int | np.integer) and not isinstance(seed, bool) and seed >= 0:
        words = np.random.SeedSequence(int(seed)).generate_state(2, np.uint64)
    else:
        raise InvalidInputError(
            f"seed={seed!r} was given; a whole number >= 0 or a numpy.random.Generator is taken."
        )
    return Draws(key=int(words[0]) | int(words[1]) << 64, first=first)
