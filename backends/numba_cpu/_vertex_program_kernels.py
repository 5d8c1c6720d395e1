"""Compiled dual active-set method (Goldfarb & Idnani 1983) for the convex program of a vertex.

A constraint (j, i), s_ji x_i·w_j ≥ 0, touches only the d entries of its unit.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_SPAN = 1e-14


@njit(cache=True, nogil=True)
def _assemble(x, y, v, patterns, h, q):  # type: ignore[no-untyped-def]
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
def _inverse_root(h, jt):  # type: ignore[no-untyped-def]
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
def _rotate(jt, p, q, c, s):  # type: ignore[no-untyped-def]
    one, two = jt[p], jt[q]
    for e in range(jt.shape[1]):
        a, b = one[e], two[e]
        one[e] = c * a + s * b
        two[e] = -s * a + c * b


@njit(cache=True, nogil=True)
def _drop(jt, r, active, u, at, count):  # type: ignore[no-untyped-def]
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
        _rotate(jt, k, k + 1, c, s)


@njit(cache=True, nogil=True)
def _refine(x, y, v, patterns, w, jt, r, active, count, u):  # type: ignore[no-untyped-def]
    """Newton steps on the working set with the true residual: they take the ridge's bias off.

    Jᵀ G_Aᵀ = [R; 0], so J₂J₂ᵀ inverts the Hessian on the null space of the working set, J₁R⁻ᵀ
    repairs the constraints, and R⁻¹J₁ᵀ∇ are the multipliers.
    """
    n, d = x.shape
    m, size = v.shape[0], w.shape[0]
    gradient, reduced, step = np.empty(size), np.empty(size), np.empty(size)
    for turn in range(3):
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
def _most_violated(x, lengths, patterns, w, working, tol):  # type: ignore[no-untyped-def]
    n, d = x.shape
    m = patterns.shape[0]
    worst, which, value = -tol, -1, 0.0
    scale = 0.0
    for e in range(w.shape[0]):
        scale = max(scale, abs(w[e]))
    if scale == 0.0:
        return -1, 0.0
    for j in range(m):
        for i in range(n):
            total = 0.0
            for a in range(d):
                total += x[i, a] * w[j * d + a]
            total *= patterns[j, i]
            relative = total / (lengths[i] * scale)
            if relative < worst and working[j * n + i] == 0:
                worst, which, value = relative, j * n + i, total
    return which, value


@njit(cache=True, nogil=True)
def solve_programs(start, stop, x, y, v, every, ridge, out_w, out_u, steps):  # type: ignore[no-untyped-def]
    """Minimise ½‖Φw − y‖² with S_j X w_j ≥ 0 for the programs start:stop.

    every (b, m, n): patterns as ±1; out_w (b, m, d), out_u (b, m, n): weights and multipliers;
    steps (b,): constraints added, or −1 where the limit was reached.
    """
    n, d = x.shape
    m = v.shape[0]
    size = m * d
    h, jt, r = np.empty((size, size)), np.empty((size, size)), np.zeros((size, size))
    q, w, z = np.empty(size), np.empty(size), np.empty(size)
    dv, ratio, u = np.empty(size), np.empty(size), np.empty(size)
    before, forces = np.empty(size), np.empty(size)
    active = np.empty(size, dtype=np.int64)
    working = np.zeros(m * n, dtype=np.int8)
    lengths = np.empty(n)
    for i in range(n):
        total = 0.0
        for a in range(d):
            total += x[i, a] * x[i, a]
        lengths[i] = np.sqrt(total) if total > 0 else 1.0
    limit = 50 * size + 200
    for program in range(start, stop):
        patterns = every[program]
        trace = _assemble(x, y, v, patterns, h, q)
        for a in range(size):
            h[a, a] += ridge * trace / size + 1e-290
        _inverse_root(h, jt)
        for k in range(size):
            total = 0.0
            for e in range(k + 1):
                total += jt[k, e] * q[e]
            dv[k] = total
        w[:] = 0.0
        for k in range(size):
            for e in range(k + 1):
                w[e] += jt[k, e] * dv[k]
        working[:] = 0
        count, moves = 0, 0
        while moves < limit:
            which, value = _most_violated(x, lengths, patterns, w, working, 1e-13)
            if which < 0:
                break
            moves += 1
            j, i = which // n, which % n
            fresh = 0.0
            while True:
                whole, free = 0.0, 0.0
                for k in range(size):
                    total = 0.0
                    for a in range(d):
                        total += jt[k, j * d + a] * x[i, a]
                    dv[k] = total * patterns[j, i]
                    whole += dv[k] * dv[k]
                    if k >= count:
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
                primal = -value / free if free > _SPAN * whole else np.inf
                step = min(dual, primal)
                if step == np.inf:
                    working[which] = 2  # implied by the working set up to rounding
                    break
                for k in range(count):
                    u[k] = max(0.0, u[k] - step * ratio[k])
                fresh += step
                if primal < np.inf:
                    z[:] = 0.0
                    for k in range(count, size):
                        for e in range(size):
                            z[e] += dv[k] * jt[k, e]
                    for e in range(size):
                        w[e] += step * z[e]
                    value += step * free
                if primal <= dual:
                    for k in range(size - 1, count, -1):
                        a, b = dv[k - 1], dv[k]
                        length = np.hypot(a, b)
                        if b != 0.0:
                            _rotate(jt, k - 1, k, a / length, b / length)
                            dv[k - 1], dv[k] = length, 0.0
                    for k in range(count + 1):
                        r[k, count] = dv[k]
                    active[count], u[count] = which, fresh
                    working[which] = 1
                    count += 1
                    break
                working[active[at]] = 0
                _drop(jt, r, active, u, at, count)
                count -= 1
        steps[program] = moves if moves < limit else -1
        before[:] = w
        forces[:] = u
        _refine(x, y, v, patterns, w, jt, r, active, count, u)
        for k in range(m * n):
            if working[k] == 1:
                continue
            working[k] = 0
        broken, _ = _most_violated(x, lengths, patterns, w, working, 1e-10)
        if broken >= 0:
            w[:] = before
            u[:] = forces
        for j in range(m):
            for a in range(d):
                out_w[program, j, a] = w[j * d + a]
            for i in range(n):
                out_u[program, j, i] = 0.0
        for k in range(count):
            out_u[program, active[k] // n, active[k] % n] = u[k]
