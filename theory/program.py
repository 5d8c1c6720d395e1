"""The convex program of a vertex: the best shallow ReLU network with given activation patterns.

f(x) = Σ_j v_j (w_j·x)_+ with v_j = ±1. For patterns s_j, one a unit, the loss is convex on the cone
{w : S_j X w_j ≥ 0} (Matena & Raffel 2022, arXiv:2210.00176).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..core.backend import Kernel, select_backend
from ..core.backend.select import BackendChoice
from ..core.errors import InvalidInputError, SolveFailedError
from ..core.status import Status
from ..core.types import Array, FloatArray, NumpyArray
from ..core.zonotope.pattern import check_generators, check_signs

# Stationarity and feasibility, relative: what a solution has to keep to be called converged.
KKT_TOLERANCE = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReluProblem:
    """Data and output signs of min over W of ½‖Σ_j v_j (X w_j)_+ − y‖².

    Attributes
    ----------
    inputs : array (n, d)
        Rows x_i; a bias is a constant column (:func:`with_bias`).
    targets : array (n,)
    signs : array (m,)
        v_j = ±1. Other weights lose nothing: v (w·x)_+ = sign(v) (|v| w·x)_+.

    Raises
    ------
    InvalidInputError
        Wrong shapes, NaN or infinite entries, zero rows, signs other than ±1.
    """

    inputs: FloatArray
    targets: FloatArray
    signs: FloatArray

    def __post_init__(self) -> None:
        x = check_generators(self.inputs)
        y = np.asarray(self.targets, dtype=np.float64)
        v = np.asarray(self.signs, dtype=np.float64)
        if y.shape != (len(x),) or not np.isfinite(y).all():
            raise InvalidInputError(
                f"Targets of shape {y.shape} were given; ({len(x)},), finite, is accepted. NaN or "
                f"infinite rows: {np.flatnonzero(~np.isfinite(np.atleast_1d(y)))[:8].tolist()}."
            )
        if v.ndim != 1 or len(v) == 0 or not (np.abs(v) == 1).all():
            raise InvalidInputError(
                "Output signs must be a non-empty sequence of −1 and +1; absorb other output "
                "weights into the units, and drop units of weight 0."
            )
        for name, value in (("inputs", x), ("targets", y), ("signs", v)):
            object.__setattr__(self, name, value)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(n, d, m)."""
        return (*self.inputs.shape, len(self.signs))  # type: ignore[return-value]

    def predict(self, weights: FloatArray, inputs: FloatArray | None = None) -> FloatArray:
        """Σ_j v_j (x·w_j)_+ for weights (m, d): the network itself, not the cone's linear form."""
        x = self.inputs if inputs is None else inputs
        return np.asarray(np.maximum(x @ weights.T, 0) @ self.signs)

    def loss(self, weights: FloatArray) -> float:
        """½‖f − y‖² of the network."""
        return 0.5 * float(((self.predict(weights) - self.targets) ** 2).sum())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReluSolution:
    """A network, the cell that it is optimal in, and what supports that.

    Attributes
    ----------
    weights : array (m, d)
    patterns : array (m, n)
        int8 signs.
    loss : float
        ½‖f − y‖² of the network itself.
    multipliers : array (m, n)
        μ ≥ 0 of the constraints s_ji x_i·w_j ≥ 0.
    residual : array (n,)
        f − y.
    kkt : float
        Largest relative violation of stationarity, feasibility and complementarity.
    certificate : str
        What was proven, in words.
    status : Status
    history : tuple of float
        Losses on the way here.
    """

    weights: FloatArray
    patterns: NumpyArray
    loss: float
    multipliers: FloatArray
    residual: FloatArray
    kkt: float
    certificate: str
    status: Status
    history: tuple[float, ...] = field(default=())

    @property
    def mse(self) -> float:
        """Mean squared error 2 loss / n."""
        return 2.0 * self.loss / len(self.residual)

    def __repr__(self) -> str:
        return (
            f"ReluSolution(units={len(self.weights)}, loss={self.loss:.6g}, kkt={self.kkt:.1e}, "
            f"{self.certificate!r})"
        )


def with_bias(inputs: Array) -> FloatArray:
    """Inputs (n, d) with a constant column: (n, d + 1)."""
    x = np.asarray(inputs, dtype=np.float64)
    return np.column_stack([x, np.ones(len(x))])


