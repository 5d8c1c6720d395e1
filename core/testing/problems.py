"""Seeded inputs for every kernel: ordinary ones, and the sizes and values at the edge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from math import comb
from typing import Any

import numpy as np

from ..backend import Kernel
from ..backend.layout import dense_layout
from ..types import FloatArray, IntArray, NumpyArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """One call of a kernel.

    Attributes
    ----------
    kernel : Kernel
    name : str
        What is special about it.
    arrays : tuple of NumPy arrays
    options : mapping
    """

    kernel: Kernel
    name: str
    arrays: tuple[NumpyArray, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def astype(self, dtype: str) -> Problem:
        """The same problem with its float arrays rounded to ``dtype``."""
        cast = tuple(a if a.dtype.kind == "i" else a.astype(dtype) for a in self.arrays)
        return Problem(kernel=self.kernel, name=self.name, arrays=cast, options=self.options)


def problems(kernel: Kernel, dtype: str = "float64", *, seed: int = 0) -> tuple[Problem, ...]:
    """Problems for ``kernel``, the first of them an ordinary one; the same for the same seed.

    Their float64 form is the exact value of their float32 form, so that a float32 result can be
    compared with a float64 reference on equal inputs.
    """
    made = [
        Problem(kernel=kernel, name=name, arrays=arrays, options=options)
        for name, arrays, options in _MAKERS[kernel](np.random.default_rng(seed))
    ]
    return tuple(p.astype("float32").astype(dtype) for p in made)


_Made = tuple[str, tuple[NumpyArray, ...], dict[str, Any]]


def _dense(kernel: Kernel, rng: np.random.Generator) -> Iterator[_Made]:
    counts = (7, 1) if kernel is Kernel.DENSE_FISHER_DIAGONAL_MEAN else (7, 1, 0)
    reductions: tuple[dict[str, Any], ...] = ({},)
    if kernel is Kernel.DENSE_FISHER_ROWS:
        reductions = ({"reduced": True}, {"reduced": False})
    for sizes in ((6, 5, 4), (3, 5, 4, 3), (1, 1), (4, 3), (2, 3, 1)):
        theta = rng.normal(size=dense_layout(sizes)[-1].stop)
        for activation, output, n, reduced in product(
            ("relu", "tanh", "identity"), ("categorical", "gaussian"), counts, reductions
        ):
            options = {"sizes": sizes, "activation": activation, "output": output, **reduced}
            name = " ".join(map(str, [sizes, activation, output, f"n={n}", *reduced.items()]))
            yield name, (theta, rng.normal(size=(n, sizes[0]))), options
    sizes = (4, 6, 3)
    theta = rng.normal(size=dense_layout(sizes)[-1].stop)
    options = {"sizes": sizes, "activation": "relu", "output": "categorical"}
    yield "confident", (3.0 * theta, rng.normal(size=(5, 4))), options
    theta = theta.copy()
    theta[24:30] = 0.0  # the hidden biases: an input of zeros puts every unit at its kink
    yield "at the kink of ReLU", (theta, np.zeros((2, 4))), options
    sizes = (16, 40, 8)
    theta = rng.normal(size=dense_layout(sizes)[-1].stop) / 4
    yield "large", (theta, rng.normal(size=(150, 16))), {**options, "sizes": sizes}


def _ragged(rng: np.random.Generator) -> Iterator[tuple[str, FloatArray, IntArray, int]]:
    """(name, rows, offsets, number of components)."""
    cases: tuple[tuple[str, tuple[int, ...], int, int], ...] = (
        ("ragged", (2, 3, 1, 4), 5, 3),
        ("uniform", (3,) * 6, 4, 2),
        ("with empty examples", (0, 2, 0, 0, 3, 0), 5, 3),
        ("one example", (4,), 3, 2),
        ("one empty example", (0,), 3, 2),
        ("no example", (), 3, 2),
        ("one column, one component", (1, 2), 1, 1),
        ("no component", (1, 2), 3, 0),
        ("large", (9,) * 200 + (0, 3), 8, 70),
    )
    for name, ranks, m, r in cases:
        offsets = np.concatenate([[0], np.cumsum(ranks)]).astype(np.int64)
        yield name, rng.normal(size=(int(offsets[-1]), m)), offsets, r


def _products(rng: np.random.Generator) -> Iterator[_Made]:
    for name, rows, offsets, r in _ragged(rng):
        yield name, (rows, offsets, rng.normal(size=(r, rows.shape[1]))), {}


def _pullback(rng: np.random.Generator) -> Iterator[_Made]:
    for name, rows, offsets, r in _ragged(rng):
        coefficients = rng.random((len(offsets) - 1, r))
        yield name, (rows, offsets, coefficients, rng.normal(size=(len(rows), r))), {}


def _line(rng: np.random.Generator) -> Iterator[_Made]:
    for name, rows, offsets, r in _ragged(rng):
        direction = rng.normal(size=(r, rows.shape[1]))
        yield name, (rows, offsets, rng.normal(size=(len(rows), r)), direction), {}


def _nnls(rng: np.random.Generator) -> Iterator[_Made]:
    cases: tuple[tuple[str, int, int, dict[str, Any]], ...] = (
        ("ordinary", 6, 4, {}),
        ("many sweeps", 6, 4, {"sweeps": 40}),
        ("no sweep", 6, 4, {"sweeps": 0}),
        ("until it stops", 6, 4, {"sweeps": 2000, "tol": 1e-13}),
        ("no example", 0, 3, {}),
        ("one example", 1, 3, {}),
        ("one component", 5, 1, {}),
        ("no component", 5, 0, {}),
        ("large", 300, 24, {}),
    )
    for name, n, r, options in cases:
        components = rng.normal(size=(r, r + 8))
        gram = (components @ components.T) ** 2  # S∘S, positive semidefinite
        targets = rng.random((n, r)) @ gram + 0.1 * rng.normal(size=(n, r))
        yield name, (gram, targets, rng.random((n, r))), options
        if name == "ordinary":
            gram = gram.copy()
            gram[1, :] = gram[:, 1] = 0.0
            yield "a zero component", (gram, targets, rng.random((n, r))), options
            twin = np.concatenate([components, components[:1]])
            gram = (twin @ twin.T) ** 2
            targets = rng.random((n, r + 1)) @ gram
            yield "two equal components", (gram, targets, rng.random((n, r + 1))), options


def _sparse(rng: np.random.Generator, *, transposed: bool) -> Iterator[_Made]:
    cases: tuple[tuple[str, tuple[int, ...], int, int], ...] = (
        ("ordinary", (2, 3, 1, 4), 6, 3),
        ("with empty rows", (0, 2, 0, 3, 0), 5, 2),
        ("full rows", (4, 4, 4), 4, 3),
        ("no row", (), 4, 2),
        ("one row", (3,), 5, 2),
        ("one column", (1, 0, 1), 1, 2),
        ("no component", (1, 2), 3, 0),
        ("large", (40,) * 300, 500, 32),
    )
    for name, counts, p, r in cases:
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        picked = [np.sort(rng.choice(p, size=k, replace=False)) for k in counts]
        columns = np.concatenate([np.zeros(0), *picked]).astype(np.int64)
        factor = rng.random((len(counts) if transposed else p, r))
        options = {"n_columns": p} if transposed else {}
        yield name, (rng.random(len(columns)), columns, offsets, factor), options


def _merges(rng: np.random.Generator, *, diagonal: bool) -> Iterator[_Made]:
    cases = ((3, 17, 2), (1, 5, 1), (2, 0, 1), (2, 1, 3), (3, 4, 0), (12, 9, 1), (2, 5000, 1))
    for n, p, k in cases:
        x, w = rng.normal(size=(n, p)), rng.random((k, n))
        name = f"n={n} p={p} k={k}"
        if not diagonal:
            w = w - 0.2
            yield name, (x, w, w.sum(axis=1)), {}
            continue
        f = rng.random((n, p)) * (rng.random((n, p)) > 0.3)  # some are exactly zero
        yield name, (x, f, w, 0.1 * rng.random((k, n)), 0.2 * rng.random(n)), {}
        yield f"{name}, bare", (x, f, w, np.zeros((k, n)), np.zeros(n)), {}
    if diagonal:
        x, corner = rng.normal(size=(3, 40)), np.array([[0.0, 1.0, 0.0]])
        f = rng.random((3, 40)) * (rng.random((3, 40)) > 0.5)
        yield "a corner", (x, f, corner, np.zeros((1, 3)), np.zeros(3)), {}


_ZONOTOPE_SIZES = (
    (9, 3, 5),
    (9, 1, 5),
    (0, 3, 5),
    (1, 3, 5),
    (9, 3, 0),
    (9, 3, 1),
    (300, 3, 400),
)


def _zonotope(rng: np.random.Generator) -> Iterator[_Made]:
    for n, d, k in _ZONOTOPE_SIZES:
        yield f"n={n} d={d} k={k}", (rng.normal(size=(n, d)), rng.normal(size=(k, d))), {}


def _signs(rng: np.random.Generator) -> Iterator[_Made]:
    # Small integers: every product is exact in every dtype and order, and some are zero.
    for n, d, k in _ZONOTOPE_SIZES:
        generators = rng.integers(-3, 4, size=(n, d)).astype(np.float64)
        directions = rng.integers(-3, 4, size=(k, d)).astype(np.float64)
        yield f"integers n={n} d={d} k={k}", (generators, directions), {}
    generators, directions = rng.normal(size=(40, 4)), rng.normal(size=(6, 4))
    clear = np.abs(generators @ directions.T).min(axis=1) > 1e-3  # rounding decides no sign
    yield "real numbers", (generators[clear], directions), {}


def _sweep(rng: np.random.Generator) -> Iterator[_Made]:
    for n, d in ((7, 3), (5, 1), (1, 3), (3, 4), (6, 2), (8, 5), (30, 3)):
        rows = rng.normal(size=(n, d))
        rows[-1, 1:] = 0.0  # the last row is a multiple of the first axis, as the sweep has it
        rows[-1, 0] = 1.0
        for level in range(d):
            count = comb(n - 1, d - 1 - level)
            name, options = f"n={n} d={d} level={level}", {"level": level, "start": 0}
            yield name, (rows,), {**options, "count": count}
            if count > 2:
                yield f"{name}, a part", (rows,), {**options, "start": 1, "count": count - 2}


def _chambers_at(rng: np.random.Generator) -> Iterator[_Made]:
    for n, d, k in ((7, 3, 5), (5, 2, 4), (30, 4, 60), (4, 1, 2), (8, 3, 0)):
        rows = rng.normal(size=(n, d))
        rows[-1, 1:], rows[-1, 0] = 0.0, 1.0
        for level in range(d):
            r = d - 1 - level
            drawn = [np.sort(rng.choice(n - 1, r, replace=False)) for _ in range(k)]
            subsets = np.array(drawn, dtype=np.int64).reshape(k, r)
            yield f"n={n} d={d} level={level}", (rows, subsets), {"level": level}


def _split(rng: np.random.Generator) -> Iterator[_Made]:
    for k, d, b in ((8, 3, 6), (3, 4, 5), (1, 1, 2), (12, 2, 0), (20, 5, 40)):
        rows, witnesses = rng.normal(size=(k + 1, d)), rng.normal(size=(b, d))
        # Rounding decides nothing: the witnesses keep clear of every row.
        witnesses = witnesses[(np.abs(witnesses @ rows.T) > 1e-2).all(axis=1)]
        signs = np.where(witnesses @ rows[:-1].T > 0, 1.0, -1.0)
        yield f"k={k} d={d} b={b}", (rows[:-1], rows[-1], signs, witnesses), {}


def _programs(rng: np.random.Generator) -> Iterator[_Made]:
    # Near a teacher's patterns no unit dies, so that weights and multipliers are unique.
    for n, d, m, b in ((40, 3, 2, 3), (60, 2, 3, 1), (9, 1, 1, 4), (30, 2, 2, 0), (200, 4, 4, 20)):
        rows = rng.normal(size=(n, d)) + 0.5
        teacher = rng.normal(size=(m, d))
        signs = np.where(np.arange(m) % 2 == 0, 1.0, -1.0)
        targets = signs @ np.maximum(teacher @ rows.T, 0) + 0.1 * rng.normal(size=n)
        directions = teacher + 0.1 * rng.normal(size=(b, m, d))
        patterns = np.where(directions @ rows.T > 0, 1.0, -1.0)
        yield f"n={n} d={d} m={m} b={b}", (rows, targets, signs, patterns), {}


def _neighbours(rng: np.random.Generator) -> Iterator[_Made]:
    for n, d, m in ((40, 3, 2), (60, 2, 3), (12, 1, 1)):
        rows = rng.normal(size=(n, d)) + 0.5
        teacher = rng.normal(size=(m, d))
        signs = np.where(np.arange(m) % 2 == 0, 1.0, -1.0)
        targets = signs @ np.maximum(teacher @ rows.T, 0) + 0.1 * rng.normal(size=n)
        patterns = np.where(teacher @ rows.T > 0, 1.0, -1.0)
        units, places = rng.integers(m, size=5), rng.integers(n, size=5)
        # No hint, and a wrong one: the result is the same.
        for name, hint in (("no hint", 0.0), ("a hint", (rng.random((m, n)) < 0.02) * 1.0)):
            arrays = (rows, targets, signs, patterns, hint * np.ones((m, n)), units, places)
            yield f"n={n} d={d} m={m}, {name}", arrays, {}
        empty = (rows, targets, signs, patterns, np.zeros((m, n)), units[:0], places[:0])
        yield f"n={n} d={d} m={m}, no flip", empty, {}


_MAKERS: dict[Kernel, Callable[[np.random.Generator], Iterator[_Made]]] = {
    Kernel.DENSE_FISHER_ROWS: lambda rng: _dense(Kernel.DENSE_FISHER_ROWS, rng),
    Kernel.DENSE_FISHER_DIAGONAL: lambda rng: _dense(Kernel.DENSE_FISHER_DIAGONAL, rng),
    Kernel.DENSE_FISHER_DIAGONAL_MEAN: lambda rng: _dense(Kernel.DENSE_FISHER_DIAGONAL_MEAN, rng),
    Kernel.LOWRANK_PRODUCTS: _products,
    Kernel.LOWRANK_PULLBACK: _pullback,
    Kernel.LOWRANK_LINE: _line,
    Kernel.NNLS_GRAM: _nnls,
    Kernel.SPARSE_PRODUCTS: lambda rng: _sparse(rng, transposed=False),
    Kernel.SPARSE_PULLBACK: lambda rng: _sparse(rng, transposed=True),
    Kernel.MERGE_LINEAR: lambda rng: _merges(rng, diagonal=False),
    Kernel.MERGE_DIAGONAL: lambda rng: _merges(rng, diagonal=True),
    Kernel.ZONOTOPE_SUPPORT: _zonotope,
    Kernel.SIGN_PATTERNS: _signs,
    Kernel.SWEEP_CHAMBERS: _sweep,
    Kernel.CHAMBERS_AT: _chambers_at,
    Kernel.SPLIT_CHAMBERS: _split,
    Kernel.VERTEX_PROGRAMS: _programs,
    Kernel.NEIGHBOUR_PROGRAMS: _neighbours,
}
