"""How the smallest loss depends on the data: what makes it continuous, and where it jumps."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice, product

import numpy as np

from ..core.errors import InvalidInputError
from ..core.types import Array, FloatArray, NumpyArray, Seed
from ..core.zonotope import Zonotope, general_position
from .brute_force import brute_force
from .program import ReluProblem, with_bias


def six_points(shift: float = 0.0) -> ReluProblem:
    """Six points in general position at which the smallest loss of two units is discontinuous.

    Units of signs + and −, inputs in R² with a bias. At ``shift`` = 0 the optimum is 3/16; moving
    the fifth point by any small shift ≠ 0 along the second axis makes it 5/32, with weights of norm
    ≈ 3.75/|shift|. Lines through three disjoint pairs of points meet in one point, so Φ of a cell
    loses rank although every 3 × 3 minor is at least 1 in modulus. The example is ours.
    """
    points = np.array([(0, -1), (0, 0), (-2, -3), (-4, -4), (3, -2), (4, -2)], dtype=np.float64)
    points[4, 1] += shift
    targets = np.array([-1 / 2, 1 / 4, -1 / 2, 1 / 4, 1, -3 / 4])
    return ReluProblem(inputs=with_bias(points), targets=targets, signs=np.array([1.0, -1.0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuity:
    """Which sufficient conditions for a continuous smallest loss hold at these data.

    Attributes
    ----------
    general_position : bool or None
        Every d rows independent; then the feasible patterns are locally constant. Not sufficient.
    one_sign : bool
        All output signs equal: continuous at data in general position.
    wide_enough : bool
        At least ⌈n/d⌉ units of each sign, with a bias and general position: the loss is 0.
    penalised : bool
        Weight decay: continuous everywhere.
    """

    general_position: bool | None
    one_sign: bool
    wide_enough: bool
    penalised: bool

    @property
    def proven(self) -> bool:
        """Whether one of the conditions is met."""
        inside = self.general_position is True
        return self.penalised or (inside and (self.one_sign or self.wide_enough))


def continuity(problem: ReluProblem, *, penalty: float = 0.0) -> Continuity:
    """The sufficient conditions, checked; the statements and their proofs are ours."""
    n, d, _ = problem.sizes
    need = -(-n // d)
    counts = [int((problem.signs == s).sum()) for s in (1, -1)]
    bias = bool(np.ptp(problem.inputs[:, -1]) == 0)
    return Continuity(
        general_position=general_position(problem.inputs).holds,
        one_sign=min(counts) == 0,
        wide_enough=bias and min(counts) >= need,
        penalised=penalty > 0,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Jump:
    """Smallest losses at the data and near them.

    Attributes
    ----------
    loss : float
        At the data.
    sizes : array (k,)
        ε, descending.
    losses : array (k, r)
        At X + ε E for r directions E with ‖E‖_F = 1.
    norms : array (k, r)
        ‖W‖_F of those optima: it grows like 1/ε at a jump.
    jumps : bool
        Whether |L(ε) − L(0)| does not shrink with ε in some direction.
    height : float
        The largest |L − L(0)| at the smallest ε.
    """

    loss: float
    sizes: FloatArray
    losses: FloatArray
    norms: FloatArray
    jumps: bool
    height: float


def detect_jump(
    problem: ReluProblem,
    *,
    directions: Array | None = None,
    n_directions: int = 4,
    sizes: Array = (1e-2, 1e-3, 1e-4),
    max_cells: int = 200_000,
    seed: Seed = 0,
) -> Jump:
    """Compare the exact smallest loss at X with those at X + ε E, for shrinking ε.

    Parameters
    ----------
    problem : ReluProblem
        Small: every loss is found by :func:`brute_force`.
    directions : array (r, n, d), optional
        E; otherwise ``n_directions`` normal ones that leave a constant last column alone.
    sizes : array (k,)
        ε.

    Notes
    -----
    Evidence, not proof: a jump in a direction that was not tried is not seen. A change that
    shrinks by less than half while ε shrinks tenfold counts as a jump.
    """
    eps = np.sort(np.asarray(sizes, dtype=np.float64))[::-1]
    if len(eps) < 2 or not (eps > 0).all():
        raise InvalidInputError(f"sizes={sizes} was given; at least two numbers > 0 are accepted.")
    x = problem.inputs
    moves = _directions(x, n_directions, seed) if directions is None else np.asarray(directions)
    if moves.ndim != 3 or moves.shape[1:] != x.shape:
        raise InvalidInputError(
            f"Directions of shape {moves.shape} were given; (r, {x.shape[0]}, {x.shape[1]}) is due."
        )
    here = brute_force(problem, max_cells=max_cells).solution.loss
    losses, norms = np.empty((len(eps), len(moves))), np.empty((len(eps), len(moves)))
    for (k, e), (j, move) in product(enumerate(eps), enumerate(moves)):
        moved = ReluProblem(inputs=x + e * move, targets=problem.targets, signs=problem.signs)
        found = brute_force(moved, max_cells=max_cells).solution
        losses[k, j], norms[k, j] = found.loss, float(np.linalg.norm(found.weights))
    change = np.abs(losses - here)
    scale = max(0.5 * float(problem.targets @ problem.targets), 1e-300)
    stays = (change[-1] > 1e-6 * scale) & (change[-1] > 0.5 * change[0])
    return Jump(
        loss=here,
        sizes=eps,
        losses=losses,
        norms=norms,
        jumps=bool(stays.any()),
        height=float(change[-1].max()),
    )


def _directions(x: FloatArray, count: int, seed: Seed) -> FloatArray:
    moves = np.random.default_rng(seed).normal(size=(count, *x.shape))
    moves[:, :, np.ptp(x, axis=0) == 0] = 0.0
    return np.asarray(moves / np.linalg.norm(moves, axis=(1, 2), keepdims=True))


def rank_drops(
    problem: ReluProblem, *, max_cells: int = 200_000, seed: Seed = 0
) -> list[tuple[NumpyArray, int, int]]:
    """Cells in which Φ has a smaller rank than at nearby data: where a jump can come from.

    General position is a condition on single units; this is the second-order one, on pairs and
    more. Returns (patterns (m, n), rank, rank nearby) for each such tuple of patterns.

    Raises
    ------
    InvalidInputError
        More cells than ``max_cells``.
    """
    m = len(problem.signs)
    patterns = np.concatenate(list(Zonotope(problem.inputs).patterns()))
    if len(patterns) ** m > max_cells:
        raise InvalidInputError(
            f"{len(patterns)} patterns and {m} units make {len(patterns) ** m} cells; up to "
            f"{max_cells} are accepted. Raise max_cells."
        )
    near = problem.inputs + 1e-3 * _directions(problem.inputs, 1, seed)[0]
    found: list[tuple[NumpyArray, int, int]] = []
    every = product(range(len(patterns)), repeat=m)
    while block := list(islice(every, 2048)):
        chosen = patterns[np.array(block)]
        ranks = [_ranks(x, chosen) for x in (problem.inputs, near)]
        for k in np.flatnonzero(ranks[0] < ranks[1]):
            found.append((chosen[k], int(ranks[0][k]), int(ranks[1][k])))
    return found


def _ranks(x: FloatArray, patterns: NumpyArray) -> NumpyArray:
    b, _, n = patterns.shape
    phi = np.einsum("bmn,nd->bnmd", (patterns > 0).astype(float), x).reshape(b, n, -1)
    values = np.linalg.svd(phi, compute_uv=False)
    return np.asarray((values > 1e-9 * values[:, :1].clip(min=1e-300)).sum(axis=1))
