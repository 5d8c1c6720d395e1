"""Preconditioned conjugate gradients for M d = r with M ⪰ 0 given by its products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace

from ...types import Array, FloatArray


@dataclass(frozen=True, slots=True)
class PCGAnswer:
    """d, and how far the iteration came.

    Attributes
    ----------
    x : array, the shape of r
    residual : float
        ‖r − M d‖/‖r‖, recomputed at the end.
    steps : int
    converged : bool
    condition : float
        Of the preconditioned M, from the Lanczos coefficients: a lower bound.
    """

    x: Array
    residual: float
    steps: int
    converged: bool
    condition: float


def pcg(
    apply: Callable[[Array], Array],
    right: Array,
    *,
    preconditioner: Array | None = None,
    start: Array | None = None,
    tol: float = 1e-10,
    max_steps: int = 1000,
) -> PCGAnswer:
    """Conjugate gradients with a diagonal preconditioner; the best iterate comes back.

    Parameters
    ----------
    apply : callable
        d ↦ M d, for arrays of the shape of ``right``.
    right : array
    preconditioner : array, the shape of ``right``, optional
        diag M; entries <= 0 are taken as 1.
    start : array, optional
        First iterate; 0 by default, from where the limit of a singular M is of minimum norm (in
        the norm of the preconditioner).
    tol : float
        Stop at ‖r − M d‖ ≤ tol ‖r‖.
    max_steps : int
    """
    xp = array_namespace(right)
    weight = xp.ones_like(right)
    if preconditioner is not None:
        good = preconditioner > 0
        weight = xp.where(good, 1.0 / xp.where(good, preconditioner, weight), weight)
    scale = _norm(right)
    d = xp.zeros_like(right) if start is None else start + 0.0
    if scale == 0.0 and start is None:
        return PCGAnswer(d, 0.0, 0, True, 1.0)
    goal = tol * (scale or 1.0)
    rest = right - apply(d) if start is not None else right
    z = weight * rest
    p, rho = z, _dot(rest, z)
    best, best_size = d, _norm(rest)
    alphas: list[float] = []
    betas: list[float] = []
    steps = 0
    while steps < max_steps and best_size > goal and rho > 0:
        q = apply(p)
        curvature = _dot(p, q)
        if not curvature > 0:
            break
        alpha = rho / curvature
        d = d + alpha * p
        steps += 1
        # The recursion drifts from the true residual; every 50 steps it is computed anew.
        rest = right - apply(d) if steps % 50 == 0 else rest - alpha * q
        size = _norm(rest)
        if size < best_size:
            best, best_size = d, size
        z = weight * rest
        new = _dot(rest, z)
        alphas.append(alpha)
        betas.append(new / rho)
        p, rho = z + (new / rho) * p, new
    residual = _norm(right - apply(best))
    return PCGAnswer(
        best, residual / (scale or 1.0), steps, residual <= goal * 1.01, _condition(alphas, betas)
    )


def _dot(a: Array, b: Array) -> float:
    xp = array_namespace(a)
    return float(xp.sum(a * b))


def _norm(a: Array) -> float:
    return float(np.sqrt(_dot(a, a)))


def _condition(alphas: list[float], betas: list[float]) -> float:
    """Ratio of the extreme Ritz values of the Lanczos matrix behind the iteration."""
    if len(alphas) < 2:
        return 1.0
    from scipy.linalg import eigvalsh_tridiagonal

    a = np.asarray(alphas)
    b: FloatArray = np.asarray(betas[:-1])
    diagonal = 1.0 / a
    diagonal[1:] += b / a[:-1]
    values = eigvalsh_tridiagonal(diagonal, np.sqrt(np.maximum(b, 0.0)) / a[:-1])
    return float(values[-1] / values[0]) if values[0] > 0 else float("inf")
