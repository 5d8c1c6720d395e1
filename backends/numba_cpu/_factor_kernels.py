"""Compiled loops of the low-rank factorization: sums over ragged rows and coordinate descent.

Contiguous arrays in; results go into ``out``. Each call handles the examples ``start:stop``.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# Residuals N − Hw are updated in place; anew every so many sweeps, against drift.
_REFRESH = 10


@njit(cache=True, nogil=True)
def segment_products(start, stop, left, right, offsets, scale, out):  # type: ignore[no-untyped-def]
    """out_ik = scale · Σ_{j in rows(i)} left_jk right_jk, in row order; empty examples give 0."""
    r = left.shape[1]
    for i in range(start, stop):
        sums = out[i]
        for k in range(r):
            sums[k] = 0
        for j in range(offsets[i], offsets[i + 1]):
            u, v = left[j], right[j]
            for k in range(r):
                sums[k] += u[k] * v[k]
        for k in range(r):
            sums[k] *= scale


@njit(cache=True, nogil=True)
def scale_segments(start, stop, coefficients, products, offsets, out):  # type: ignore[no-untyped-def]
    """Write W̃∘B (h, r) into ``out``: row i of W times every row of B that belongs to example i."""
    r = coefficients.shape[1]
    for i in range(start, stop):
        w = coefficients[i]
        for j in range(offsets[i], offsets[i + 1]):
            u, v = products[j], out[j]
            for k in range(r):
                v[k] = w[k] * u[k]


@njit(cache=True, nogil=True)
def descend(start, stop, gram, targets, sweeps, tol, out):  # type: ignore[no-untyped-def]
    """Sweeps of w_k ← max(0, w_k + (N_k − (Hw)_k)/H_kk), one example after another.

    ``out`` (n, r) holds the start and receives the result. The residual N − Hw of the example is
    kept in float64 and updated only when a coefficient moves, so that coefficients that stay at
    zero cost nothing.
    """
    r = gram.shape[0]
    w = np.empty(r)
    residual = np.empty(r)
    # A division for each coefficient would be most of the time of a sweep.
    inverse = np.zeros(r)
    for k in range(r):
        if gram[k, k] > 0:
            inverse[k] = 1.0 / gram[k, k]
    for i in range(start, stop):
        for k in range(r):
            w[k] = out[i, k] if gram[k, k] > 0 else 0.0
        for sweep in range(sweeps):
            if sweep % _REFRESH == 0:
                for k in range(r):
                    residual[k] = targets[i, k]
                for k in range(r):
                    if w[k] != 0.0:
                        for j in range(r):
                            residual[j] -= w[k] * gram[k, j]
            moved = 0.0
            for k in range(r):
                if inverse[k] > 0 and (w[k] > 0.0 or residual[k] > 0.0):
                    new = max(0.0, w[k] + residual[k] * inverse[k])
                    step = new - w[k]
                    if step != 0.0:
                        w[k] = new
                        for j in range(r):
                            residual[j] -= step * gram[k, j]
                        moved = max(moved, abs(step))
            largest = 0.0
            for k in range(r):
                largest = max(largest, w[k])
            if moved <= tol * largest:
                break
        for k in range(r):
            out[i, k] = w[k]
