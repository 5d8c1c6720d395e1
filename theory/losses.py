"""Convex losses of predictions: values, slopes, conjugates, and their form for cvxpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import InvalidInputError
from ..core.types import Array, FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Σ_i ℓ(f_i, y_i).

    Attributes
    ----------
    name : str
    value : callable (f, y) → float
    slope : callable (f, y) → array (n,)
        r = ∂ℓ/∂f, which takes the place of f − y in every optimality condition; for the hinge one
        subgradient.
    dual : callable (ν, y) → float
        −Σ ℓ*(−ν_i), the value of the dual of min_f Σ ℓ(f_i, y_i) + h(f) at ν = −r, −∞ outside its
        domain.
    expression : callable (f, y) → cvxpy expression
    attained : bool
        Whether the minimum over any cone of predictions is attained. Where it is not (logistic loss
        on separable data) a penalty is required.
    """

    name: str
    value: Callable[[FloatArray, FloatArray], float]
    slope: Callable[[FloatArray, FloatArray], FloatArray]
    dual: Callable[[FloatArray, FloatArray], float]
    expression: Callable[[Any, FloatArray], Any]
    attained: bool


def _cvxpy() -> Any:
    from importlib import import_module

    return import_module("cvxpy")


def _logistic_dual(nu: FloatArray, y: FloatArray) -> float:
    from scipy.special import xlogy

    p = nu * y
    if (p < 0).any() or (p > 1).any():
        return -np.inf
    return -float((xlogy(p, p) + xlogy(1 - p, 1 - p)).sum())


def _hinge_dual(nu: FloatArray, y: FloatArray) -> float:
    p = nu * y
    return float(p.sum()) if (p >= 0).all() and (p <= 1).all() else -np.inf


def _logistic_slope(f: FloatArray, y: FloatArray) -> FloatArray:
    from scipy.special import expit

    return np.asarray(-y * expit(-y * f))


LOSSES: dict[str, Loss] = {
    "squared": Loss(
        name="squared",
        value=lambda f, y: 0.5 * float(((f - y) ** 2).sum()),
        slope=lambda f, y: f - y,
        dual=lambda nu, y: float(nu @ y - 0.5 * nu @ nu),
        expression=lambda f, y: 0.5 * _cvxpy().sum_squares(f - y),
        attained=True,
    ),
    "logistic": Loss(
        name="logistic",
        value=lambda f, y: float(np.logaddexp(0.0, -y * f).sum()),
        slope=_logistic_slope,
        dual=_logistic_dual,
        expression=lambda f, y: _cvxpy().sum(_cvxpy().logistic(-_cvxpy().multiply(y, f))),
        attained=False,
    ),
    "hinge": Loss(
        name="hinge",
        value=lambda f, y: float(np.maximum(0.0, 1 - y * f).sum()),
        slope=lambda f, y: np.where(y * f < 1, -y, 0.0),
        dual=_hinge_dual,
        expression=lambda f, y: _cvxpy().sum(_cvxpy().pos(1 - _cvxpy().multiply(y, f))),
        attained=True,
    ),
}


def loss_of(name: str, targets: Array) -> tuple[Loss, FloatArray]:
    """The loss of that name, and targets that it takes: ±1 for "logistic" and "hinge".

    Raises
    ------
    InvalidInputError
        Unknown name; targets not finite, or not ±1 for a classification loss (rows named).
    """
    if name not in LOSSES:
        raise InvalidInputError(f"loss={name!r} was given; accepted: {', '.join(LOSSES)}.")
    y = np.asarray(targets, dtype=np.float64)
    bad = ~np.isfinite(y) if name == "squared" else np.abs(y) != 1
    if y.ndim != 1 or bad.any():
        wanted = "finite numbers" if name == "squared" else "−1 and +1"
        rows = np.flatnonzero(np.atleast_1d(bad))[:8].tolist()
        raise InvalidInputError(
            f"Targets of shape {y.shape} were given; loss={name!r} takes {wanted}, one a row. "
            f"Rows that are not: {rows}."
        )
    return LOSSES[name], y
