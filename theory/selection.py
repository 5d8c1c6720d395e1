"""A vertex whose program has optimum zero for every target, found in polynomial time.

Matena & Raffel 2022 (arXiv:2210.00176) announce a procedure that needs twice the least number of
parameters that can fit generic data. The constructions and proofs here are ours; for data with a
constant column in general position the number of units is 2⌈n/d⌉, d counting the bias; without a
constant column 2(⌈n/d⌉ + 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ..core.errors import InvalidInputError, SolveFailedError
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
    """Fit every target exactly with 2·(number of blocks) units, or 2·(blocks + 1) without a bias.

    With a constant last column (``with_bias``): a direction a orders the
    points; consecutive independent rows form blocks; unit b is on for the blocks b, b + 1, … and is
    used with both signs. [A_1 X, …, A_B X] is block triangular with independent diagonal blocks,
    and a pair of equal patterns with opposite signs represents zero inside its cone, so every
    target is reached. In general position the blocks have d rows and their number is ⌈n/d⌉.

    Without one there are no nested patterns. Rows are turned into one half-plane of a random plane
    and sorted by angle α; gate k is the direction at the angle π/2 + τ_k, τ_0 = 0 < τ_1 < … < τ_B =
    π between the blocks. Rows as given in block b are on for the gates before b, turned ones for
    the gates from b on, and steps u_k that add up to zero show both the same U_b.

    Parameters
    ----------
    inputs : array (n, d)
    targets : array (n,)
    n_directions : int
        Random directions tried; the fewest blocks win, then the largest gap between blocks.
    seed : int or numpy.random.Generator

    Raises
    ------
    SolveFailedError
        Nearly dependent rows, named: float64 weights would not fit.
    InvalidInputError
        Equal rows with different targets (named); without a bias also rows that are positive
        multiples of each other with targets that are not; rows that no direction tells apart.

    Notes
    -----
    O(n_directions (n d + n log n) + n d²).
    """
    x = check_generators(inputs)
    y = np.asarray(targets, dtype=np.float64)
    _check(x, y)
    rng = np.random.default_rng(seed)
    _, first = np.unique(x, axis=0, return_index=True)
    rows = np.sort(first)
    if x.shape[1] < 2 or np.ptp(x[:, -1]) != 0:
        return _accurate(_unbiased(x, y, n_directions, rng), y)
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
    return _accurate(_fit(x, y, *chosen), y)


def _accurate(vertex: SelectedVertex, y: FloatArray) -> SelectedVertex:
    """The vertex, if float64 was enough for its weights.

    Raises
    ------
    SolveFailedError
        Otherwise, with the block that is to blame.
    """
    if vertex.mse <= 1e-10 * max(float((y**2).mean()), 1e-300):
        return vertex
    worst = int(np.argmax(vertex.condition_numbers))
    raise SolveFailedError(
        f"The selected vertex fits every target, but its float64 weights miss by a mean square of "
        f"{vertex.mse:.1e}: rows {vertex.blocks[worst].tolist()[:8]} are nearly dependent "
        f"(condition {vertex.condition_numbers[worst]:.1e}). Rescale the columns, drop one of "
        "them, or raise n_directions."
    )


def _check(x: FloatArray, y: FloatArray) -> None:
    if y.shape != (len(x),) or not np.isfinite(y).all():
        raise InvalidInputError(f"Targets of shape {y.shape} were given; ({len(x)},), finite, due.")
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
    regular = _regular(unit, order, t)
    if regular is not None:
        return regular
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


def _regular(unit: FloatArray, order: NumpyArray, t: FloatArray) -> list[NumpyArray] | None:
    """Blocks of d rows, if each is clearly independent and t tells them all apart."""
    d = unit.shape[1]
    whole = len(order) // d
    if whole == 0 or not (np.diff(t[order]) > 0).all():
        return None
    blocks = order[: whole * d].reshape(whole, d)
    sizes = np.abs(np.diagonal(np.linalg.qr(unit[blocks].transpose(0, 2, 1))[1], axis1=1, axis2=2))
    rest = order[whole * d :]
    if len(rest):
        last = np.abs(np.diagonal(np.linalg.qr(unit[rest].T)[1]))
        sizes = np.append(sizes.ravel(), last)
    if not sizes.min() > 1e3 * _INDEPENDENT:
        return None
    return [*blocks, rest] if len(rest) else list(blocks)


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

    def steps(goal: FloatArray) -> FloatArray:
        # u_b = U_b − U_{b−1} with X_b U_b = y_b: block b then sees Σ_{k≤b} u_k = U_b.
        return np.diff(_exact(x, goal, blocks), axis=0, prepend=np.zeros((1, x.shape[1])))

    return _paired(x, y, witnesses, patterns, steps, blocks)


def _exact(x: FloatArray, y: FloatArray, blocks: list[NumpyArray]) -> FloatArray:
    return np.array([np.linalg.lstsq(x[b], y[b], rcond=None)[0] for b in blocks])


def _paired(
    x: FloatArray,
    y: FloatArray,
    witnesses: FloatArray,
    patterns: NumpyArray,
    steps: Callable[[FloatArray], FloatArray],
    blocks: list[NumpyArray],
) -> SelectedVertex:
    """Every gate with both signs, lift·g ± u/2, refined on the true residual."""
    count = len(witnesses)
    signs = np.concatenate([np.ones(count), -np.ones(count)])
    total = np.zeros((2, count, x.shape[1]))
    misfit = goal = y
    best: tuple[float, FloatArray] | None = None
    for _ in range(3):
        u = steps(goal)
        trial = total + np.stack([u, -u]) / 2
        size = np.abs(x @ (trial[0] - trial[1]).T / 2).T / np.abs(x @ witnesses.T).T
        half = (trial[0] - trial[1]) / 2
        lift = (1 + 1e-9) * size.max(axis=1) + 1e-300
        total = np.stack([lift[:, None] * witnesses + half, lift[:, None] * witnesses - half])
        weights = total.reshape(2 * count, -1)
        goal = y - np.maximum(x @ weights.T, 0) @ signs
        miss = float((goal**2).mean())
        if best is None or miss < best[0]:
            best, misfit = (miss, weights), goal
        if not np.abs(goal).max() > 1e-15 * max(float(np.abs(y).max()), 1e-300):
            break
    assert best is not None
    return SelectedVertex(
        weights=best[1],
        signs=signs,
        patterns=np.vstack([patterns, patterns]),
        witnesses=witnesses,
        blocks=tuple(blocks),
        condition_numbers=np.array([np.linalg.cond(x[b]) for b in blocks]),
        mse=float((misfit**2).mean()),
    )


def _unbiased(
    x: FloatArray, y: FloatArray, n_directions: int, rng: np.random.Generator
) -> SelectedVertex:
    best: tuple[tuple[int, float], FloatArray, FloatArray, list[NumpyArray]] | None = None
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    if x.shape[1] == 1:
        raise InvalidInputError(
            "One column without a bias was given: such a network is a multiple of x on either side "
            "of 0. Add a bias with with_bias(inputs)."
        )
    for _ in range(n_directions):
        p, q = np.linalg.qr(rng.normal(size=(x.shape[1], 2)))[0].T
        height = unit @ q
        if (np.abs(height) <= 1e-12).any():
            continue
        side = np.where(height > 0, 1.0, -1.0)
        angle = np.arctan2(side * height, side * (unit @ p))
        order = np.argsort(angle, kind="stable")
        order = _merged(x, y, order, angle)
        cut = _blocks(side[:, None] * x, order, angle)
        if cut is None:
            continue
        gap = min((angle[b[0]] - angle[a[-1]] for a, b in pairwise(cut)), default=1.0)
        key = (len(cut), -float(gap))
        if best is None or key < best[0]:
            best = (key, np.stack([p, q]), side, cut)
    if best is None:
        raise InvalidInputError(
            f"None of {n_directions} planes separates the rows by angle. Rows that are multiples "
            "of each other need targets that are; add a bias with with_bias(inputs), or raise "
            "n_directions."
        )
    _, plane, side, cut = best
    return _fit_by_angle(x, y, plane, side, cut)


def _merged(x: FloatArray, y: FloatArray, order: NumpyArray, angle: NumpyArray) -> NumpyArray:
    """Leave out rows that are a multiple c > 0 of another, with c times its target."""
    kept: list[int] = []
    for i in order:
        if kept and angle[i] == angle[kept[-1]]:
            k = kept[-1]
            ratio = float(x[i] @ x[k]) / float(x[k] @ x[k])
            if np.allclose(x[i], ratio * x[k], rtol=1e-12, atol=0) and ratio > 0:
                if not np.isclose(y[i], ratio * y[k], rtol=1e-12, atol=0):
                    raise InvalidInputError(
                        f"Rows {sorted((int(i), int(k)))} are multiples of each other and their "
                        "targets are not; without a bias no network fits both. Add a bias with "
                        "with_bias(inputs)."
                    )
                continue
        kept.append(int(i))
    return np.array(kept)


def _fit_by_angle(
    x: FloatArray, y: FloatArray, plane: FloatArray, side: FloatArray, blocks: list[NumpyArray]
) -> SelectedVertex:
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    angle = np.arctan2(side * (unit @ plane[1]), side * (unit @ plane[0]))
    cuts = [0.0]
    cuts += [0.5 * float(angle[a[-1]] + angle[b[0]]) for a, b in pairwise(blocks)] + [np.pi]
    witnesses = np.array(
        [np.cos(np.pi / 2 + t) * plane[0] + np.sin(np.pi / 2 + t) * plane[1] for t in cuts]
    )
    patterns = np.where(x @ witnesses.T > 0, 1, -1).T.astype(np.int8)
    turned = side[:, None] * x

    def steps(goal: FloatArray) -> FloatArray:
        # A turned row of block b sees Σ_{k≥b} u_k = −U_b, and −U_b·x = U_b·(−x).
        u = _exact(turned, goal, blocks)
        zero = np.zeros((1, x.shape[1]))
        return np.diff(np.concatenate([zero, u, zero]), axis=0)

    return _paired(x, y, witnesses, patterns, steps, blocks)


def random_paired_vertex(
    inputs: Array, targets: Array, *, n_gates: int, seed: Seed = 0
) -> SelectedVertex:
    """Normal gates, each with both signs: universal exactly if [A_1 X, …, A_B X] has rank n.

    Better conditioned than the sorted choice, for a few gates more than ⌈n/d⌉.

    Parameters
    ----------
    inputs, targets : arrays (n, d), (n,)
    n_gates : int
        B; at least ⌈n/d⌉ can do.
    seed : int or numpy.random.Generator

    Returns
    -------
    SelectedVertex
        ``blocks`` is empty; ``condition_numbers`` holds that of the whole matrix.

    Raises
    ------
    InvalidInputError
        The rank is smaller than n for these gates, or equal rows have different targets.
    """
    x = check_generators(inputs)
    y = np.asarray(targets, dtype=np.float64)
    _check(x, y)
    rng = np.random.default_rng(seed)
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    witnesses = rng.normal(size=(n_gates, x.shape[1]))
    on = (x / lengths) @ witnesses.T > 0
    system = np.hstack([gate[:, None] * x for gate in on.T])
    left, values, right = np.linalg.svd(system, full_matrices=False)
    rank = int((values > 1e-12 * values[0]).sum()) if len(values) else 0
    if rank < len(x):
        raise InvalidInputError(
            f"{n_gates} random gates give rank {rank} for {len(x)} rows; the vertex is not "
            "universal. Give more gates, another seed, or use select_vertices."
        )

    def steps(goal: FloatArray) -> FloatArray:
        solved = right.T @ ((left.T @ goal) / values)
        return np.asarray(solved.reshape(n_gates, -1))

    patterns = np.where(on.T, 1, -1).astype(np.int8)
    made = _paired(x, y, witnesses, patterns, steps, [])
    return replace(made, condition_numbers=np.array([values[0] / values[-1]]))
