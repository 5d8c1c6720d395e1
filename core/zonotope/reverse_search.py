"""Reverse search over the vertices (Avis & Fukuda 1996): the reference for any rows.

A spanning tree of the graph of vertices is walked backwards: the parent of a pattern s ≠ s⁰ has the
first wall that separates s from the root s⁰ turned. No pattern is remembered.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..errors import DegenerateDirection
from ..types import Array, FloatArray, NumpyArray, Seed
from .feasibility import decide_scaled
from .pattern import check_generators, equilibrate
from .tree import parallel_classes


def reverse_search(generators: Array, *, seed: Seed = 0) -> Iterator[NumpyArray]:
    """Every feasible pattern int8 (n,), once; every neighbour test is proven in integers.

    Parameters
    ----------
    generators : array (n, d)
        Any rows; parallel ones count once.
    seed : int or numpy.random.Generator
        Of the direction that the root belongs to.

    Raises
    ------
    DegenerateDirection
        If no random direction is clear of all rows.

    Notes
    -----
    O(n) oracle calls a vertex for the walls, and up to n more for each child's parent; memory that
    of one path. ``method="tree"`` is faster by orders of magnitude.
    """
    x = check_generators(generators)
    scaled, columns = equilibrate(x)
    chosen, where, turned = parallel_classes(scaled)
    lines = _Lines(x[chosen], scaled[chosen], columns)
    root = lines.root(seed)
    stack = [(root, 0)]
    yield np.asarray(root[where] * turned, dtype=np.int8)
    while stack:
        signs, at = stack.pop()
        for i in range(at, len(root)):
            if signs[i] != root[i]:
                continue
            child = signs.copy()
            child[i] = -child[i]
            if lines.feasible(child) and lines.first_separating(child, root) == i:
                stack.append((signs, i + 1))
                stack.append((child, 0))
                yield np.asarray(child[where] * turned, dtype=np.int8)
                break


class _Lines:
    def __init__(self, x: FloatArray, scaled: FloatArray, columns: NumpyArray) -> None:
        self.x, self.scaled, self.columns = x, scaled, columns

    def root(self, seed: Seed) -> NumpyArray:
        rng = np.random.default_rng(seed)
        for _ in range(100):
            products = self.scaled @ rng.normal(size=self.scaled.shape[1])
            if np.abs(products).min() > 1e-12:
                return np.where(products > 0, 1, -1).astype(np.int8)
        raise DegenerateDirection(
            "None of 100 random directions is clear of all rows; rescale the columns."
        )

    def feasible(self, signs: NumpyArray) -> bool:
        return decide_scaled(self.scaled, self.columns, signs, self.x).feasible

    def first_separating(self, signs: NumpyArray, root: NumpyArray) -> int:
        """The first wall of s that lies between s and the root."""
        for i in np.flatnonzero(signs != root):
            other = signs.copy()
            other[i] = -other[i]
            if self.feasible(other):
                return int(i)
        return -1
