"""Factors of a given sparseness, by exact coordinate descent under Hoyer's measure.

sparseness(x) = (√d − ‖x‖₁/‖x‖₂)/(√d − 1): 0 for equal entries, 1 for a single one. With the other
components fixed, the best h_k ≥ 0 of sparseness s is h_k = max(0, ⟨u, c⟩)u, where c is the
unconstrained optimum and u the unit vector of that sparseness that maximises ⟨u, c⟩. That u is
proportional to max(0, c − μ), and μ solves a quadratic equation for each possible number of
non-zero entries, so one sort gives it. No step can raise the loss.

Source: the measure, Hoyer 2004, "Non-negative matrix factorization with sparseness constraints";
the thresholding, Thom & Palm 2013; its use inside coordinate descent is ours.
"""

from __future__ import annotations

import numpy as np

from ..types import FloatArray


def sparseness(x: FloatArray) -> float:
    """Hoyer's measure of a vector (d,), 0 to 1; that of a zero vector is 1.

    Examples
    --------
    >>> sparseness(np.array([0.0, 2.0, 0.0])), sparseness(np.ones(4))
    (1.0, 0.0)
    """
    norm = float(np.linalg.norm(x))
    if norm == 0.0 or len(x) == 1:
        return 1.0
    root = len(x) ** 0.5
    return float((root - np.abs(x).sum() / norm) / (root - 1.0))


def most_aligned(c: FloatArray, target: float) -> FloatArray:
    """The unit vector u ≥ 0 (d,) of sparseness ``target`` with the largest ⟨u, c⟩.

    Where the largest entries of ``c`` are equal and more than the sparseness allows, the first of
    them are taken.
    """
    d = len(c)
    ell = d**0.5 - target * (d**0.5 - 1.0)  # ‖u‖₁ for ‖u‖₂ = 1
    order = np.argsort(-c, kind="stable")
    top = c[order]
    scale = float(np.abs(top).max()) or 1.0
    top = top / scale
    j = np.arange(1, d + 1)
    s1, s2 = np.cumsum(top), np.cumsum(top**2)
    # (s1 − jμ)² = ℓ²(s2 − 2μs1 + jμ²): with the mean m = s1/j and the spread q = s2/j − m² ≥ 0,
    # m − μ = ℓ√(q/(j − ℓ²)), which needs j > ℓ².
    mean = s1 / j
    spread = np.maximum(s2 / j - mean**2, 0.0)
    room = np.maximum(j - ell**2, 1e-300)
    mu = mean - ell * np.sqrt(spread / room)
    after = np.append(top[1:], -np.inf)
    fits = (j > ell**2) & (top > mu) & (after <= mu + 1e-12)
    u = np.zeros(d)
    if fits.any():
        k = int(j[fits][0])
        u[order[:k]] = np.maximum(top[:k] - mu[k - 1], 0.0)
        size = float(np.linalg.norm(u))
        if size > 0.0 and abs(float(u.sum()) / size - ell) <= 1e-6 * ell:
            return np.asarray(u / size)
    # The largest entries are equal (or rounding hides their order): k of them, a little uneven.
    k = max(1, int(np.ceil(ell**2 - 1e-9)))
    flat = np.zeros(d)
    flat[order[:k]] = _uneven(k, ell)
    return flat


def _uneven(k: int, ell: float) -> FloatArray:
    """K entries ≥ 0 with ‖·‖₁ = ℓ ≤ √k and ‖·‖₂ = 1, all but the first equal."""
    if k == 1:
        return np.ones(1)
    # a + (k − 1)b = ℓ and a² + (k − 1)b² = 1, with a ≥ b.
    root = max(k - ell**2, 0.0) ** 0.5
    b = (ell - (root / (k - 1) ** 0.5)) / k
    return np.append(ell - (k - 1) * b, np.full(k - 1, max(b, 0.0)))


def descend_sparse(
    gram: FloatArray, targets: FloatArray, start: FloatArray, target: float, sweeps: int
) -> FloatArray:
    """Sweeps over the columns of X (d, r) in ⟨XᵀX, gram⟩ − 2⟨X, targets⟩, each of sparseness s.

    ``gram`` (r, r) is that of the other factor. A column whose best multiple is 0 becomes 0.
    """
    X = start.copy()
    for _ in range(sweeps):
        for k in range(len(gram)):
            if gram[k, k] <= 0.0:
                X[:, k] = 0.0
                continue
            c = X[:, k] + (targets[:, k] - X @ gram[:, k]) / gram[k, k]
            u = most_aligned(c, target)
            X[:, k] = max(0.0, float(u @ c)) * u
    return X
