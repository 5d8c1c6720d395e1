"""A vertex whose program has optimum zero for every target, found in polynomial time.

Matena & Raffel 2022 (arXiv:2210.00176) announce a procedure that needs twice the least number of
parameters that can fit generic data. The constructions and proofs here are ours; for data with a
constant column in general position the number of units is 2⌈n/d⌉, d counting the bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..core.errors import InvalidInputError
from ..core.types import Array, FloatArray, NumpyArray, Seed
from ..core.zonotope.pattern import check_generators

# Relative size of what is left of a row after projection, below which it counts as dependent.
_INDEPENDENT = 1e-10


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SelectedVertex:
    """Patterns, weights that fit, and the proof that they do.

    Attributes
    ----------
    weights : array (m, d)
        Strictly inside their cones.
    signs : array (m,)
        +1 for the first half of the units, −1 for the second, pattern by pattern.
    patterns : array (m, n)
    witnesses : array (m / 2, d)
        A direction inside the cone of each pattern.
    blocks : tuple of array
        Rows of each block, independent: the triangular proof that [A_1 X, …, A_B X] has rank n.
    condition_numbers : array
        Of each block's rows.
    mse : float
        Of the float64 weights, from the network itself.
    """

    weights: FloatArray
    signs: FloatArray
    patterns: NumpyArray
    witnesses: FloatArray
    blocks: tuple[NumpyArray, ...]
    condition_numbers: FloatArray
    mse: float


def select_vertices(
    inputs: Array, targets: Array, *, n_directions: int = 20, seed: Seed = 0
) -> SelectedVertex:
    """Fit every target exactly with 2·(number of blocks) units.

    The last column of ``inputs`` must be constant (see ``with_bias``). A direction a orders the
    points; consecutive independent rows form blocks; unit b is on for the blocks b, b + 1, … and is
    used with both signs. [A_1 X, …, A_B X] is block triangular with independent diagonal blocks,
    and a pair of equal patterns with opposite signs represents zero inside its cone, so every
    target is reached. In general position the blocks have d rows and their number is ⌈n/d⌉.

    Parameters
    ----------
    inputs : array (n, d)
    targets : array (n,)
    n_directions : int
        Random directions tried; the fewest blocks win, then the largest gap between blocks.
    seed : int or numpy.random.Generator

    Raises
    ------
    InvalidInputError
        Equal rows with different targets (named), or no constant column.

    Notes
    -----
    O(n_directions (n d + n log n) + n d²).
    """
    x = check_generators(inputs)
    y = np.asarray(targets, dtype=np.float64)
    _check(x, y)
    rng = np.random.default_rng(seed)
    points, first = np.unique(x, axis=0, return_index=True)
    del points
    rows = np.sort(first)
    scale = np.std(x[:, :-1], axis=0)
    directions = rng.normal(size=(n_directions, x.shape[1] - 1)) / np.where(scale > 0, scale, 1.0)
    best: tuple[int, float] | None = None
    chosen: tuple[FloatArray, list[NumpyArray]] | None = None
    for a in directions:
        t = x[:, :-1] @ a
        order = rows[np.argsort(t[rows], kind="stable")]
        cut = _blocks(x, order, t)
        if cut is None:
            continue
        gap = min((t[q[0]] - t[p[-1]] for p, q in pairwise(cut)), default=1.0)
        key = (len(cut), -gap / float(np.ptp(t) or 1.0))
        if best is None or key < best:
            best, chosen = key, (a, cut)
    if chosen is None:
        raise InvalidInputError(
            f"None of {n_directions} directions separates the rows; raise n_directions, or rescale "
            "columns that differ by many orders of magnitude."
        )
    return _fit(x, y, *chosen)


def _check(x: FloatArray, y: FloatArray) -> None:
    if y.shape != (len(x),) or not np.isfinite(y).all():
        raise InvalidInputError(f"Targets of shape {y.shape} were given; ({len(x)},), finite, due.")
    if x.shape[1] < 2 or np.ptp(x[:, -1]) != 0:
        raise InvalidInputError(
            "The last column of the inputs is not constant; add a bias with with_bias(inputs)."
        )
    order = np.lexsort(x.T)
    same = (x[order[1:]] == x[order[:-1]]).all(axis=1) & (y[order[1:]] != y[order[:-1]])
    if same.any():
        at = int(np.flatnonzero(same)[0])
        pair = sorted((int(order[at]), int(order[at + 1])))
        raise InvalidInputError(
            f"Rows {pair} are equal but have different targets; no network fits both. Drop one, or "
            "average their targets."
        )


def _blocks(x: FloatArray, order: NumpyArray, t: FloatArray) -> list[NumpyArray] | None:
    """Consecutive runs of independent rows; ``None`` if two blocks cannot be told apart by t."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    blocks: list[NumpyArray] = []
    current: list[int] = []
    basis = np.empty((0, x.shape[1]))
    for i in order:
        rest = unit[i]
        for _ in range(2):  # twice is enough against cancellation
            rest = rest - (basis @ rest) @ basis
        size = float(np.linalg.norm(rest))
        if current and (size <= _INDEPENDENT or len(current) == x.shape[1]):
            if not t[i] > t[current[-1]]:
                return None
            blocks.append(np.array(current))
            current, basis = [], np.empty((0, x.shape[1]))
            rest, size = unit[i], 1.0
        current.append(int(i))
        basis = np.vstack([basis, rest / size])
    blocks.append(np.array(current))
    return blocks


