"""Local search over vertices: flips that the multipliers price, dead units, then all edges.

Matena & Raffel 2022 (arXiv:2210.00176) search greedily over vertices; the flip prices, the
re-seeding of dead units and the proof of what was reached are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..core.backend import Kernel, select_backend
from ..core.backend.select import BackendChoice
from ..core.errors import InvalidInputError
from ..core.status import Status
from ..core.types import Array, FloatArray, NumpyArray, Seed
from ..core.zonotope import decide
from ..core.zonotope.pattern import check_signs
from ..core.zonotope.skeleton import walls
from .convex import solve_loss
from .flips import Flips, flip_gains
from .losses import loss_of
from .program import ReluProblem, ReluSolution, as_solution, undecided_rows

NEIGHBOURHOODS = ("tight", "edges")
_LEAST_DECREASE = 1e-9
# Flips looked at in one go; larger problems take those near the weights first.
_CHUNK = 4096


def greedy_search(
    problem: ReluProblem,
    *,
    patterns: Array | None = None,
    neighbourhood: str = "edges",
    reseed: bool = True,
    loss: str = "squared",
    penalty: float = 0.0,
    n_starts: int = 1,
    n_directions: int = 400,
    max_steps: int = 10_000,
    backend: BackendChoice = "auto",
    n_jobs: int = 1,
    seed: Seed = 0,
) -> ReluSolution:
    """The best vertex found from random starts; the loss falls strictly at every step.

    Parameters
    ----------
    problem : ReluProblem
    patterns : array (m, n), optional
        Where to begin (one start). Otherwise the patterns of normal directions.
    neighbourhood : {"tight", "edges"}
        "tight" stops where no tight flip helps; "edges" then solves every neighbouring vertex.
    reseed : bool
        Give dead units the pattern of the best of ``n_directions`` random directions.
    loss : {"squared", "logistic", "hinge"}
        The others than "squared" are solved by cvxpy, some 20 ms a vertex.
    penalty : float
        (λ/2) ‖W‖² for the classification losses; the logistic loss needs λ > 0.
    n_starts, n_jobs : int
        Random starts, and joblib processes that share them.
    max_steps : int
    seed : int or numpy.random.Generator

    Returns
    -------
    ReluSolution
        ``certificate`` says which local optimality was reached and whether dead units leave it
        open; ``history`` holds the losses of the best start.

    Raises
    ------
    InvalidInputError
        Unknown neighbourhood, or patterns that do not fit.
    """
    if neighbourhood not in NEIGHBOURHOODS:
        raise InvalidInputError(
            f"neighbourhood={neighbourhood!r} was given; accepted: {', '.join(NEIGHBOURHOODS)}."
        )
    if n_starts < 1:
        raise InvalidInputError(f"n_starts={n_starts} was given; at least 1 is accepted.")
    options: dict[str, Any] = {
        "vertices": Vertices(problem, backend, loss, float(penalty)),
        "edges": neighbourhood == "edges",
        "reseed": reseed,
        "n_directions": n_directions,
        "max_steps": max_steps,
    }
    streams = np.random.default_rng(seed).spawn(1 if patterns is not None else n_starts)
    starts = [
        _random_patterns(problem, len(problem.signs), r) if patterns is None else patterns
        for r in streams
    ]
    jobs = [(check_signs(s, len(problem.inputs)), r) for s, r in zip(starts, streams, strict=True)]
    if n_jobs == 1 or len(jobs) == 1:
        found = [_search(patterns=s, rng=r, **options) for s, r in jobs]
    else:
        from joblib import Parallel, delayed

        done: Any = Parallel(n_jobs=n_jobs)(
            delayed(_search)(patterns=s, rng=r, **options) for s, r in jobs
        )
        found = list(done)
    return min(found, key=lambda solution: solution.loss)


def _random_patterns(problem: ReluProblem, count: int, rng: np.random.Generator) -> NumpyArray:
    lengths = np.linalg.norm(problem.inputs, axis=1)
    directions = rng.normal(size=(count, problem.inputs.shape[1]))
    return np.where(directions @ (problem.inputs / lengths[:, None]).T > 0, 1, -1).astype(np.int8)


@dataclass(frozen=True, slots=True)
class Vertices:
    """How one vertex, and all its neighbours, are solved."""

    problem: ReluProblem
    backend: BackendChoice
    loss: str
    penalty: float
    _kernels: dict[Kernel, Any] = field(default_factory=dict)

    def kernel(self, kernel: Kernel) -> Any:
        """The backend's function, chosen once: choosing costs more than a small program."""
        if kernel not in self._kernels:
            chosen = select_backend(self.problem.inputs, backend=self.backend, kernel=kernel)
            self._kernels[kernel] = chosen.raw(kernel)
        return self._kernels[kernel]

    def __post_init__(self) -> None:
        if self.loss == "squared" and self.penalty != 0:
            raise InvalidInputError(
                f"penalty={self.penalty} was given with the squared loss, whose vertices are "
                "solved without; see regularised_optimum."
            )
        if self.loss != "squared":
            chosen, _ = loss_of(self.loss, self.problem.targets)
            if self.penalty == 0 and not chosen.attained:
                raise InvalidInputError(f"loss={self.loss!r} needs penalty > 0.")

    @property
    def scale(self) -> float:
        """The objective of zero weights."""
        chosen, y = loss_of(self.loss, self.problem.targets)
        return max(chosen.value(np.zeros(len(y)), y), 1e-300)

    def solve(self, patterns: NumpyArray) -> ReluSolution:
        """The optimum of one vertex."""
        if self.loss != "squared":
            return solve_loss(self.problem, patterns, loss=self.loss, penalty=self.penalty)
        problem = self.problem
        weights, multipliers = self.kernel(Kernel.VERTEX_PROGRAMS)(
            problem.inputs, problem.targets, problem.signs, patterns[None]
        )
        return as_solution(problem, patterns, weights[0], multipliers[0])

    def best_neighbour(self, here: ReluSolution) -> ReluSolution | None:
        """The best vertex one edge away, if it is better; no edge is left out.

        Every single flip is a program, flips that no direction has too: theirs are optima over
        closed cones of lower dimension, and one of them is never taken.
        """
        n, _, m = self.problem.sizes
        units, rows = np.divmod(np.arange(m * n), n)
        slack = np.abs(here.weights @ self.problem.inputs.T) / np.linalg.norm(
            self.problem.inputs, axis=1
        )
        order = np.argsort(slack.ravel(), kind="stable")
        chunk = len(order) if m * n <= _CHUNK else _CHUNK // 8
        for at in range(0, len(order), chunk):
            part = order[at : at + chunk]
            found = self._best_of(here, units[part], rows[part])
            if found is not None:
                return found
        return None

    def _best_of(
        self, here: ReluSolution, units: NumpyArray, rows: NumpyArray
    ) -> ReluSolution | None:
        if self.loss == "squared":
            losses = self._losses(here, units, rows)
        else:
            losses = np.array(
                [
                    self.solve(_turned(here.patterns, j, i)).loss if self._feasible(here, j, i)
                    else np.inf
                    for j, i in zip(units, rows, strict=True)
                ]
            )  # fmt: skip
        for k in np.argsort(losses, kind="stable"):
            if not _is_lower(float(losses[k]), here.loss):
                return None
            if self._feasible(here, int(units[k]), int(rows[k])):
                trial = self.solve(_turned(here.patterns, units[k], rows[k]))
                if _is_lower(trial.loss, here.loss):
                    return trial
        return None

    def _feasible(self, here: ReluSolution, j: int, i: int) -> bool:
        return decide(self.problem.inputs, _turned(here.patterns, j, i)[j]).feasible

    def _losses(self, here: ReluSolution, units: NumpyArray, rows: NumpyArray) -> FloatArray:
        problem = self.problem
        _, losses = self.kernel(Kernel.NEIGHBOUR_PROGRAMS)(
            problem.inputs,
            problem.targets,
            problem.signs,
            here.patterns.astype(np.float64),
            here.multipliers,
            units,
            rows,
            incumbent=here.loss * (1 - _LEAST_DECREASE),
        )
        return np.asarray(losses)


