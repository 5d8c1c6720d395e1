"""Compiled batches of vertex programs: from scratch, and neighbours of one that is solved."""

from __future__ import annotations

import numpy as np
from numba import njit

from ._dual_active_set import (
    assemble,
    enter,
    inverse_root,
    kkt_of,
    most_violated,
    refine,
)

# A violation below this share of the largest weight counts as rounding.
_FEASIBLE = 1e-13


@njit(cache=True, nogil=True)
def lengths_of(x):  # type: ignore[no-untyped-def]
    """‖x_i‖, 1 for zero rows."""
    lengths = np.empty(x.shape[0])
    for i in range(x.shape[0]):
        total = 0.0
        for a in range(x.shape[1]):
            total += x[i, a] * x[i, a]
        lengths[i] = np.sqrt(total) if total > 0 else 1.0
    return lengths


@njit(cache=True, nogil=True)
def _unconstrained(jt, q, dv, w):  # type: ignore[no-untyped-def]
    """Write H⁻¹q into ``w``, by the inverse root; returns the largest modulus."""
    size = w.shape[0]
    w[:] = 0.0
    for k in range(size):
        total = 0.0
        for e in range(k + 1):
            total += jt[k, e] * q[e]
        dv[k] = total
        for e in range(k + 1):
            w[e] += jt[k, e] * total
    top = 0.0
    for e in range(size):
        top = max(top, abs(w[e]))
    return top


@njit(cache=True, nogil=True)
def _finish(x, y, v, patterns, w, jt, r, active, count, u, working, lengths, top, spare):  # type: ignore[no-untyped-def]
    """Take the ridge's bias off where the cones allow it; returns the quality of the answer.

    That is the larger of the relative stationarity miss and the relative violation.
    """
    n, m = x.shape[0], v.shape[0]
    before, forces, gradient = spare[0], spare[1], spare[2]
    before[:] = w
    forces[:] = u
    refine(x, y, v, patterns, w, jt, r, active, count, u)
    for k in range(m * n):
        if working[k] == 2:
            working[k] = 0
    height, longest = 0.0, 0.0
    for i in range(n):
        height += y[i] * y[i]
        longest = max(longest, lengths[i])
    height = np.sqrt(height)
    unit = height / longest + 1e-300  # the size of a weight that matters
    _settle(w, m, unit)
    broken, _ = most_violated(x, lengths, patterns, w, working, 1e-12 * max(unit, _reach(w)))
    least = 0.0
    for k in range(count):
        least = min(least, u[k])
    if broken >= 0 or least < -1e-12 * height:
        w[:] = before
        u[:] = forces
        _settle(w, m, unit)
        broken, _ = most_violated(x, lengths, patterns, w, working, 1e-12 * max(unit, _reach(w)))
        if broken >= 0:
            return 1.0
    for k in range(count):
        u[k] = max(u[k], 0.0)
    miss = kkt_of(x, v, y, patterns, w, lengths, active, count, u, gradient)
    return miss / (longest * height + 1e-300)


@njit(cache=True, nogil=True)
def _reach(w):  # type: ignore[no-untyped-def]
    reach = 0.0
    for e in range(w.shape[0]):
        reach = max(reach, abs(w[e]))
    return reach


@njit(cache=True, nogil=True)
def _settle(w, m, unit):  # type: ignore[no-untyped-def]
    """Units that are rounding are zero: dead."""
    d = w.shape[0] // m
    small = 1e-14 * max(unit, _reach(w))
    for j in range(m):
        if _reach(w[j * d : (j + 1) * d]) <= small:
            w[j * d : (j + 1) * d] = 0.0


@njit(cache=True, nogil=True)
def solve_programs(start, stop, x, y, v, every, ridge, out_w, out_u, quality):  # type: ignore[no-untyped-def]
    """Minimise ½‖Φw − y‖² with S_j X w_j ≥ 0 for the programs start:stop.

    every (b, m, n): patterns as ±1; out_w (b, m, d), out_u (b, m, n): weights and multipliers;
    quality (b,): relative KKT miss, 1 where the step limit was reached.
    """
    n, d = x.shape
    m = v.shape[0]
    size = m * d
    h, jt, r = np.empty((size, size)), np.empty((size, size)), np.zeros((size, size))
    q, w, dv, ratio, u = (np.empty(size), np.empty(size), np.empty(size), np.empty(size),
                          np.empty(size))  # fmt: skip
    spare = np.empty((3, size))
    active = np.empty(size, dtype=np.int64)
    working = np.zeros(m * n, dtype=np.int8)
    lengths = lengths_of(x)
    limit = 50 * size + 200
    for program in range(start, stop):
        patterns = every[program]
        trace = assemble(x, y, v, patterns, h, q)
        for a in range(size):
            h[a, a] += ridge * trace / size + 1e-290
        inverse_root(h, jt)
        top = _unconstrained(jt, q, dv, w)
        working[:] = 0
        count, moves = 0, 0
        while moves < limit:
            which, value = most_violated(x, lengths, patterns, w, working, _FEASIBLE * top)
            if which < 0:
                break
            moves += 1
            count, _ = enter(
                x, patterns, jt, r, w, active, u, working, which, value, count, dv, ratio
            )
        quality[program] = _finish(
            x, y, v, patterns, w, jt, r, active, count, u, working, lengths, top, spare
        )
        if moves >= limit:
            quality[program] = 1.0
        for j in range(m):
            for a in range(d):
                out_w[program, j, a] = w[j * d + a]
            for i in range(n):
                out_u[program, j, i] = 0.0
        for k in range(count):
            out_u[program, active[k] // n, active[k] % n] = u[k]
