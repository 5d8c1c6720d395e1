"""Vertex programs for other convex losses, by cvxpy, with multipliers and their residual."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import numpy as np

from ..core.errors import InvalidInputError, SolveFailedError
from ..core.status import Status
from ..core.types import Array, FloatArray, NumpyArray
from ..core.zonotope.pattern import check_signs
from .losses import Loss, loss_of
from .program import ReluProblem, ReluSolution

# Interior points reach about this; it is stated in the result.
_ACCURATE = 1e-5


def solve_loss(
    problem: ReluProblem, patterns: Array, *, loss: str = "logistic", penalty: float = 0.0
) -> ReluSolution:
    """Minimise over the cones Σ_i ℓ(f_i, y_i) + (λ/2) ‖W‖², f = Σ_j v_j A_{s_j} X w_j.

    The optimality conditions are those of the squared loss with r = ∂ℓ/∂f in the place of f − y,
    so ``flip_gains`` prices neighbours with the result.

    Parameters
    ----------
    problem : ReluProblem
        Targets ±1 for the classification losses.
    patterns : array (m, n)
    loss : {"logistic", "hinge", "squared"}
    penalty : float
        λ. The logistic loss needs λ > 0: on a vertex that separates the classes its infimum 0 is
        approached only at infinity.

    Returns
    -------
    ReluSolution
        ``loss`` includes the penalty, ``residual`` is r.

    Raises
    ------
    InvalidInputError
        Bad targets, unknown loss, a negative penalty, λ = 0 for the logistic loss.
    SolveFailedError
        The convex solver gives no solution.
    """
    chosen, y = loss_of(loss, problem.targets)
    if not (np.isfinite(penalty) and penalty >= 0):
        raise InvalidInputError(f"penalty={penalty} was given; a finite number >= 0 is accepted.")
    if penalty == 0 and not chosen.attained:
        raise InvalidInputError(
            f"loss={loss!r} with penalty=0 was given. Its infimum may lie at infinity (separable "
            "patterns); give penalty > 0."
        )
    n, d, m = problem.sizes
    s = check_signs(patterns, n)
    if len(s) != m:
        raise InvalidInputError(f"{len(s)} patterns were given for {m} units.")
    cp: Any = import_module("cvxpy")
    w, f = cp.Variable((m, d)), cp.Variable(n)
    products = w @ problem.inputs.T
    joined = f == problem.signs @ cp.multiply((s > 0).astype(float), products)
    cones = cp.multiply(s.astype(float), products) >= 0
    goal = chosen.expression(f, y)
    if penalty > 0:
        goal = goal + 0.5 * penalty * cp.sum_squares(w)
    program = cp.Problem(cp.Minimize(goal), [joined, cones])
    _run(cp, program)
    weights = np.asarray(w.value, dtype=np.float64)
    mu = np.maximum(np.asarray(cones.dual_value, dtype=np.float64), 0.0)
    r = chosen.slope(np.asarray(f.value), y)
    if loss == "hinge":
        r = -y * np.clip(y * np.asarray(joined.dual_value), 0.0, 1.0)
    return _solution(problem, s, weights, mu, r, chosen, y, penalty)


def _run(cp: Any, program: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program.solve(solver="CLARABEL", tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
        except cp.error.SolverError as error:
            raise SolveFailedError(f"The convex solver failed: {error}") from None
    if program.status not in ("optimal", "optimal_inaccurate"):
        raise SolveFailedError(f"The convex solver ended with status {program.status!r}.")


def _solution(
    problem: ReluProblem,
    s: NumpyArray,
    weights: FloatArray,
    mu: FloatArray,
    r: FloatArray,
    loss: Loss,
    y: FloatArray,
    penalty: float,
) -> ReluSolution:
    x, v = problem.inputs, problem.signs
    gradient = (v[:, None] * (s > 0) * r - mu * s) @ x + penalty * weights
    size = float(np.linalg.norm(x, axis=1).max()) * (float(np.linalg.norm(r)) or 1.0)
    unit = float(np.linalg.norm(y)) / float(np.linalg.norm(x, axis=1).max())
    top = max(float(np.abs(weights).max()), unit)
    slack = s * (weights @ x.T) / np.linalg.norm(x, axis=1)
    kkt = max(float(np.abs(gradient).max()) / size, float(-slack.min()) / top)
    good = kkt <= _ACCURATE
    f = problem.predict(weights)
    return ReluSolution(
        weights=weights,
        patterns=s,
        loss=loss.value(f, y) + 0.5 * penalty * float((weights**2).sum()),
        multipliers=mu,
        residual=r,
        kkt=kkt,
        certificate=f"optimal in its cell for the {loss.name} loss" if good else "KKT not met",
        status=Status.CONVERGED if good else Status.STALLED,
    )
