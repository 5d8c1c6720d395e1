"""Exact compression of the columns: Â (h, d) with ÂÂᵀ = AAᵀ, and the way back.

K = AAᵀ = UΛUᵀ gives Â = UΛ^{1/2}; since the loss depends on A and G only through inner products
of rows, and an optimal G lies in the row space of A, nothing is lost. G = ĜΛ^{-1/2}UᵀA.
Source: ours; the existence of an optimal G in the row space follows by dropping the part of G
orthogonal to it, which can only lower the loss.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..types import Array
from .problem import LowRankProblem

# Eigenvalues of K below this share of the largest carry only rounding.
RANK_TOL = {"float64": 1e-14, "float32": 1e-7}
# "auto" compresses when there are at most this many rows, and a quarter as many as columns.
MOST_ROWS = 8192


@dataclass(frozen=True, slots=True, eq=False)
class Compression:
    """A compressed problem with the maps between Ĝ (r, d) and G (r, m)."""

    problem: LowRankProblem
    rows: Array
    back: Array

    def lift(self, G: Array) -> Array:
        """G = ĜΛ^{-1/2}UᵀA (r, m); one data product."""
        xp = self.problem.xp
        self.problem.ledger.add(self.rows.shape[1] * G.shape[0])
        return xp.matmul(xp.matmul(G, self.back.T), self.rows)

    def project(self, G: Array) -> Array:
        """Ĝ = GAᵀUΛ^{-1/2} (r, d): the part of G in the row space of A; one data product."""
        xp = self.problem.xp
        self.problem.ledger.add(self.rows.shape[1] * G.shape[0])
        return xp.matmul(xp.matmul(G, self.rows.T), self.back)


def gram_compression(problem: LowRankProblem) -> Compression:
    """Compress by the eigenvectors of K; h/r data products and an h×h eigenproblem.

    K and its eigenvectors are float64 whatever the dtype of the rows.
    """
    xp = problem.xp
    A = problem.rows
    problem.ledger.add(problem.n_columns * A.shape[0])
    K = xp.astype(xp.matmul(A, A.T), xp.float64)
    values, vectors = xp.linalg.eigh(K)
    dtype = str(A.dtype).rsplit(".", 1)[-1]
    keep = int(xp.sum(xp.astype(values > RANK_TOL[dtype] * xp.max(values), xp.int64)))
    values, vectors = values[-keep:], vectors[:, -keep:]
    roots = xp.sqrt(values)
    compressed = replace(problem, rows=xp.astype(vectors * roots, A.dtype))
    return Compression(compressed, A, xp.astype(vectors / roots, A.dtype))


def worthwhile(problem: LowRankProblem) -> bool:
    """Whether "auto" compresses: few rows, many more columns."""
    h, m = (int(s) for s in problem.rows.shape)
    return h <= MOST_ROWS and 4 * h <= m
