"""Two Kronecker precisions: the sum of two is diagonalised by two generalised eigenproblems."""

from __future__ import annotations

from array_api_compat import array_namespace

from ...types import Array
from .dense import cholesky, solve_lower


def solve_two_kronecker(
    left: tuple[Array, Array], right: tuple[Array, Array], target: Array
) -> tuple[Array, float] | None:
    """D (o, i) with B₁ D A₁ + B₂ D A₂ = T, and the condition of the scaled system.

    Parameters
    ----------
    left, right : (B_k, A_k)
        Factors (o, o) and (i, i), symmetric ⪰ 0, weights folded in; one of the two pairs must be
        positive definite in both factors.
    target : array (o, i)

    Returns
    -------
    (D, condition) or None
        None where neither pair is positive definite: damp the factors or use PCG.

    Notes
    -----
    With Uᵀ B₁ U = I, Uᵀ B₂ U = diag β, Vᵀ A₁ V = I, Vᵀ A₂ V = diag α: D = U Z Vᵀ and
    Z_pq = (Uᵀ T V)_pq / (1 + β_p α_q). Cost O(o³ + i³ + o i (o + i)); nothing of size oi × oi.
    """
    for (b1, a1), (b2, a2) in ((left, right), (right, left)):
        u, beta = _generalised(b1, b2)
        v, alpha = _generalised(a1, a2)
        if u is not None and v is not None:
            break
    else:
        return None
    xp = array_namespace(target)
    scale = 1.0 + xp.clip(beta, 0.0)[:, None] * xp.clip(alpha, 0.0)[None, :]
    z = (u.T @ target @ v) / scale
    d = u @ z @ v.T
    # One step of refinement takes out what the change of basis cost.
    rest = target - (b1 @ d @ a1 + b2 @ d @ a2)
    d = d + u @ ((u.T @ rest @ v) / scale) @ v.T
    return d, float(xp.max(scale) / xp.min(scale))


def _generalised(first: Array, second: Array) -> tuple[Array | None, Array]:
    """U with Uᵀ F U = I and Uᵀ S U = diag β; None where F is not ≻ 0."""
    xp = array_namespace(first)
    factor = cholesky((first + first.T) * 0.5)
    if factor is None:
        return None, first
    half = solve_lower(factor, (second + second.T) * 0.5)
    inner = solve_lower(factor, half.T)
    beta, vectors = xp.linalg.eigh((inner + inner.T) * 0.5)
    return solve_lower(factor, vectors, transposed=True), beta
