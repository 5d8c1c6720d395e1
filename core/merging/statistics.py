"""Statistics of whole tensors that some merges need first: inner products and order statistics.

Sums run over chunks of a fixed size, whatever the caller's own blocks are, and the chunk sums are
added exactly (:func:`math.fsum`); order statistics are exact by counting. So a tensor that is
streamed gives the same bits as one that is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import fsum

import numpy as np

from ..errors import InvalidInputError
from ..types import FloatArray

CHUNK = 1 << 16
"""Entries a chunk: every iterable of chunks here must cut a tensor at multiples of it."""

Chunks = Callable[[], Iterable[FloatArray]]
"""Gives, at each call, the chunks of a tensor in order: (CHUNK,) or (n, CHUNK) float64."""


def chunks_of(x: FloatArray) -> Chunks:
    """Chunks over the last axis of an array in memory.

    Examples
    --------
    >>> len(list(chunks_of(np.zeros((2, 70000)))()))
    2
    """
    return lambda: (x[..., at : at + CHUNK] for at in range(0, x.shape[-1], CHUNK))


def gram(chunks: Chunks) -> FloatArray:
    """⟨x_i, x_j⟩ (n, n) of tensors given as chunks (n, b)."""
    parts = [np.einsum("ib,jb->ij", c, c) for c in chunks()]
    if not parts:
        raise InvalidInputError("No chunk was given; a tensor has at least one entry.")
    n = len(parts[0])
    return np.array([[fsum(p[i, j] for p in parts) for j in range(n)] for i in range(n)])


def squared_norm(chunks: Chunks) -> float:
    """Σ x² of one tensor given as chunks (b,)."""
    return fsum(float(np.einsum("b,b->", c, c)) for c in chunks())


def kth_largest(chunks: Chunks, k: int) -> float:
    """The k-th largest entry, exactly, in memory of 2^16 counters, from four passes.

    Parameters
    ----------
    chunks : callable
        Of a float64 tensor with entries >= 0 and no NaN, as chunks (b,).
    k : int
        From 1 to the number of entries.

    Notes
    -----
    Non-negative floats are ordered as their bits are; each pass counts 16 of them.

    Examples
    --------
    >>> kth_largest(chunks_of(np.array([0.5, 3.0, 2.0, 2.0])), 2)
    2.0
    """
    prefix, fixed = np.uint64(0), 0
    left = k
    for level in range(4):
        shift = np.uint64(48 - 16 * level)
        counts = np.zeros(1 << 16, dtype=np.int64)
        for chunk in chunks():
            bits = (np.asarray(chunk, dtype=np.float64) + 0.0).view(np.uint64)
            if fixed:
                bits = bits[(bits >> np.uint64(64 - fixed)) == prefix]
            digit = (bits >> shift) & np.uint64(0xFFFF)
            counts += np.bincount(digit.astype(np.int64), minlength=1 << 16)
        above = np.cumsum(counts[::-1])
        if level == 0 and not 1 <= k <= above[-1]:
            raise InvalidInputError(f"k={k} was given; 1 to {above[-1]} is accepted.")
        place = int(np.searchsorted(above, left))
        left -= int(above[place - 1]) if place else 0
        prefix = (prefix << np.uint64(16)) | np.uint64((1 << 16) - 1 - place)
        fixed += 16
    return float(np.array([prefix], dtype=np.uint64).view(np.float64)[0])


def kept_count(size: int, density: float) -> int:
    """Entries that a density keeps: ⌊density · size⌋, at least 1 where the density is above 0."""
    return min(size, max(int(density * size), 1 if density > 0 else 0))


def trim_threshold(chunks: Chunks, size: int, density: float) -> float:
    """The smallest abs that stays when the ``density · size`` largest do; ∞ where none does.

    Entries equal to the threshold all stay.
    """
    k = kept_count(size, density)
    return kth_largest(chunks, k) if k else float("inf")


def outlier_thresholds(
    chunks: Chunks, size: int, density: float, outliers: float
) -> tuple[float, float]:
    """Smallest and largest abs that stay in Model Breadcrumbs.

    The ⌊outliers · size⌋ largest go, then the ⌊density · size⌋ largest of the rest stay.
    """
    cut = int(outliers * size)
    k = min(size - cut, kept_count(size, density))
    if k < 1:
        return float("inf"), float("inf")
    # With ties at the cut more than `cut` entries would go; the bound itself stays.
    upper = kth_largest(chunks, cut + 1) if cut else float("inf")
    return kth_largest(chunks, cut + k), upper
