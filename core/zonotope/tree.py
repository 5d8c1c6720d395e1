"""Feasible patterns of any rows, degenerate ones too, by adding one row after another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..backend import Kernel, select_backend
from ..backend.select import BackendChoice
from ..errors import DegenerateDirection, InvalidInputError
from ..types import Array, FloatArray, NumpyArray
from .exact import integer_rows
from .feasibility import decide_scaled
from .pattern import check_generators, check_signs, equilibrate

_BLOCK = 1 << 11


def tree_patterns(generators: Array, *, backend: BackendChoice = "auto") -> Iterator[NumpyArray]:
    """Every feasible pattern int8 (n,), once, in the order of :func:`tree_blocks`."""
    for block in tree_blocks(generators, backend=backend):
        yield from block


def tree_blocks(
    generators: Array, *, after: Array | None = None, backend: BackendChoice = "auto"
) -> Iterator[NumpyArray]:
    """Every feasible pattern, once, in blocks int8 (≤ 2^12, n); any rows.

    A node is a prefix of signs with a witness; the next row splits its cone or does not (Rada &
    Černý 2018). Both answers are proven: a witness or a full circuit by a float64 filter with room
    for rounding; everything that the filter leaves open by integers. Circuits once proven in
    integers settle later nodes by look-up. Rows that are parallel count once.

    The order is that of sign vectors, + before −, first row + only; the antipode follows each.
    Memory is that of n blocks of nodes.

    Parameters
    ----------
    generators : array (n, d)
    after : array (n,), optional
        Go on after this pattern, the last one of a block received before.
    backend : str or Backend

    Raises
    ------
    DegenerateDirection
        If a prefix is feasible but too thin for a float64 witness.
    """
    x = check_generators(generators)
    n = len(x)
    last = None
    if after is not None:
        last = check_signs(np.asarray(after)[None], n)[0]
    tree = _Tree.over(x, backend)
    for half in tree.halves(None if last is None else last * last[0]):
        both = np.empty((2 * len(half), n), dtype=np.int8)
        both[::2] = half
        np.negative(half, out=both[1::2])
        if last is not None:
            at = np.flatnonzero((both == last).all(axis=1))
            if len(at):
                both, last = both[at[0] + 1 :], None
        if len(both):
            yield both
    if last is not None:
        raise InvalidInputError(
            "The pattern given as `after` is none of these rows' patterns; give the last one "
            "received, for the same rows."
        )


@dataclass(slots=True)
class _Circuits:
    """Sign vectors on few rows that contradict each other, proven in integers; for one level."""

    matrix: FloatArray
    counts: FloatArray

    def refuse(self, signs: NumpyArray) -> NumpyArray:
        """Which of the patterns (b, k) hold such a contradiction."""
        if len(self.counts) == 0:
            return np.zeros(len(signs), dtype=bool)
        sums = np.abs(signs.astype(np.float64) @ self.matrix.T)
        return np.asarray((sums == self.counts).any(axis=1))

    def learn(self, support: tuple[int, ...], signs: NumpyArray) -> None:
        row = np.zeros((1, self.matrix.shape[1]))
        row[0, list(support)] = signs[list(support)]
        self.matrix = np.vstack([self.matrix, row])
        self.counts = np.append(self.counts, float(len(support)))


@dataclass(slots=True)
class _Tree:
    x: FloatArray
    scaled: FloatArray
    unit: FloatArray
    columns: NumpyArray
    chosen: NumpyArray
    where: NumpyArray
    turned: NumpyArray
    kernel: object
    circuits: dict[int, _Circuits]

    @classmethod
    def over(cls, x: FloatArray, backend: BackendChoice) -> _Tree:
        scaled, columns = equilibrate(x)
        chosen, where, turned = parallel_classes(scaled)
        unit = scaled[chosen]
        unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
        run = select_backend(unit, backend=backend, kernel=Kernel.SPLIT_CHAMBERS)
        circuits = {k: _Circuits(np.zeros((0, k + 1)), np.zeros(0)) for k in range(1, len(chosen))}
        return cls(
            x=x[chosen],
            scaled=scaled[chosen],
            unit=unit,
            columns=columns,
            chosen=chosen,
            where=where,
            turned=turned,
            kernel=run.raw(Kernel.SPLIT_CHAMBERS),
            circuits=circuits,
        )

    def halves(self, after: NumpyArray | None) -> Iterator[NumpyArray]:
        """Patterns of all rows with the first one +, in order; from ``after`` on, inclusive."""
        first = None if after is None else after[self.chosen] * after[self.chosen[0]]
        if after is not None and not np.array_equal(
            self._spread((first if first is not None else after)[None])[0], after
        ):
            return
        n = len(self.chosen)
        stack = [(1, np.ones((1, 1), dtype=np.int8), self.unit[:1])]
        while stack:
            k, signs, witnesses = stack.pop()
            if first is not None:
                keep = _not_before(signs, first[:k])
                signs, witnesses = signs[keep], witnesses[keep]
            if len(signs) == 0:
                continue
            if k == n:
                yield self._spread(signs)
                continue
            if len(signs) > _BLOCK:
                stack.append((k, signs[_BLOCK:], witnesses[_BLOCK:]))
                signs, witnesses = signs[:_BLOCK], witnesses[:_BLOCK]
            stack.append((k + 1, *self._children(k, signs, witnesses)))

    def _spread(self, signs: NumpyArray) -> NumpyArray:
        return np.asarray(signs[:, self.where] * self.turned, dtype=np.int8)

    def _children(
        self, k: int, signs: NumpyArray, witnesses: FloatArray
    ) -> tuple[NumpyArray, FloatArray]:
        answers, found = self.kernel(  # type: ignore[operator]
            self.unit[:k], self.unit[k], signs.astype(np.float64), witnesses
        )
        both = np.repeat(signs, 2, axis=0)
        both = np.column_stack([both, np.tile(np.array([1, -1], np.int8), len(signs))])
        verdict, points = np.array(answers).ravel(), np.array(found).reshape(-1, found.shape[-1])
        self._settle(k, both, verdict, points)
        keep = verdict == 1
        return both[keep], points[keep]

    def _settle(self, k: int, signs: NumpyArray, verdict: NumpyArray, points: FloatArray) -> None:
        """Decide in integers what float64 left open."""
        known = self.circuits[k]
        for at in np.flatnonzero(verdict == 0):
            if known.refuse(signs[at : at + 1])[0]:
                verdict[at] = -1
                continue
            answer = decide_scaled(self.scaled[: k + 1], self.columns, signs[at], self.x[: k + 1])
            if not answer.feasible:
                verdict[at] = -1
                known.learn(answer.support, signs[at])
                continue
            if answer.witness is None:
                raise DegenerateDirection(
                    f"At row {int(self.chosen[k])} a cone is feasible, but too thin for a float64 "
                    "direction: rows that are dependent but for rounding do that. Round the data "
                    "to a binary grid, np.round(x * 2**12) / 2**12, so that they are dependent "
                    "exactly, or rescale the columns."
                )
            u = np.ldexp(answer.witness, self.columns - int(self.columns.max()))
            verdict[at], points[at] = 1, u / np.linalg.norm(u)


def parallel_classes(scaled: FloatArray) -> tuple[NumpyArray, NumpyArray, NumpyArray]:
    """First row of each line through 0, and for every row its line and ±1; exact."""
    seen: dict[tuple[int, ...], int] = {}
    chosen: list[int] = []
    where = np.empty(len(scaled), dtype=np.int64)
    turned = np.ones(len(scaled), dtype=np.int8)
    for i, row in enumerate(integer_rows(scaled)):
        sign = 1 if next(v for v in row if v) > 0 else -1
        key = tuple(sign * v for v in row)
        if key not in seen:
            seen[key] = len(chosen)
            chosen.append(i)
            turned[i] = sign
        where[i] = seen[key]
        turned[i] = sign
    lead = turned[chosen]
    return np.array(chosen), where, np.asarray(turned * lead[where], dtype=np.int8)


def _not_before(signs: NumpyArray, last: NumpyArray) -> NumpyArray:
    """Which rows are not before ``last`` in the order with + before −."""
    differ = signs != last
    first = differ.argmax(axis=1)
    same = ~differ.any(axis=1)
    return np.asarray(same | (signs[np.arange(len(signs)), first] < last[first]))
