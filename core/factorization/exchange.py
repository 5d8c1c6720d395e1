"""Two components that are nearly one, for one that is missing: a way out of poor local minima.

Coordinate descent for X ≈ WH can end with two components that share one part of the data while
another part has none. Both are seen without passes over the data: what it costs to put W_kH_k +
W_lH_l into one component is the smaller squared singular value of their sum, from 2×2 Grams. The
freed component becomes the leading non-negative part of the residual, and the exchange is kept only
where the loss falls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..backend import to_numpy
from ..types import Array, FloatArray

if TYPE_CHECKING:
    from .diagonal import DiagonalProblem

# Rounds of the power method on the residual; two data products each.
ROUNDS = 2
# Merges are tried that cost at most this share of the loss.
WORTHWHILE = 0.5
# A loss of less than so many roundings of the total is none: its residual is noise.
NOISE = 64.0


def merge_costs(V: FloatArray, S: FloatArray) -> FloatArray:
    """Rise of ‖X − WH‖² at most when two components become the best single one (r, r).

    For V = WᵀW and S = HHᵀ: the smaller eigenvalue of V₂S₂ over each pair; ∞ on the diagonal.
    """
    trace = np.add.outer(np.diag(V) * np.diag(S), np.diag(V) * np.diag(S)) + 2.0 * V * S
    det = (np.outer(np.diag(V), np.diag(V)) - V**2) * (np.outer(np.diag(S), np.diag(S)) - S**2)
    larger = 0.5 * (trace + np.sqrt(np.maximum(trace**2 - 4.0 * det, 0.0)))
    costs = np.maximum(det, 0.0) / np.maximum(larger, np.finfo(float).tiny)
    np.fill_diagonal(costs, np.inf)
    return np.asarray(costs)


def exchanged(
    problem: DiagonalProblem, W: Array, Ht: Array, loss: float
) -> tuple[Array, Array, float] | None:
    """W, Hᵀ and their lower loss after one exchange; ``None`` where none helps.

    Nothing but r×r matrices is looked at where every merge would cost more than the whole loss.
    """
    xp = problem.xp
    if loss <= NOISE * float(xp.finfo(W.dtype).eps) * problem.total:
        return None
    V = to_numpy(problem.team.sum(xp.astype(xp.matmul(W.T, W), xp.float64)))
    S = to_numpy(xp.astype(xp.matmul(Ht.T, Ht), xp.float64))
    costs = merge_costs(V, S)
    kept, freed = (int(i) for i in np.unravel_index(np.argmin(costs), costs.shape))
    # A residual can give back the whole loss, and no more.
    if not costs[kept, freed] < WORTHWHILE * loss:
        return None
    found = _leading(problem, W, Ht)
    if found is None:
        return None
    # The best single component of the two: h = H₂ᵀy for the top eigenvector y of V₂S₂.
    pair = np.ix_([kept, freed], [kept, freed])
    values, vectors = np.linalg.eig(V[pair] @ S[pair])
    y = np.abs(
        np.real(vectors[:, int(np.argmax(np.real(values)))])
    )  # of one sign, as all entries are
    size = float(np.sqrt(max(y @ S[pair] @ y, np.finfo(float).tiny)))
    of_h, of_w = y / size, S[pair] @ y / size
    new_W, new_H = xp.asarray(W, copy=True), xp.asarray(Ht, copy=True)
    new_W[:, kept] = W[:, kept] * float(of_w[0]) + W[:, freed] * float(of_w[1])
    new_H[:, kept] = Ht[:, kept] * float(of_h[0]) + Ht[:, freed] * float(of_h[1])
    new_W[:, freed], new_H[:, freed] = found
    V = problem.team.sum(xp.matmul(new_W.T, new_W))
    C = problem.pullback(new_W)
    cross = float(xp.sum(new_H * C, dtype=xp.float64))
    square = float(xp.sum(V * xp.matmul(new_H.T, new_H), dtype=xp.float64))
    lower = problem.total - 2.0 * cross + square
    return (new_W, new_H, lower) if lower < loss else None


def _leading(problem: DiagonalProblem, W: Array, Ht: Array) -> tuple[Array, Array] | None:
    """The power method on the residual, negative parts cut: w (n,) and a unit h (p,), both ≥ 0."""
    xp = problem.xp
    w = xp.ones_like(W[:, :1])
    h = Ht[:, :1]
    for _ in range(ROUNDS):
        inner = problem.team.sum(xp.matmul(W.T, w))
        h = problem.pullback(w) - xp.matmul(Ht, inner)
        h = xp.where(h > 0, h, xp.zeros_like(h))
        size = float(xp.linalg.vector_norm(h))
        if size == 0.0:
            return None
        h = h / size
        w = problem.products(h) - xp.matmul(W, xp.matmul(Ht.T, h))
        w = xp.where(w > 0, w, xp.zeros_like(w))
    return w[:, 0], h[:, 0]
