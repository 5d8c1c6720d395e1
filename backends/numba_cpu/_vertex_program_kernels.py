"""Compiled batches of vertex programs from scratch, and how every program is finished."""

from __future__ import annotations

import numpy as np
from numba import njit

from ._dual_active_set import (
    LEAN,
    add_rows,
    descend,
    reach,
    ridged_root,
    slope,
    times_rows,
    triangle_solve,
    unconstrained,
    violations,
)
from ._program_assembly import assemble, lengths_of, moments_of, unit_rows

# A violation below this share of the largest weight counts as rounding.
FEASIBLE = 1e-13
# Newton steps that change predictions by less than this share of the targets are rounding.
_SETTLED = 1e-14


@njit(**LEAN)
def height_of(y):  # type: ignore[no-untyped-def]
    """‖y‖."""
    total = 0.0
    for i in range(y.shape[0]):
        total += y[i] * y[i]
    return np.sqrt(total)


@njit(cache=True, nogil=True)
def _refine(  # type: ignore[no-untyped-def]
    columns,
    rows,
    y,
    v,
    patterns,
    on,
    w,
    jt,
    r,
    active,
    count,
    u,
    height,
    gradient,
    misfit,
    lines,
    spare,
):
    """Newton steps on the working set with the true residual: they take the ridge's bias off.

    Jᵀ G_Aᵀ = [R; 0], so J₂J₂ᵀ inverts the Hessian on the null space of the working set, J₁R⁻ᵀ
    repairs the constraints, and R⁻¹J₁ᵀ∇ are the multipliers. ``gradient`` is that at the end.
    """
    n, d = rows.shape
    size = w.shape[0]
    reduced, step = spare[0], spare[1]
    slope(columns, y, v, on, w, misfit, lines, gradient)
    for _ in range(2):
        times_rows(jt, gradient, reduced)
        square = 0.0
        for k in range(size):
            if k < count:  # R⁻ᵀ times the violations of the working set
                j, i = active[k] // n, active[k] % n
                total = 0.0
                for a in range(d):
                    total += rows[i, a] * w[j * d + a]
                total *= patterns[j, i]
                for e in range(k):
                    total -= r[k, e] * step[e]
                step[k] = total * r[k, k]
            else:
                step[k] = reduced[k]
            square += step[k] * step[k]
        add_rows(jt, step, 0, size, -1.0, w)
        slope(columns, y, v, on, w, misfit, lines, gradient)
        if square <= (_SETTLED * height) ** 2:
            break
    times_rows(jt, gradient, reduced)
    triangle_solve(r, reduced, count, u)


