"""The "stiefel" solver: orthonormal components, GGᵀ = I, kept by Cayley steps.

With S = I the best coefficients are W = N, so L = T − Σ_ik N_ik² depends on G alone. Along
the curve

    G(τ) = G − τ Zᵀ[D; G],  (I + (τ/2) M) Z = [S; −DGᵀ],  M = [[GDᵀ, S], [−DDᵀ, −DGᵀ]],

D = ∇_G L, every G(τ) has orthonormal rows, and its products follow without touching the data again:
B(τ) = B − τ [E, B] Z with E = ADᵀ. So an iteration costs two data products however many τ are
tried. τ starts from Barzilai and Borwein's and is halved until Armijo's rule holds.

Source: the constraint and the step, Matena & Raffel 2023 (its public code); the curve, Wen & Yin
2013, "A feasible method for optimization with orthogonality constraints"; that trials along it cost
no product is ours.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..backend import Kernel, to_backend, to_numpy
from ..errors import InvalidInputError
from ..status import Status
from ..types import Array
from .history import Recorder
from .method import LowRankNPEFF
from .objective import coefficient_gram, component_gradient, gram, inner
from .pals import REFRESH, Point, evaluate, point_from, point_state
from .problem import LowRankProblem, orthonormal_rows
from .starts import anchor_start, random_start

START_STEPS = 30
ARMIJO = 1e-4
MOST_HALVINGS = 40
# Steps between two looks at how much the loss has fallen.
WINDOW = 16


def solve_stiefel(
    problem: LowRankProblem,
    method: LowRankNPEFF,
    rng: np.random.Generator,
    record: Recorder,
    init: tuple[Array, Array] | None = None,
) -> tuple[Point, Status]:
    """Minimise L over G with GGᵀ = I, with W = N; the best of several starts goes on.

    Raises
    ------
    InvalidInputError
        More components than columns.
    """
    r, n = method.n_components, problem.share.n
    if r > problem.n_columns:
        raise InvalidInputError(
            f"n_components={r} was given for rows that span {problem.n_columns} dimensions; no "
            "more orthonormal components fit. Use fewer, or solver='pals'."
        )
    found = record.found
    if found is not None and found.stage == "solve":
        point = point_from(problem, found.arrays, found.facts["loss"])
        return _descend(problem, point, method, record, int(found.facts["number"]))
    if init is not None:
        best: Point | None = at(problem, orthonormal_rows(init[1], problem.xp))
    else:
        best, first = None, 0
        if found is not None:
            best, first = (
                point_from(problem, found.arrays, found.facts["loss"]),
                int(found.facts["number"]),
            )
        for number in range(first, method.n_starts):
            record.begin(f"start {number + 1} of {method.n_starts}", START_STEPS)
            if number % 2 == 0:
                share = n if number == 0 else max(min(n, r), n // 2)
                picked = np.sort(rng.choice(n, size=share, replace=False)).astype(np.int64)
                _, G = anchor_start(problem, r, picked)
            else:
                _, G = random_start(problem, r, rng)
            # Small noise completes starts whose directions are dependent.
            noise = 1e-6 * rng.standard_normal((r, problem.n_columns)) / problem.n_columns**0.5
            G = orthonormal_rows(G + problem.array(noise), problem.xp)
            point = at(problem, G)
            memory: tuple[Array, Array] | None = None
            for _ in range(START_STEPS):
                last = point.loss
                point, _, stop, memory = _step(problem, point, record, memory)
                if stop or last - point.loss <= 1e-5 * problem.total:
                    break
            if best is None or point.loss < best.loss:
                best = point
            if record.stopped:
                return best, Status.STOPPED
            arrays, facts = point_state(best)
            record.keep("starts", arrays, {**facts, "number": number + 1})
    if best is None:
        raise RuntimeError("n_starts >= 1 is checked by LowRankNPEFF")
    record.begin("solve", method.max_steps * WINDOW)
    return _descend(problem, best, method, record, 0)


def at(problem: LowRankProblem, G: Array) -> Point:
    """The point with orthonormal G and its best coefficients W = N."""
    point = evaluate(problem, problem.array(np.zeros((problem.n_examples, len(G)))), G)
    return _optimal(problem, point)


def _optimal(problem: LowRankProblem, point: Point) -> Point:
    loss = problem.total - inner(point.N, point.N, problem.team)
    return replace(point, W=point.N, loss=loss)


def tangent(problem: LowRankProblem, point: Point) -> tuple[Array, Array, float]:
    """D = ∇_G L, its tangential part D − GDᵀG, and the latter's size relative to the pullback."""
    pullback = problem.pullback(point.W, point.B)
    D = component_gradient(point.W, point.G, point.S, pullback, problem.team)
    xp = problem.xp
    along = D - xp.matmul(xp.matmul(point.G, D.T), point.G)
    size = 4.0 * inner(pullback, pullback) ** 0.5
    return D, along, inner(along, along) ** 0.5 / size if size > 0 else 0.0


