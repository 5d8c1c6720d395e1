"""Local search over vertices: flips that the multipliers price, dead units, then all edges.

Matena & Raffel 2022 (arXiv:2210.00176) search greedily over vertices; the flip prices, the
re-seeding of dead units and the proof of what was reached are ours.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..core.backend.select import BackendChoice
from ..core.errors import InvalidInputError
from ..core.status import Status
from ..core.types import Array, NumpyArray, Seed
from ..core.zonotope.pattern import check_signs
from ..core.zonotope.skeleton import walls
from .flips import flip_gains
from .program import ReluProblem, ReluSolution, as_solution, losses_of, solve_batch

NEIGHBOURHOODS = ("tight", "edges")
_LEAST_DECREASE = 1e-9


def greedy_search(
    problem: ReluProblem,
    *,
    patterns: Array | None = None,
    neighbourhood: str = "edges",
    reseed: bool = True,
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
        "edges": neighbourhood == "edges",
        "reseed": reseed,
        "n_directions": n_directions,
        "max_steps": max_steps,
        "backend": backend,
    }
    streams = np.random.default_rng(seed).spawn(1 if patterns is not None else n_starts)
    starts = [
        _random_patterns(problem, len(problem.signs), r) if patterns is None else patterns
        for r in streams
    ]
    jobs = [(check_signs(s, len(problem.inputs)), r) for s, r in zip(starts, streams, strict=True)]
    if n_jobs == 1 or len(jobs) == 1:
        found = [_search(problem, s, r, **options) for s, r in jobs]
    else:
        from joblib import Parallel, delayed

        done: Any = Parallel(n_jobs=n_jobs)(
            delayed(_search)(problem, s, r, **options) for s, r in jobs
        )
        found = list(done)
    return min(found, key=lambda solution: solution.loss)


def _random_patterns(problem: ReluProblem, count: int, rng: np.random.Generator) -> NumpyArray:
    lengths = np.linalg.norm(problem.inputs, axis=1)
    directions = rng.normal(size=(count, problem.inputs.shape[1]))
    return np.where(directions @ (problem.inputs / lengths[:, None]).T > 0, 1, -1).astype(np.int8)


def _search(
    problem: ReluProblem,
    patterns: NumpyArray,
    rng: np.random.Generator,
    *,
    edges: bool,
    reseed: bool,
    n_directions: int,
    max_steps: int,
    backend: BackendChoice,
) -> ReluSolution:
    here = _solved(problem, patterns, backend)
    history = [here.loss]
    scale = max(0.5 * float(problem.targets @ problem.targets), 1e-300)
    certificate, status = "step limit reached", Status.MAX_STEPS
    for _ in range(max_steps):
        if here.loss <= 1e-28 * scale:
            certificate, status = "global optimum (zero loss)", Status.CONVERGED
            break
        better = _tight_step(problem, here, backend)
        if better is None and reseed:
            better = _reseeded(problem, here, rng, n_directions, backend)
        if better is None and edges:
            better = _edge_step(problem, here, backend, proven=False)
            if better is None:  # before claiming it, look again at walls proven in integers
                better = _edge_step(problem, here, backend, proven=True)
        if better is None:
            certificate, status = _verdict(problem, here, edges), Status.CONVERGED
            break
        here = better
        history.append(here.loss)
    return replace(here, certificate=certificate, status=status, history=tuple(history))


def _verdict(problem: ReluProblem, here: ReluSolution, edges: bool) -> str:
    flips = flip_gains(problem, here)
    reached = "local minimum of the loss"
    if edges:
        reached += ", and no neighbouring vertex is better"
    if flips.dead.any():
        reached = f"no flip helps; open: {int(flips.dead.sum())} dead units"
    return reached if here.kkt <= 1e-6 else f"{reached} (KKT residual {here.kkt:.1e})"


def _solved(problem: ReluProblem, patterns: NumpyArray, backend: BackendChoice) -> ReluSolution:
    weights, multipliers = solve_batch(problem, patterns[None], backend=backend)
    return as_solution(problem, patterns, weights[0], multipliers[0])


def _is_lower(new: float, old: float) -> bool:
    return new < old * (1 - _LEAST_DECREASE)


def _tight_step(
    problem: ReluProblem, here: ReluSolution, backend: BackendChoice
) -> ReluSolution | None:
    """Flip all tight pairs with a positive gain; if rounding spoils that, the best one alone."""
    flips = flip_gains(problem, here)
    threshold = 1e-9 * max(float(np.abs(here.residual).max()), 1e-300)
    good = flips.gains > threshold
    if not good.any():
        return None
    single = np.zeros_like(good)
    single[np.unravel_index(int(np.argmax(flips.gains)), good.shape)] = True
    for chosen in (good, single):
        trial = _solved(problem, np.where(chosen, -here.patterns, here.patterns), backend)
        if _is_lower(trial.loss, here.loss):
            return trial
    return None


def _reseeded(
    problem: ReluProblem,
    here: ReluSolution,
    rng: np.random.Generator,
    n_directions: int,
    backend: BackendChoice,
) -> ReluSolution | None:
    """Give the first dead unit that can help the pattern of the steepest sampled direction."""
    dead = np.flatnonzero(flip_gains(problem, here).dead)
    for j in dead:
        u = rng.normal(size=(n_directions, problem.inputs.shape[1]))
        u /= np.linalg.norm(u, axis=1, keepdims=True)
        slopes = problem.signs[j] * (np.maximum(u @ problem.inputs.T, 0) @ here.residual)
        best = int(np.argmin(slopes))
        if slopes[best] >= 0:
            continue
        patterns = here.patterns.copy()
        patterns[j] = np.where(problem.inputs @ u[best] > 0, 1, -1)
        trial = _solved(problem, patterns, backend)
        if _is_lower(trial.loss, here.loss):
            return trial
    return None


def neighbours(problem: ReluProblem, patterns: NumpyArray, *, proven: bool) -> NumpyArray:
    """All patterns (k, m, n) one edge away; walls proven in integers, or by float64."""
    found = []
    for j, s in enumerate(patterns):
        for i in walls(problem.inputs, s, method="flip" if proven else "cone"):
            turned = patterns.copy()
            turned[j, i] = -s[i]
            found.append(turned)
    return np.array(found, dtype=np.int8).reshape(len(found), *patterns.shape)


def _edge_step(
    problem: ReluProblem, here: ReluSolution, backend: BackendChoice, *, proven: bool
) -> ReluSolution | None:
    every = neighbours(problem, here.patterns, proven=proven)
    if len(every) == 0:
        return None
    weights, multipliers = solve_batch(problem, every, backend=backend)
    losses = losses_of(problem, weights)
    best = int(np.argmin(losses))
    if not _is_lower(float(losses[best]), here.loss):
        return None
    return as_solution(problem, every[best], weights[best], multipliers[best])
