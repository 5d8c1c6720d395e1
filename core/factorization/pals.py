"""PALS: preconditioned alternating least squares for low-rank NPEFF; no step size, monotone.

One step lowers W by coordinate descent over the shared Gram H, then moves G along
D = −M⁻¹[MG − (W̃∘B)ᵀA], M = V∘S + μI (towards the least-squares G for fixed B), by the exact
global minimiser of the quartic L(W, G + tD). Two data products a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..backend import to_backend
from ..types import Array
from .history import Recorder
from .objective import (
    coefficient_gram,
    component_gradient,
    gram,
    inner,
    line_coefficients,
    loss_value,
    minimise_quartic,
)
from .problem import LowRankProblem

# Added to M so that components with W_k = 0 (a zero row and column of M) stay where they are.
RIDGE = 1e-10


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """An iterate with everything that the next step needs.

    W (n, r), G (r, m), B = AGᵀ (h, r), N (n, r), S = GGᵀ and V = WᵀW (r, r, float64), loss L.
    """

    W: Array
    G: Array
    B: Array
    N: Array
    S: Array
    V: Array
    loss: float


def point_state(point: Point) -> tuple[dict[str, Array], dict[str, float]]:
    """The arrays and the loss of a point, for a checkpoint."""
    names = ("W", "G", "B", "N", "S")
    return {name: getattr(point, name) for name in names}, {"loss": point.loss}


def point_from(problem: LowRankProblem, arrays: Mapping[str, Any], loss: Any) -> Point:
    """The point of :func:`point_state`, bit for bit."""
    W, G, B, N = (problem.array(arrays[name]) for name in ("W", "G", "B", "N"))
    S = to_backend(arrays["S"], problem.backend, device=getattr(W, "device", None))
    return Point(W, G, B, N, S, coefficient_gram(W, problem.team), float(loss))


def evaluate(problem: LowRankProblem, W: Array, G: Array) -> Point:
    """The point at (W, G); one data product."""
    B, N = problem.products(G)
    S = gram(G)
    V = coefficient_gram(W, problem.team)
    return Point(W, G, B, N, S, V, objective_value(problem, W, N, S, V))


def objective_value(problem: LowRankProblem, W: Array, N: Array, S: Array, V: Array) -> float:
    """L and the penalty."""
    return loss_value(problem.total, W, N, S, problem.team, V=V) + problem.penalty.value(S)


def penalised_gradient(
    problem: LowRankProblem, W: Array, G: Array, S: Array, pullback: Array
) -> Array:
    """∇_G of L and the penalty (r, m)."""
    gradient = component_gradient(W, G, S, pullback, problem.team)
    if problem.penalty.weight:
        pull = problem.xp.astype(problem.penalty.pull(S), G.dtype)
        gradient = gradient + 4.0 * problem.xp.matmul(pull, G)
    return gradient


def lower_coefficients(
    problem: LowRankProblem, point: Point, *, sweeps: int, tol: float = 0.0
) -> Point:
    """W by coordinate descent for fixed G; never raises the loss, no data product."""
    W = problem.solve_coefficients(point.S, point.N, point.W, sweeps=sweeps, tol=tol)
    V = coefficient_gram(W, problem.team)
    loss = objective_value(problem, W, point.N, point.S, V)
    return replace(point, W=W, V=V, loss=loss) if loss <= point.loss else point


def newton_direction(
    problem: LowRankProblem, point: Point, *, frozen: int = 0
) -> tuple[Array, float]:
    """D = −M⁻¹∇ and the relative gradient ‖∇_G‖/‖4(W̃∘B)ᵀA‖; one data product.

    The first ``frozen`` components stay: their rows of D are zero, and M, ∇ are those of the rest.
    """
    xp = problem.xp
    pullback = problem.pullback(point.W[:, frozen:], point.B[:, frozen:])
    whole = point.V * point.S
    M = whole[frozen:, frozen:]
    if problem.penalty.weight:
        whole = whole + problem.penalty.pull(point.S)
        M = M + problem.penalty.weight * point.S[frozen:, frozen:]
    gradient = xp.matmul(xp.astype(whole[frozen:], pullback.dtype), point.G) - pullback
    size = inner(pullback, pullback)
    residual = float(np.sqrt(inner(gradient, gradient) / size)) if size > 0 else 0.0
    r = M.shape[0]
    ridge = RIDGE * float(xp.linalg.trace(M)) / r
    eye = xp.eye(r, dtype=M.dtype, device=M.device)
    inverse = xp.linalg.inv(M + max(ridge, np.finfo(np.float64).tiny) * eye)
    D = -xp.matmul(xp.astype(inverse, gradient.dtype), gradient)
    return xp.concat([xp.zeros_like(point.G[:frozen]), D], axis=0), residual


def line_step(problem: LowRankProblem, point: Point, D: Array) -> Point:
    """The exact minimiser of L along D; one data product; the same point if nothing is lower."""
    E, N1, N2 = problem.line(point.B, D)
    P, R = gram(point.G, D), gram(D)
    c = line_coefficients(
        problem.total, point.W, point.N, N1, N2, point.S, P, R, problem.team, V=point.V
    )
    c = c + problem.penalty.line(point.S, P, R)
    t, loss = minimise_quartic(c)
    if t == 0.0 or not loss < point.loss:
        return point
    return Point(
        point.W,
        point.G + t * D,
        point.B + t * E,
        point.N + t * N1 + (t * t) * N2,
        point.S + t * (P + P.T) + (t * t) * R,
        point.V,
        loss,
    )


def descend(
    problem: LowRankProblem,
    point: Point,
    record: Recorder,
    *,
    steps: int,
    sweeps: int,
    fixed_coefficients: int = 0,
    tol: float = 0.0,
    frozen: int = 0,
) -> Point:
    """Run PALS steps until one of the limits, the callback, or no further decrease.

    Parameters
    ----------
    steps : int
        The most steps.
    sweeps : int
        Coordinate-descent sweeps over W a step.
    fixed_coefficients : int
        Steps at the beginning that leave W alone, so that no component is switched off before
        its direction means something.
    tol : float
        Stop when a step lowers L by less than ``tol``·T.
    frozen : int
        The first so many components stay as they are.
    """
    for step in range(steps):
        before = point.loss
        if step >= fixed_coefficients:
            point = lower_coefficients(problem, point, sweeps=sweeps)
        D, residual = newton_direction(problem, point, frozen=frozen)
        point = line_step(problem, point, D)
        if (step + 1) % REFRESH == 0:
            point = evaluate(problem, point.W, point.G)
        if record(point.loss, residual):
            break
        if step >= fixed_coefficients and before - point.loss <= tol * problem.total:
            break
    return point


# B, N and S are updated along lines; they are computed afresh this often against drift.
REFRESH = 50