@njit(cache=True, nogil=True)
def finish(  # type: ignore[no-untyped-def]
    columns, units, rows, y, v, patterns, on, w, jt, r, active, count, u, sides, longest, height,
    misfit, lines, spare, found,
):  # fmt: skip
    """Take the ridge's bias off where the cones allow it; returns the quality of the answer.

    That is the relative miss of stationarity, and 1 where a constraint is broken. columns, units
    (d, n): rows and unit rows, transposed; rows (n, d): unit rows.
    """
    n, d = rows.shape
    m = v.shape[0]
    before, forces, gradient = spare[0], spare[1], spare[2]
    before[:] = w
    forces[:] = u
    _refine(
        columns, rows, y, v, patterns, on, w, jt, r, active, count, u, height, gradient, misfit,
        lines, spare[3:],
    )  # fmt: skip
    # Constraints that were set aside as implied count again; the working set's are equalities.
    sides[:, :] = patterns
    for k in range(count):
        sides[active[k] // n, active[k] % n] = 0.0
    unit = height / longest + 1e-300  # the size of a weight that matters
    settled = _settle(w, m, unit)
    broken = violations(units, sides, w, 1e-12 * max(unit, reach(w)), lines, found)
    least = 0.0
    for k in range(count):
        least = min(least, u[k])
    if broken >= 0 or least < -1e-12 * height * longest:
        w[:] = before
        u[:] = forces
        settled = True
        _settle(w, m, unit)
        broken = violations(units, sides, w, 1e-12 * max(unit, reach(w)), lines, found)
        if broken >= 0:
            return 1.0
    if settled:
        slope(columns, y, v, on, w, misfit, lines, gradient)
    for k in range(count):
        u[k] = max(u[k], 0.0)
        j, i = active[k] // n, active[k] % n
        factor = u[k] * patterns[j, i]
        for a in range(d):
            gradient[j * d + a] -= factor * rows[i, a]
    total = 0.0
    for e in range(w.shape[0]):
        total += gradient[e]
    if not np.isfinite(total):
        return 1.0
    return reach(gradient) / (longest * height + 1e-300)


@njit(cache=True, nogil=True)
def _settle(w, m, unit):  # type: ignore[no-untyped-def]
    """Units that are rounding are zero: dead. Says whether there were any."""
    d = w.shape[0] // m
    small = 1e-14 * max(unit, reach(w))
    any_changed = False
    for j in range(m):
        own = w[j * d : (j + 1) * d]
        size = reach(own)
        if 0.0 < size <= small:
            own[:] = 0.0
            any_changed = True
    return any_changed


@njit(cache=True, nogil=True)
def solve_programs(start, stop, x, y, v, every, ridge, out_w, out_u, quality):  # type: ignore[no-untyped-def]
    """Minimise ½‖Φw − y‖² with S_j X w_j ≥ 0 for the programs start:stop.

    every (b, m, n): patterns, > 0 or not; out_w (b, m, d), out_u (b, m, n): weights and
    multipliers; quality (b,): relative KKT miss, 1 where the step limit was reached.
    """
    n, d = x.shape
    m = v.shape[0]
    size = m * d
    h, work, jt, r = (np.empty((size, size)), np.empty((size, size)), np.empty((size, size)),
                      np.zeros((size, size)))  # fmt: skip
    q, w, dv, ratio, u, z = (np.empty(size), np.empty(size), np.empty(size), np.empty(size),
                             np.empty(size), np.empty(size))  # fmt: skip
    spare, misfit, lines = np.empty((5, size)), np.empty(n), np.empty((m, n))
    patterns, on, sides = np.empty((m, n)), np.empty((m, n)), np.empty((m, n))
    active, found = np.empty(size, dtype=np.int64), np.empty(m, dtype=np.int64)
    lengths = lengths_of(x)
    rows, units = unit_rows(x, lengths)
    columns = np.ascontiguousarray(x.T)
    moments = moments_of(x, y)
    masks = np.empty((m * (m + 1) // 2, n))
    blocks = np.empty((len(masks), moments.shape[1]))
    height, longest = height_of(y), lengths.max()
    limit = 50 * size + 200
    for program in range(start, stop):
        for j in range(m):
            for i in range(n):
                active_here = every[program, j, i] > 0
                on[j, i] = 1.0 if active_here else 0.0
                patterns[j, i] = 1.0 if active_here else -1.0
                sides[j, i] = patterns[j, i]
                out_u[program, j, i] = 0.0
        assemble(moments, v, on, masks, blocks, h, q)
        ridged_root(h, ridge, work, jt)
        top = unconstrained(jt, q, dv, w)
        count, moves = 0, 0
        while moves < limit:
            count, steps, _ = descend(
                rows, units, patterns, jt, r, w, active, u, sides, count, FEASIBLE * top, dv, ratio,
                z, lines, found,
            )  # fmt: skip
            if steps == 0:
                break
            moves += steps
        quality[program] = finish(
            columns, units, rows, y, v, patterns, on, w, jt, r, active, count, u, sides, longest,
            height, misfit, lines, spare, found,
        )  # fmt: skip
        if moves >= limit:
            quality[program] = 1.0
        for j in range(m):
            for a in range(d):
                out_w[program, j, a] = w[j * d + a]
        for k in range(count):
            out_u[program, active[k] // n, active[k] % n] = u[k] / lengths[active[k] % n]
