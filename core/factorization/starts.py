"""Where a factorization begins: anchors, random mixtures, and revival of dead components."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import to_numpy
from ..types import Array, FloatArray, IntArray
from .objective import coefficient_gram, gram, inner, removal_costs
from .pals import Point, evaluate, lower_coefficients
from .problem import LowRankProblem

# Rows of which the leading directions are taken, at most.
GEVD_ROWS = 4096


def random_start(problem: LowRankProblem, r: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """W ~ U(0, 1] at its best common scale, g_k a unit-norm Gaussian mixture of all rows.

    Mixtures of rows lie in the row space of A, where an optimal G lies, and do not depend on
    the coordinates that the columns are written in. One data product, one more for the scale.
    """
    xp = problem.xp
    Z = rng.standard_normal((r, problem.share.h))
    G = unit_rows(problem.mix_rows(Z), xp)
    W = problem.array(problem.own(1.0 - rng.random((problem.share.n, r))))
    return scaled(problem, W, G), G


def scaled(problem: LowRankProblem, W: Array, G: Array) -> Array:
    """αW with the α ≥ 0 that minimises L(αW, G); one data product."""
    _, N = problem.products(G)
    S = gram(G)
    bottom = inner(coefficient_gram(W, problem.team), S * S)
    alpha = inner(W, N, problem.team) / bottom if bottom > 0 else 0.0
    return W * alpha


def anchor_start(
    problem: LowRankProblem, r: int, candidates: IntArray, *, purity: float = 1.0
) -> tuple[Array, Array]:
    """Examples that are nearly a single component, picked greedily so that they differ.

    v_i is the top eigenvector of F_i. On the kernel K_ij = (v_i·v_j)², weighted by
    (σ₁²/‖σ²‖)^purity, a pivoted Cholesky factorization picks r examples; g_k = v of the pivots.
    When the candidates give fewer than r independent pivots, the rest are random mixtures of
    those found, drawn from the pivot order (deterministic).

    Parameters
    ----------
    candidates : int64 array
        Examples to consider.
    purity : float
        Exponent of the purity weight; 0 ignores purity.
    """
    xp, team = problem.xp, problem.team
    mine = candidates - problem.share.first
    mine = mine[(mine >= 0) & (mine < problem.n_examples)]
    vectors, pure = leading_directions(problem, mine)
    weight = np.sqrt(pure**purity)
    residual = pure**purity * (pure > 0)
    factor = np.zeros((len(mine), r))
    picked: list[Array] = []
    for j in range(min(r, len(candidates))):
        # argmax takes the first of equal values; ties are settled the same way everywhere.
        value, pivot = team.best(residual)
        if value <= 1e-12:
            break
        problem.ledger.add(problem.n_columns * len(candidates) / max(1, problem.share.h))
        here = pivot >= 0
        vector = vectors[pivot] if here else problem.empty_row()
        own = np.append(factor[pivot], weight[pivot]) if here else np.zeros(r + 1)
        vector, told = team.sum(vector), to_numpy(team.sum(own))
        cosine = to_numpy(xp.matmul(vectors, vector)).astype(np.float64)
        column = weight * told[r] * cosine**2 - factor[:, :j] @ told[:j]
        factor[:, j] = column / np.sqrt(value)
        residual = np.maximum(residual - factor[:, j] ** 2, 0.0)
        if here:
            residual[pivot] = 0.0
        picked.append(vector)
    if not picked:
        picked = [problem.empty_row()]
    G = xp.stack(picked)
    if len(picked) < r:
        mix = np.cos(np.outer(np.arange(1, r - len(picked) + 1), np.arange(1, len(picked) + 1)))
        G = xp.concat([G, unit_rows(xp.matmul(problem.array(mix), G), xp)], axis=0)
    W = problem.array(np.ones((problem.n_examples, r)))
    return scaled(problem, W, G), G


def gevd_start(problem: LowRankProblem, r: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Generalised eigenvectors of two random sums X_a = Σ_i a_i F_i, in r leading directions.

    With F_i = Gᵀdiag(W_i)G and independent g_k, X_a X_b⁻¹ = Gᵀdiag(Wᵀa/Wᵀb)G⁻ᵀ, whose
    eigenvectors are the g_k: exact for exact data, of use near it.
    Source: Carroll & Chang 1970, Leurgans, Ross & Abel 1993 (simultaneous diagonalisation).
    """
    xp, h = problem.xp, problem.share.h
    picked = np.arange(h) if h <= GEVD_ROWS else np.sort(rng.choice(h, GEVD_ROWS, replace=False))
    basis = problem.sample_basis(r, picked.astype(np.int64))
    inside = problem.restrict(basis)
    d = int(basis.shape[0])
    B, _ = inside.products(xp.eye(d, dtype=basis.dtype, device=getattr(basis, "device", None)))
    sums = []
    for _ in range(2):
        a = inside.own(rng.random((problem.share.n, 1)))
        pulled = inside.pullback(inside.array(np.repeat(a, d, axis=1)), B)
        sums.append(to_numpy(pulled).astype(np.float64))
    ratio = sums[0] @ np.linalg.pinv(sums[1], hermitian=True)
    found = np.real(np.linalg.eig(ratio)[1]).T
    if d < r:  # fewer dimensions than components: mixtures of what there is
        found = np.concatenate([found, rng.standard_normal((r - d, d))])
    G = unit_rows(xp.matmul(problem.array(found), basis), xp)
    W = problem.array(np.ones((problem.n_examples, r)))
    return scaled(problem, W, G), G


