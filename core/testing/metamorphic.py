"""Relations that hold between the outputs of a kernel on related inputs, without any reference.

Each relation takes ``run`` (the kernel on NumPy arrays of one dtype, in and out) and a problem,
and yields pairs (actual, expected) with a word on what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..backend import Kernel
from ..types import IntArray, NumpyArray
from .problems import Problem

Run = Callable[..., Any]
"""``run(kernel, *arrays, **options)`` → NumPy array or tuple of them."""

Pair = tuple[str, NumpyArray, NumpyArray]


def relations(kernel: Kernel, run: Run, problem: Problem) -> Iterator[Pair]:
    """Pairs (what, actual, expected) that a right kernel makes equal up to rounding."""
    yield from _RELATIONS[kernel](run, problem)


def _dense(run: Run, problem: Problem) -> Iterator[Pair]:
    kernel, (theta, inputs), options = problem.kernel, problem.arrays, dict(problem.options)
    out = run(kernel, theta, inputs, **options)
    order = _order(len(inputs))
    yield "examples permuted", run(kernel, theta, inputs[order], **options), out[order]
    yield "examples doubled", run(kernel, theta, _twice(inputs), **options), _twice(out)
    yield from _shifted(run, problem, out)
    if kernel is Kernel.DENSE_FISHER_ROWS:
        options.pop("reduced", None)
        diagonal = run(Kernel.DENSE_FISHER_DIAGONAL, theta, inputs, **options)
        yield "squared rows add up to the diagonal", (out**2).sum(axis=1), diagonal


def _dense_mean(run: Run, problem: Problem) -> Iterator[Pair]:
    kernel, (theta, inputs), options = problem.kernel, problem.arrays, problem.options
    out = run(kernel, theta, inputs, **options)
    yield "examples permuted", run(kernel, theta, inputs[::-1].copy(), **options), out
    yield "examples doubled", run(kernel, theta, _twice(inputs), **options), out
    yield from _shifted(run, problem, out)
    diagonals = run(Kernel.DENSE_FISHER_DIAGONAL, theta, inputs, **options)
    yield "mean of the diagonals", out, diagonals.mean(axis=0)


def _shifted(run: Run, problem: Problem, out: NumpyArray) -> Iterator[Pair]:
    """One number added to all outputs changes neither a softmax nor a Gaussian's Fisher."""
    theta, inputs = problem.arrays
    shifted = theta.copy()
    shifted[-problem.options["sizes"][-1] :] += 0.5
    again = run(problem.kernel, shifted, inputs, **problem.options)
    yield "outputs shifted", again, out


def _products(run: Run, problem: Problem) -> Iterator[Pair]:
    kernel, (rows, offsets, components) = problem.kernel, problem.arrays
    products, sums = run(kernel, rows, offsets, components)
    scaled, scaled_sums = run(kernel, 2 * rows, offsets, components)
    yield "rows doubled: B", scaled, 2 * products
    yield "rows doubled: N", scaled_sums, 4 * sums
    examples, moved_offsets = _moved(offsets)
    moved, moved_sums = run(kernel, rows[examples], moved_offsets, -components[::-1].copy())
    yield "examples permuted, components turned round: B", moved, -products[examples][:, ::-1]
    yield "examples permuted, components turned round: N", moved_sums, sums[::-1, ::-1]


def _pullback(run: Run, problem: Problem) -> Iterator[Pair]:
    kernel, (rows, offsets, coefficients, products) = problem.kernel, problem.arrays
    out = run(kernel, rows, offsets, coefficients, products)
    yield "coefficients doubled", run(kernel, rows, offsets, 2 * coefficients, products), 2 * out
    examples, moved_offsets = _moved(offsets)
    moved = run(kernel, rows[examples], moved_offsets, coefficients[::-1], products[examples])
    yield "examples permuted", moved, out
    # The adjoint of G ↦ A Gᵀ: ⟨(W̃∘B)ᵀA, D⟩ = ⟨W, Σ_rows B∘(A Dᵀ)⟩.
    _, first, _ = run(Kernel.LOWRANK_LINE, rows, offsets, products, out)
    yield "adjoint of the line", np.sum(out * out)[None], np.sum(coefficients * first)[None] / 2


def _line(run: Run, problem: Problem) -> Iterator[Pair]:
    kernel, (rows, offsets, _, direction) = problem.kernel, problem.arrays
    components = np.roll(direction, 1, axis=1) - 0.5 * direction
    products, sums = run(Kernel.LOWRANK_PRODUCTS, rows, offsets, components)
    change, first, second = run(kernel, rows, offsets, products, direction)
    step = 0.5
    moved, moved_sums = run(Kernel.LOWRANK_PRODUCTS, rows, offsets, components + step * direction)
    yield "B along the line", products + step * change, moved
    yield "N along the line", sums + step * first + step**2 * second, moved_sums


