"""The quadratic as a convex program: a second opinion, and constraints."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import numpy as np

from ...backend import like as like_library, to_numpy
from ...errors import InvalidInputError, SolveFailedError
from ...types import Array
from ..problem import GroupSystem
from .options import Cvxpy


def solve_convex(system: GroupSystem, options: Cvxpy) -> tuple[Array, str]:
    """θ of one group, and cvxpy's status.

    min dᵀ A d − 2 rᵀ d subject to the constraints, with A = Σ λ_i P_i + … as a dense matrix.

    Raises
    ------
    InvalidInputError
        If the group is larger than ``options.limit`` or A is not ⪰ 0.
    SolveFailedError
        If cvxpy finds no optimum (an empty box, say).
    """
    cp: Any = import_module("cvxpy")

    size = int(np.prod(system.total.shape))
    if size > options.limit:
        raise InvalidInputError(
            f"{system.name!r} has {size} parameters; cvxpy is used up to limit={options.limit}. "
            "Choose another solver, or raise the limit."
        )
    A = np.asarray(to_numpy(system.total.to_dense(limit=size)), dtype=np.float64)
    r = np.asarray(to_numpy(system.right_side()), dtype=np.float64).reshape(-1)
    c = np.asarray(to_numpy(system.center), dtype=np.float64).reshape(-1)
    root = _root(A, system.name)
    # Unit scales: interior-point methods stop by absolute sizes too.
    top = float(np.abs(A).max()) or 1.0
    step = float(np.abs(np.asarray(to_numpy(system.sources)).reshape(-1, size) - c).max()) or 1.0
    constraints: list[Any] = []
    spread = np.asarray(to_numpy(system.sources)).reshape(-1, size) - c
    w: Any = cp.Variable(len(system.weights), nonneg=True)
    d: Any = cp.Variable(size)
    if options.hull:
        d = (spread.T / step) @ w
        constraints.append(cp.sum(w) == 1)
    if options.box is not None:
        low, high = options.box
        constraints += [c / step + d >= low / step, c / step + d <= high / step]
    if options.trust_region is not None:
        constraints.append(cp.norm(root @ d) <= options.trust_region / step)
    scaled = root / np.sqrt(top)
    objective = cp.sum_squares(scaled @ d) - 2 * (r / (top * step)) @ d
    problem = cp.Problem(cp.Minimize(objective), constraints)
    settings: dict[str, Any] = {}
    if options.solver == "SCS":
        settings = {"eps_abs": 1e-9, "eps_rel": 1e-9, "max_iters": 100000}
    elif options.solver == "CLARABEL":
        settings = {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10}
    with warnings.catch_warnings():
        # Said by the status, which the report has.
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")
        problem.solve(solver=options.solver, **settings)
    if problem.status not in ("optimal", "optimal_inaccurate"):
        raise SolveFailedError(
            f"{system.name!r}: cvxpy's {options.solver} says {problem.status!r}. Check that the "
            "constraints leave a point, or add damping."
        )
    value = d.value if not options.hull else (spread.T / step) @ w.value
    theta = (c + step * np.asarray(value)).reshape(system.total.shape)
    return like_library(theta, system.center), str(problem.status)


def _root(A: Any, name: str) -> Any:
    """L with A = Lᵀ L."""
    values, vectors = np.linalg.eigh((A + A.T) / 2)
    if values[0] < -1e-9 * max(values[-1], 0.0):
        raise InvalidInputError(
            f"{name!r}: the summed precision has the negative eigenvalue {values[0]:.2e}; it must "
            "be positive semidefinite. Lower the negative anchor weight."
        )
    return np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
