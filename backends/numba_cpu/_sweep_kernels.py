"""Compiled sweep over the cells of a simple arrangement: n products a cell, a basis shared."""

from __future__ import annotations

import numpy as np
from numba import njit

# A product that is never the smallest; and the bits of a float's modulus.
_FAR = 1e300
_MODULUS = np.uint64((1 << 63) - 1)


@njit(cache=True, nogil=True)
def _extend(rows, level, c, row, t, r, basis, triangle, height):  # type: ignore[no-untyped-def]
    """Put y = the last r entries of a row into the orthonormal ``basis`` as number t.

    Writes y's coordinates into row t of ``triangle`` and into ``height`` those of the point of the
    span with y·z = −c y_level for all rows so far. Returns the new pivot.
    """
    for a in range(r):
        basis[t, a] = rows[row, level + 1 + a]
    for k in range(t):
        triangle[t, k] = 0.0
    for _ in range(2):  # once more, for what the first pass leaves of nearly dependent rows
        for k in range(t):
            along = 0.0
            for a in range(r):
                along += basis[t, a] * basis[k, a]
            triangle[t, k] += along
            for a in range(r):
                basis[t, a] -= along * basis[k, a]
    pivot = 0.0
    for a in range(r):
        pivot += basis[t, a] * basis[t, a]
    pivot = np.sqrt(pivot)
    inverse = 1.0 / pivot if pivot > 0.0 else 0.0
    total = -c * rows[row, level]
    for k in range(t):
        total -= triangle[t, k] * height[k]
    height[t] = total * inverse
    triangle[t, t] = pivot
    for a in range(r):
        basis[t, a] *= inverse
    return pivot


@njit(cache=True, nogil=True)
def _line(basis, triangle, height, r, point, direction, dual):  # type: ignore[no-untyped-def]
    """The line that r − 1 rows leave: its point nearest to 0, its unit direction; and their dual.

    dual (r−1, r): rows in the span with dual_t·y_k = 1 if t = k else 0.
    """
    best, at = np.inf, 0
    for a in range(r):
        total = 0.0
        for k in range(r - 1):
            total += basis[k, a] * basis[k, a]
        if total < best:
            best, at = total, a
    for a in range(r):
        direction[a] = 1.0 if a == at else 0.0
        point[a] = 0.0
    for _ in range(2):
        for k in range(r - 1):
            along = 0.0
            for a in range(r):
                along += direction[a] * basis[k, a]
            for a in range(r):
                direction[a] -= along * basis[k, a]
    length = 0.0
    for a in range(r):
        length += direction[a] * direction[a]
    length = 1.0 / np.sqrt(length)
    for a in range(r):
        direction[a] *= length
    for k in range(r - 1):
        for a in range(r):
            point[a] += height[k] * basis[k, a]
    for t in range(r - 2, -1, -1):
        inverse = 1.0 / triangle[t, t] if triangle[t, t] > 0.0 else 0.0
        for a in range(r):
            total = basis[t, a]
            for k in range(t + 1, r - 1):
                total -= triangle[k, t] * dual[k, a]
            dual[t, a] = total * inverse


@njit(cache=True, nogil=True, fastmath={"nsz", "reassoc", "contract"})
def _along_line(columns, level, c, r, point, direction, start, slope):  # type: ignore[no-untyped-def]
    """Every row's product with (c, point) and with (0, direction)."""
    n = columns.shape[1]
    for i in range(n):
        start[i] = c * columns[level, i]
        slope[i] = 0.0
    for a in range(r):
        here, step = point[a], direction[a]
        for i in range(n):
            start[i] += here * columns[level + 1 + a, i]
            slope[i] += step * columns[level + 1 + a, i]


@njit(cache=True, nogil=True, fastmath={"nsz", "reassoc", "contract"})
def _products_at(start, slope, at, products):  # type: ignore[no-untyped-def]
    for i in range(products.shape[0]):
        products[i] = start[i] + at * slope[i]


@njit(cache=True, nogil=True)
def _write_signs(bits, patterns, cell):  # type: ignore[no-untyped-def]
    for i in range(bits.shape[0]):
        patterns[cell, i] = np.int8(1) - np.int8(2) * np.int8(bits[i] >> np.uint64(63))


@njit(cache=True, nogil=True)
def _least_bits(bits):  # type: ignore[no-untyped-def]
    """Those of the smallest modulus: floats ≥ 0 are ordered as their bits are."""
    least = _MODULUS
    for i in range(bits.shape[0]):
        least = min(least, bits[i] & _MODULUS)
    return least


