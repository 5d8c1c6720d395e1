"""Compiled programs of all neighbours of a vertex that is solved: most are priced, not solved.

Turn the sign of (j, i) where w is the vertex's optimum. Let the constraint −s_ji x_i·w_j ≥ 0 enter
the vertex's own program by a dual step: the optimum on the wall between the two cells, or on a
relaxation of it, with multiplier μ. On the wall row i of Φ is the same on both sides, and there
the neighbour's program has the same multipliers but μ + v_j r_i for this constraint. If that is
not negative, they are dual feasible for the neighbour too, and its optimum is no better than the
vertex. Only the others are solved, from the wall's working set.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from ._dual_active_set import (
    LEAN,
    SPAN,
    add,
    add_rows,
    clear,
    copy,
    copy_rows,
    descend,
    drop,
    enter,
    loss_at,
    reach,
    ridged_root,
    sides_of,
    times_rows,
    triangle_solve,
)
from ._program_assembly import assemble, lengths_of, moments_of, unit_rows
from ._vertex_program_kernels import FEASIBLE, finish, height_of


@njit(**LEAN)
def _turn(x, y, v, on, j, i, h, q):  # type: ignore[no-untyped-def]
    """H and q after the activity of (j, i) is turned: one row of Φ changes."""
    d, m = x.shape[1], v.shape[0]
    sign = -1.0 if on[j, i] > 0 else 1.0
    # φφᵀ changes by ±(e_j ⊗ x_i)(rest)ᵀ and its transpose, and the block (j, j) by ±x_ix_iᵀ.
    for k in range(m):
        if k == j or on[k, i] <= 0:
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


@njit(**LEAN)
def _restart(rows, patterns, jt, r, q, w, active, u, sides, before, total, skip, dv, z):  # type: ignore[no-untyped-def]
    """The minimiser on as much of an old working set as keeps its multipliers ≥ 0.

    That is the start of a dual method: the optimum of a relaxation. Returns its size.
    """
    n, size = rows.shape[0], w.shape[0]
    count = 0
    for k in range(total):
        which = before[k]
        if which == skip or count == size:
            continue
        whole = sides_of(rows, patterns, jt, which, dv)
        free = 0.0
        for e in range(count, size):
            free += dv[e] * dv[e]
        if free <= 1e-10 * whole:
            continue
        clear(z)
        add_rows(jt, dv, count, size, 1.0, z)
        add(jt, r, dv, active, u, which, 0.0, count, z)
        sides[which // n, which % n] = 0.0
        count += 1
    while True:
        times_rows(jt, q, dv)
        for k in range(count):
            z[k] = -dv[k]
        triangle_solve(r, z, count, u)
        least, at = 0.0, -1
        for k in range(count):
            if u[k] < least:
                least, at = u[k], k
        if at < 0:
            break
        gone = active[at]
        sides[gone // n, gone % n] = patterns[gone // n, gone % n]
        drop(jt, r, active, u, at, count)
        count -= 1
    clear(w)
    add_rows(jt, dv, count, size, 1.0, w)
    return count


@njit(**LEAN)
def _force(x, y, v, on, w, j, i, length):  # type: ignore[no-untyped-def]
    """v_j r_i ‖x_i‖: by what the multiplier of (j, i) differs on the two sides of its wall."""
    d = x.shape[1]
    misfit = -y[i]
    for k in range(v.shape[0]):
        if on[k, i] > 0:
            total = 0.0
            for a in range(d):
                total += x[i, a] * w[k * d + a]
            misfit += v[k] * total
    return v[j] * misfit * length


@njit(**LEAN)
def _wall_is_optimal(  # type: ignore[no-untyped-def]
    x, y, v, rows, on, patterns, jt, r, w, u, count, j, i, length, dv, ratio, z
):
    """1: the neighbour's optimum is on the wall; −1: it is beyond; 0: constraints have to leave."""
    n, d = x.shape
    which = j * n + i
    whole = sides_of(rows, patterns, jt, which, dv)  # of the old sign: the new one's is −dv
    size = w.shape[0]
    free = 0.0
    for k in range(count, size):
        free += dv[k] * dv[k]
    if free <= SPAN * whole:
        return 0
    slack = 0.0
    for a in range(d):
        slack += rows[i, a] * w[j * d + a]
    step = max(0.0, slack * patterns[j, i]) / free
    triangle_solve(r, dv, count, ratio)
    for k in range(count):
        if u[k] + step * ratio[k] < 0.0:  # the new constraint's ratios are −ratio
            return 0
    copy(w, z)
    add_rows(jt, dv, count, size, -step, z)
    return 1 if step + _force(x, y, v, on, z, j, i, length) >= 0.0 else -1


