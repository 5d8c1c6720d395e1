"""Pieces of the dual active-set method (Goldfarb & Idnani 1983) for the program of a vertex.

A constraint (j, i), s_ji x_i·w_j ≥ 0, touches only the d entries of its unit.
"""

from __future__ import annotations

import numpy as np
from numba import njit

SPAN = 1e-14


@njit(cache=True, nogil=True)
def assemble(x, y, v, patterns, h, q):  # type: ignore[no-untyped-def]
    """H = ΦᵀΦ and q = Φᵀy for Φ = [v_1 A_1 X, …, v_m A_m X]; returns the trace of H."""
    n, d = x.shape
    m = v.shape[0]
    h[:, :] = 0.0
    q[:] = 0.0
    on = np.empty(m, dtype=np.int64)
    for i in range(n):
        count = 0
        for j in range(m):
            if patterns[j, i] > 0:
                on[count] = j
                count += 1
        row = x[i]
        for p in range(count):
            j = on[p]
            for a in range(d):
                scaled = v[j] * row[a]
                q[j * d + a] += scaled * y[i]
                target = h[j * d + a]
                for r in range(p + 1):
                    k = on[r]
                    factor = scaled * v[k]
                    for b in range(d):
                        target[k * d + b] += factor * row[b]
    trace = 0.0
    size = m * d
    for a in range(size):
        trace += h[a, a]
        for b in range(a):
            h[b, a] = h[a, b]
    return trace


@njit(cache=True, nogil=True)
def inverse_root(h, jt):  # type: ignore[no-untyped-def]
    """Overwrite ``h`` by its Cholesky factor L and ``jt`` by L⁻¹, so that H⁻¹ = jtᵀ jt."""
    size = h.shape[0]
    for k in range(size):
        for c in range(k + 1):
            total = h[k, c]
            for e in range(c):
                total -= h[k, e] * h[c, e]
            h[k, c] = np.sqrt(max(total, 1e-300)) if c == k else total / h[c, c]
    jt[:, :] = 0.0
    for k in range(size):
        for c in range(k):
            factor = h[k, c]
            for e in range(c + 1):
                jt[k, e] -= factor * jt[c, e]
        jt[k, k] = 1.0
        inverse = 1.0 / h[k, k]
        for e in range(k + 1):
            jt[k, e] *= inverse


@njit(cache=True, nogil=True)
def rotate(jt, p, q, c, s):  # type: ignore[no-untyped-def]
    one, two = jt[p], jt[q]
    for e in range(jt.shape[1]):
        a, b = one[e], two[e]
        one[e] = c * a + s * b
        two[e] = -s * a + c * b


@njit(cache=True, nogil=True)
def drop(jt, r, active, u, at, count):  # type: ignore[no-untyped-def]
    """Take constraint number ``at`` out of the working set of ``count``."""
    for k in range(at, count - 1):
        active[k] = active[k + 1]
        u[k] = u[k + 1]
        for e in range(k + 2):
            r[e, k] = r[e, k + 1]
    for k in range(at, count - 1):
        a, b = r[k, k], r[k + 1, k]
        length = np.hypot(a, b)
        if length == 0.0:
            continue
        c, s = a / length, b / length
        for e in range(k, count - 1):
            top, low = r[k, e], r[k + 1, e]
            r[k, e] = c * top + s * low
            r[k + 1, e] = -s * top + c * low
        rotate(jt, k, k + 1, c, s)


@njit(cache=True, nogil=True)
def slope(x, y, v, patterns, w, gradient):  # type: ignore[no-untyped-def]
    """Write Φᵀ(Φw − y) into ``gradient``."""
    n, d = x.shape
    m = v.shape[0]
    gradient[:] = 0.0
    for i in range(n):
        misfit = -y[i]
        for j in range(m):
            if patterns[j, i] > 0:
                total = 0.0
                for a in range(d):
                    total += x[i, a] * w[j * d + a]
                misfit += v[j] * total
        for j in range(m):
            if patterns[j, i] > 0:
                for a in range(d):
                    gradient[j * d + a] += v[j] * misfit * x[i, a]


@njit(cache=True, nogil=True)
def refine(x, y, v, patterns, w, jt, r, active, count, u):  # type: ignore[no-untyped-def]
    """Newton steps on the working set with the true residual: they take the ridge's bias off.

    Jᵀ G_Aᵀ = [R; 0], so J₂J₂ᵀ inverts the Hessian on the null space of the working set, J₁R⁻ᵀ
    repairs the constraints, and R⁻¹J₁ᵀ∇ are the multipliers.
    """
    n, d = x.shape
    size = w.shape[0]
    gradient, reduced, step = np.empty(size), np.empty(size), np.empty(size)
    for turn in range(3):
        slope(x, y, v, patterns, w, gradient)
        for k in range(size):
            total = 0.0
            for e in range(size):
                total += jt[k, e] * gradient[e]
            reduced[k] = total
        if turn == 2:
            break
        for k in range(count):  # R⁻ᵀ times the violations of the working set
            j, i = active[k] // n, active[k] % n
            total = 0.0
            for a in range(d):
                total += x[i, a] * w[j * d + a]
            total *= patterns[j, i]
            for e in range(k):
                total -= r[e, k] * step[e]
            step[k] = total / r[k, k]
        for k in range(count, size):
            step[k] = reduced[k]
        for k in range(size):
            for e in range(size):
                w[e] -= step[k] * jt[k, e]
    for k in range(count - 1, -1, -1):
        total = reduced[k]
        for e in range(k + 1, count):
            total -= r[k, e] * u[e]
        u[k] = total / r[k, k]


