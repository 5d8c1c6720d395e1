"""The merging kernels in NumPy: one source after another, in float64.

Symbols: sources x_i (n, p), precisions f_i, weights w_k (Matena & Raffel, arXiv:2111.09832).
"""

from __future__ import annotations

import numpy as np

from ...core.types import FloatArray, IntArray


def merge_linear(
    sources: FloatArray, weights: FloatArray, totals: FloatArray
) -> tuple[FloatArray, IntArray]:
    """S_k x_r + Σ_i w_ki (x_i − x_r) (k, p), r = argmax_i |w_ki|; and how many are not finite (k,).

    With S_k = 1 equal sources give themselves, bit for bit.
    """
    x, w = sources.astype(np.float64), weights.astype(np.float64)
    out = np.empty((len(w), x.shape[1]), dtype=sources.dtype)
    for k, row in enumerate(w):
        r = int(np.argmax(np.abs(row)))
        total = float(totals[k]) * x[r]
        for i in range(len(x)):
            if i != r:
                total = total + row[i] * (x[i] - x[r])
        # Where nothing moved the entry keeps its bits, the sign of zero among them.
        out[k] = _narrow(np.where(total == x[r], x[r], total), out)
    return out, _not_finite(out)


def merge_diagonal(
    sources: FloatArray,
    precisions: FloatArray,
    weights: FloatArray,
    ridges: FloatArray,
    floors: FloatArray,
) -> tuple[FloatArray, IntArray, IntArray, IntArray]:
    """x_r + Σ_i q_i (x_i − x_r) / Σ_i q_i (k, p), q_i = w_ki max(f_i, floor_i) + ridge_ki.

    r is the source of the largest q at the entry; the result stays inside the range of the sources
    with q_i > 0, and is x_1 where all q_i = 0. Also, each (k,): results that are not finite,
    entries where all q_i = 0, precisions f_i < 0.
    """
    x, f = sources.astype(np.float64), precisions.astype(np.float64)
    out = np.empty((len(weights), x.shape[1]), dtype=sources.dtype)
    empty = np.zeros(len(weights), dtype=np.int64)
    lifted = np.where(f < floors[:, None], floors[:, None].astype(np.float64), f)
    for k in range(len(weights)):
        q = weights[k, :, None].astype(np.float64) * lifted + ridges[k, :, None]
        base = np.take_along_axis(x, np.argmax(q, axis=0)[None], axis=0)[0]
        total, moment = np.zeros(x.shape[1]), np.zeros(x.shape[1])
        for i in range(len(x)):
            total = total + q[i]
            moment = moment + q[i] * (x[i] - base)
        empty[k] = np.count_nonzero(total == 0)
        value = base + moment / np.where(total == 0, 1.0, total)
        low = np.where(q > 0, x, np.inf).min(axis=0)
        high = np.where(q > 0, x, -np.inf).max(axis=0)
        value = np.where((total > 0) & (value < low), low, value)
        value = np.where((total > 0) & (value > high), high, value)
        out[k] = _narrow(np.where(value == base, base, value), out)
    negative = np.full(len(weights), np.count_nonzero(f < 0), dtype=np.int64)
    return out, _not_finite(out), empty, negative


def _narrow(values: FloatArray, like: FloatArray) -> FloatArray:
    with np.errstate(over="ignore"):
        return values.astype(like.dtype)


def _not_finite(out: FloatArray) -> IntArray:
    return np.count_nonzero(~np.isfinite(out), axis=1).astype(np.int64)
