"""The "pals" solver: starts in a small subspace, then exact Galerkin refinement of it.

An optimal G lies in the row space of A. We keep orthonormal rows Q (d, m) of a growing subspace
and the projected rows AQᵀ (h, d). For every G = ĜQ the loss computed from AQᵀ is exact, so PALS
steps cost d/m of a full product there. Each refinement adds the r directions of the preconditioned
full-space gradient at the current point to Q: one product (W̃∘B)ᵀA and one product with A. The loss
falls monotonically, because the old point stays in the new subspace, and at a fixed point the
full gradient vanishes. This is the Rayleigh-Ritz idea of block Davidson and LOBPCG methods applied
to the quartic objective.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..status import Status
from ..types import Array
from .compare import matched_cosines
from .history import Recorder
from .method import LowRankNPEFF
from .objective import inner, kkt_residual
from .pals import (
    Point,
    descend,
    evaluate,
    lower_coefficients,
    newton_direction,
    penalised_gradient,
    point_from,
    point_state,
)
from .problem import LowRankProblem, orthonormal_rows
from .starts import anchor_start, gevd_start, random_start, revive, unit_rows

# Steps that a start may take, and steps between two refinements of the subspace.
START_STEPS = 30
INNER_STEPS = 16
# |cos| from which two components are the same one.
SAME = 0.99
# G-only steps of a random start; without them coordinate descent switches components off.
FIXED_COEFFICIENTS = 10
# The subspace begins with 2r dimensions and is cut back when it exceeds 6r.
FIRST_DIMENSION = 2
LARGEST_DIMENSION = 6
# A subspace pays only where it is much smaller than the row space.
WORTHWHILE = 4


@dataclass(frozen=True, slots=True, eq=False)
class Subspace:
    """Orthonormal rows Q (d, m) and the problem restricted to them."""

    basis: Array
    problem: LowRankProblem


def solve_pals(
    problem: LowRankProblem,
    method: LowRankNPEFF,
    rng: np.random.Generator,
    record: Recorder,
    init: tuple[Array, Array] | None = None,
) -> tuple[Point, Status]:
    """Minimise L over W ≥ 0 and G; returns a point of the full problem and how it ended."""
    found = record.found
    if found is None:
        space = first_subspace(problem, method, rng, init)
    else:
        space = subspace_from(problem, found.arrays)
    inside = problem if space is None else space.problem
    if found is not None and found.stage == "solve":
        point = point_from(inside, found.arrays, found.facts["loss"])
    else:
        point = best_start(inside, method, rng, record, space, init)
    if record.stopped:
        status = Status.STOPPED
    elif space is None:
        point, status = polish(problem, point, method, record)
    else:
        space, point, status = refine(problem, space, point, method, record)
    if space is not None:
        G = problem.xp.matmul(point.G, space.basis)
        point = replace(point, G=G)
    return point, status


def subspace_state(space: Subspace | None) -> dict[str, Array]:
    """Arrays of a subspace for a checkpoint; AQᵀ too, which was built piece by piece."""
    return {} if space is None else {"basis": space.basis, "inside": space.problem.rows}


def subspace_from(problem: LowRankProblem, arrays: Mapping[str, Any]) -> Subspace | None:
    """The subspace of :func:`subspace_state`, bit for bit."""
    if "basis" not in arrays:
        return None
    inside = problem.with_rows(problem.array(arrays["inside"]))
    return Subspace(problem.array(arrays["basis"]), inside)


def subspace_pays(problem: LowRankProblem, method: LowRankNPEFF) -> bool:
    """Whether the problem is much larger than the first subspace."""
    smaller = min(problem.share.h, problem.n_columns)
    large = smaller >= WORTHWHILE * FIRST_DIMENSION * method.n_components
    return problem.wants_subspace(method.subspace) and large


def first_subspace(
    problem: LowRankProblem,
    method: LowRankNPEFF,
    rng: np.random.Generator,
    init: tuple[Array, Array] | None,
) -> Subspace | None:
    """Leading directions of a random sample of rows, and of ``init``.

    ``None`` if the problem is small already.
    """
    if not subspace_pays(problem, method):
        return None
    dimension = FIRST_DIMENSION * method.n_components
    h = problem.share.h
    picked = np.sort(rng.choice(h, size=min(h, 4 * dimension), replace=False)).astype(np.int64)
    basis = problem.sample_basis(dimension, picked)
    if init is not None:
        basis = orthonormal_rows(problem.xp.concat([init[1], basis], axis=0), problem.xp)
    return Subspace(basis, problem.restrict(basis))


def best_start(
    problem: LowRankProblem,
    method: LowRankNPEFF,
    rng: np.random.Generator,
    record: Recorder,
    space: Subspace | None,
    init: tuple[Array, Array] | None,
) -> Point:
    """Run each start briefly and keep the lowest; ``init`` replaces the starts.

    A start that ends with the components of the best one before it is the last: the landscape led
    to them from two places.
    """
    r, n = method.n_components, problem.share.n
    if init is not None:
        W, G = init
        if space is not None:
            G = problem.xp.matmul(G, space.basis.T)
        return evaluate(problem, W, G)
    best: Point | None = None
    first, found = 0, record.found
    if found is not None:
        first = int(found.facts["number"])
        best = point_from(problem, found.arrays, found.facts["loss"])
    for number in range(first, method.n_starts):
        record.begin(f"start {number + 1} of {method.n_starts}", START_STEPS)
        kind = method.start
        if kind == "auto":
            kind = "anchor" if number % 2 == 0 else "random"
        if kind == "anchor":
            # The first anchors look at every example; later ones at a random half.
            share = n if number == 0 else max(min(n, r), n // 2)
            candidates = np.sort(rng.choice(n, size=share, replace=False)).astype(np.int64)
            W, G = anchor_start(problem, r, candidates)
        else:
            W, G = (gevd_start if kind == "gevd" else random_start)(problem, r, rng)
        point = descend(
            problem,
            evaluate(problem, W, G),
            record,
            steps=START_STEPS,
            sweeps=method.sweeps,
            fixed_coefficients=FIXED_COEFFICIENTS if kind == "random" else 0,
            tol=1e-5,
        )
        point = revive(problem, point, sweeps=method.sweeps)
        again = best is not None and same_components(best.G, point.G)
        if best is None or point.loss < best.loss:
            best = point
        if record.stopped:
            break
        arrays, facts = point_state(best)
        done = method.n_starts if again else number + 1
        record.keep("starts", arrays | subspace_state(space), {**facts, "number": done})
        if again:
            break
    if best is None:
        raise RuntimeError("n_starts >= 1 is checked by LowRankNPEFF")
    return best


def same_components(one: Array, other: Array) -> bool:
    """Whether every component of one has its own in the other."""
    return bool((matched_cosines(one, other)[0] >= SAME).all())


def begin_solve(record: Recorder, method: LowRankNPEFF) -> int:
    """Open the phase "solve", or go on with it; the number of its next round."""
    if record.found is not None and record.found.stage == "solve":
        return int(record.found.facts["number"])
    record.begin("solve", method.max_steps * INNER_STEPS)
    return 0


def keep_point(record: Recorder, number: int, point: Point, space: Subspace | None) -> None:
    """Offer the state before round ``number`` of the phase "solve"."""
    arrays, facts = point_state(point)
    record.keep("solve", arrays | subspace_state(space), {**facts, "number": number})


def polish(
    problem: LowRankProblem,
    point: Point,
    method: LowRankNPEFF,
    record: Recorder,
    *,
    frozen: int = 0,
) -> tuple[Point, Status]:
    """PALS on a problem that is small already, until the residuals are below ``tol``."""
    first = begin_solve(record, method)
    for number in range(first, method.max_steps):
        keep_point(record, number, point, None)
        before = point.loss
        point = descend(
            problem, point, record, steps=INNER_STEPS, sweeps=method.sweeps, frozen=frozen
        )
        point = revive(problem, point, sweeps=method.sweeps, frozen=frozen)
        if record.stopped:
            return point, Status.STOPPED
        point = lower_coefficients(problem, point, sweeps=10 * method.sweeps)
        if residuals(problem, point, frozen=frozen) <= method.tol:
            return point, Status.CONVERGED
        if before - point.loss <= method.tol**2 * problem.total:
            return point, Status.CONVERGED if point.loss < before else Status.STALLED
    return point, Status.MAX_STEPS


def refine(
    problem: LowRankProblem,
    space: Subspace,
    point: Point,
    method: LowRankNPEFF,
    record: Recorder,
    *,
    frozen: int = 0,
) -> tuple[Subspace, Point, Status]:
    """Grow the subspace by full-space gradient directions until the full gradient vanishes."""
    first = begin_solve(record, method)
    for number in range(first, method.max_steps):
        keep_point(record, number, point, space)
        before = point.loss
        full = replace(point, G=problem.xp.matmul(point.G, space.basis))
        D, residual = newton_direction(problem, full, frozen=frozen)
        kkt = kkt_residual(point.W, point.N, point.S**2, problem.team)
        if max(residual, kkt) <= method.tol:
            return space, point, Status.CONVERGED
        space, point = grow(problem, space, point, D, method.n_components)
        point = descend(
            space.problem, point, record, steps=INNER_STEPS, sweeps=method.sweeps, frozen=frozen
        )
        point = revive(space.problem, point, sweeps=method.sweeps, frozen=frozen)
        point = lower_coefficients(space.problem, point, sweeps=10 * method.sweeps)
        if record.stopped:
            return space, point, Status.STOPPED
        if before - point.loss <= method.tol**2 * problem.total:
            return space, point, Status.CONVERGED if point.loss < before else Status.STALLED
    return space, point, Status.MAX_STEPS


def grow(
    problem: LowRankProblem, space: Subspace, point: Point, D: Array, r: int
) -> tuple[Subspace, Point]:
    """Q ← [Q; orthonormal part of D]; the point keeps its place and its loss.

    A subspace of more than 6r dimensions is cut back first to the span of Ĝ and of the latest
    r directions, which needs no data product.
    """
    xp = problem.xp
    Q, rows, G = space.basis, space.problem.rows, point.G
    if Q.shape[0] > LARGEST_DIMENSION * r:
        latest = xp.eye(Q.shape[0], dtype=Q.dtype, device=Q.device)[-r:]
        rotation = orthonormal_rows(xp.concat([G, latest], axis=0), xp)
        Q, rows = xp.matmul(rotation, Q), xp.matmul(rows, rotation.T)
        G = xp.matmul(G, rotation.T)
    new = outside(D, Q, xp)
    added = problem.restrict(new).rows
    inside = replace(space.problem, rows=xp.concat([rows, added], axis=1))
    padding = xp.zeros((G.shape[0], new.shape[0]), dtype=G.dtype, device=G.device)
    padded = xp.concat([G, padding], axis=1)
    return Subspace(xp.concat([Q, new], axis=0), inside), replace(point, G=padded)


def outside(D: Array, Q: Array, xp: Any) -> Array:
    """Orthonormal rows that span what the rows of D add to the span of Q.

    Directions of D that lie in Q up to rounding, and zero rows, add nothing.
    """
    D = unit_rows(D, xp)
    for _ in range(2):  # twice is enough
        D = D - xp.matmul(xp.matmul(D, Q.T), Q)
    values, vectors = xp.linalg.eigh(xp.astype(xp.matmul(D, D.T), xp.float64))
    rounding = 1e-24 if str(D.dtype).endswith("64") else 1e-10
    keep = int(xp.sum(xp.astype(values > rounding, xp.int64)))
    vectors = vectors[:, vectors.shape[1] - keep :]
    D = unit_rows(xp.matmul(xp.astype(vectors.T, D.dtype), D), xp)
    D = D - xp.matmul(xp.matmul(D, Q.T), Q)
    return orthonormal_rows(D, xp) if keep else D


def residuals(problem: LowRankProblem, point: Point, *, frozen: int = 0) -> float:
    """The larger of the relative gradient in G and the relative KKT residual of W."""
    pullback = problem.pullback(point.W, point.B)
    gradient = penalised_gradient(problem, point.W, point.G, point.S, pullback)[frozen:]
    pullback = pullback[frozen:]
    size = 4.0 * inner(pullback, pullback) ** 0.5
    relative = inner(gradient, gradient) ** 0.5 / size if size > 0 else 0.0
    return max(relative, kkt_residual(point.W, point.N, point.S**2, problem.team))
