"""The gated relaxation, a lower bound of the ReLU program, and its way back to ReLU units."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from ..core.errors import InvalidInputError, SolveFailedError
from ..core.types import Array, FloatArray, NumpyArray
from ..core.zonotope import witness_of
from ..core.zonotope.pattern import check_generators, check_signs
from .losses import loss_of

SPLITS = ("closed", "smallest")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GatedOptimum:
    """f(x_i) = Σ_b 1[s_bi = +1] x_i·u_b with the gates fixed.

    Attributes
    ----------
    weights : array (b, d)
        u_b.
    patterns : array (b, n)
    objective : float
        ½‖f − y‖² + λ Σ_b ‖u_b‖.
    penalty : float
        λ.
    """

    weights: FloatArray
    patterns: NumpyArray
    objective: float
    penalty: float


def gated_optimum(
    inputs: Array, targets: Array, patterns: Array, *, penalty: float = 0.0
) -> GatedOptimum:
    """Minimise over u ½‖Σ_b A_{s_b} X u_b − y‖² + λ Σ_b ‖u_b‖ (Mishkin, Sahiner & Pilanci 2022).

    The cones are dropped, so over the same patterns the value is at most that of the ReLU program;
    for λ = 0 they are equal, as every u is a difference of two members of its cone.

    Raises
    ------
    InvalidInputError
        Bad shapes or a negative penalty.
    SolveFailedError
        The convex solver gives no solution (λ > 0).
    """
    x = check_generators(inputs)
    _, y = loss_of("squared", targets)
    s = check_signs(patterns, len(x))
    if y.shape != (len(x),) or not penalty >= 0:
        raise InvalidInputError(
            f"{len(y)} targets for {len(x)} rows and penalty={penalty} were given; one target a "
            "row and penalty >= 0 are accepted."
        )
    phi = np.hstack([(p > 0)[:, None] * x for p in s])
    if penalty == 0:
        u = np.linalg.lstsq(phi, y, rcond=None)[0].reshape(len(s), -1)
    else:
        u = _group_lasso(phi, y, penalty, len(s))
    misfit = phi @ u.ravel() - y
    value = 0.5 * float(misfit @ misfit) + penalty * float(np.linalg.norm(u, axis=1).sum())
    return GatedOptimum(weights=u, patterns=s, objective=value, penalty=float(penalty))


def _group_lasso(phi: FloatArray, y: FloatArray, lam: float, groups: int) -> FloatArray:
    cp: Any = import_module("cvxpy")
    u = cp.Variable((groups, phi.shape[1] // groups))
    goal = 0.5 * cp.sum_squares(phi @ cp.vec(u, order="C") - y) + lam * cp.sum(cp.norm(u, axis=1))
    return _solved(cp, cp.Problem(cp.Minimize(goal)), u)


def _solved(cp: Any, problem: Any, variable: Any) -> FloatArray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            problem.solve(solver="CLARABEL", tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
        except cp.error.SolverError as error:
            raise SolveFailedError(f"The convex solver failed: {error}") from None
    if problem.status not in ("optimal", "optimal_inaccurate"):
        raise SolveFailedError(f"The convex solver ended with status {problem.status!r}.")
    return np.asarray(variable.value, dtype=np.float64)


def cone_split(
    inputs: Array, patterns: Array, weights: Array, *, how: str = "closed"
) -> tuple[FloatArray, FloatArray]:
    """u_b = w_b⁺ − w_b⁻ with both parts in the cone of s_b: gated units as pairs of ReLU units.

    Parameters
    ----------
    inputs, patterns, weights : arrays (n, d), (b, n), (b, d)
    how : {"closed", "smallest"}
        "closed": M g ± u/2 with the witness g of largest margin and the smallest M that does;
        "smallest": min ‖w⁺‖ + ‖w⁻‖ by a second-order cone program.

    Raises
    ------
    InfeasiblePattern
        A pattern that no direction has.
    """
    if how not in SPLITS:
        raise InvalidInputError(f"how={how!r} was given; accepted: {', '.join(SPLITS)}.")
    x = check_generators(inputs)
    s = check_signs(patterns, len(x))
    u = np.asarray(weights, dtype=np.float64)
    if u.shape != (len(s), x.shape[1]):
        raise InvalidInputError(
            f"Weights of shape {u.shape} were given; {(len(s), x.shape[1])} is due."
        )
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    parts = [_parts(unit * p[:, None], v, how, x, p) for p, v in zip(s, u, strict=True)]
    return np.array([p for p, _ in parts]), np.array([q for _, q in parts])


def _parts(
    rows: FloatArray, u: FloatArray, how: str, x: FloatArray, pattern: NumpyArray
) -> tuple[FloatArray, FloatArray]:
    if not u.any():
        return u, u
    if how == "closed":
        g = widest_witness(x, pattern)
        lift = float((np.abs(rows @ u) / (2 * (rows @ g))).max()) * (1 + 1e-9)
        return lift * g + u / 2, lift * g - u / 2
    cp: Any = import_module("cvxpy")
    plus = cp.Variable(len(u))
    scale = float(np.linalg.norm(u))
    goal = cp.Minimize(cp.norm(plus) + cp.norm(plus - u / scale))
    found = _solved(cp, cp.Problem(goal, [rows @ plus >= 0, rows @ (plus - u / scale) >= 0]), plus)
    return scale * found, scale * found - u


def widest_witness(inputs: Array, pattern: Array) -> FloatArray:
    """The shortest w with s_i x_i·w ≥ ‖x_i‖: the direction of largest margin, by least distance.

    Raises
    ------
    InfeasiblePattern
        If no direction has the pattern.
    """
    from scipy.optimize import nnls

    x = check_generators(inputs)
    s = check_signs(np.asarray(pattern)[None], len(x))[0]
    start = witness_of(x, s)
    rows = x * s[:, None] / np.linalg.norm(x, axis=1, keepdims=True)
    system = np.vstack([rows.T, np.ones(len(x))])
    target = np.zeros(x.shape[1] + 1)
    target[-1] = 1.0
    mu, _ = nnls(system, target, maxiter=30 * len(x))
    rest = target - system @ mu
    if rest[-1] > 0:
        w = -rest[:-1] / rest[-1]
        if (rows @ w > 0.5).all():
            return np.asarray(w)
    return start / float((rows @ start).min())
