"""Compiled reductions over products of generators and directions.

Contiguous arrays in; results go into ``out``. Each call handles the directions ``start:stop``.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_LANES = 16


@njit(cache=True, nogil=True)
def positive_sums(start, stop, products, out):  # type: ignore[no-untyped-def]
    """out_k = Σ_i max(products_ki, 0), in float64 over sixteen lanes that the CPU adds at once."""
    n = products.shape[1]
    whole = n - n % _LANES
    lanes = np.empty(_LANES)
    for k in range(start, stop):
        row = products[k]
        for t in range(_LANES):
            lanes[t] = 0.0
        for i in range(0, whole, _LANES):
            part = row[i : i + _LANES]
            for t in range(_LANES):
                lanes[t] += max(part[t], 0.0)
        total = 0.0
        for t in range(_LANES):
            total += lanes[t]
        for i in range(whole, n):
            total += max(row[i], 0.0)
        out[k] = total


@njit(cache=True, nogil=True)
def write_signs(start, stop, products, out):  # type: ignore[no-untyped-def]
    """out_ki = sign(products_ki) as int8."""
    n = products.shape[1]
    for k in range(start, stop):
        row, signs = products[k], out[k]
        for i in range(n):
            signs[i] = np.int8(row[i] > 0) - np.int8(row[i] < 0)
