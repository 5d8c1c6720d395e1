"""The global optimum by exhaustion: every tuple of vertices is solved, or bounded away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement, islice, product
from math import comb

import numpy as np

from ..core.backend.select import BackendChoice
from ..core.errors import InvalidInputError
from ..core.types import FloatArray, NumpyArray
from ..core.zonotope import Zonotope
from .program import ReluProblem, ReluSolution, as_solution, losses_of, solve_batch

_BATCH = 2048


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Exhaustion:
    """The best network of all, and the log of the proof.

    Attributes
    ----------
    solution : ReluSolution
    n_patterns : int
        Feasible patterns of one unit.
    n_cells : int
        Tuples of patterns, up to the order of units of equal sign; each was solved or pruned.
    n_solved, n_pruned : int
    worst_kkt : float
        Largest KKT residual among the cells solved.
    """

    solution: ReluSolution
    n_patterns: int
    n_cells: int
    n_solved: int
    n_pruned: int
    worst_kkt: float


def brute_force(
    problem: ReluProblem,
    *,
    prune: bool = True,
    max_cells: int = 10_000_000,
    backend: BackendChoice = "auto",
) -> Exhaustion:
    """Solve the programs of all tuples of vertices (Arora et al. 2018).

    Parameters
    ----------
    problem : ReluProblem
    prune : bool
        Skip a cell whose least squares without cones is not below the best loss so far.
    max_cells : int
        More are refused, with their number.

    Raises
    ------
    InvalidInputError
        Too many cells.
    """
    n, _, _ = problem.sizes
    blocks = list(Zonotope(problem.inputs).patterns(backend=backend))
    patterns = np.concatenate(blocks).astype(np.int8)
    plus, minus = (int((problem.signs == v).sum()) for v in (1, -1))
    cells = comb(len(patterns) + plus - 1, plus) * comb(len(patterns) + minus - 1, minus)
    if cells > max_cells:
        raise InvalidInputError(
            f"{len(patterns)} patterns and {len(problem.signs)} units make {cells} cells; up to "
            f"{max_cells} are accepted. Raise max_cells, or use greedy_search."
        )
    order = np.argsort(-problem.signs, kind="stable")
    best: ReluSolution | None = None
    solved, worst = 0, 0.0
    for tuples in _tuples(len(patterns), plus, minus):
        chosen = np.empty((len(tuples), len(problem.signs), n), dtype=np.int8)
        chosen[:, order] = patterns[tuples]
        if prune and best is not None:
            chosen = chosen[_bounds(problem, chosen) < best.loss]
        if len(chosen) == 0:
            continue
        weights, multipliers = solve_batch(problem, chosen, backend=backend)
        losses = losses_of(problem, weights)
        solved += len(chosen)
        at = int(np.argmin(losses))
        if best is None or losses[at] < best.loss:
            best = as_solution(problem, chosen[at], weights[at], multipliers[at])
        worst = max(worst, _worst_kkt(problem, chosen, weights, multipliers))
    if best is None:  # there is at least one pattern, so at least one cell
        raise InvalidInputError("There is no cell to solve.")
    return Exhaustion(
        solution=best,
        n_patterns=len(patterns),
        n_cells=cells,
        n_solved=solved,
        n_pruned=cells - solved,
        worst_kkt=worst,
    )


def _tuples(count: int, plus: int, minus: int) -> Iterator[NumpyArray]:
    """Multisets of patterns for the positive units times those for the negative, in batches."""
    every = (
        p + q
        for p, q in product(
            combinations_with_replacement(range(count), plus),
            combinations_with_replacement(range(count), minus),
        )
    )
    while block := list(islice(every, _BATCH)):
        yield np.array(block, dtype=np.int64)


def _bounds(problem: ReluProblem, patterns: NumpyArray) -> FloatArray:
    """½ min ‖Φw − y‖² without cones, a lower bound of each program, less a share for rounding."""
    x, y = problem.inputs, problem.targets
    b, m, n = patterns.shape
    active = (patterns > 0) * problem.signs[:, None]
    phi = np.einsum("bmn,nd->bnmd", active, x).reshape(b, n, m * x.shape[1])
    u, sizes, _ = np.linalg.svd(phi, full_matrices=False)
    # Directions of tiny singular values count as reachable: that can only lower the bound.
    kept = u * (sizes > 1e-14 * sizes[:, :1].clip(min=1e-300))[:, None, :]
    reach = np.einsum("bnk,n->bk", kept, y)
    height = float(y @ y)
    return np.asarray(0.5 * (height - (reach**2).sum(axis=1)) - 1e-12 * height)


def _worst_kkt(
    problem: ReluProblem, patterns: NumpyArray, weights: FloatArray, multipliers: FloatArray
) -> float:
    """Largest relative stationarity violation ‖Φᵀr − Gᵀμ‖∞ of a batch."""
    x, y, v = problem.inputs, problem.targets, problem.signs
    active = (patterns > 0).astype(np.float64)
    products = np.einsum("bmd,nd->bmn", weights, x)
    residual = np.einsum("m,bmn->bn", v, active * products) - y
    forces = v[:, None] * active * residual[:, None, :] - multipliers * patterns
    gradient = np.einsum("bmn,nd->bmd", forces, x)
    size = float(np.linalg.norm(x, axis=1).max()) * (float(np.linalg.norm(y)) or 1.0)
    return float(np.abs(gradient).max()) / size