def _fit(
    x: FloatArray, y: FloatArray, direction: FloatArray, blocks: list[NumpyArray]
) -> SelectedVertex:
    t = x[:, :-1] @ direction
    ends = [(float(t[b[0]]), float(t[b[-1]])) for b in blocks]
    spread = float(np.ptp(t)) or 1.0
    thresholds = [ends[0][0] - spread / 10]
    thresholds += [0.5 * (p[1] + q[0]) for p, q in pairwise(ends)]
    witnesses = np.array([[*direction, -tau / x[0, -1]] for tau in thresholds])
    patterns = np.where(t[None, :] > np.array(thresholds)[:, None], 1, -1).astype(np.int8)
    count = len(blocks)
    signs = np.concatenate([np.ones(count), -np.ones(count)])
    total = np.zeros((2, count, x.shape[1]))
    goal = misfit = y
    weights = total.reshape(2 * count, -1)
    for _ in range(3):  # the solve, then refinement on the true residual
        u = _steps(x, goal, blocks)
        trial = total + np.stack([u, -u]) / 2
        size = np.abs(x @ (trial[0] - trial[1]).T / 2).T / np.abs(x @ witnesses.T).T
        half = (trial[0] - trial[1]) / 2
        lift = (1 + 1e-9) * size.max(axis=1) + 1e-300
        total = np.stack([lift[:, None] * witnesses + half, lift[:, None] * witnesses - half])
        weights = total.reshape(2 * count, -1)
        misfit = y - np.maximum(x @ weights.T, 0) @ signs
        goal = misfit
        if not np.abs(misfit).max() > 1e-15 * max(float(np.abs(y).max()), 1e-300):
            break
    return SelectedVertex(
        weights=weights,
        signs=signs,
        patterns=np.vstack([patterns, patterns]),
        witnesses=witnesses,
        blocks=tuple(blocks),
        condition_numbers=np.array([np.linalg.cond(x[b]) for b in blocks]),
        mse=float((misfit**2).mean()),
    )


def _steps(x: FloatArray, y: FloatArray, blocks: list[NumpyArray]) -> FloatArray:
    """u_b = U_b − U_{b−1} with X_b U_b = y_b: block b then sees Σ_{k≤b} u_k = U_b."""
    exact = np.array([np.linalg.lstsq(x[b], y[b], rcond=None)[0] for b in blocks])
    return np.diff(exact, axis=0, prepend=np.zeros((1, x.shape[1])))
