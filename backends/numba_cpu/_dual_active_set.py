"""Pieces of the dual active-set method (Goldfarb & Idnani 1983) for the program of a vertex.

A constraint (j, i), s_ji x_i·w_j ≥ 0, touches only the d entries of its unit; rows x_i enter with
length 1. ``jt`` is Jᵀ with JᵀHJ = I; its first rows and the triangle R belong to the working set
G_A: JᵀG_Aᵀ = [R; 0]. ``r`` holds R by columns, r[k] = R[:k+1, k], with 1/R_kk in the place of R_kk.
Inner loops run over the long contiguous axis, so that the compiler makes
vector instructions of them; sums may be taken in any order there. Helpers take whole arrays and
the number of a row: a slice would cost two counts of references, as much as the loop.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

SPAN = 1e-14
# Pivots below this share of the mean diagonal make the ridge worth its bias.
_REGULAR = 1e-7
# Sums and products in any order; nothing is assumed about NaN or infinities.
_ORDER = {"reassoc", "contract", "nsz"}
_MINUS_ZERO = np.uint64(1 << 63)

# Numba counts references to every array that a function is handed, which took a third of the time
# of these short loops. Functions that neither make an array nor take a slice of one need no counts
# (numba refuses to compile others so).
LEAN: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False}


@njit(**LEAN)
def clear(vector):  # type: ignore[no-untyped-def]
    """Write zeros."""
    for e in range(vector.shape[0]):
        vector[e] = 0.0


@njit(**LEAN)
def copy(source, target):  # type: ignore[no-untyped-def]
    """Write a vector into another."""
    for e in range(source.shape[0]):
        target[e] = source[e]


@njit(**LEAN)
def copy_rows(source, target):  # type: ignore[no-untyped-def]
    """Write a matrix into another."""
    for k in range(source.shape[0]):
        for e in range(source.shape[1]):
            target[k, e] = source[k, e]


@njit(fastmath=_ORDER, **LEAN)
def _row_to_row(factor, source, k, target, c, start, stop):  # type: ignore[no-untyped-def]
    for e in range(start, stop):
        target[c, e] += factor * source[k, e]


@njit(fastmath=_ORDER, **LEAN)
def _row_to_vector(factor, source, k, target):  # type: ignore[no-untyped-def]
    for e in range(target.shape[0]):
        target[e] += factor * source[k, e]


@njit(fastmath=_ORDER, **LEAN)
def _vector_to_row(factor, source, target, k):  # type: ignore[no-untyped-def]
    for e in range(source.shape[0]):
        target[k, e] += factor * source[e]


@njit(fastmath=_ORDER, **LEAN)
def _row_dot(rows, k, vector):  # type: ignore[no-untyped-def]
    total = 0.0
    for e in range(vector.shape[0]):
        total += rows[k, e] * vector[e]
    return total


@njit(fastmath=_ORDER, **LEAN)
def square_of(vector, start):  # type: ignore[no-untyped-def]
    """Σ_{e ≥ start} vector_e²."""
    total = 0.0
    for e in range(start, vector.shape[0]):
        total += vector[e] * vector[e]
    return total


@njit(**LEAN)
def inverse_root(h, jt):  # type: ignore[no-untyped-def]
    """Overwrite the upper triangle of ``h`` by Lᵀ, H = LLᵀ, and ``jt`` by L⁻¹: H⁻¹ = jtᵀ jt.

    Returns the smallest pivot, which is small where H is nearly singular.
    """
    size = h.shape[0]
    for k in range(size):
        for e in range(size):
            jt[k, e] = 0.0
        jt[k, k] = 1.0
    least = np.inf
    for k in range(size):
        pivot = h[k, k]
        least = min(least, pivot)
        inverse = 1.0 / np.sqrt(pivot if pivot > 1e-300 else 1e-300)
        for e in range(k, size):
            h[k, e] *= inverse
        for e in range(k + 1):
            jt[k, e] *= inverse
        for c in range(k + 1, size):
            factor = -h[k, c]
            if factor != 0.0:
                _row_to_row(factor, h, k, h, c, c, size)
                _row_to_row(factor, jt, k, jt, c, 0, k + 1)
    return least


@njit(**LEAN)
def ridged_root(h, ridge, work, jt):  # type: ignore[no-untyped-def]
    """As :func:`inverse_root` of H + shift·I, in ``work``; returns the shift.

    That is 1e-4 of the ridge where the pivots show that H is far from singular: the optimum is then
    that of the program but for rounding. ``ridge`` is relative to the mean diagonal.
    """
    size = h.shape[0]
    mean = 0.0
    for e in range(size):
        mean += h[e, e]
    mean /= size
    shift = 1e-4 * ridge * mean + 1e-290
    for _ in range(2):
        for a in range(size):
            for b in range(a, size):
                work[a, b] = h[a, b]
            work[a, a] += shift
        if inverse_root(work, jt) > _REGULAR * mean:
            break
        shift = ridge * mean + 1e-290
    return shift


@njit(**LEAN)
def times_rows(jt, vector, out):  # type: ignore[no-untyped-def]
    """The product of ``jt`` and a vector."""
    for k in range(jt.shape[0]):
        out[k] = _row_dot(jt, k, vector)


@njit(**LEAN)
def add_rows(jt, factors, start, stop, scale, out):  # type: ignore[no-untyped-def]
    """Add scale · Σ_k factors_k jt_k over k = start:stop to ``out``."""
    for k in range(start, stop):
        _row_to_vector(scale * factors[k], jt, k, out)


@njit(**LEAN)
def unconstrained(jt, q, dv, w):  # type: ignore[no-untyped-def]
    """Write H⁻¹q into ``w``; returns the largest modulus."""
    times_rows(jt, q, dv)
    clear(w)
    add_rows(jt, dv, 0, w.shape[0], 1.0, w)
    return reach(w)


@njit(**LEAN)
def reach(w):  # type: ignore[no-untyped-def]
    """The largest modulus."""
    top = 0.0
    for e in range(w.shape[0]):
        top = max(top, abs(w[e]))
    return top


@njit(fastmath=_ORDER, **LEAN)
def _products(columns, w, first, out, j):  # type: ignore[no-untyped-def]
    """out_j = x_i·w_j for all rows, columns (d, n), w_j = w[first:first + d]; four at a time."""
    d, n = columns.shape
    if d >= 4:
        f1, f2, f3, f4 = w[first], w[first + 1], w[first + 2], w[first + 3]
        for i in range(n):
            out[j, i] = (
                f1 * columns[0, i] + f2 * columns[1, i] + f3 * columns[2, i] + f4 * columns[3, i]
            )
        a = 4
    else:
        f1 = w[first]
        for i in range(n):
            out[j, i] = f1 * columns[0, i]
        a = 1
    while a + 2 <= d:
        f1, f2 = w[first + a], w[first + a + 1]
        for i in range(n):
            out[j, i] += f1 * columns[a, i] + f2 * columns[a + 1, i]
        a += 2
    if a < d:
        f1 = w[first + a]
        for i in range(n):
            out[j, i] += f1 * columns[a, i]


@njit(fastmath=_ORDER, **LEAN)
def _times_signs(values, signs, j):  # type: ignore[no-untyped-def]
    for i in range(values.shape[1]):
        values[j, i] *= signs[j, i]


@njit(**LEAN)
def _largest_bits(bits, j):  # type: ignore[no-untyped-def]
    top = np.uint64(0)
    for i in range(bits.shape[1]):
        top = max(top, bits[j, i])
    return top


@njit(**LEAN)
def violations(columns, sides, w, tol, products, found):  # type: ignore[no-untyped-def]
    """Each unit's most violated constraint into ``found`` (m,), −1 where none is by ``tol``.

    Returns the unit of the worst, −1 if there is none. sides (m, n): signs, 0 for constraints that
    do not count; columns (d, n): unit rows, transposed; products (m, n) is workspace. The most
    negative float64 has the largest bits, read as an unsigned integer: unlike that of floats, the
    maximum of integers compiles to vector instructions.
    """
    d, n = columns.shape
    bits = products.view(np.uint64)
    worst, unit = -tol, -1
    for j in range(sides.shape[0]):
        _products(columns, w, j * d, products, j)
        _times_signs(products, sides, j)
        top = _largest_bits(bits, j)
        found[j] = -1
        if top < _MINUS_ZERO:
            continue
        for i in range(n):
            if bits[j, i] == top:
                if products[j, i] < -tol:
                    found[j] = i
                    if products[j, i] < worst:
                        worst, unit = products[j, i], j
                break
    return unit


@njit(**LEAN)
def value_at(rows, sides, w, j, i):  # type: ignore[no-untyped-def]
    """s_ji x_i·w_j, 0 for a constraint that does not count."""
    d = rows.shape[1]
    total = 0.0
    for a in range(d):
        total += rows[i, a] * w[j * d + a]
    return total * sides[j, i]


@njit(**LEAN)
def descend(  # type: ignore[no-untyped-def]
    rows, columns, patterns, jt, r, w, active, u, sides, count, tol, dv, ratio, z, products,
    found,
):  # fmt: skip
    """Bring in the worst constraint, and those of other units that are broken after that.

    One look over all constraints serves several dual steps. Returns the size of the working set,
    the number of steps, 0 if nothing is broken, and by how much the dual objective rose.
    """
    worst = violations(columns, sides, w, tol, products, found)
    if worst < 0:
        return count, 0, 0.0
    n, m = rows.shape[0], sides.shape[0]
    steps, total = 0, 0.0
    for turn in range(m):
        j = (worst + turn) % m
        if found[j] < 0:
            continue
        value = value_at(rows, sides, w, j, found[j])
        if value < -tol:
            count, gain = enter(
                rows, patterns, jt, r, w, active, u, sides, j * n + found[j], value, count, dv,
                ratio, z,
            )  # fmt: skip
            steps += 1
            total += gain
    return count, max(steps, 1), total


@njit(**LEAN)
def slope(columns, y, v, on, w, misfit, products, gradient):  # type: ignore[no-untyped-def]
    """Write Φw − y into ``misfit`` and Φᵀ(Φw − y) into ``gradient``; returns the loss.

    columns (d, n): the rows themselves, transposed; products (m, n) is workspace.
    """
    d = columns.shape[0]
    loss = loss_at(columns, y, v, on, w, misfit, products)
    for j in range(v.shape[0]):
        for a in range(d):
            gradient[j * d + a] = v[j] * _masked_dot(columns, a, on, j, misfit)
    return loss


@njit(fastmath=_ORDER, **LEAN)
def _masked_dot(columns, a, on, j, misfit):  # type: ignore[no-untyped-def]
    total = 0.0
    for i in range(misfit.shape[0]):
        total += columns[a, i] * (on[j, i] * misfit[i])
    return total


@njit(fastmath=_ORDER, **LEAN)
def _add_masked(factor, mask, values, j, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        out[i] += factor * (mask[j, i] * values[j, i])


@njit(**LEAN)
def loss_at(columns, y, v, on, w, misfit, products):  # type: ignore[no-untyped-def]
    """½‖Φw − y‖²."""
    d, n = columns.shape
    for i in range(n):
        misfit[i] = -y[i]
    for j in range(v.shape[0]):
        _products(columns, w, j * d, products, j)
        _add_masked(v[j], on, products, j, misfit)
    return 0.5 * square_of(misfit, 0)


@njit(**LEAN)
def sides_of(rows, patterns, jt, which, dv):  # type: ignore[no-untyped-def]
    """Write Jᵀg of one constraint into ``dv`` and return its square; O(d) a row of jt."""
    n, d = rows.shape
    j, i = which // n, which % n
    sign, first = patterns[j, i], j * d
    if d >= 4:
        g1, g2, g3, g4 = rows[i, 0], rows[i, 1], rows[i, 2], rows[i, 3]
        for k in range(jt.shape[0]):
            total = (
                g1 * jt[k, first]
                + g2 * jt[k, first + 1]
                + g3 * jt[k, first + 2]
                + g4 * jt[k, first + 3]
            )
            for a in range(4, d):
                total += jt[k, first + a] * rows[i, a]
            dv[k] = total * sign
    else:
        for k in range(jt.shape[0]):
            total = 0.0
            for a in range(d):
                total += jt[k, first + a] * rows[i, a]
            dv[k] = total * sign
    return square_of(dv, 0)


@njit(fastmath=_ORDER, **LEAN)
def triangle_solve(r, right, count, out):  # type: ignore[no-untyped-def]
    """R⁻¹ right for the leading ``count`` rows, column by column."""
    for k in range(count):
        out[k] = right[k]
    for k in range(count - 1, -1, -1):
        value = out[k] * r[k, k]
        out[k] = value
        for e in range(k):
            out[e] -= value * r[k, e]


@njit(**LEAN)
def drop(jt, r, active, u, at, count):  # type: ignore[no-untyped-def]
    """Take constraint number ``at`` out of the working set of ``count``."""
    for k in range(at, count - 1):
        active[k] = active[k + 1]
        u[k] = u[k + 1]
        for e in range(k + 1):
            r[k, e] = r[k + 1, e]
        r[k, k + 1] = 1.0 / r[k + 1, k + 1]
    for k in range(at, count - 1):
        a, b = r[k, k], r[k, k + 1]
        length = np.sqrt(a * a + b * b)
        if length == 0.0:
            continue
        c, s = a / length, b / length
        r[k, k] = 1.0 / length
        for e in range(k + 1, count - 1):
            top, low = r[e, k], r[e, k + 1]
            r[e, k] = c * top + s * low
            r[e, k + 1] = c * low - s * top
        _rotate(jt, k, c, s)


@njit(fastmath=_ORDER, **LEAN)
def _rotate(rows, k, c, s):  # type: ignore[no-untyped-def]
    for e in range(rows.shape[1]):
        a, b = rows[k, e], rows[k + 1, e]
        rows[k, e] = c * a + s * b
        rows[k + 1, e] = c * b - s * a


@njit(**LEAN)
def add(jt, r, dv, active, u, which, fresh, count, z):  # type: ignore[no-untyped-def]
    """Put a constraint with sides dv into the working set of ``count``.

    One reflection of the free rows of jt takes dv[count:] to its first entry. z = Σ_k≥count dv_k
    jt_k comes in and is spent.
    """
    size = dv.shape[0]
    length = np.sqrt(square_of(dv, count))
    head = dv[count]
    tip = -length if head > 0.0 else length
    # v = dv − tip e, and 2/(vᵀv) = 1/(length (length + |head|)).
    if length > 0.0:
        weight = 1.0 / (length * (length + abs(head)))
        _row_to_vector(-tip, jt, count, z)
        _vector_to_row(-weight * (head - tip), z, jt, count)
        for k in range(count + 1, size):
            _vector_to_row(-weight * dv[k], z, jt, k)
    for k in range(count):
        r[count, k] = dv[k]
    r[count, count] = 1.0 / tip if tip != 0.0 else 0.0
    active[count], u[count] = which, fresh


@njit(**LEAN)
def enter(rows, patterns, jt, r, w, active, u, sides, which, value, count, dv, ratio, z):  # type: ignore[no-untyped-def]
    """Bring one violated constraint into the working set, dropping others on the way.

    ``value`` < 0 is what it has at w. Returns the new size of the working set and by how much the
    dual objective rose.
    """
    n, size = rows.shape[0], w.shape[0]
    fresh, gain = 0.0, 0.0
    while True:
        whole = sides_of(rows, patterns, jt, which, dv)
        free = square_of(dv, count)
        triangle_solve(r, dv, count, ratio)
        dual, at = np.inf, -1
        for k in range(count):
            if ratio[k] > 0.0 and u[k] < dual * ratio[k]:
                dual, at = u[k] / ratio[k], k
        primal = -value / free if free > SPAN * whole else np.inf
        step = min(dual, primal)
        if step == np.inf:
            sides[which // n, which % n] = 0.0  # implied by the working set up to rounding
            return count, gain
        for k in range(count):
            u[k] = max(0.0, u[k] - step * ratio[k])
        if primal < np.inf:
            gain += step * free * (0.5 * step + fresh)
            clear(z)
            add_rows(jt, dv, count, size, 1.0, z)
            for e in range(size):
                w[e] += step * z[e]
            value += step * free
        fresh += step
        if primal <= dual:
            add(jt, r, dv, active, u, which, fresh, count, z)
            sides[which // n, which % n] = 0.0
            return count + 1, gain
        gone = active[at]
        sides[gone // n, gone % n] = patterns[gone // n, gone % n]
        drop(jt, r, active, u, at, count)
        count -= 1
