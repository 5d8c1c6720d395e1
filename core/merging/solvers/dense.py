"""Symmetric positive semidefinite systems with a matrix in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from ...types import Array, FloatArray

BLOCK = 256
"""Rows that a triangular solve takes at a time."""
_COLUMNS = 16

NEGATIVE = 2.0**-23
"""Negative eigenvalues down to this share of the largest are rounding: precisions of a float32
model are summed from products in float32."""


@dataclass(frozen=True, slots=True)
class DenseAnswer:
    """x with M x = r, and how it was found.

    Attributes
    ----------
    x : array, the shape of r
    how : {"cholesky", "pseudo-inverse"}
    condition : float
        Estimate of λ_max / λ_min (of the kept eigenvalues for the pseudo-inverse).
    null : int
        Directions without precision, in which x is 0.
    negative : float
        The most negative eigenvalue over the largest, where it is no rounding; else 0.
    """

    x: Array
    how: str
    condition: float
    null: int
    negative: float = 0.0


@dataclass(frozen=True, slots=True)
class Factorised:
    """M ⪰ 0 (d, d) made ready for any number of right sides.

    Attributes
    ----------
    matrix : array (d, d)
        (M + Mᵀ)/2.
    how, condition, null, negative
        As in :class:`DenseAnswer`.
    """

    matrix: Array
    how: str
    condition: float
    null: int
    negative: float
    _factor: Array | None
    _inverse: Array | None = None

    def solve(self, right: Array) -> Array:
        """X (d, k) with M X = R (d, k), of minimum norm. Cost 2 to 6 d² k."""
        if self._inverse is not None:
            assert self._factor is not None
            return self._factor @ (self._inverse[:, None] * (self._factor.T @ right))
        x = cholesky_solve(self._factor, right)
        # One step of refinement: the residual of the next digits costs two products.
        return x + cholesky_solve(self._factor, right - self.matrix @ x)


def factorised(matrix: Array) -> Factorised:
    """Cholesky where M ≻ 0 to working precision; else the eigenvectors for a pseudo-inverse.

    For the pseudo-inverse eigenvalues below d ε λ_max count as zero. So do those below four times
    the size of a negative one: rounding makes either sign. Cost d³/3, or about 10 d³.
    """
    xp = array_namespace(matrix)
    matrix = (matrix + matrix.T) * 0.5
    factor = cholesky(matrix)
    if factor is not None:
        pivots = xp.linalg.diagonal(factor)
        low, high = float(xp.min(pivots)), float(xp.max(pivots))
        d = int(matrix.shape[0])
        # (max pivot / min pivot)² bounds the condition from below; near the limit look closer.
        condition = (high / low) ** 2 if low > 0 else float("inf")
        limit = 0.01 / (d * np.finfo(np.float64).eps)
        if condition < limit:
            condition = max(condition, _condition(matrix, factor))
        if condition < limit:
            return Factorised(matrix, "cholesky", condition, 0, 0.0, factor)
        del factor
    values, vectors = xp.linalg.eigh(matrix)
    return _pseudo_inverse(matrix, values, vectors)


def solve_psd(matrix: Array, right: Array) -> DenseAnswer:
    """X with M X = R for symmetric M ⪰ 0 (d, d) and R (d, k), of minimum norm.

    By :func:`factorised`, whose cost is added to that of :meth:`Factorised.solve`.
    """
    ready = factorised(matrix)
    return DenseAnswer(ready.solve(right), ready.how, ready.condition, ready.null, ready.negative)


def _condition(matrix: Array, factor: Array, steps: int = 6) -> float:
    """λ_max/λ_min from below, by power iterations with M and with M⁻¹ from one fixed start."""
    xp = array_namespace(matrix)
    d = int(matrix.shape[0])
    # Neither constant nor orthogonal to the vectors that factors of data usually have.
    start = xp.asarray(np.cos(1.0 + np.arange(d, dtype=np.float64) ** 1.5), device=_device(matrix))
    top = low = start[:, None]
    largest = inverse = 1.0
    for _ in range(steps):
        top = matrix @ (top / _norm(top))
        low = cholesky_solve(factor, low / _norm(low))
        largest, inverse = _norm(top), _norm(low)
    return largest * inverse


def _norm(x: Array) -> float:
    return float(np.sqrt(float(array_namespace(x).sum(x * x)))) or 1.0


def _device(x: Array) -> Any:
    return getattr(x, "device", None)


def _pseudo_inverse(matrix: Array, values: Array, vectors: Array) -> Factorised:
    xp = array_namespace(values)
    d = int(values.shape[0])
    top = float(xp.max(xp.abs(values)))
    lowest = float(xp.min(values))
    limit = max(top * d * np.finfo(np.float64).eps, -4.0 * lowest)
    kept = values > limit
    inverse = xp.where(kept, 1.0 / xp.where(kept, values, xp.ones_like(values)), 0.0 * values)
    count = int(xp.sum(xp.astype(kept, xp.int64)))
    smallest = float(xp.min(xp.where(kept, values, xp.full_like(values, float("inf")))))
    condition = top / smallest if count else float("inf")
    negative = lowest / top if top > 0 and lowest < -NEGATIVE * top else 0.0
    return Factorised(matrix, "pseudo-inverse", condition, d - count, negative, vectors, inverse)


def cholesky(matrix: Array) -> Array | None:
    """Lower L with M = L Lᵀ, or None where M is not ≻ 0."""
    if isinstance(matrix, np.ndarray):
        try:
            return np.linalg.cholesky(matrix)
        except np.linalg.LinAlgError:
            return None
    torch: Any = array_namespace(matrix)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return None if int(failed) or not bool(torch.isfinite(factor).all()) else factor


def solve_lower(factor: Array, right: Array, *, transposed: bool = False) -> Array:
    """L⁻¹ R, or L⁻ᵀ R, for lower-triangular L (d, d) and R (d, k). Cost d² k.

    NumPy arrays in blocks of :data:`BLOCK` rows, so that nearly all of it are matrix products,
    which several threads can take at once; LAPACK's triangular solver holds Python's lock.
    """
    if isinstance(factor, np.ndarray):
        return _blocks_solved(factor, right, transposed)
    torch: Any = array_namespace(factor)
    matrix = factor.T if transposed else factor
    return torch.linalg.solve_triangular(matrix, right, upper=transposed)


def _blocks_solved(factor: FloatArray, right: FloatArray, transposed: bool) -> FloatArray:
    from scipy.linalg import solve_triangular

    d = len(factor)
    # A few columns are read faster by LAPACK: the time is that of reading L.
    step = BLOCK if right.shape[1] >= _COLUMNS else d
    x = np.array(right, order="F")
    starts = range(0, d, step)
    for a in reversed(starts) if transposed else starts:
        b = min(d, a + step)
        # The transposes are views in the order that BLAS is fastest in.
        if a and not transposed:
            x[a:b] -= (x[:a].T @ factor[a:b, :a].T).T
        # NaN goes through where it is to be computed with.
        x[a:b] = solve_triangular(
            factor[a:b, a:b], x[a:b], lower=True, trans="T" if transposed else "N",
            check_finite=False,
        )  # fmt: skip
        if a and transposed:
            x[:a] -= (x[a:b].T @ factor[a:b, :a]).T
    return x


def cholesky_solve(factor: Array, right: Array) -> Array:
    """(L Lᵀ)⁻¹ R."""
    return solve_lower(factor, solve_lower(factor, right), transposed=True)
