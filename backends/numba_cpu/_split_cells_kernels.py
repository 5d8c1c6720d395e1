"""Compiled test of both sides of a new row in every cone: small non-negative least squares."""

from __future__ import annotations

import numpy as np
from numba import njit

_ZERO = 1e-10
_PIVOT = 1e-9
_SURE = 1e-11


@njit(cache=True, nogil=True)
def _passive(rows, signs, chosen, r, target, basis, upper, z):  # type: ignore[no-untyped-def]
    """Least squares of ``target`` on the r chosen signed rows by Gram–Schmidt; False if dependent.

    basis (r, d) orthonormal, upper (r, r) the triangle, z (r,) the coefficients.
    """
    d = rows.shape[1]
    for k in range(r):
        i = chosen[k]
        for a in range(d):
            basis[k, a] = rows[i, a] * signs[i]
        for e in range(k):
            upper[e, k] = 0.0
        for _ in range(2):
            for e in range(k):
                total = 0.0
                for a in range(d):
                    total += basis[e, a] * basis[k, a]
                upper[e, k] += total
                for a in range(d):
                    basis[k, a] -= total * basis[e, a]
        total = 0.0
        for a in range(d):
            total += basis[k, a] * basis[k, a]
        length = np.sqrt(total)
        upper[k, k] = length
        if length < _PIVOT:
            return False
        for a in range(d):
            basis[k, a] /= length
    for k in range(r - 1, -1, -1):
        total = 0.0
        for a in range(d):
            total += basis[k, a] * target[a]
        for e in range(k + 1, r):
            total -= upper[k, e] * z[e]
        z[k] = total / upper[k, k]
    return True


@njit(cache=True, nogil=True)
def _cone_distance(rows, signs, target, chosen, inside, basis, upper, z, mu, miss):  # type: ignore[no-untyped-def]
    """Lawson–Hanson: miss = target − Σ μ_i s_i x_i, μ ≥ 0, as short as can be.

    Returns the size of the passive set, −1 where the method gave up.
    """
    k, d = rows.shape
    r = 0
    for i in range(k):
        inside[i] = False
    miss[:] = target
    for _ in range(6 * (k + d) + 20):
        best, at = _ZERO, -1
        for i in range(k):
            total = 0.0
            for a in range(d):
                total += rows[i, a] * miss[a]
            total *= signs[i]
            if total > best and not inside[i]:
                best, at = total, i
        if at < 0 or r == d:
            return r
        chosen[r], mu[r] = at, 0.0
        inside[at] = True
        r += 1
        while True:
            if not _passive(rows, signs, chosen, r, target, basis, upper, z):
                return -1
            share, leave = 1.0, -1
            for e in range(r):
                if z[e] <= 0.0:
                    part = mu[e] / (mu[e] - z[e]) if mu[e] > z[e] else 0.0
                    if part < share:
                        share, leave = part, e
            if leave < 0:
                break
            for e in range(r):
                mu[e] += share * (z[e] - mu[e])
            inside[chosen[leave]] = False
            for e in range(leave, r - 1):
                chosen[e], mu[e] = chosen[e + 1], mu[e + 1]
            r -= 1
            if r == 0:
                break
        for e in range(r):
            mu[e] = z[e]
        # The part of the target outside the span, without cancellation.
        miss[:] = target
        for _ in range(2):
            for e in range(r):
                total = 0.0
                for a in range(d):
                    total += basis[e, a] * miss[a]
                for a in range(d):
                    miss[a] -= total * basis[e, a]
        total = 0.0
        for a in range(d):
            total += miss[a] * miss[a]
        if total < 1e-16:
            return r
    return -1


@njit(cache=True, nogil=True)
def _proven(rows, row, signs, sign, w):  # type: ignore[no-untyped-def]
    """Whether w has all signs by more than rounding can explain."""
    k, d = rows.shape
    rounding = (d + 4) * 2.3e-16
    for i in range(k + 1):
        total, size = 0.0, 0.0
        for a in range(d):
            term = (rows[i, a] if i < k else row[a]) * w[a]
            total += term
            size += abs(term)
        if not total * (signs[i] if i < k else sign) > rounding * size:
            return False
    return True


@njit(cache=True, nogil=True)
def _side(rows, row, signs, w, side, product, chosen, inside, basis, upper, z, mu, miss, out):  # type: ignore[no-untyped-def]
    """1 with a witness in ``out``, −1 proven empty, 0 not decided in float64."""
    d = row.shape[0]
    if product * side > 1e-9 and _proven(rows, row, signs, side, w):
        out[:] = w
        return 1
    target = np.empty(d)
    for a in range(d):
        target[a] = -side * row[a]
    r = _cone_distance(rows, signs, target, chosen, inside, basis, upper, z, mu, miss)
    if r < 0:
        return 0
    size = 0.0
    for a in range(d):
        size += miss[a] * miss[a]
    if size < 1e-14:
        if r < d:
            return 0
        low, high, least, most = np.inf, 0.0, np.inf, 0.0
        for e in range(r):
            low, high = min(low, upper[e, e]), max(high, upper[e, e])
            least, most = min(least, mu[e]), max(most, mu[e])
        return -1 if least * low > _SURE * most * high else 0
    step = 1.0
    if -side * product > 0:
        step = min(1.0, 0.5 * size / (-side * product))
    length = 0.0
    for a in range(d):
        out[a] = step * w[a] - miss[a]
        length += out[a] * out[a]
    length = np.sqrt(length)
    for a in range(d):
        out[a] /= length
    return 1 if _proven(rows, row, signs, side, out) else 0


@njit(cache=True, nogil=True)
def split_cells(start, stop, rows, row, signs, witnesses, answers, out):  # type: ignore[no-untyped-def]
    """Both sides of ``row`` in the cones start:stop; rows and witnesses are of unit length."""
    k, d = rows.shape
    chosen, inside = np.empty(d + 1, dtype=np.int64), np.zeros(k, dtype=np.bool_)
    basis, upper = np.empty((d + 1, d)), np.zeros((d + 1, d + 1))
    z, mu, miss = np.empty(d + 1), np.empty(d + 1), np.empty(d)
    for cell in range(start, stop):
        w = witnesses[cell]
        product = 0.0
        for a in range(d):
            product += row[a] * w[a]
        for h in range(2):
            side = 1.0 if h == 0 else -1.0
            answers[cell, h] = _side(
                rows, row, signs[cell], w, side, product, chosen, inside, basis, upper, z, mu,
                miss, out[cell, h],
            )  # fmt: skip
            if answers[cell, h] != 1:
                out[cell, h, :] = 0.0
