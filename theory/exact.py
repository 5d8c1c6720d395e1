"""The optimum of a vertex program in rational numbers: nothing is rounded, so it is proven."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ..core.errors import InvalidInputError
from ..core.types import FloatArray, NumpyArray
from ..core.zonotope.exact import echelon, integer_rows, primitive
from ..core.zonotope.pattern import check_signs
from .program import ReluProblem, ReluSolution

_Row = list[Fraction]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExactProgram:
    """What :func:`verify_exactly` found.

    Attributes
    ----------
    proven : bool
        Whether rational weights and multipliers satisfy all optimality conditions exactly.
    loss : Fraction or None
        The optimal value of the program on the float64 data, taken as the rationals they are.
    weights : tuple of tuple of Fraction
    working_set : tuple of (int, int)
        Pairs (unit, row) held at x_i·w_j = 0.
    reason : str
        Why nothing was proven, if so.
    """

    proven: bool
    loss: Fraction | None
    weights: tuple[tuple[Fraction, ...], ...]
    working_set: tuple[tuple[int, int], ...]
    reason: str
    multipliers: tuple[Fraction, ...] = ()

    def float_multipliers(self, problem: ReluProblem) -> FloatArray:
        """μ (m, n) as float64."""
        out = np.zeros((len(problem.signs), len(problem.inputs)))
        for (j, i), value in zip(self.working_set, self.multipliers, strict=True):
            out[j, i] = float(value)
        return out


def verify_exactly(
    problem: ReluProblem, solution: ReluSolution, *, max_size: int = 40
) -> ExactProgram:
    """Prove that a vertex program is solved, from its float64 solution.

    The rows with positive multipliers make the working set; on it the optimality conditions
    ΦᵀΦw − Gᵀμ = Φᵀy, G_A w = 0 are linear and are solved in rationals. Gw ≥ 0 and μ ≥ 0, checked
    exactly, make the solution the optimum. Rows with a negative multiplier leave the working set.

    Parameters
    ----------
    problem : ReluProblem
    solution : ReluSolution
    max_size : int
        Largest number of weights m·d.

    Raises
    ------
    InvalidInputError
        More weights than that.
    """
    n, d, m = problem.sizes
    if m * d > max_size:
        raise InvalidInputError(
            f"{m * d} weights were given; up to max_size={max_size} are verified in rationals. "
            "Raise max_size: the time grows with its fourth power."
        )
    s = check_signs(solution.patterns, n)
    forces = solution.multipliers * np.linalg.norm(problem.inputs, axis=1)
    pairs = np.argwhere(forces > 1e-13 * max(float(forces.max(initial=0.0)), 1e-300))
    working = _independent(problem.inputs, [(int(j), int(i)) for j, i in pairs])
    reason = ""
    for _ in range(3 * m * d + 3):
        solved = _solve(problem, s, working)
        if solved is None:
            return _failed("the optimality conditions have no unique solution on the working set")
        x, mu = solved
        negative = [k for k, value in enumerate(mu) if value < 0]
        if negative:
            worst = min(negative, key=lambda k: mu[k])
            working = [p for k, p in enumerate(working) if k != worst]
            reason = "a multiplier is negative"
            continue
        if _violated(problem, s, x) is not None:
            return _failed("the exact solution on the working set leaves the cone")
        return ExactProgram(
            proven=True,
            loss=_exact_loss(problem, s, x),
            weights=tuple(tuple(x[j * d : (j + 1) * d]) for j in range(m)),
            working_set=tuple(working),
            reason="",
            multipliers=tuple(mu),
        )
    return _failed(reason)


def _failed(reason: str) -> ExactProgram:
    return ExactProgram(proven=False, loss=None, weights=(), working_set=(), reason=reason)


def _independent(x: FloatArray, pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Per unit, the first rows that are independent, in integers."""
    kept: list[tuple[int, int]] = []
    whole = integer_rows(x)
    for j in sorted({j for j, _ in pairs}):
        rows = [i for k, i in pairs if k == j]
        columns = [list(c) for c in zip(*(whole[i] for i in rows), strict=True)]
        kept += [(j, rows[p]) for p in echelon(columns)[1]]
    return kept


def _fractions(values: NumpyArray) -> list[Fraction]:
    return [Fraction(float(v)) for v in values]


def _solve(
    problem: ReluProblem, s: NumpyArray, working: list[tuple[int, int]]
) -> tuple[_Row, _Row] | None:
    n, d, m = problem.sizes
    x = [_fractions(row) for row in problem.inputs]
    y, v = _fractions(problem.targets), [int(q) for q in problem.signs]
    size, count = m * d, len(working)
    table = [[Fraction(0)] * (size + count + 1) for _ in range(size + count)]
    for i in range(n):
        on = [j for j in range(m) if s[j, i] > 0]
        for j in on:
            for a in range(d):
                row = table[j * d + a]
                row[-1] += v[j] * x[i][a] * y[i]
                for k in on:
                    factor = v[j] * v[k] * x[i][a]
                    for b in range(d):
                        row[k * d + b] += factor * x[i][b]
    for k, (j, i) in enumerate(working):
        for a in range(d):
            side = int(s[j, i]) * x[i][a]
            table[j * d + a][size + k] = -side
            table[size + k][j * d + a] = side
    reduced, pivots = echelon([primitive(row) for row in table])
    if size + count in pivots:
        return None
    if len(pivots) < size + count:
        return None
    values = [Fraction(row[-1], row[p]) for row, p in zip(reduced, pivots, strict=True)]
    return values[:size], values[size:]


def _violated(problem: ReluProblem, s: NumpyArray, w: _Row) -> tuple[int, int] | None:
    n, d, m = problem.sizes
    for i in range(n):
        row = _fractions(problem.inputs[i])
        for j in range(m):
            part = w[j * d : (j + 1) * d]
            if int(s[j, i]) * sum(p * q for p, q in zip(row, part, strict=True)) < 0:
                return j, i
    return None


def _exact_loss(problem: ReluProblem, s: NumpyArray, w: _Row) -> Fraction:
    n, d, m = problem.sizes
    total = Fraction(0)
    for i in range(n):
        row = _fractions(problem.inputs[i])
        miss = -Fraction(float(problem.targets[i]))
        for j in range(m):
            if s[j, i] > 0:
                part = w[j * d : (j + 1) * d]
                miss += int(problem.signs[j]) * sum(p * q for p, q in zip(row, part, strict=True))
        total += miss * miss
    return total / 2