def _nnls(run: Run, problem: Problem) -> Iterator[Pair]:
    kernel, (gram, targets, start), options = problem.kernel, problem.arrays, problem.options
    out = run(kernel, gram, targets, start, **options)
    yield "no entry is negative", np.minimum(out, 0), np.zeros_like(out)
    moved = run(kernel, gram, targets[::-1].copy(), start[::-1].copy(), **options)
    yield "examples permuted", moved, out[::-1]
    yield "targets scaled", run(kernel, gram, 4 * targets, 4 * start, **options), 4 * out
    yield "Gram and targets scaled", run(kernel, 4 * gram, 4 * targets, start, **options), out

    def loss(w: NumpyArray) -> NumpyArray:
        return np.asarray(np.sum((w @ gram) * w - 2 * w * targets, axis=1))

    rise = np.maximum(0, loss(out) - loss(np.where(np.diag(gram) > 0, start, 0)))
    scale = np.abs(loss(start)) + np.abs(loss(out)) + 1
    yield "the loss does not rise", 1 + rise / scale, np.ones_like(rise)


def _sparse(run: Run, problem: Problem) -> Iterator[Pair]:
    kernel, (entries, columns, offsets, factor) = problem.kernel, problem.arrays
    options = problem.options
    out = run(kernel, entries, columns, offsets, factor, **options)
    yield "entries doubled", run(kernel, 2 * entries, columns, offsets, factor, **options), 2 * out
    turned = run(kernel, entries, columns, offsets, factor[:, ::-1].copy(), **options)
    yield "components turned round", turned, out[:, ::-1]
    # ⟨XY, W⟩ = ⟨Y, XᵀW⟩
    if kernel is Kernel.SPARSE_PRODUCTS:
        back = run(Kernel.SPARSE_PULLBACK, entries, columns, offsets, out, n_columns=len(factor))
        yield "adjoint", np.sum(out * out)[None], np.sum(factor * back)[None]


