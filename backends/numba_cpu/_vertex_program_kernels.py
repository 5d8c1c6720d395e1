"""Compiled batches of vertex programs: from scratch, and neighbours of one that is solved."""

from __future__ import annotations

import numpy as np
from numba import njit

from ._dual_active_set import (
    add,
    assemble,
    drop,
    enter,
    inverse_root,
    kkt_of,
    most_violated,
    refine,
    sides_of,
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


@njit(cache=True, nogil=True)
def _turn(x, y, v, patterns, j, i, h, q):  # type: ignore[no-untyped-def]
    """H and q after the sign of (j, i) is turned: one row of Φ changes; turns ``patterns`` too."""
    d, m = x.shape[1], v.shape[0]
    sign = -1.0 if patterns[j, i] > 0 else 1.0
    # φφᵀ changes by ±(e_j ⊗ x_i)(rest)ᵀ and its transpose, and the block (j, j) by ±x_ix_iᵀ.
    for k in range(m):
        if k == j or patterns[k, i] <= 0:
            continue
        for a in range(d):
            factor = sign * v[j] * v[k] * x[i, a]
            for b in range(d):
                h[j * d + a, k * d + b] += factor * x[i, b]
                h[k * d + b, j * d + a] += factor * x[i, b]
    for a in range(d):
        q[j * d + a] += sign * v[j] * x[i, a] * y[i]
        for b in range(d):
            h[j * d + a, j * d + b] += sign * x[i, a] * x[i, b]
    patterns[j, i] = -patterns[j, i]


@njit(cache=True, nogil=True)
def _restart(x, patterns, jt, r, q, w, active, u, working, before, total, skip, dv):  # type: ignore[no-untyped-def]
    """The minimiser on as much of an old working set as keeps its multipliers ≥ 0.

    That is the start of a dual method: the optimum of a relaxation. Returns its size and
    ‖J₂ᵀq‖², from which the value ½‖y‖² − ½‖J₂ᵀq‖² follows.
    """
    size = w.shape[0]
    count = 0
    for k in range(total):
        which = before[k]
        if which == skip or count == size:
            continue
        whole = sides_of(x, patterns, jt, which, dv)
        free = 0.0
        for e in range(count, size):
            free += dv[e] * dv[e]
        if free <= 1e-10 * whole:
            continue
        add(jt, r, dv, active, u, which, 0.0, count)
        working[which] = 1
        count += 1
    while True:
        for k in range(size):
            value = 0.0
            for e in range(size):
                value += jt[k, e] * q[e]
            dv[k] = value
        least, at = 0.0, -1
        for k in range(count - 1, -1, -1):
            value = -dv[k]
            for e in range(k + 1, count):
                value -= r[k, e] * u[e]
            u[k] = value / r[k, k]
        for k in range(count):
            if u[k] < least:
                least, at = u[k], k
        if at < 0:
            break
        working[active[at]] = 0
        drop(jt, r, active, u, at, count)
        count -= 1
    w[:] = 0.0
    square = 0.0
    for k in range(count, size):
        square += dv[k] * dv[k]
        for e in range(size):
            w[e] += dv[k] * jt[k, e]
    return count, square


@njit(cache=True, nogil=True)
def solve_neighbours(  # type: ignore[no-untyped-def]
    start, stop, x, y, v, base, before, flips, ridge, incumbent, out_w, bounds, quality
):
    """Programs of ``base`` (m, n) with one sign turned, from its working set ``before``.

    flips (k, 2): pairs (unit, row). A program is left as soon as its dual value reaches
    ``incumbent``; then its bound is infinite. Otherwise ``bounds`` holds the loss of its optimum.
    """
    n, d = x.shape
    m = v.shape[0]
    size = m * d
    h0, h, jt, r = (np.empty((size, size)), np.empty((size, size)), np.empty((size, size)),
                    np.zeros((size, size)))  # fmt: skip
    q0, q, w, dv, ratio, u = (np.empty(size), np.empty(size), np.empty(size), np.empty(size),
                              np.empty(size), np.empty(size))  # fmt: skip
    spare = np.empty((3, size))
    active = np.empty(size, dtype=np.int64)
    working = np.zeros(m * n, dtype=np.int8)
    lengths = lengths_of(x)
    patterns = base.copy()
    trace = assemble(x, y, v, patterns, h0, q0)
    shift = ridge * trace / size + 1e-290
    height, longest = 0.0, 0.0
    for i in range(n):
        height += y[i] * y[i]
        longest = max(longest, lengths[i])
    unit = np.sqrt(height) / longest
    limit = 50 * size + 200
    for flip in range(start, stop):
        j, i = flips[flip, 0], flips[flip, 1]
        h[:, :] = h0
        q[:] = q0
        _turn(x, y, v, patterns, j, i, h, q)
        for a in range(size):
            h[a, a] += shift
        inverse_root(h, jt)
        working[:] = 0
        count, square = _restart(
            x, patterns, jt, r, q, w, active, u, working, before, before.shape[0], j * n + i, dv
        )
        value = 0.5 * height - 0.5 * square
        moves = 0
        top = max(unit, _reach(w))
        pruned = False
        while moves < limit:
            if value - _bias(w, shift) >= incumbent:
                pruned = True
                break
            which, gap = most_violated(x, lengths, patterns, w, working, _FEASIBLE * top)
            if which < 0:
                break
            moves += 1
            count, gain = enter(
                x, patterns, jt, r, w, active, u, working, which, gap, count, dv, ratio
            )
            value += gain
            top = max(top, _reach(w))
        if pruned:
            bounds[flip], quality[flip] = np.inf, 0.0
            out_w[flip] = 0.0
        else:
            quality[flip] = _finish(
                x, y, v, patterns, w, jt, r, active, count, u, working, lengths, top, spare
            )
            if moves >= limit:
                quality[flip] = 1.0
            for k in range(m):
                for a in range(d):
                    out_w[flip, k, a] = w[k * d + a]
            bounds[flip] = _misfit(x, y, v, patterns, w)
        patterns[j, i] = -patterns[j, i]


@njit(cache=True, nogil=True)
def _bias(w, shift):  # type: ignore[no-untyped-def]
    """What the ridge may have added to a bound."""
    total = 0.0
    for e in range(w.shape[0]):
        total += w[e] * w[e]
    return shift * total


@njit(cache=True, nogil=True)
def _misfit(x, y, v, patterns, w):  # type: ignore[no-untyped-def]
    """The loss ½‖Φw − y‖² of a cell."""
    n, d = x.shape
    total = 0.0
    for i in range(n):
        miss = -y[i]
        for j in range(v.shape[0]):
            if patterns[j, i] > 0:
                part = 0.0
                for a in range(d):
                    part += x[i, a] * w[j * d + a]
                miss += v[j] * part
        total += miss * miss
    return 0.5 * total
