"""Compiled products with a sparse matrix in compressed rows; columns ascend within each row."""

from __future__ import annotations

from numba import njit


@njit(cache=True, nogil=True)
def rows_times(start, stop, entries, columns, offsets, factor, out):  # type: ignore[no-untyped-def]
    """Rows start:stop of X·factor, in the order of the entries."""
    r = factor.shape[1]
    for i in range(start, stop):
        sums = out[i]
        for k in range(r):
            sums[k] = 0
        for q in range(offsets[i], offsets[i + 1]):
            x, y = entries[q], factor[columns[q]]
            for k in range(r):
                sums[k] += x * y[k]


@njit(cache=True, nogil=True)
def columns_times(start, stop, entries, columns, offsets, factor, out):  # type: ignore[no-untyped-def]
    """Columns start:stop of X, transposed, times factor: rows start:stop of Xᵀ·factor.

    Each thread owns a range of columns and finds its part of every row by bisection, so that no
    transposed copy of X is needed and the order of the sums does not depend on the threads.
    """
    r = factor.shape[1]
    for j in range(start, stop):
        for k in range(r):
            out[j, k] = 0
    for i in range(factor.shape[0]):
        low, high = offsets[i], offsets[i + 1]
        end = high
        while low < high:
            middle = (low + high) // 2
            if columns[middle] < start:
                low = middle + 1
            else:
                high = middle
        w = factor[i]
        while low < end and columns[low] < stop:
            x, sums = entries[low], out[columns[low]]
            for k in range(r):
                sums[k] += x * w[k]
            low += 1