def _turned(patterns: NumpyArray, j: Any, i: Any) -> NumpyArray:
    turned = patterns.copy()
    turned[j, i] = -turned[j, i]
    return turned


def _search(
    *,
    vertices: Vertices,
    patterns: NumpyArray,
    rng: np.random.Generator,
    edges: bool,
    reseed: bool,
    n_directions: int,
    max_steps: int,
) -> ReluSolution:
    here = vertices.solve(patterns)
    history = [here.loss]
    scale = vertices.scale
    certificate, status = "step limit reached", Status.MAX_STEPS
    for _ in range(max_steps):
        if here.loss <= 1e-28 * scale:
            certificate, status = "global optimum (zero loss)", Status.CONVERGED
            break
        flips = flip_gains(vertices.problem, here)
        better = _tight_step(vertices, here, flips)
        if better is None and reseed and flips.dead.any():
            better = _reseeded(vertices, here, flips, rng, n_directions)
        if better is None and edges:
            better = vertices.best_neighbour(here)
        if better is None:
            certificate, status = _verdict(vertices, here, edges), Status.CONVERGED
            break
        here = better
        history.append(here.loss)
    return replace(here, certificate=certificate, status=status, history=tuple(history))


def _verdict(vertices: Vertices, here: ReluSolution, edges: bool) -> str:
    flips = flip_gains(vertices.problem, here)
    reached = "local minimum of the loss"
    if edges:
        reached += ", and no neighbouring vertex is better"
    if flips.dead.any():
        reached = f"no flip helps; open: {int(flips.dead.sum())} dead units"
    if here.kkt > 1e-6:
        return f"{reached} (KKT residual {here.kkt:.1e})"
    rows = undecided_rows(vertices.problem, here) if vertices.loss == "squared" else []
    if rows:
        return f"not proven: rows {rows} are nearly dependent, beyond what float64 decides"
    return reached