def _merges(run: Run, problem: Problem) -> Iterator[Pair]:
    kernel, (x, *others), p = problem.kernel, problem.arrays, problem.arrays[0].shape[1]
    out = run(kernel, x, *others)[0]
    if kernel is Kernel.MERGE_DIAGONAL:
        turned = [others[0][::-1].copy(), *(a[..., ::-1].copy() for a in others[1:])]
        some = run(kernel, x, *others)[2] == 0  # else the result is the first source
        yield "sources turned round", run(kernel, x[::-1].copy(), *turned)[0][some], out[some]
        yield (
            "equal sources",
            run(kernel, x[[0] * len(x)], *others)[0],
            np.tile(x[0], (len(out), 1)),
        )
    else:
        weights, totals = others
        whole = run(kernel, x[::-1].copy(), weights[:, ::-1].copy(), totals)[0]
        yield "sources turned round", whole, out
        equal = run(kernel, x[[0] * len(x)], weights, totals)[0]
        yield "equal sources", equal, totals[:, None] * x[0]
    yield "a part of the entries", _entries(run, problem, slice(p // 3, p)), out[:, p // 3 :]
    yield "sources negated", run(kernel, -x, *others)[0], -out


def _entries(run: Run, problem: Problem, part: slice) -> NumpyArray:
    x, *others = problem.arrays
    if problem.kernel is Kernel.MERGE_DIAGONAL:
        others[0] = others[0][:, part].copy()
    return np.asarray(run(problem.kernel, x[:, part].copy(), *others)[0])


def _support(run: Run, problem: Problem) -> Iterator[Pair]:
    kernel, (generators, directions) = problem.kernel, problem.arrays
    out = run(kernel, generators, directions)
    order = _order(len(generators))
    yield "generators permuted", run(kernel, generators[order], directions), out
    yield "directions permuted", run(kernel, generators, directions[::-1].copy()), out[::-1]
    yield "directions doubled", run(kernel, generators, 2 * directions), 2 * out
    yield "generators twice", run(kernel, _twice(generators), directions), 2 * out
    width = np.abs(directions @ generators.T).sum(axis=1)
    yield "h(w) + h(−w) is the width", out + run(kernel, generators, -directions), width


def _signs(run: Run, problem: Problem) -> Iterator[Pair]:
    kernel, (generators, directions) = problem.kernel, problem.arrays
    out = run(kernel, generators, directions)
    order = _order(len(generators))
    yield "generators permuted", run(kernel, generators[order], directions), out[:, order]
    yield "directions negated", run(kernel, generators, -directions), -out
    yield "directions doubled", run(kernel, generators, 2 * directions), out
    twice = run(kernel, _twice(generators), directions)
    yield "generators twice", twice, np.concatenate([out, out], axis=1)


def _order(n: int) -> IntArray:
    return np.random.default_rng(1).permutation(n)


def _twice(x: NumpyArray) -> NumpyArray:
    return np.concatenate([x, x])


def _moved(offsets: IntArray) -> tuple[IntArray, IntArray]:
    """Row numbers and offsets after the examples are put in reverse order."""
    ranks = np.diff(offsets)[::-1]
    starts = offsets[:-1][::-1]
    parts = [np.arange(s, s + k) for s, k in zip(starts, ranks, strict=True)]
    rows = np.concatenate([np.zeros(0, dtype=np.int64), *parts]).astype(np.int64)
    return rows, np.concatenate([[0], np.cumsum(ranks)]).astype(np.int64)


def _sweep(run: Run, problem: Problem) -> Iterator[Pair]:
    (rotated,), options = problem.arrays, problem.options
    patterns, clearance = run(problem.kernel, rotated, **options)
    again, _ = run(problem.kernel, 4.0 * rotated, **options)
    yield "rows scaled by a power of two", again, patterns
    if options["count"] > 1:
        last = {**options, "start": options["start"] + options["count"] - 1, "count": 1}
        alone = run(problem.kernel, rotated, **last)
        yield "the last cell alone", alone[0], patterns[-1:]
        yield "its clearance", alone[1], clearance[-1:]


def _programs(run: Run, problem: Problem) -> Iterator[Pair]:
    rows, targets, signs, patterns = problem.arrays
    weights, multipliers = run(problem.kernel, rows, targets, signs, patterns)
    doubled, forces = run(problem.kernel, rows, 2.0 * targets, signs, patterns)
    yield "targets doubled: weights", doubled, 2.0 * weights
    yield "targets doubled: multipliers", forces, 2.0 * multipliers
    turned, _ = run(problem.kernel, rows, -targets, -signs, patterns)
    yield "signs and targets turned", turned, weights


def _chambers_at(run: Run, problem: Problem) -> Iterator[Pair]:
    rows, subsets = problem.arrays
    patterns, clearance = run(problem.kernel, rows, subsets, **problem.options)
    turned, same = run(problem.kernel, rows, subsets[::-1].copy(), **problem.options)
    yield "another order: patterns", turned[::-1], patterns
    yield "another order: clearances", same[::-1], clearance


def _split(run: Run, problem: Problem) -> Iterator[Pair]:
    rows, row, signs, witnesses = problem.arrays
    answers, found = run(problem.kernel, rows, row, signs, witnesses)
    # Turned over, everything stays: the cones of −s with the witnesses −w.
    turned, other = run(problem.kernel, rows, row, -signs, -witnesses)
    yield "antipodes: answers", turned[:, ::-1], answers
    yield "antipodes: witnesses", other[:, ::-1], -found
    longer, same = run(problem.kernel, 4.0 * rows, 0.5 * row, signs, 2.0 * witnesses)
    yield "lengths do not count: answers", longer, answers
    yield "lengths do not count: witnesses", same, found


def _neighbours(run: Run, problem: Problem) -> Iterator[Pair]:
    first, hint, places = problem.arrays[:4], problem.arrays[4], problem.arrays[5:]
    weights, losses = run(problem.kernel, *problem.arrays)
    again, same = run(problem.kernel, *first, 0.0 * hint, *places)
    yield "without the hint: weights", again, weights
    yield "without the hint: losses", same, losses
    _, all_pruned = run(problem.kernel, *problem.arrays, incumbent=0.0)
    yield "nothing is below zero", np.isinf(all_pruned) * 1.0, np.ones(len(losses))


_RELATIONS: dict[Kernel, Callable[[Run, Problem], Iterator[Pair]]] = {
    Kernel.DENSE_FISHER_ROWS: _dense,
    Kernel.DENSE_FISHER_DIAGONAL: _dense,
    Kernel.DENSE_FISHER_DIAGONAL_MEAN: _dense_mean,
    Kernel.LOWRANK_PRODUCTS: _products,
    Kernel.LOWRANK_PULLBACK: _pullback,
    Kernel.LOWRANK_LINE: _line,
    Kernel.NNLS_GRAM: _nnls,
    Kernel.SPARSE_PRODUCTS: _sparse,
    Kernel.SPARSE_PULLBACK: _sparse,
    Kernel.MERGE_LINEAR: _merges,
    Kernel.MERGE_DIAGONAL: _merges,
    Kernel.ZONOTOPE_SUPPORT: _support,
    Kernel.SIGN_PATTERNS: _signs,
    Kernel.SWEEP_CHAMBERS: _sweep,
    Kernel.CHAMBERS_AT: _chambers_at,
    Kernel.SPLIT_CHAMBERS: _split,
    Kernel.VERTEX_PROGRAMS: _programs,
    Kernel.NEIGHBOUR_PROGRAMS: _neighbours,
}