@njit(cache=True, nogil=True)
def most_violated(x, lengths, patterns, w, working, tol):  # type: ignore[no-untyped-def]
    """The constraint outside the working set that w breaks most, if by more than ``tol``.

    Violations count in units of ‖x_i‖; ``tol`` is absolute, so that a vanishing w ends the search.
    """
    n, d = x.shape
    m = patterns.shape[0]
    worst, which, value = -tol, -1, 0.0
    for j in range(m):
        for i in range(n):
            if working[j * n + i] != 0:
                continue
            total = 0.0
            for a in range(d):
                total += x[i, a] * w[j * d + a]
            total *= patterns[j, i]
            if total < worst * lengths[i]:
                worst, which, value = total / lengths[i], j * n + i, total
    return which, value


@njit(cache=True, nogil=True)
def sides_of(x, patterns, jt, which, dv):  # type: ignore[no-untyped-def]
    """Write Jᵀg of one constraint into ``dv`` and return its square; O(d) a row of jt."""
    n, d = x.shape
    j, i = which // n, which % n
    whole = 0.0
    for k in range(jt.shape[0]):
        total = 0.0
        for a in range(d):
            total += jt[k, j * d + a] * x[i, a]
        dv[k] = total * patterns[j, i]
        whole += dv[k] * dv[k]
    return whole


@njit(cache=True, nogil=True)
def add(jt, r, dv, active, u, which, fresh, count):  # type: ignore[no-untyped-def]
    """Put a constraint with sides dv into the working set of ``count``."""
    for k in range(dv.shape[0] - 1, count, -1):
        a, b = dv[k - 1], dv[k]
        if b != 0.0:
            length = np.hypot(a, b)
            rotate(jt, k - 1, k, a / length, b / length)
            dv[k - 1], dv[k] = length, 0.0
    for k in range(count + 1):
        r[k, count] = dv[k]
    active[count], u[count] = which, fresh


@njit(cache=True, nogil=True)
def enter(x, patterns, jt, r, w, active, u, working, which, value, count, dv, ratio):  # type: ignore[no-untyped-def]
    """Bring one violated constraint into the working set, dropping others on the way.

    Returns the new size of the working set and by how much the dual objective rose.
    """
    size = w.shape[0]
    fresh, gain = 0.0, 0.0
    while True:
        whole = sides_of(x, patterns, jt, which, dv)
        free = 0.0
        for k in range(count, size):
            free += dv[k] * dv[k]
        for k in range(count - 1, -1, -1):
            total = dv[k]
            for e in range(k + 1, count):
                total -= r[k, e] * ratio[e]
            ratio[k] = total / r[k, k]
        dual, at = np.inf, -1
        for k in range(count):
            if ratio[k] > 0.0 and u[k] / ratio[k] < dual:
                dual, at = u[k] / ratio[k], k
        primal = -value / free if free > SPAN * whole else np.inf
        step = min(dual, primal)
        if step == np.inf:
            working[which] = 2  # implied by the working set up to rounding
            return count, gain
        for k in range(count):
            u[k] = max(0.0, u[k] - step * ratio[k])
        if primal < np.inf:
            gain += step * free * (0.5 * step + fresh)
            for k in range(count, size):
                factor = step * dv[k]
                for e in range(size):
                    w[e] += factor * jt[k, e]
            value += step * free
        fresh += step
        if primal <= dual:
            add(jt, r, dv, active, u, which, fresh, count)
            working[which] = 1
            return count + 1, gain
        working[active[at]] = 0
        drop(jt, r, active, u, at, count)
        count -= 1


@njit(cache=True, nogil=True)
def kkt_of(x, v, y, patterns, w, lengths, active, count, u, gradient):  # type: ignore[no-untyped-def]
    """max|Φᵀr − Gᵀμ|, for the residual of w itself; ``gradient`` is workspace."""
    n, d = x.shape
    m = v.shape[0]
    slope(x, y, v, patterns, w, gradient)
    for k in range(count):
        j, i = active[k] // n, active[k] % n
        for a in range(d):
            gradient[j * d + a] -= u[k] * patterns[j, i] * x[i, a]
    worst = 0.0
    for k in range(m * d):
        worst = max(worst, abs(gradient[k]))
    return worst