def _is_lower(new: float, old: float) -> bool:
    return new < old * (1 - _LEAST_DECREASE)


def _tight_step(vertices: Vertices, here: ReluSolution, flips: Flips) -> ReluSolution | None:
    """Flip all tight pairs with a positive gain; if rounding spoils that, the best one alone."""
    threshold = 1e-9 * max(float(np.abs(here.residual).max()), 1e-300)
    good = flips.gains > threshold
    if not good.any():
        return None
    single = np.zeros_like(good)
    single[np.unravel_index(int(np.argmax(flips.gains)), good.shape)] = True
    for chosen in (good, single):
        trial = vertices.solve(np.where(chosen, -here.patterns, here.patterns))
        if _is_lower(trial.loss, here.loss):
            return trial
    return None


def _reseeded(
    vertices: Vertices,
    here: ReluSolution,
    flips: Flips,
    rng: np.random.Generator,
    n_directions: int,
) -> ReluSolution | None:
    """Give the first dead unit that can help the pattern of the steepest sampled direction."""
    problem = vertices.problem
    for j in np.flatnonzero(flips.dead):
        u = rng.normal(size=(n_directions, problem.inputs.shape[1]))
        u /= np.linalg.norm(u, axis=1, keepdims=True)
        slopes = problem.signs[j] * (np.maximum(u @ problem.inputs.T, 0) @ here.residual)
        best = int(np.argmin(slopes))
        if slopes[best] >= 0:
            continue
        patterns = here.patterns.copy()
        patterns[j] = np.where(problem.inputs @ u[best] > 0, 1, -1)
        trial = vertices.solve(patterns)
        if _is_lower(trial.loss, here.loss):
            return trial
    return None


def neighbours(problem: ReluProblem, patterns: NumpyArray) -> NumpyArray:
    """All patterns (k, m, n) one edge away; walls proven in integers."""
    found = []
    for j, s in enumerate(patterns):
        for i in walls(problem.inputs, s, method="flip"):
            found.append(_turned(patterns, j, i))
    return np.array(found, dtype=np.int8).reshape(len(found), *patterns.shape)
