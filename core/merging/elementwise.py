"""Merges that act on each entry alone: arrays (n, b) of one site's block in, its block (b,) out.

Every function here is pure, takes arrays of any library with an array namespace and gives the same
numbers however a tensor is cut into blocks: sums run over the sources in their order, in a loop,
since a library's own sum over an axis may change its order with the shape. What depends on a whole
tensor (norms, angles, thresholds) comes in as plain numbers from :mod:`.statistics`.

Symbols: sources x_i (n, b), base x_0 (b,), weights w_i, differences τ_i = x_i − x_0.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import acos, fsum, sin
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from ..types import Array, FloatArray


def linear(x: Array, weights: Sequence[float], total: float | None = None) -> Array:
    """S x_r + Σ_i w_i (x_i − x_r) with r the source of the largest abs(w_r), S = Σ w_i.

    Equal entries stay what they are, bit for bit, when S = 1. ``total`` is S where it is known
    better than by adding (1 for normalised weights).

    Examples
    --------
    >>> linear(np.array([[1.0, 2.0], [3.0, 2.0]]), [0.3, 0.7], 1.0)
    array([2.4, 2. ])
    """
    w = [float(v) for v in weights]
    s = fsum(w) if total is None else float(total)
    r = int(np.argmax(np.abs(w)))
    out = x[r] * s
    for i, weight in enumerate(w):
        if i != r and weight != 0.0:
            out = out + weight * (x[i] - x[r])
    # Where nothing moved the entry keeps its bits, the sign of zero among them.
    return array_namespace(x).where(out == x[r], x[r], out)


def diagonal(x: Array, precisions: Array) -> tuple[Array, Array]:
    """Σ_i p_i x_i / Σ_i p_i at each entry, and Σ_i p_i.

    Taken from the source x_r of the largest p at the entry, x_r + Σ p_i (x_i − x_r) / Σ p_i, and
    held inside [min_i x_i, max_i x_i] of the sources with p_i > 0; where Σ p_i = 0 the result is
    x_1 (the caller decides what that means).

    Examples
    --------
    >>> value, total = diagonal(np.array([[1.0], [3.0]]), np.array([[1.0], [3.0]]))
    >>> float(value[0]), float(total[0])
    (2.5, 4.0)
    """
    xp = array_namespace(x)
    base, best, total = x[0], precisions[0], precisions[0]
    low = high = xp.where(precisions[0] > 0, x[0], xp.full_like(x[0], float("nan")))
    for i in range(1, x.shape[0]):
        p, value = precisions[i], x[i]
        better = p > best
        base, best = xp.where(better, value, base), xp.where(better, p, best)
        total = total + p
        counts = p > 0
        low = xp.where(counts & ~(value >= low), value, low)
        high = xp.where(counts & ~(value <= high), value, high)
    moment = xp.zeros_like(total)
    for i in range(x.shape[0]):
        # A source without precision must not count, not even if the difference overflows.
        moment = moment + xp.where(
            precisions[i] > 0, precisions[i] * (x[i] - base), xp.zeros_like(moment)
        )
    some = total > 0
    value = base + moment / xp.where(some, total, xp.ones_like(total))
    value = xp.where(value < low, low, value)
    value = xp.where(value > high, high, value)
    return xp.where(value == base, base, value), total


def task_arithmetic(
    x: Array, base: Array, weights: Sequence[float], *, normalize: bool = False
) -> Array:
    """x_0 + Σ_i w_i τ_i, or with ``normalize`` the mean x_0 + Σ w_i τ_i / Σ w_i."""
    return consensus(_differences(x, base), base, weights, elect=None, normalize=normalize)


def consensus(
    deltas: Array,
    base: Array,
    weights: Sequence[float],
    *,
    elect: str | None = None,
    normalize: bool = False,
    scale: float = 1.0,
) -> Array:
    """x_0 + s Σ_i w_i m_i δ_i (/ Σ_i w_i m_i), m_i the entries that agree with the elected sign.

    Parameters
    ----------
    deltas : array (n, b)
        δ_i, differences after trimming or dropping.
    base : array (b,)
    weights : sequence of n floats
    elect : {None, "mass", "count"}
        None: every entry counts, zeros too. "mass": the sign of Σ w_i δ_i (ties of the sum go to
        +); "count": the sign of the number of signs. Then m_i = 1 where w_i δ_i has that sign.
    normalize : bool
        Divide by the weights that count (the disjoint mean of TIES); 0 where none does.
    scale : float
        s.
    """
    xp = array_namespace(deltas)
    n = int(deltas.shape[0])
    weighted = [float(w) * deltas[i] for i, w in enumerate(weights)]
    zero = xp.zeros_like(base)
    if elect is None:
        total = zero
        for value in weighted:
            total = total + value
        if normalize:
            whole = fsum(float(w) for w in weights)
            total = total / (whole if abs(whole) > 1e-8 else 1.0)
        return _moved(base, scale * total)
    votes = zero
    for value in weighted:
        votes = votes + (value if elect == "mass" else xp.sign(value))
    up = votes >= 0
    total, divisor = zero, zero
    for i in range(n):
        agrees = xp.where(up, weighted[i] > 0, weighted[i] < 0)
        total = total + xp.where(agrees, weighted[i], zero)
        divisor = divisor + xp.where(agrees, xp.full_like(zero, float(weights[i])), zero)
    if normalize:
        total = total / xp.where(xp.abs(divisor) > 1e-8, divisor, xp.ones_like(divisor))
    return _moved(base, scale * total)


def _moved(base: Array, by: Array) -> Array:
    """``base + by``; where nothing moves the entry keeps its bits, the sign of zero among them."""
    out = base + by
    return array_namespace(base).where(out == base, base, out)


def trim(deltas: Array, lower: Sequence[float], upper: Sequence[float] | None = None) -> Array:
    """τ_i where lower_i ≤ abs(τ_i) ≤ upper_i, else 0 (n, b)."""
    xp = array_namespace(deltas)
    rows = []
    for i in range(int(deltas.shape[0])):
        size = xp.abs(deltas[i])
        keep = size >= float(lower[i])
        if upper is not None:
            keep = keep & (size <= float(upper[i]))
        rows.append(xp.where(keep, deltas[i], xp.zeros_like(deltas[i])))
    return xp.stack(rows)


def drop(deltas: Array, uniforms: Array, keep: Array, *, rescale: bool = True) -> Array:
    """τ_i / q_i where u_i < q_i, else 0: drop with probability 1 − q_i, rescaled (n, b).

    ``keep`` holds q_i as (n, 1) or (n, b); ``uniforms`` the draws u_i (n, b). Unbiased with
    ``rescale``.
    """
    xp = array_namespace(deltas)
    kept = uniforms < keep
    values = deltas / xp.where(keep > 0, keep, xp.ones_like(keep)) if rescale else deltas
    return xp.where(kept, values, xp.zeros_like(values))


def rank_probabilities(deltas: FloatArray, density: float, epsilon: float) -> FloatArray:
    """Keep probabilities of DELLA for rows (r, c), linear in the rank of abs(τ) within its row.

    density − ε for the smallest, density + ε for the largest. Ties are ranked by position.
    A row of one entry gets ``density``.
    """
    r, c = deltas.shape
    if c == 1:
        return np.full((r, c), density)
    order = np.argsort(np.abs(deltas), axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.broadcast_to(np.arange(c), (r, c)), axis=1)
    return np.asarray(density - epsilon + (2 * epsilon) * (ranks / (c - 1)))


def model_stock_ratio(gram: FloatArray) -> float:
    """T = k c / (1 + (k − 1) c), c the mean cosine between the k differences of a tensor.

    ``gram`` (k, k) holds ⟨τ_i, τ_j⟩. c is held in [0, 1]; differences that are all zero give t = 1.
    """
    k = len(gram)
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    if not (norms > 0).all() or k == 1:
        return 1.0
    pairs = [gram[i, j] / (norms[i] * norms[j]) for i in range(k) for j in range(i)]
    c = min(1.0, max(0.0, fsum(pairs) / len(pairs)))
    return k * c / (1 + (k - 1) * c)


def slerp_weights(gram: FloatArray, t: float, threshold: float = 0.9995) -> tuple[float, float]:
    """sin((1−t)φ)/sin φ and sin(tφ)/sin φ, with φ the angle between the two tensors.

    Nearly parallel tensors (abs(cos φ) > ``threshold``, or one of them 0) give 1 − t and t.
    """
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    if not (norms > 0).all():
        return 1.0 - t, t
    c = float(np.clip(gram[0, 1] / (norms[0] * norms[1]), -1.0, 1.0))
    if abs(c) > threshold:
        return 1.0 - t, t
    phi = acos(c)
    return sin((1.0 - t) * phi) / sin(phi), sin(t * phi) / sin(phi)


def _differences(x: Array, base: Array) -> Any:
    return x - base[None, :]
