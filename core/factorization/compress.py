"""Compression of the columns: Â (h, d) with the inner products of A, and the way back.

"gram", exact. With at most as many rows as columns: K = AAᵀ = UΛUᵀ, Â = UΛ^{1/2}, and back
G = ĜΛ^{-1/2}UᵀA. With more rows: AᵀA = VΛVᵀ, Â = AV, G = ĜVᵀ. The loss depends on A and G only
through inner products of rows, and an optimal G lies in the row space of A, so nothing is lost.

"projected gram": the rows times a random matrix P (m, p) with E[PPᵀ] = I, which keeps inner
products to about 1/√p, then "gram". Back by G = (V∘S)⁻¹(W̃∘B)ᵀA over all columns.
Source: ours; the existence of an optimal G in the row space follows by dropping the part of G
orthogonal to it, which can only lower the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InvalidInputError
from ..fisher.reduction import RandomProjection
from ..types import Array
from .method import LowRankNPEFF
from .objective import coefficient_gram, gram
from .problem import LowRankProblem

# Eigenvalues of K below this share of the largest carry only rounding.
RANK_TOL = {"float64": 1e-14, "float32": 1e-7}
# "auto" compresses when there are at most this many rows, and a quarter as many as columns.
MOST_ROWS = 8192


@dataclass(frozen=True, slots=True, eq=False)
class Compression:
    """A compressed problem with the maps between Ĝ (r, d) and G (r, m).

    Attributes
    ----------
    problem : LowRankProblem
        Over d columns.
    lift : callable
        (W, Ĝ) → G.
    project : callable
        G → Ĝ, the part of G in the row space of A.
    exact : bool
        Whether the losses of both problems agree.
    facts : dict
        What was chosen and why, for the result.
    """

    problem: LowRankProblem
    lift: Callable[[Array, Array], Array]
    project: Callable[[Array], Array]
    exact: bool
    facts: dict[str, Any]


def compression(
    problem: LowRankProblem, method: LowRankNPEFF, rng: np.random.Generator
) -> Compression | None:
    """What ``method.compress`` asks for, or what "auto" chooses; ``None`` for no compression."""
    kind = method.compress
    h, m = problem.share.h, problem.n_columns
    if kind == "auto":
        if method.solver == "mu-gd" or problem.team.world > 1:
            return None
        if not (h <= MOST_ROWS and 4 * h <= m):
            return None
        small = gram_compression(problem)
        why = f"auto: {h} rows are at most {MOST_ROWS} and a quarter of {m} columns"
        small.facts["why"] = why
        return small
    if kind == "gram":
        return gram_compression(problem)
    if kind == "projected gram":
        return projected_compression(problem, method.projection_dim, rng)
    return None


def gram_compression(problem: LowRankProblem) -> Compression:
    """Compress by the eigenvectors of AAᵀ or AᵀA, whichever is smaller.

    The Gram and its eigenvectors are float64 whatever the dtype of the rows. Cost: min(h, m)/r
    data products and an eigenproblem of that size.

    Raises
    ------
    InvalidInputError
        The Gram would be larger than a few GiB, or several processes share more columns than that.
    """
    h, m = problem.share.h, problem.n_columns
    by_rows = h <= m and problem.team.world == 1
    size = h if by_rows else m
    if size > 2 * MOST_ROWS:
        raise InvalidInputError(
            f"compress='gram' was asked for {h} rows of {m} columns; it needs a Gram matrix of "
            f"{size} rows, and at most {2 * MOST_ROWS} are taken"
            f"{', by columns when processes share the rows' if problem.team.world > 1 else ''}. "
            "Use compress='projected gram', or 'none': the subspace solver needs no compression."
        )
    xp = problem.xp
    K = problem.row_gram() if by_rows else problem.column_gram()
    values, vectors = xp.linalg.eigh(K)
    dtype = problem.rows.dtype
    floor = RANK_TOL[str(dtype).rsplit(".", 1)[-1]] * xp.max(values)
    keep = max(1, int(xp.sum(xp.astype(values > floor, xp.int64))))
    values, vectors = values[-keep:], vectors[:, -keep:]
    facts = {"kind": "gram", "of": "rows" if by_rows else "columns", "columns": keep}
    if by_rows:
        roots = xp.sqrt(values)
        back = xp.astype(vectors / roots, dtype)
        return Compression(
            problem.with_rows(xp.astype(vectors * roots, dtype)),
            lambda W, G: problem.mix_rows(xp.matmul(G, back.T)),
            lambda G: xp.matmul(problem.products(G)[0].T, back),
            True,
            facts,
        )
    turn = xp.astype(vectors, dtype)
    return Compression(
        problem.restrict(turn.T),
        lambda W, G: xp.matmul(G, turn.T),
        lambda G: xp.matmul(G, turn),
        True,
        facts,
    )


def projected_compression(
    problem: LowRankProblem, dim: int, rng: np.random.Generator
) -> Compression:
    """Project to ``dim`` columns, then compress by their Gram.

    The projection is drawn from ``rng`` and costs O(hm); inner products of rows keep a relative
    error of about 1/√dim.
    """
    xp, m = problem.xp, problem.n_columns
    if dim >= m:
        exact = gram_compression(problem)
        exact.facts["why"] = f"projection_dim={dim} is no less than the {m} columns"
        return exact
    key = int.from_bytes(rng.bytes(16), "little")
    sketch = RandomProjection(dim).sketch(key)

    def projected(rows: Array) -> Array:
        shape = (int(rows.shape[0]), dim)
        out = xp.zeros(shape, dtype=rows.dtype, device=getattr(rows, "device", None))
        sketch.add(out, rows, 0)
        return out

    narrow = problem.with_rows(problem.map_rows(projected))
    small = gram_compression(narrow)

    def lift(W: Array, G: Array) -> Array:
        B = small.problem.products(G)[0]
        pulled = problem.pullback(W, B)
        M = coefficient_gram(W, problem.team) * gram(G)
        values, vectors = xp.linalg.eigh(M)
        top = float(xp.max(values))
        live = values > 1e-10 * max(top, np.finfo(float).tiny)
        inverse = xp.where(live, 1.0 / xp.where(live, values, xp.ones_like(values)), 0.0 * values)
        solve = xp.matmul(vectors * inverse, vectors.T)
        return xp.matmul(xp.astype(solve, pulled.dtype), pulled)

    facts = {**small.facts, "kind": "projected gram", "projection_dim": dim}
    return Compression(
        small.problem, lift, lambda G: small.project(projected(G)), exact=False, facts=facts
    )
