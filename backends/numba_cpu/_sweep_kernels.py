"""Compiled sweep over the cells of a simple arrangement: one small solve and n products a cell."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def _solve_both(a, right, r, z, multipliers, permutation):  # type: ignore[no-untyped-def]
    """Solve A z = right and Aᵀ λ = e_1 in place by LU with partial pivoting.

    Returns the smallest pivot relative to the largest, 0 if one vanishes.
    """
    for i in range(r):
        permutation[i] = i
    smallest, largest = np.inf, 0.0
    for k in range(r):
        best, at = abs(a[k, k]), k
        for i in range(k + 1, r):
            if abs(a[i, k]) > best:
                best, at = abs(a[i, k]), i
        if best == 0.0:
            return 0.0
        if at != k:
            for j in range(r):
                a[k, j], a[at, j] = a[at, j], a[k, j]
            right[k], right[at] = right[at], right[k]
            permutation[k], permutation[at] = permutation[at], permutation[k]
        smallest, largest = min(smallest, best), max(largest, best)
        inverse = 1.0 / a[k, k]
        for i in range(k + 1, r):
            factor = a[i, k] * inverse
            a[i, k] = factor
            for j in range(k + 1, r):
                a[i, j] -= factor * a[k, j]
            right[i] -= factor * right[k]
    for k in range(r - 1, -1, -1):
        total = right[k]
        for j in range(k + 1, r):
            total -= a[k, j] * z[j]
        z[k] = total / a[k, k]
    # PA = LU, so Aᵀλ = e_1 is Uᵀ(Lᵀ Pλ) = e_1; right is free to hold the middle vector.
    for k in range(r):
        total = 1.0 if k == 0 else 0.0
        for j in range(k):
            total -= a[j, k] * right[j]
        right[k] = total / a[k, k]
    for k in range(r - 1, -1, -1):
        for j in range(k + 1, r):
            right[k] -= a[j, k] * right[j]
    for k in range(r):
        multipliers[permutation[k]] = right[k]
    return smallest / largest


@njit(cache=True, nogil=True, fastmath={"nnan", "ninf", "nsz", "reassoc"})
def _signs_of_cell(columns, level, c, z, r, products, signs):  # type: ignore[no-untyped-def]
    """Signs of all rows at w = (0, …, 0, c, z) and the smallest modulus, by columns of Y."""
    n = signs.shape[0]
    lead = columns[level]
    if r == 0:
        for i in range(n):
            products[i] = c * lead[i]
    elif r == 1:
        one, z0 = columns[level + 1], z[0]
        for i in range(n):
            products[i] = c * lead[i] + z0 * one[i]
    elif r == 2:
        one, two, z0, z1 = columns[level + 1], columns[level + 2], z[0], z[1]
        for i in range(n):
            products[i] = c * lead[i] + z0 * one[i] + z1 * two[i]
    else:
        one, two, three = columns[level + 1], columns[level + 2], columns[level + 3]
        z0, z1, z2 = z[0], z[1], z[2]
        for i in range(n):
            products[i] = c * lead[i] + z0 * one[i] + z1 * two[i] + z2 * three[i]
        for j in range(3, r):
            more, zj = columns[level + 1 + j], z[j]
            for i in range(n):
                products[i] += zj * more[i]
    for i in range(n):
        signs[i] = 1 if products[i] > 0 else -1


@njit(cache=True, nogil=True, fastmath={"nnan", "ninf", "nsz", "reassoc"})
def _least(values):  # type: ignore[no-untyped-def]
    least = np.inf
    for i in range(values.shape[0]):
        least = min(least, abs(values[i]))
    return least


@njit(cache=True, nogil=True)
def _cell(columns, level, c, subset, a, right, z, multipliers, permutation, products, signs):  # type: ignore[no-untyped-def]
    """Signs of one cell and its clearance; the other arrays are workspace."""
    n = columns.shape[1]
    r = subset.shape[0]
    for i in range(r):
        row = subset[i]
        for j in range(r):
            a[i, j] = columns[level + 1 + j, row]
        right[i] = -c * columns[level, row]
    pivot = _solve_both(a, right, r, z, multipliers, permutation) if r > 0 else 1.0
    if pivot == 0.0:
        for i in range(n):
            signs[i] = 1
        return 0.0
    length, weight, least = 1.0, 0.0, np.inf
    for j in range(r):
        length += z[j] * z[j]
        weight += multipliers[j] * multipliers[j]
        least = min(least, abs(multipliers[j]))
    _signs_of_cell(columns, level, c, z, r, products, signs)
    length = np.sqrt(length)
    for i in range(r):
        products[subset[i]] = length
        signs[subset[i]] = 1 if multipliers[i] > 0 else -1
    signs[n - 1] = 1
    products[n - 1] = length
    gap = _least(products) / length
    if r > 0:
        gap = min(gap, least / np.sqrt(weight))
    return gap * pivot


@njit(cache=True, nogil=True)
def sweep_cells(columns, level, first, patterns, clearance):  # type: ignore[no-untyped-def]
    """Fill ``patterns`` (count, n) and ``clearance`` (count,) from the subset ``first`` onwards.

    columns (d, n): the rotated rows, transposed, so that the inner loops run over rows.
    """
    d, n = columns.shape
    count, r = patterns.shape[0], d - 1 - level
    c = 1.0 if level == 0 else -1.0
    subset = first.copy()
    a = np.empty((r, r))
    right, z, multipliers = np.empty(r), np.empty(r), np.empty(r)
    permutation = np.empty(r, dtype=np.int64)
    products = np.empty(n)
    others = n - 1
    for cell in range(count):
        clearance[cell] = _cell(
            columns, level, c, subset, a, right, z, multipliers, permutation, products,
            patterns[cell],
        )  # fmt: skip
        # The next subset of the first n − 1 rows in lexicographic order.
        i = r - 1
        while i >= 0 and subset[i] == others - r + i:
            i -= 1
        if i >= 0:
            subset[i] += 1
            for j in range(i + 1, r):
                subset[j] = subset[j - 1] + 1


@njit(cache=True, nogil=True)
def chosen_cells(columns, level, subsets, patterns, clearance):  # type: ignore[no-untyped-def]
    """The cells of the given subsets (count, r), each ascending."""
    d, n = columns.shape
    count, r = patterns.shape[0], d - 1 - level
    c = 1.0 if level == 0 else -1.0
    a = np.empty((r, r))
    right, z, multipliers = np.empty(r), np.empty(r), np.empty(r)
    permutation = np.empty(r, dtype=np.int64)
    products = np.empty(n)
    for cell in range(count):
        clearance[cell] = _cell(
            columns, level, c, subsets[cell], a, right, z, multipliers, permutation, products,
            patterns[cell],
        )  # fmt: skip