def solve(
    problem: ReluProblem, patterns: Array, *, backend: BackendChoice = "auto"
) -> ReluSolution:
    """The optimum of one vertex program, with its multipliers and KKT residual.

    Parameters
    ----------
    problem : ReluProblem
    patterns : array (m, n) of −1, +1
    backend : str or Backend

    Raises
    ------
    SolveFailedError
        If the result does not satisfy the optimality conditions to 1e-6, or if they say nothing:
        rows that float64 cannot tell from dependent ones are named. Small programs of that kind
        are solved in rationals instead.
    """
    s = check_signs(patterns, len(problem.inputs))
    if len(s) != len(problem.signs):
        raise InvalidInputError(f"{len(s)} patterns were given for {len(problem.signs)} units.")
    (weights,), (multipliers,) = solve_batch(problem, s[None], backend=backend)
    solution = as_solution(problem, s, weights, multipliers)
    rows = undecided_rows(problem, solution)
    if solution.kkt <= 1e-6 and not rows:
        return solution
    exact = _in_rationals(problem, solution)
    if exact is not None:
        return exact
    if rows:
        raise SolveFailedError(
            f"Rows {rows} are so nearly dependent among those that units are on at that float64 "
            "does not tell whether they are: small residuals do not bound the loss there. Rescale "
            "the columns, round the data to a binary grid, or drop one of these rows."
        )
    raise SolveFailedError(
        f"The vertex program was solved to a relative KKT residual of {solution.kkt:.1e} only; "
        "1e-6 is asked for. Rescale the columns of the inputs, or use solve_with_cvxpy."
    )


# Between these shares of the largest, a singular value is neither clearly zero nor clearly not.
_ZERO, _CLEAR = 1e-15, 1e-9


def undecided_rows(problem: ReluProblem, solution: ReluSolution) -> list[int]:
    """Rows behind a singular value of Φ, on the working set's face, that may or may not be zero.

    There the residuals of the optimality conditions say little about the loss. Columns are scaled
    first, which changes nothing about the program.
    """
    x = problem.inputs
    top = np.abs(x).max(axis=0)
    scaled = x / np.where(top > 0, top, 1.0)
    # A force below this is rounding: its constraint may just as well not be in the way.
    least = _CLEAR * float(np.linalg.norm(problem.targets))
    lengths = np.linalg.norm(scaled, axis=1)
    blocks = []
    for s, v, mu in zip(solution.patterns, problem.signs, solution.multipliers, strict=True):
        block = v * (s > 0)[:, None] * scaled
        tight = scaled[mu * lengths > least]
        if len(tight):
            tight = tight / np.linalg.norm(tight, axis=1, keepdims=True)
            _, values, right = np.linalg.svd(tight)
            block = block @ right[int((values > 1e-12).sum()) :].T
        blocks.append(block)
    left, values, _ = np.linalg.svd(np.hstack(blocks), full_matrices=False)
    largest = float(values.max(initial=0.0))
    # What the working set has taken away leaves products of the size of rounding.
    floor = max(_ZERO * largest, 1e-14 * float(np.linalg.norm(scaled)))
    if largest <= floor:
        return []
    doubtful = np.flatnonzero((values > floor) & (values < _CLEAR * largest))
    if len(doubtful) == 0:
        return []
    weight = np.abs(left[:, doubtful]).max(axis=1)
    return [int(i) for i in np.argsort(-weight)[:8] if weight[i] > 0.2]


def _in_rationals(problem: ReluProblem, solution: ReluSolution) -> ReluSolution | None:
    """The program's optimum by exact arithmetic, where it is small enough."""
    from .exact import verify_exactly

    if solution.weights.size > 24 or len(problem.inputs) > 200:
        return None
    exact = verify_exactly(problem, solution)
    if not exact.proven:
        return None
    weights = np.array([[float(v) for v in unit] for unit in exact.weights])
    # Multipliers of the exact working set would be needed for more; their rows are what counts.
    found = as_solution(problem, solution.patterns, weights, exact.float_multipliers(problem))
    if not np.isclose(found.loss, float(exact.loss or 0), rtol=1e-6, atol=1e-9):
        return None  # the exact optimum is beyond float64 weights
    return replace(
        found, certificate="optimal in its cell (proven in rationals)", status=Status.CONVERGED
    )


