"""What the programs of many patterns share: scaled columns, unit rows, moments; then H and q."""

from __future__ import annotations

import math

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def scaled_columns(x):  # type: ignore[no-untyped-def]
    """Columns x_c / 2^e_c of largest modulus in [1/2, 1), exactly, and the exponents e."""
    n, d = x.shape
    out, exponents = np.empty((n, d)), np.empty(d, dtype=np.int64)
    for c in range(d):
        top = 0.0
        for i in range(n):
            top = max(top, abs(x[i, c]))
        exponents[c] = math.frexp(top)[1]
        for i in range(n):
            out[i, c] = math.ldexp(x[i, c], -exponents[c])
    return out, exponents


@njit(cache=True, nogil=True)
def lengths_of(x):  # type: ignore[no-untyped-def]
    """‖x_i‖, 1 for zero rows."""
    lengths = np.empty(x.shape[0])
    for i in range(x.shape[0]):
        total = 0.0
        for a in range(x.shape[1]):
            total += x[i, a] * x[i, a]
        lengths[i] = np.sqrt(total) if total > 0 else 1.0
    return lengths


@njit(cache=True, nogil=True)
def unit_rows(x, lengths):  # type: ignore[no-untyped-def]
    """Rows x_i / ‖x_i‖ (n, d), and their transpose, contiguous both."""
    n, d = x.shape
    rows, columns = np.empty((n, d)), np.empty((d, n))
    for i in range(n):
        for a in range(d):
            rows[i, a] = x[i, a] / lengths[i]
            columns[a, i] = rows[i, a]
    return rows, columns


@njit(cache=True, nogil=True)
def moments_of(x, y):  # type: ignore[no-untyped-def]
    """Row i: the upper triangle of x_i x_iᵀ, then y_i x_i."""
    n, d = x.shape
    half = d * (d + 1) // 2
    out = np.empty((n, half + d))
    for i in range(n):
        at = 0
        for a in range(d):
            for b in range(a, d):
                out[i, at] = x[i, a] * x[i, b]
                at += 1
        for a in range(d):
            out[i, half + a] = y[i] * x[i, a]
    return out


@njit(cache=True, nogil=True)
def assemble(moments, v, on, masks, blocks, h, q):  # type: ignore[no-untyped-def]
    """H = ΦᵀΦ and q = Φᵀy for Φ = [v_1 A_1 X, …, v_m A_m X].

    on (m, n): activities 0 or 1. The block (j, k) of H is v_j v_k Σ_i on_ji on_ki x_i x_iᵀ: one
    product of ``masks`` (pairs, n) and the moments gives them all.
    """
    m, n = on.shape
    d = h.shape[0] // m
    half = d * (d + 1) // 2
    pair = 0
    for j in range(m):
        for k in range(j, m):
            for i in range(n):
                masks[pair, i] = on[j, i] * on[k, i]
            pair += 1
    np.dot(masks, moments, blocks)
    pair = 0
    for j in range(m):
        for a in range(d):
            q[j * d + a] = v[j] * blocks[pair, half + a]
        for k in range(j, m):
            sign, at = v[j] * v[k], 0
            for a in range(d):
                for b in range(a, d):
                    value = sign * blocks[pair, at]
                    h[j * d + a, k * d + b] = value
                    h[k * d + b, j * d + a] = value
                    h[j * d + b, k * d + a] = value
                    h[k * d + a, j * d + b] = value
                    at += 1
            pair += 1
