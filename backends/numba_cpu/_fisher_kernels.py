"""Compiled loops that write Fisher rows and diagonals from δ and activations.

Contiguous arrays in; results go into ``out``. Each call handles the examples ``start:stop``, so
that calls on disjoint ranges may run at once.
"""

from __future__ import annotations

from numba import njit


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