def leading_directions(problem: LowRankProblem, examples: IntArray) -> tuple[Array, FloatArray]:
    """Top eigenvector of F_i (s, m) and purity σ₁²/‖σ²‖₂ ∈ (0, 1] for some examples.

    From the small Grams A_iA_iᵀ; examples with a zero Fisher get a zero vector and purity 0.
    """
    xp = problem.xp
    offsets = to_numpy(problem.offsets)
    ranks = np.diff(offsets)[examples]
    pure = np.zeros(len(examples))
    blocks: list[Array] = []
    order: list[IntArray] = []
    for rank in np.unique(ranks):
        chosen = np.flatnonzero(ranks == rank)
        order.append(chosen)
        index = offsets[examples[chosen]][:, None] + np.arange(rank)
        A = problem.rows[problem_index(problem, index.reshape(-1))]
        A = xp.reshape(A, (len(chosen), int(rank), problem.n_columns))
        K = to_numpy(xp.matmul(A, xp.matrix_transpose(A))).astype(np.float64)
        mix = np.zeros((len(chosen), int(rank)))
        if rank:
            values, vectors = np.linalg.eigh(K)
            live = values[:, -1] > 0.0
            mix[live] = vectors[live, :, -1] / np.sqrt(values[live, -1:])
            pure[chosen[live]] = values[live, -1] / np.linalg.norm(values[live], axis=1)
        blocks.append(xp.matmul(problem.array(mix)[:, None, :], A)[:, 0, :])
    if not blocks:
        return problem.rows[:0], pure
    back = np.argsort(np.concatenate(order))
    return xp.concat(blocks, axis=0)[problem_index(problem, back)], pure


def revive(problem: LowRankProblem, point: Point, *, sweeps: int, frozen: int = 0) -> Point:
    """Replace components that explain nothing by what the worst-fitted examples are missing.

    A component is dead when L would rise by less than 1e-6·T without it. Its new direction is
    the top eigenvector of an example's residual F_i − Σ_k W_ik g_kg_kᵀ within the span of A_i;
    each dead component takes another example. The change is kept only where the loss falls. The
    first ``frozen`` components stay.
    """
    costs = removal_costs(point.W, point.N, point.S, problem.team)
    costs[:frozen] = np.inf
    dead = np.flatnonzero(costs < DEAD * problem.total)
    if not len(dead):
        return point
    xp = problem.xp
    W, N = to_numpy(point.W).astype(np.float64), to_numpy(point.N).astype(np.float64)
    H = to_numpy(point.S * point.S)
    misfit = problem.squares - 2.0 * (W * N).sum(1) + ((W @ H) * W).sum(1)
    worst = np.argsort(-problem.team.gather(misfit))[: len(dead)]
    keep = np.setdiff1d(np.arange(W.shape[1]), dead)
    new = [residual_direction(problem, point, int(i)) for i in worst]
    new += [point.G[int(k)] for k in dead[len(new) :]]
    rows: dict[int, Array] = dict(zip(dead.tolist(), new, strict=True))
    rows |= {int(k): point.G[int(k)] for k in keep}
    G = xp.stack([rows[k] for k in range(W.shape[1])])
    W[:, dead] = 0.0
    revived = lower_coefficients(
        problem, evaluate(problem, problem.array(W), G), sweeps=max(sweeps, 10)
    )
    return revived if revived.loss < point.loss else point


# Share of T below which a component counts as dead.
DEAD = 1e-6


def residual_direction(problem: LowRankProblem, point: Point, i: int) -> Array:
    """Unit vector v in the span of A_i that maximises vᵀ(F_i − Σ_k W_ik g_kg_kᵀ)v.

    ``i`` counts the examples of all processes.
    """
    i -= problem.share.first
    here = 0 <= i < problem.n_examples
    return problem.team.sum(_own_direction(problem, point, i) if here else problem.empty_row())


def _own_direction(problem: LowRankProblem, point: Point, i: int) -> Array:
    xp = problem.xp
    A = problem.example_rows(i)
    if not A.shape[0]:
        return problem.empty_row()
    values, vectors = np.linalg.eigh(to_numpy(xp.matmul(A, A.T)).astype(np.float64))
    keep = values > 1e-12 * values[-1]
    values, vectors = values[keep], vectors[:, keep]
    basis = xp.matmul(problem.array((vectors / np.sqrt(values)).T), A)
    inside = to_numpy(xp.matmul(basis, point.G.T)).astype(np.float64)
    residual = np.diag(values) - (inside * to_numpy(point.W[i]).astype(np.float64)) @ inside.T
    top = np.linalg.eigh(residual)[1][:, -1]
    return xp.matmul(problem.array(top), basis)


def unit_rows(G: Array, xp: Any) -> Array:
    """Rows divided by their norms; zero rows stay zero."""
    norms = xp.linalg.vector_norm(G, axis=1, keepdims=True)
    return G / xp.where(norms > 0, norms, xp.ones_like(norms))


def problem_index(problem: LowRankProblem, index: IntArray) -> Array:
    """An int64 index array on the problem's device."""
    from ..backend import to_backend

    device = getattr(problem.rows, "device", None)
    return to_backend(index.astype(np.int64), problem.backend, device=device)
