"""Subsets in lexicographic order and their ranks: the numbering that sweep kernels share."""

from __future__ import annotations

from math import comb

import numpy as np

from ..errors import InvalidInputError
from ..types import IntArray


def subset_of_rank(rank: int, n: int, r: int) -> IntArray:
    """The r-subset of range(n) at position ``rank`` of the lexicographic order."""
    if not 0 <= rank < comb(n, r):
        raise InvalidInputError(f"rank {rank} was given; 0 to C({n}, {r}) − 1 is accepted.")
    chosen: list[int] = []
    at = 0
    for left in range(r, 0, -1):
        while (block := comb(n - at - 1, left - 1)) <= rank:
            rank -= block
            at += 1
        chosen.append(at)
        at += 1
    return np.array(chosen, dtype=np.int64)


def rank_of_subset(subset: IntArray, n: int) -> int:
    """Inverse of :func:`subset_of_rank`."""
    rank, previous, r = 0, -1, len(subset)
    for position, value in enumerate(int(v) for v in subset):
        left = r - position
        rank += sum(comb(n - j - 1, left - 1) for j in range(previous + 1, value))
        previous = value
    return rank