def solve_batch(
    problem: ReluProblem, patterns: NumpyArray, *, backend: BackendChoice = "auto"
) -> tuple[FloatArray, FloatArray]:
    """Weights (b, m, d) and multipliers (b, m, n) of b vertex programs, patterns (b, m, n)."""
    chosen = select_backend(problem.inputs, backend=backend, kernel=Kernel.VERTEX_PROGRAMS)
    run = chosen.raw(Kernel.VERTEX_PROGRAMS)
    weights, multipliers = run(problem.inputs, problem.targets, problem.signs, patterns)
    return weights, multipliers


def losses_of(problem: ReluProblem, weights: FloatArray) -> FloatArray:
    """½‖f − y‖² for a batch of networks (b, m, d)."""
    units = np.maximum(np.einsum("nd,bmd->bmn", problem.inputs, weights), 0)
    misfit = np.einsum("m,bmn->bn", problem.signs, units) - problem.targets
    return np.asarray(0.5 * (misfit**2).sum(axis=1))


def as_solution(
    problem: ReluProblem, patterns: NumpyArray, weights: FloatArray, multipliers: FloatArray
) -> ReluSolution:
    """Bundle weights with residuals computed anew from the data."""
    residual = problem.predict(weights) - problem.targets
    kkt = kkt_residual(problem, patterns, weights, multipliers)
    good = kkt <= KKT_TOLERANCE
    return ReluSolution(
        weights=weights,
        patterns=patterns,
        loss=0.5 * float(residual @ residual),
        multipliers=multipliers,
        residual=residual,
        kkt=kkt,
        certificate="optimal in its cell (KKT)" if good else "feasible; KKT not met",
        status=Status.CONVERGED if good else Status.STALLED,
    )


def kkt_residual(
    problem: ReluProblem, patterns: NumpyArray, weights: FloatArray, multipliers: FloatArray
) -> float:
    """Largest violation of Φᵀr = Gᵀμ, Gw ≥ 0, μ ≥ 0 and μ∘Gw = 0, each relative to its terms."""
    x, y, v = problem.inputs, problem.targets, problem.signs
    s = patterns.astype(np.float64)
    products = weights @ x.T
    active = (s > 0).astype(np.float64)
    residual = v @ (active * products) - y
    gradient = (v[:, None] * active * residual) @ x - (multipliers * s) @ x
    size = float(np.linalg.norm(x, axis=1).max())
    height = float(np.linalg.norm(y)) or 1.0
    # A weight of this size moves a prediction by ‖y‖; where all are smaller, it is the yardstick.
    length = max(float(np.abs(weights).max(initial=0.0)), height / size)
    slack = s * products / np.linalg.norm(x, axis=1)
    return max(
        float(np.abs(gradient).max()) / (size * height),
        float(-slack.min(initial=0.0)) / length,
        float(-multipliers.min(initial=0.0)) / height,
        float(np.abs(multipliers * products).max(initial=0.0)) / (height * size * length),
    )


def solve_with_cvxpy(problem: ReluProblem, patterns: Array, *, solver: str = "CLARABEL") -> float:
    """The optimal value of the same program by cvxpy: an independent check.

    Raises
    ------
    SolveFailedError
        If the solver gives no optimal value.
    """
    from importlib import import_module

    # Any: cvxpy's own annotations name none of its functions.
    cp: Any = import_module("cvxpy")
    s = check_signs(patterns, len(problem.inputs))
    w = cp.Variable((len(s), problem.inputs.shape[1]))
    products = w @ problem.inputs.T
    outputs = problem.signs @ cp.multiply((s > 0).astype(float), products)
    goal = cp.Problem(
        cp.Minimize(0.5 * cp.sum_squares(outputs - problem.targets)),
        [cp.multiply(s.astype(float), products) >= 0],
    )
    # The first tolerance is beyond what the solver promises: its best is taken. Where it gives up
    # on degenerate cones, the second is asked for.
    for tol in (1e-12, 1e-10):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Solution may be inaccurate")
            try:
                goal.solve(solver=solver, tol_gap_abs=tol, tol_gap_rel=tol, tol_feas=tol)
            except cp.error.SolverError:
                continue
        if goal.status in ("optimal", "optimal_inaccurate"):
            return float(np.asarray(goal.value))
    raise SolveFailedError(f"cvxpy with {solver} gives no optimal value: {goal.status!r}.")
