"""One tensor of all sources as the statistics of whole tensors see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from ..errors import InvalidInputError
from ..types import FloatArray
from .statistics import Chunks


@dataclass(frozen=True, slots=True, eq=False)
class SiteView:
    """One tensor of all sources, read in chunks of a fixed size: what statistics are made from.

    Attributes
    ----------
    name : str
    shape : tuple of int
    read : callable
        Gives, each time it is called, the pairs (x (n, c), base (c,) or None) in order, as float64
        NumPy arrays, cut at multiples of :data:`~fishertope.core.merging.statistics.CHUNK`.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Iterator[tuple[FloatArray, FloatArray | None]]]

    @property
    def size(self) -> int:
        """Entries."""
        return prod(self.shape)

    def values(self) -> Chunks:
        """Chunks (n, c) of the sources."""
        return lambda: (x for x, _ in self.read())

    def differences(self) -> Chunks:
        """Chunks (n, c) of x_i − x_0."""
        return lambda: (x - needed(base)[None, :] for x, base in self.read())

    def magnitudes(self, i: int) -> Chunks:
        """Chunks (c,) of abs(x_i − x_0)."""
        return lambda: (np.abs(x[i] - needed(base)) for x, base in self.read())


def needed(base: FloatArray | None) -> FloatArray:
    """The base, or an error that says that there is none."""
    if base is None:
        raise InvalidInputError("These statistics need a base model.")
    return base
