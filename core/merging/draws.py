"""Random numbers of a merge: drawn in core from the seed and the site's name, at any offset.

A counter-based generator (Philox) gives entry j of a site the same number whether the site is
merged whole or block by block, in whatever order, on any backend.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from ..errors import InvalidInputError
from ..types import FloatArray

_PER_COUNT = 4  # 64-bit words that one count of Philox gives


@dataclass(frozen=True, slots=True)
class SiteDraws:
    """Uniform numbers in [0, 1) for every entry of one site, for each source.

    Attributes
    ----------
    seed : int
        Of the merge, 0 ≤ seed < 2^64.
    site : str

    Examples
    --------
    >>> draws = SiteDraws(0, "layers.0.weight")
    >>> whole, part = draws.uniform(1, 0, 100), draws.uniform(1, 37, 41)
    >>> bool((whole[37:41] == part).all())
    True
    """

    seed: int
    site: str

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, (int, np.integer)):
            raise InvalidInputError(
                f"seed={self.seed!r} was given; a whole number >= 0 is accepted."
            )
        if not 0 <= int(self.seed) < 2**64:
            raise InvalidInputError(f"seed={self.seed} was given; 0 to 2^64 - 1 is accepted.")

    def uniform(self, source: int, start: int, stop: int) -> FloatArray:
        """Numbers for the entries ``start:stop`` of the flattened site (stop − start,)."""
        name = f"{int(self.seed)}\0{source}\0{self.site}".encode()
        key = np.frombuffer(sha256(name).digest()[:16], dtype=np.uint64)
        first, skip = divmod(start, _PER_COUNT)
        generator = np.random.Generator(np.random.Philox(key=key, counter=[first, 0, 0, 0]))
        return generator.random(skip + stop - start)[skip:]
