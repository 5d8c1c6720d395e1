"""The global optimum with weight decay, with a duality gap: the convex program of Pilanci & Ergen.

min over networks of Σ ℓ(Σ_j α_j (x_i·u_j)_+, y_i) + (λ/2) Σ_j (‖u_j‖² + α_j²), with enough units,
has the value of the convex program min Σ ℓ(f_i, y_i) + λ Σ_s (‖v_s‖ + ‖w_s‖) over v_s, w_s ∈ C_s,
f = Σ_s A_s X (v_s − w_s) (Pilanci & Ergen 2020). We generate the patterns s one by one, by an exact
oracle, which makes the gap a proof.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..core.backend.select import BackendChoice
from ..core.errors import ConvergenceWarning, InvalidInputError, SolveFailedError
from ..core.status import Callback, Status, StepInfo
from ..core.types import Array, FloatArray, NumpyArray
from ._regularised_newton import objective_of, refined
from .losses import Loss, loss_of
from .oracle import ZonotopeOracle

_NEW_COLUMNS = 6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RegularisedOptimum:
    """A network and how far it can be from the best of all networks of any width.

    Attributes
    ----------
    weights : array (m, d)
        u_j.
    outputs : array (m,)
        α_j, with |α_j| = ‖u_j‖.
    objective : float
        Of the network itself, with its weight decay.
    lower_bound : float
        Proven: no network of any width has a smaller objective.
    dual : array (n,)
        ν with Ω(ν) ≤ λ whose dual value is the lower bound; ``certify`` checks it anew.
    penalty, loss : float, str
        λ and the name of the loss.
    n_columns, n_patterns, n_rounds : int
        Patterns used, patterns there are, solves.
    status : Status
    history : tuple of (float, float)
        Objective and lower bound of each round.
    """

    weights: FloatArray
    outputs: FloatArray
    objective: float
    lower_bound: float
    dual: FloatArray
    penalty: float
    loss: str
    n_columns: int
    n_patterns: int
    n_rounds: int
    status: Status
    history: tuple[tuple[float, float], ...] = field(default=())

    @property
    def gap(self) -> float:
        """(objective − lower bound) / max(|objective|, tiny): the relative certified gap."""
        return (self.objective - self.lower_bound) / max(abs(self.objective), 1e-300)

    @property
    def certificate(self) -> str:
        """What is proven, in words."""
        return (
            f"no network of any width has an objective below {self.lower_bound:.12g}; "
            f"this one has {self.objective:.12g} (relative gap {self.gap:.1e})"
        )

    def predict(self, inputs: Array) -> FloatArray:
        """Σ_j α_j (x·u_j)_+ for rows x."""
        x = np.asarray(inputs, dtype=np.float64)
        return np.asarray(np.maximum(x @ self.weights.T, 0) @ self.outputs)

    def __repr__(self) -> str:
        return (
            f"RegularisedOptimum(units={len(self.outputs)}, objective={self.objective:.6g}, "
            f"gap={self.gap:.1e})"
        )


def regularised_optimum(
    inputs: Array,
    targets: Array,
    penalty: float,
    *,
    loss: str = "squared",
    tol: float = 1e-7,
    max_rounds: int = 200,
    all_patterns: bool = False,
    max_patterns: int = 3_000_000,
    backend: BackendChoice = "auto",
    callback: Callback | None = None,
) -> RegularisedOptimum:
    """The global optimum over networks of any width with weight decay λ = ``penalty`` > 0.

    Column generation: solve the program over few patterns; ν = −∂ℓ/∂f; the oracle
    Ω(ν) = max over ‖u‖ ≤ 1 of |Σ ν_i (x_i·u)_+| finds the patterns that violate the dual constraint
    Ω(ν) ≤ λ; add them. With τ = min(1, λ/Ω(ν)), τν is dual feasible, and its dual value a lower
    bound of every network's objective.

    Parameters
    ----------
    inputs : array (n, d)
        A constant column (``with_bias``) counts as a weight like the others in the decay.
    targets : array (n,)
        ±1 for the classification losses.
    penalty : float
        λ > 0.
    loss : {"squared", "logistic", "hinge"}
    tol : float
        Relative gap at which to stop.
    all_patterns : bool
        Put every pattern into the program at once: the check of column generation.
    callback : callable, optional

    Raises
    ------
    InvalidInputError
        λ ≤ 0, unknown loss, bad targets, more than ``max_patterns`` patterns.
    SolveFailedError
        The convex solver gives no solution.

    Notes
    -----
    A round costs one oracle call and one second-order cone program in (columns)·d variables.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.column_stack([np.linspace(-1, 1, 9), np.ones(9)])
    >>> found = regularised_optimum(x, np.abs(x[:, 0]), 0.01)
    >>> found.gap < 1e-6, round(found.objective, 6)
    (True, 0.01988)
    """
    if not (np.isfinite(penalty) and penalty > 0):
        raise InvalidInputError(
            f"penalty={penalty} was given; a finite number > 0 is accepted. Without weight decay "
            "use greedy_search, select_vertices or brute_force."
        )
    chosen, y = loss_of(loss, targets)
    oracle = ZonotopeOracle(inputs, max_patterns=max_patterns, backend=backend)
    if y.shape != (len(oracle.inputs),):
        raise InvalidInputError(f"{len(y)} targets were given for {len(oracle.inputs)} rows.")
    columns = _Columns(oracle.inputs)
    if all_patterns:
        for s in oracle.patterns(np.arange(oracle.n_patterns)):
            columns.add(s, 1)
            columns.add(s, -1)
    best = _Best(columns.empty(), chosen.value(np.zeros(len(y)), y), -np.inf, np.zeros(len(y)))
    history: list[tuple[float, float]] = []
    nu = -chosen.slope(np.zeros(len(y)), y)
    status, gap = Status.MAX_STEPS, np.inf
    for turn in range(max_rounds + 1):
        cuts = [
            (m, sign) for sign in (1, -1) for m in oracle.maximise(sign * nu, count=_NEW_COLUMNS)
        ]
        reach = max(m.value for m, _ in cuts)
        tau = min(1.0, penalty / reach) if reach > 0 else 1.0
        best.raise_bound(chosen.dual(tau * nu, y), tau * nu)
        history.append((best.objective, best.lower))
        gap = (best.objective - best.lower) / max(abs(best.objective), 1e-300)
        stop = callback is not None and callback(_info(turn, max_rounds, best, gap))
        if gap <= tol:
            status = Status.CONVERGED
            break
        fresh = [columns.add(m.pattern, s) for m, s in cuts if m.value > penalty * (1 + 1e-9)]
        if stop or (turn > 0 and not all_patterns and not any(fresh)) or turn == max_rounds:
            status = Status.STOPPED if stop else Status.STALLED
            break
        if all_patterns and turn > 0:
            status = Status.STALLED
            break
        weights, outputs, nu = columns.solve(chosen, y, penalty)
        value = objective_of(oracle.inputs, y, weights, outputs, penalty, chosen)
        best.offer((weights, outputs), value)
    if status is Status.STALLED:
        warnings.warn(
            f"The certified gap is {gap:.1e}, above tol={tol:g}: the convex solver's accuracy ends "
            "there. The lower bound holds all the same.",
            ConvergenceWarning,
            stacklevel=2,
        )
    weights, outputs, objective = refined(oracle.inputs, y, best.network, penalty, chosen)
    return RegularisedOptimum(
        weights=weights,
        outputs=outputs,
        objective=objective,
        lower_bound=best.lower,
        dual=best.dual,
        penalty=float(penalty),
        loss=loss,
        n_columns=len(columns),
        n_patterns=oracle.n_patterns,
        n_rounds=len(history) - 1,
        status=status,
        history=tuple(history),
    )


@dataclass(slots=True)
class _Best:
    network: tuple[FloatArray, FloatArray]
    objective: float
    lower: float
    dual: FloatArray

    def raise_bound(self, value: float, nu: FloatArray) -> None:
        if value > self.lower:
            self.lower, self.dual = value, nu

    def offer(self, network: tuple[FloatArray, FloatArray], objective: float) -> None:
        if objective < self.objective:
            self.network, self.objective = network, objective


def _info(turn: int, max_rounds: int, best: _Best, gap: float) -> StepInfo:
    return StepInfo(
        phase="column generation",
        step=turn,
        max_steps=max_rounds,
        loss=best.objective,
        relative_loss=gap,
        residual=gap,
        products=float(turn),
    )


class _Columns:
    """Patterns in the restricted program, each with the sign of its output."""

    def __init__(self, x: FloatArray) -> None:
        self.x = x
        self.unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        self.known: dict[tuple[bytes, int], int] = {}
        self.patterns: list[NumpyArray] = []
        self.signs: list[int] = []
        self.facets: dict[bytes, FloatArray] = {}

    def __len__(self) -> int:
        return len(self.patterns)

    def empty(self) -> tuple[FloatArray, FloatArray]:
        return np.zeros((0, self.x.shape[1])), np.zeros(0)

    def add(self, pattern: NumpyArray, sign: int) -> bool:
        key = (pattern.tobytes(), sign)
        if key in self.known or not (pattern > 0).any():
            return False
        self.known[key] = len(self.patterns)
        self.patterns.append(pattern)
        self.signs.append(sign)
        if key[0] not in self.facets:
            self.facets[key[0]] = irredundant(pattern[:, None] * self.unit)
        return True

    def solve(
        self, loss: Loss, y: FloatArray, lam: float
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Weights, outputs and ν of the program over these columns."""
        from importlib import import_module

        from scipy.sparse import block_diag

        cp: Any = import_module("cvxpy")
        count, d = len(self.patterns), self.x.shape[1]
        if count == 0:
            return *self.empty(), -loss.slope(np.zeros(len(y)), y)
        outputs = np.hstack(
            [s * (p > 0)[:, None] * self.x for p, s in zip(self.patterns, self.signs, strict=True)]
        )
        cones: Any = block_diag([self.facets[p.tobytes()] for p in self.patterns], format="csr")
        v, f = cp.Variable((count, d)), cp.Variable(len(y))
        flat = cp.vec(v, order="C")
        goal = loss.expression(f, y) + lam * cp.sum(cp.norm(v, axis=1))
        joined = f == outputs @ flat
        problem = cp.Problem(cp.Minimize(goal), [joined, cones @ flat >= 0])
        found = None
        for accuracy in (1e-11, 1e-9):
            found = _tried(cp, problem, v, accuracy)
            if found is not None:
                break
        if found is None:
            raise SolveFailedError(
                f"The convex program over {count} patterns was not solved ({problem.status}). "
                "Rescale the columns of the inputs, or raise the penalty."
            )
        sizes = np.linalg.norm(found, axis=1)
        kept = sizes > 1e-9 * max(float(sizes.max()), 1e-300)
        root = np.sqrt(sizes[kept])
        weights = found[kept] / root[:, None] if kept.any() else self.empty()[0]
        if loss.name == "hinge":  # at the kink only the program's own multipliers tell ν
            nu = y * np.clip(y * np.asarray(joined.dual_value), 0.0, 1.0)
        else:
            nu = -loss.slope(outputs @ found.ravel(), y)
        return weights, root * np.array(self.signs)[kept], nu


def _tried(cp: Any, problem: Any, v: Any, accuracy: float) -> FloatArray | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "may be inaccurate": the gap says how inaccurate
        try:
            problem.solve(
                solver="CLARABEL", tol_gap_abs=accuracy, tol_gap_rel=accuracy, tol_feas=accuracy
            )
        except cp.error.SolverError:
            return None
    if problem.status not in ("optimal", "optimal_inaccurate") or v.value is None:
        return None
    return np.asarray(v.value, dtype=np.float64)


def irredundant(rows: FloatArray) -> FloatArray:
    """Rows that suffice to describe {u : rows·u ≥ 0}: those not in the cone of the others."""
    from scipy.optimize import nnls

    kept = list(_distinct(rows))
    for i in list(kept):
        others = [k for k in kept if k != i]
        if others and float(nnls(rows[others].T, rows[i])[1]) <= 1e-10:
            kept = others
    return rows[kept]


def _distinct(rows: FloatArray) -> Iterator[int]:
    seen: set[bytes] = set()
    for i, row in enumerate(rows):
        key = np.round(row, 14).tobytes()
        if key not in seen:
            seen.add(key)
            yield i
