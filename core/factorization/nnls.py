"""Exact non-negative least squares for many right-hand sides with one Gram: block pivoting.

min_w wᵀHw − 2nᵀw over w ≥ 0 for every row n of N. A guess which coefficients are positive gives w
by a linear system; those that come out negative, and those outside with a negative gradient, change
sides at once, and one at a time where that does not get ahead. Rows with the same guess share the
solve. At the end w ≥ 0, ∇ ≥ 0 and w∘∇ = 0 up to rounding, which only the optimum has.

Source: Portugal, Júdice & Vicente 1994; Kim & Park 2011.
"""

from __future__ import annotations

import numpy as np

from ..types import FloatArray

# Rounds in which the number of wrong guesses may fail to fall before one changes at a time.
PATIENCE = 3
MOST_ROUNDS = 400
TOL = 1e-12


def exact_nnls(gram: FloatArray, targets: FloatArray, start: FloatArray) -> FloatArray:
    """W (n, r) from a good ``start``, whose positive entries are the first guess.

    Parameters
    ----------
    gram : float64 array (r, r), positive semidefinite
    targets : float64 array (n, r)
    start : float64 array (n, r) ≥ 0

    Returns
    -------
    float64 array (n, r)
        Rows for which the exchange does not end (dependent components, whose optimum is not
        unique) keep their start.
    """
    n, r = targets.shape
    out = start.copy()
    if not n or not r:
        return out
    size = np.abs(targets).max(axis=1, keepdims=True)
    scale = np.sqrt(np.maximum(np.diag(gram), 0.0))
    used = scale > 0.0
    inside = (start > 1e-9 * start.max(axis=1, keepdims=True)) & used
    open_rows = np.arange(n)
    fewest = np.full(n, r + 1)
    patience = np.full(n, PATIENCE)
    for _ in range(MOST_ROUNDS):
        w, gradient = _solved(gram, targets[open_rows], inside[open_rows])
        floor_w = TOL * np.abs(w).max(axis=1, keepdims=True)
        floor_g = TOL * np.maximum(size[open_rows], 1e-300) * r
        wrong = (inside[open_rows] & (w < -floor_w)) | (
            ~inside[open_rows] & (gradient < -floor_g) & used
        )
        count = wrong.sum(axis=1)
        done = count == 0
        out[open_rows[done]] = np.maximum(w[done], 0.0)
        open_rows, wrong, count = open_rows[~done], wrong[~done], count[~done]
        if not len(open_rows):
            break
        better = count < fewest[open_rows]
        fewest[open_rows[better]] = count[better]
        patience[open_rows[better]] = PATIENCE
        patience[open_rows[~better]] -= 1
        single = patience[open_rows] < 0
        last = r - 1 - np.argmax(wrong[:, ::-1], axis=1)
        one = np.zeros_like(wrong)
        one[np.arange(len(one)), last] = True
        inside[open_rows] ^= np.where(single[:, None], one, wrong)
    return out


def _solved(
    gram: FloatArray, targets: FloatArray, inside: np.ndarray[tuple[int, int], np.dtype[np.bool_]]
) -> tuple[FloatArray, FloatArray]:
    """W that solves each row's system on its positive set, and half the gradient Hw − n."""
    w = np.zeros_like(targets)
    sets, which = np.unique(inside, axis=0, return_inverse=True)
    order = np.argsort(which.reshape(-1), kind="stable")
    edges = np.concatenate([[0], np.cumsum(np.bincount(which.reshape(-1), minlength=len(sets)))])
    for number, chosen in enumerate(sets):
        rows = order[edges[number] : edges[number + 1]]
        columns = np.flatnonzero(chosen)
        if not len(columns):
            continue
        part = gram[np.ix_(columns, columns)]
        right = targets[np.ix_(rows, columns)].T
        try:
            found = np.linalg.solve(part, right)
        except np.linalg.LinAlgError:
            found = np.linalg.lstsq(part, right, rcond=None)[0]
        w[np.ix_(rows, columns)] = found.T
    return w, w @ gram - targets
