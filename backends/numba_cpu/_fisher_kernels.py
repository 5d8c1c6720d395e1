"""Compiled loops of the Fisher kernels: output roots, slopes, rows and diagonals.

Contiguous arrays in; results go into ``out``. Each call handles the examples ``start:stop``, so
that calls on disjoint ranges may run at once.
"""

from __future__ import annotations

from math import exp, sqrt

import numpy as np
from numba import njit

RELU, TANH = 1, 2


@njit(cache=True, nogil=True)
def write_softmax_roots(start, stop, z, out):  # type: ignore[no-untyped-def]
    """U (n, k, C) with UᵀU = diag(p) − ppᵀ, p = softmax(z).

    k = C: row j is √p_j (e_j − p). k = C − 1: these rows reflected by I − 2vvᵀ/‖v‖², v = √p + e_C,
    without the last, which is zero. With ‖v‖² = 2 (1 + √p_C) and Σ_c v_c √p_c (e_c − p) =
    √p_C (e_C − p), row j becomes √p_j (e_j − (p + √p_C e_C)/(1 + √p_C)).
    """
    n_rows, n_classes = out.shape[1], out.shape[2]
    reduced = n_rows < n_classes
    p = np.empty(n_classes)
    for i in range(start, stop):
        largest = z[i, 0]
        for c in range(n_classes):
            largest = max(largest, z[i, c])
        total = 0.0
        for c in range(n_classes):
            p[c] = exp(z[i, c] - largest)
            total += p[c]
        for c in range(n_classes):
            p[c] /= total
        last = sqrt(p[n_classes - 1]) if reduced else 0.0
        for j in range(n_rows):
            root = sqrt(p[j])
            share = root / (1.0 + last)
            row = out[i, j]
            for c in range(n_classes):
                row[c] = -share * p[c]
            row[j] = root - share * p[j]
            if reduced:
                row[n_classes - 1] -= share * last


@njit(cache=True, nogil=True)
def apply_slopes(start, stop, activations, activation, deltas):  # type: ignore[no-untyped-def]
    """δ ← δ ∘ σ'(pre-activation), written in the activation's value; relu'(0) = 0."""
    n_rows, d = deltas.shape[1], deltas.shape[2]
    for i in range(start, stop):
        a = activations[i]
        for j in range(n_rows):
            delta = deltas[i, j]
            if activation == RELU:
                for o in range(d):
                    delta[o] = delta[o] if a[o] > 0 else 0
            elif activation == TANH:
                for o in range(d):
                    delta[o] *= 1 - a[o] * a[o]


@njit(cache=True, nogil=True)
def write_rows(start, stop, deltas, activations, offset, out):  # type: ignore[no-untyped-def]
    """Layer block of every row: δ_jo a_t for the weights, then δ_jo for the biases.

    deltas (n, k, d_out), activations (n, d_in), out (n, k, p); the block begins at ``offset``.
    """
    n_rows, d_out = deltas.shape[1], deltas.shape[2]
    d_in = activations.shape[1]
    for i in range(start, stop):
        a = activations[i]
        for j in range(n_rows):
            delta = deltas[i, j]
            row = out[i, j, offset : offset + d_out * (d_in + 1)]
            for o in range(d_out):
                block = row[o * d_in : (o + 1) * d_in]
                d = delta[o]
                if d == 0:  # an inactive ReLU: nothing to multiply
                    for t in range(d_in):
                        block[t] = 0
                else:
                    for t in range(d_in):
                        block[t] = d * a[t]
            bias = row[d_out * d_in :]
            for o in range(d_out):
                bias[o] = delta[o]


@njit(cache=True, nogil=True)
def write_diagonals(start, stop, deltas, activations, offset, out):  # type: ignore[no-untyped-def]
    """Layer block of every diagonal: q_o a_t² for the weights, then q_o for the biases.

    q_o = Σ_j δ_jo², so that the squared rows are never formed; deltas (n, k, d_out), activations
    (n, d_in), out (n, p).
    """
    n_rows, d_out = deltas.shape[1], deltas.shape[2]
    d_in = activations.shape[1]
    for i in range(start, stop):
        a = activations[i]
        row = out[i, offset : offset + d_out * (d_in + 1)]
        q = row[d_out * d_in :]
        for o in range(d_out):
            q[o] = 0
        for j in range(n_rows):
            delta = deltas[i, j]
            for o in range(d_out):
                q[o] += delta[o] * delta[o]
        for o in range(d_out):
            block = row[o * d_in : (o + 1) * d_in]
            d = q[o]
            if d == 0:
                for t in range(d_in):
                    block[t] = 0
            else:
                for t in range(d_in):
                    block[t] = d * (a[t] * a[t])


@njit(cache=True, nogil=True)
def write_square_sums(start, stop, deltas, out):  # type: ignore[no-untyped-def]
    """q_io = Σ_c δ_ico²: deltas (n, k, d) → out (n, d), summed over classes in order."""
    n_rows, d = deltas.shape[1], deltas.shape[2]
    for i in range(start, stop):
        q = out[i]
        for o in range(d):
            q[o] = 0
        for j in range(n_rows):
            delta = deltas[i, j]
            for o in range(d):
                q[o] += delta[o] * delta[o]
