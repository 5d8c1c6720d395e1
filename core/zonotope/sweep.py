"""Every vertex exactly once, numbered, without linear programs and without a table of the seen.

Rotate the rows so that x_n is a multiple of the first axis, and enumerate the half with s_n = +1:
on level k the first k coordinates of w are 0 and the next is c = ±1. A cell of that slice is either
bounded below in coordinate k + 1, and then has one lowest vertex, an r-subset of the other rows
with r = d − 1 − k, or it reaches the next level. The counts Σ_k C(n−1, d−1−k) are Zaslavsky's; the
construction, and with it the numbering, is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from ..backend import Backend, Kernel, select_backend
from ..backend.select import BackendChoice
from ..backend.subsets import rank_of_subset, subset_of_rank
from ..errors import DegenerateArrangement, InvalidInputError
from ..types import Array, FloatArray, NumpyArray
from .counting import level_sizes, n_vertices
from .pattern import check_generators, check_signs, equilibrate

# Clearances below this are not decided in float64: about 1e3 roundings of a solve of size 10.
_LEAST_CLEARANCE = 1e-13
# Vertices a block: small enough that copies stay in the cache.
_CHUNK = 1 << 12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sweep:
    """The numbered vertices of a zonotope whose generators are in general position.

    Vertex 2q has the q-th pattern with s_n = +1, vertex 2q + 1 is its antipode.

    Attributes
    ----------
    rotated : array (n, d)
        Unit rows in coordinates in which the last is a multiple of the first axis.
    n_vertices : int
    """

    rotated: FloatArray
    n_vertices: int
    backend: Backend

    @classmethod
    def over(cls, generators: Array, *, backend: BackendChoice = "auto") -> Sweep:
        """Prepare the sweep; O(n d²).

        Raises
        ------
        InvalidInputError
            As for every function on generators. Degenerate rows show while the sweep runs.
        """
        x = check_generators(generators)
        n, d = x.shape
        scaled, _ = equilibrate(x)
        rows = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
        # Any rotation will do that sends x_n to the axis; a fixed generic one keeps ranks stable.
        frame = np.random.default_rng(d).normal(size=(d, d))
        frame[:, 0] = rows[-1]
        q, _ = np.linalg.qr(frame)
        q[:, 0] = rows[-1]
        chosen = select_backend(rows, backend=backend, kernel=Kernel.SWEEP_CHAMBERS)
        if not chosen.info.takes(rows):
            raise InvalidInputError(
                f"backend={chosen.name!r} was given; the sweep runs on NumPy arrays: use 'numba', "
                "'reference' or 'auto'."
            )
        return cls(rotated=rows @ q, n_vertices=n_vertices(n, d), backend=chosen)

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[NumpyArray]:
        """Patterns of the vertices ``start`` to ``stop``, in order, in blocks int8 (≤ 2^12, n).

        Memory is that of one block. ``start`` is the whole cursor: a stream that was cut off goes
        on with the number of the first vertex not received.

        Raises
        ------
        DegenerateArrangement
            If some rows are dependent, or too nearly so for float64; the message names them.
        """
        last = self.n_vertices if stop is None else stop
        if not 0 <= start <= last <= self.n_vertices:
            raise InvalidInputError(
                f"start={start}, stop={stop} were given; 0 <= start <= stop <= {self.n_vertices} "
                "is accepted."
            )
        n = len(self.rotated)
        for level, first, count in self._ranges(start // 2, -(-last // 2)):
            for at in range(first, first + count, _CHUNK // 2):
                size = min(_CHUNK // 2, first + count - at)
                half = self._cells(level, at, size)
                both = np.empty((size, 2, n), dtype=np.int8)
                both[:, 0] = half
                np.negative(half, out=both[:, 1])
                block = both.reshape(2 * size, n)
                number = 2 * (self._offset(level) + at)
                yield block[max(0, start - number) : last - number]

    def _offset(self, level: int) -> int:
        return sum(level_sizes(*self.rotated.shape)[:level])

    def _ranges(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        sizes = level_sizes(*self.rotated.shape)
        for level, (size, end) in enumerate(zip(sizes, accumulate(sizes), strict=True)):
            low, high = max(start, end - size), min(stop, end)
            if low < high:
                yield level, low - (end - size), high - low

    def _cells(self, level: int, start: int, count: int) -> NumpyArray:
        kernel = self.backend.raw(Kernel.SWEEP_CHAMBERS)
        patterns, clearance = kernel(self.rotated, level=level, start=start, count=count)
        bad = int(np.argmin(clearance))
        if not clearance[bad] > _LEAST_CLEARANCE:
            n, d = self.rotated.shape
            subset = subset_of_rank(start + bad, n - 1, d - 1 - level)
            raise DegenerateArrangement(self._complaint(level, subset))
        return np.asarray(patterns)

    def _complaint(self, level: int, subset: NumpyArray) -> str:
        """Which rows are dependent, or nearly so: those in ``subset``, with x_n and one more."""
        rows, n = self.rotated, len(self.rotated)
        base = [int(i) for i in subset]
        trials = [base] if base else []
        trials += [[*base, i] for i in range(n) if i not in base]
        trials += [[*base, i, n - 1] for i in range(n - 1) if i not in base]
        trials = [t for t in trials if len(t) <= rows.shape[1]]
        gaps = [_gap(rows, t) for t in trials]
        worst = trials[int(np.argmin(gaps))]
        small = 1e3 * min(gaps) + 1e-12
        for i in list(worst):  # leave out rows that take no part in the dependency
            rest = [j for j in worst if j != i]
            if len(rest) > 1 and _gap(rows, rest) <= small:
                worst = rest
        return (
            f"Rows {sorted(worst)} are dependent or nearly so (level {level} of the sweep, least "
            f"singular value {min(gaps):.1e} of unit rows); the sweep needs general "
            "position. Use method='tree', which takes any rows."
        )

    def draw(self, size: int, rng: np.random.Generator) -> NumpyArray:
        """Patterns int8 (size, n) of vertices drawn uniformly, each draw independent; exact.

        A level with probability proportional to its number of cells, a uniform subset, a sign.

        Raises
        ------
        DegenerateArrangement
            As from :meth:`blocks`.
        """
        n, d = self.rotated.shape
        out = np.empty((size, n), dtype=np.int8)
        ends = list(accumulate(level_sizes(n, d)))
        if ends[-1] <= np.iinfo(np.int64).max:
            levels = np.searchsorted(np.array(ends), rng.integers(ends[-1], size=size), "right")
        else:  # Python integers: the number of vertices need not fit 64 bits
            drawn = [below(rng, ends[-1]) for _ in range(size)]
            levels = np.array([next(k for k, e in enumerate(ends) if v < e) for v in drawn])
        kernel = self.backend.raw(Kernel.CHAMBERS_AT)
        for level in range(d):
            where = np.flatnonzero(levels == level)
            if len(where) == 0:
                continue
            subsets = _subsets(rng, len(where), n - 1, d - 1 - level)
            patterns, clearance = kernel(self.rotated, subsets, level=level)
            bad = int(np.argmin(clearance))
            if not clearance[bad] > _LEAST_CLEARANCE:
                raise DegenerateArrangement(self._complaint(level, subsets[bad]))
            out[where] = patterns
        out *= rng.choice(np.array([-1, 1], dtype=np.int8), size=size)[:, None]
        return out

    def unrank(self, number: int) -> NumpyArray:
        """The pattern int8 (n,) of vertex ``number``."""
        block = next(self.blocks(number, number + 1), None)
        if block is None:
            raise InvalidInputError(
                f"vertex {number} was given; 0 to {self.n_vertices - 1} is accepted."
            )
        return np.asarray(block[0])

    def rank(self, signs: Array) -> int:
        """The number of the vertex with this pattern; at most d small linear programs.

        Raises
        ------
        InfeasiblePattern
            If no direction has the pattern.
        DegenerateArrangement
            If the rows are too nearly dependent for the number to be found.
        """
        from .feasibility import witness_of

        n, d = self.rotated.shape
        s = check_signs(np.asarray(signs)[None], n)[0]
        half = s * s[-1]
        for level in range(d):
            found = self._lowest(level, half)
            if found is None:
                continue
            number = 2 * (self._offset(level) + rank_of_subset(found, n - 1)) + int(s[-1] < 0)
            if np.array_equal(self.unrank(number), s):
                return number
        witness_of(self.rotated, s)
        raise DegenerateArrangement(
            "The pattern is feasible, but the sweep does not reach it: some rows are nearly "
            "dependent. Check them with general_position."
        )

    def _lowest(self, level: int, half: NumpyArray) -> NumpyArray | None:
        """Rows through the lowest vertex of the cell on this level, if it is bounded below."""
        from scipy.optimize import linprog

        y, (n, d) = self.rotated[:-1] * half[:-1, None], self.rotated.shape
        r = d - 1 - level
        if r == 0:
            return np.empty(0, dtype=np.int64)
        if n - 1 < r:
            return None
        c = 1.0 if level == 0 else -1.0
        goal = np.eye(r)[0]
        answer = linprog(
            goal, A_ub=-y[:, level + 1 :], b_ub=c * y[:, level], bounds=(None, None), method="highs"
        )
        if answer.status != 0 or answer.x is None:
            return None
        slack = y[:, level + 1 :] @ answer.x + c * y[:, level]
        return np.sort(np.argsort(slack, kind="stable")[:r]).astype(np.int64)


def _subsets(rng: np.random.Generator, count: int, n: int, r: int) -> NumpyArray:
    """Uniform r-subsets of range(n), ascending (count, r); draws with equal entries are redrawn."""
    if 2 * r * r > n:  # then that would take long
        every = np.argsort(rng.random((count, n)), axis=1)[:, :r]
        return np.sort(every, axis=1).astype(np.int64)
    out = np.sort(rng.integers(n, size=(count, r)), axis=1)
    while True:
        again = np.flatnonzero((np.diff(out, axis=1) == 0).any(axis=1))
        if len(again) == 0:
            return out
        out[again] = np.sort(rng.integers(n, size=(len(again), r)), axis=1)


def below(rng: np.random.Generator, bound: int) -> int:
    """A uniform integer in [0, bound), of any size, by rejection."""
    bits = bound.bit_length()
    while True:
        value = int.from_bytes(rng.bytes(-(-bits // 8)), "little") >> (-bits % 8)
        if value < bound:
            return value


def _gap(rows: FloatArray, chosen: list[int]) -> float:
    return float(np.linalg.svd(rows[chosen], compute_uv=False)[-1])