@njit(**LEAN)
def _price(  # type: ignore[no-untyped-def]
    x, y, v, rows, lengths, on, patterns, j, i, root, r0, w0, u0, active0, count0,
    jt, r, w, u, active, sides, kept, dv, ratio, z,
):  # fmt: skip
    """Whether the neighbour across (j, i) can be better: False is proven.

    The second value is the size of a working set to start it from, in ``kept``. Arrays with 0
    belong to the vertex; the others are workspace, ``sides`` only written to.
    """
    n, d = x.shape
    which = j * n + i
    copy(active0, kept)
    for k in range(count0):
        if active0[k] == which:  # on the wall already
            return _force(x, y, v, on, w0, j, i, lengths[i]) < u0[k], count0
    answer = _wall_is_optimal(
        x, y, v, rows, on, patterns, root, r0, w0, u0, count0, j, i, lengths[i], dv, ratio, z
    )
    if answer != 0:
        return answer < 0, count0
    copy_rows(root, jt)  # others leave the working set on the way to the wall
    for k in range(count0):
        for e in range(k + 1):
            r[k, e] = r0[k, e]
    copy(w0, w)
    copy(u0, u)
    copy(active0, active)
    patterns[j, i] = -patterns[j, i]
    slack = 0.0
    for a in range(d):
        slack += rows[i, a] * w[j * d + a]
    gap = min(0.0, slack * patterns[j, i])
    total, _ = enter(
        rows, patterns, jt, r, w, active, u, sides, which, gap, count0, dv, ratio, z
    )  # fmt: skip
    patterns[j, i] = -patterns[j, i]
    copy(active, kept)
    for k in range(total):
        if active[k] == which:
            return u[k] + _force(x, y, v, on, w, j, i, lengths[i]) < 0.0, total
    return True, total


@njit(**LEAN)
def _solve_turned(  # type: ignore[no-untyped-def]
    columns, units, rows, y, v, patterns, on, h, q, shift, work, which, kept, total, incumbent,
    height, longest, jt, r, w, u, active, sides, dv, ratio, z, misfit, lines, spare, found,
):  # fmt: skip
    """The program with H and q from a working set; returns its loss, and the answer's quality.

    Infinite as soon as its dual value is not below ``incumbent``.
    """
    unit = height / longest
    limit = 50 * w.shape[0] + 200
    copy_rows(patterns, sides)
    count = _restart(rows, patterns, jt, r, q, w, active, u, sides, kept, total, which, dv, z)
    value = loss_at(columns, y, v, on, w, misfit, lines) + 0.5 * _bias(w, shift)
    moves = 0
    top = max(unit, reach(w))
    while moves < limit:
        if value - _bias(w, shift) >= incumbent:
            return np.inf, 0.0
        count, steps, gain = descend(
            rows, units, patterns, jt, r, w, active, u, sides, count, FEASIBLE * top, dv, ratio, z,
            lines, found,
        )  # fmt: skip
        if steps == 0:
            break
        moves += steps
        value += gain
        top = max(top, reach(w))
    quality = finish(
        columns, units, rows, y, v, patterns, on, w, jt, r, active, count, u, sides, longest,
        height, misfit, lines, spare, found,
    )  # fmt: skip
    if moves >= limit:
        quality = 1.0
    return loss_at(columns, y, v, on, w, misfit, lines), quality