@njit(cache=True, nogil=True)
def _only_cell(columns, level, c, patterns, clearance, cell):  # type: ignore[no-untyped-def]
    """The one cell of the last level, in which nothing is left to choose."""
    n = columns.shape[1]
    gap = 1.0
    for i in range(n - 1):
        value = c * columns[level, i]
        patterns[cell, i] = 1 if value > 0.0 else -1
        gap = min(gap, abs(value))
    patterns[cell, n - 1] = 1
    clearance[cell] = gap


@njit(cache=True, nogil=True)
def _walk(columns, rows, level, subsets, following, patterns, clearance):  # type: ignore[no-untyped-def]
    """Cells of the given subsets (count, r), or of those from the only one onwards (following).

    The orthonormal basis of a subset's first r − 1 rows is kept up to the first that changes.
    """
    d, n = columns.shape
    count, r = patterns.shape[0], d - 1 - level
    others, c = n - 1, 1.0 if level == 0 else -1.0
    if r == 0:
        for cell in range(count):
            _only_cell(columns, level, c, patterns, clearance, cell)
        return
    basis, triangle, dual = np.empty((r, r)), np.empty((r, r)), np.empty((r, r))
    height, pivots, lowest = np.empty(r), np.empty(r), np.empty(1, dtype=np.uint64)
    point, direction = np.empty(r), np.empty(r)
    start, slope, products = np.empty(n), np.empty(n), np.empty(n)
    bits, least = products.view(np.uint64), lowest.view(np.float64)
    subset = subsets[0].copy()
    depth, cell = 0, 0
    while cell < count:
        if not following:
            subset[:] = subsets[cell]
        for t in range(depth, r - 1):
            pivots[t] = _extend(rows, level, c, subset[t], t, r, basis, triangle, height)
        _line(basis, triangle, height, r, point, direction, dual)
        _along_line(columns, level, c, r, point, direction, start, slope)
        pivot, length = 1.0, 1.0
        for t in range(r - 1):
            pivot = min(pivot, pivots[t])
            length += height[t] * height[t]
            start[subset[t]], slope[subset[t]] = _FAR, 0.0
        start[n - 1], slope[n - 1] = _FAR, 0.0
        stop = min(others, subset[r - 1] + count - cell) if following else subset[r - 1] + 1
        for k in range(subset[r - 1], stop):
            own, rate = start[k], slope[k]
            at = -own / rate if rate != 0.0 else 0.0
            start[k] = _FAR
            _products_at(start, slope, at, products)
            start[k] = own
            _write_signs(bits, patterns, cell)
            last = direction[0] / rate if rate != 0.0 else 0.0
            weight, small = last * last, abs(last)
            patterns[cell, k] = 1 if last > 0.0 else -1
            for t in range(r - 1):
                value = 0.0
                for a in range(r):
                    value += dual[t, a] * rows[k, level + 1 + a]
                value = dual[t, 0] - last * value
                weight += value * value
                small = min(small, abs(value))
                patterns[cell, subset[t]] = 1 if value > 0.0 else -1
            lowest[0] = _least_bits(bits)
            gap = least[0] / np.sqrt(length + at * at)
            if weight > 0.0:
                gap = min(gap, small / np.sqrt(weight))
            clearance[cell] = gap * min(pivot, abs(rate))
            cell += 1
        if not following:
            continue
        # The next r − 1 first rows of the first n − 1, in lexicographic order.
        depth = r - 2
        while depth >= 0 and subset[depth] == others - r + depth:
            depth -= 1
        if depth < 0:
            break
        subset[depth] += 1
        for t in range(depth + 1, r):
            subset[t] = subset[t - 1] + 1


@njit(cache=True, nogil=True)
def sweep_cells(columns, rows, level, first, patterns, clearance):  # type: ignore[no-untyped-def]
    """Fill ``patterns`` (count, n) and ``clearance`` (count,) from the subset ``first`` onwards.

    columns (d, n), rows (n, d): the rotated rows both ways. Subsets with the same first r − 1 rows
    follow one another; those rows leave a line z = p + τ u, on which every row's product is
    start + τ slope, so that a cell costs one multiplication a row.
    """
    _walk(columns, rows, level, first.reshape(1, len(first)), True, patterns, clearance)


@njit(cache=True, nogil=True)
def chosen_cells(columns, rows, level, subsets, patterns, clearance):  # type: ignore[no-untyped-def]
    """The cells of the given subsets (count, r), each ascending."""
    if len(subsets) > 0:
        _walk(columns, rows, level, subsets, False, patterns, clearance)