def _descend(
    problem: LowRankProblem, point: Point, method: LowRankNPEFF, record: Recorder, first: int
) -> tuple[Point, Status]:
    """Windows of steps; the Barzilai-Borwein memory begins anew with each, so they can resume."""
    for number in range(first, method.max_steps):
        arrays, facts = point_state(point)
        record.keep("solve", arrays, {**facts, "number": number})
        before = point.loss
        memory: tuple[Array, Array] | None = None
        for _ in range(WINDOW):
            last = point.loss
            point, residual, stop, memory = _step(problem, point, record, memory)
            if residual <= method.tol:
                return point, Status.CONVERGED
            if stop:
                return point, Status.STOPPED
            if point.loss >= last:
                break
        if (number + 1) * WINDOW % REFRESH < WINDOW:
            point = at(problem, orthonormal_rows(point.G, problem.xp))
        if before - point.loss <= method.tol**2 * problem.total:
            return point, Status.CONVERGED if point.loss < before else Status.STALLED
    return point, Status.MAX_STEPS


def _step(
    problem: LowRankProblem,
    point: Point,
    record: Recorder,
    before: tuple[Array, Array] | None,
) -> tuple[Point, float, bool, tuple[Array, Array]]:
    """One Cayley step: the new point, the residual before it, whether to stop, what to remember."""
    xp = problem.xp
    D, along, residual = tangent(problem, point)
    memory = point.G, along
    E = problem.line(point.B, D)[0]
    Q, R, S = (to_numpy(x) for x in (gram(point.G, D), gram(D), point.S))
    r = len(S)
    M = np.block([[Q, S], [-R, -Q.T]])
    right = np.concatenate([S, -Q.T])
    slope = float(np.trace(R) - np.sum(Q * Q.T))  # −dL/dτ at 0 = ½‖DᵀG − GᵀD‖²_F
    tau = _first_step(point, along, before, slope)
    both = xp.concat([E, point.B], axis=1)
    kernel = problem.backend.raw(Kernel.LOWRANK_PRODUCTS)
    device = getattr(both, "device", None)
    for _ in range(MOST_HALVINGS):
        Z = np.linalg.solve(np.eye(2 * r) + 0.5 * tau * M, right)
        mix = np.concatenate([np.zeros((r, r)), np.eye(r)]) - tau * Z
        small = xp.astype(to_backend(mix.T, problem.backend, device=device), both.dtype)
        B, N = kernel(both, problem.offsets, small)
        loss = problem.total - inner(N, N, problem.team)
        if loss <= point.loss - ARMIJO * tau * slope:
            stacked = xp.concat([D, point.G], axis=0)
            G = xp.matmul(small, stacked)
            V = coefficient_gram(N, problem.team)
            new = Point(N, G, B, N, gram(G), V, loss)
            return new, residual, record(loss, residual), memory
        tau *= 0.5
    return point, residual, record(point.loss, residual), memory


def _first_step(
    point: Point, along: Array, before: tuple[Array, Array] | None, slope: float
) -> float:
    """Barzilai and Borwein's τ from the last move, else one that turns by about a tenth."""
    cautious: float = 0.1 / max(slope, 1e-300) ** 0.5
    if before is None:
        return cautious
    s, y = point.G - before[0], along - before[1]
    bottom = inner(y, y)
    tau = abs(inner(s, y)) / bottom if bottom > 0 else cautious
    return min(max(tau, 1e-3 * cautious), 1e3 * cautious)


def final_residual(problem: LowRankProblem, point: Point) -> float:
    """Size of the tangential gradient relative to 4(W̃∘B)ᵀA."""
    return tangent(problem, point)[2]