@njit(cache=True, nogil=True)
def solve_neighbours(  # type: ignore[no-untyped-def]
    start, stop, x, exponents, y, v, base, multipliers, units_of, rows_of, ridge, incumbent, out_w,
    bounds, quality,
):  # fmt: skip
    """Programs of ``base`` (m, n) with one sign turned, from its working set.

    x, exponents: of :func:`scaled_columns`; multipliers (m, n): those > 0 are the working set;
    units_of, rows_of (k,): the sign. A program is left as soon as it is known not to be below
    ``incumbent``; then its bound is infinite. Otherwise ``bounds`` holds the loss of its optimum.
    """
    n, d = x.shape
    m = v.shape[0]
    size = m * d
    squares = np.zeros((7, size, size))
    h0, h, work, root, jt, r0, r = (squares[0], squares[1], squares[2], squares[3], squares[4],
                                    squares[5], squares[6])  # fmt: skip
    vectors = np.empty((9, size))
    q0, q, w0, w, u0 = vectors[0], vectors[1], vectors[2], vectors[3], vectors[4]
    u, dv, ratio, z = vectors[5], vectors[6], vectors[7], vectors[8]
    spare, misfit, lines = np.empty((5, size)), np.empty(n), np.empty((m, n))
    active0, active = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int64)
    kept, found = np.empty(size, dtype=np.int64), np.empty(m, dtype=np.int64)
    lengths = lengths_of(x)
    rows, units = unit_rows(x, lengths)
    columns = np.ascontiguousarray(x.T)
    moments = moments_of(x, y)
    before, held = np.empty(m * n, dtype=np.int64), 0
    for which in range(m * n):
        if multipliers[which // n, which % n] > 0:
            before[held] = which
            held += 1
    patterns, on, sides0, sides = base.copy(), np.empty((m, n)), base.copy(), base.copy()
    for j in range(m):
        for i in range(n):
            on[j, i] = 1.0 if base[j, i] > 0 else 0.0
    masks = np.empty((m * (m + 1) // 2, n))
    assemble(moments, v, on, masks, np.empty((len(masks), moments.shape[1])), h0, q0)
    height, longest = height_of(y), lengths.max()
    # The vertex itself: its optimum is where every neighbour's dual steps start.
    shift = ridged_root(h0, ridge, work, root)
    count0 = _restart(rows, patterns, root, r0, q0, w0, active0, u0, sides0, before,
                      held, -1, dv, z)  # fmt: skip
    steps = 1
    for _ in range(50 * size + 200):
        count0, steps, _ = descend(
            rows, units, patterns, root, r0, w0, active0, u0, sides0, count0,
            FEASIBLE * max(height / longest, reach(w0)), dv, ratio, z, lines, found,
        )  # fmt: skip
        if steps == 0:
            break
    here = loss_at(columns, y, v, on, w0, misfit, lines)
    priced = steps == 0 and here - 0.5 * _bias(w0, shift) >= incumbent
    for flip in range(start, stop):
        j, i = units_of[flip], rows_of[flip]
        better, total = True, count0
        kept[:] = active0
        if priced:
            better, total = _price(
                x, y, v, rows, lengths, on, patterns, j, i, root, r0, w0, u0, active0, count0,
                jt, r, w, u, active, sides, kept, dv, ratio, z,
            )  # fmt: skip
        bounds[flip], quality[flip] = np.inf, 0.0
        if better:
            h[:, :] = h0
            q[:] = q0
            _turn(x, y, v, on, j, i, h, q)
            patterns[j, i] = -patterns[j, i]
            on[j, i] = 1.0 - on[j, i]
            shift = ridged_root(h, ridge, work, jt)
            bounds[flip], quality[flip] = _solve_turned(
                columns, units, rows, y, v, patterns, on, h, q, shift, work, j * n + i, kept,
                total, incumbent, height, longest, jt, r, w, u, active, sides, dv, ratio, z,
                misfit, lines, spare, found,
            )  # fmt: skip
            patterns[j, i] = -patterns[j, i]
            on[j, i] = 1.0 - on[j, i]
        for k in range(m):
            for a in range(d):
                solved = bounds[flip] < np.inf
                out_w[flip, k, a] = math.ldexp(w[k * d + a], -exponents[a]) if solved else 0.0


@njit(**LEAN)
def _bias(w, shift):  # type: ignore[no-untyped-def]
    """What the ridge may have added to a bound."""
    total = 0.0
    for e in range(w.shape[0]):
        total += w[e] * w[e]
    return shift * total
