"""Both sides of a new row in every cone, by scipy's non-negative least squares."""

from __future__ import annotations

import numpy as np

from ...core.types import FloatArray, NumpyArray


def split_chambers(
    rows: FloatArray, row: FloatArray, signs: FloatArray, witnesses: FloatArray
) -> tuple[NumpyArray, FloatArray]:
    """Answers int8 (b, 2) for the sides + and − of ``row``, and unit witnesses (b, 2, d).

    With the nearest point of cone{s_i x_i} to −s x the miss ρ = −s x − Σ μ_i s_i x_i has
    −ρ·s_i x_i ≥ 0 and −ρ·s x = ‖ρ‖²: it vanishes exactly if the side is empty, and otherwise
    −ρ + t w lies strictly inside for small t > 0, w being inside the cone.
    """
    x, new = (a.astype(np.float64) for a in (rows, row))
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    new = new / np.linalg.norm(new)
    inside = witnesses.astype(np.float64)
    inside = inside / np.linalg.norm(inside, axis=1, keepdims=True)
    answers = np.zeros((len(signs), 2), dtype=np.int8)
    out = np.zeros((len(signs), 2, len(new)))
    for cell, (s, w) in enumerate(zip(signs, inside, strict=True)):
        for h, side in enumerate((1.0, -1.0)):
            verdict, witness = _side(s[:, None].astype(np.float64) * x, side * new, w)
            answers[cell, h] = verdict
            if verdict == 1:
                out[cell, h] = witness
    return answers, out.astype(rows.dtype)


def _side(cone: FloatArray, new: FloatArray, w: FloatArray) -> tuple[int, FloatArray]:
    from scipy.optimize import nnls

    if new @ w > 1e-9 and _proven(cone, new, w):
        return 1, w
    mu, _ = nnls(cone.T, -new)
    miss = -new - mu @ cone
    size = float(miss @ miss)
    if size < 1e-14:
        used = cone[mu > 0]
        if len(used) < len(new):
            return 0, w  # a dependency of fewer rows: for exact arithmetic
        pivots = np.abs(np.diag(np.linalg.qr(used.T)[1]))
        sure = mu[mu > 0].min() * pivots.min() > 1e-11 * mu.max() * pivots.max()
        return (-1 if sure else 0), w
    behind = -float(new @ w)
    step = min(1.0, 0.5 * size / behind) if behind > 0 else 1.0
    u = step * w - miss
    u = u / np.linalg.norm(u)
    return (1 if _proven(cone, new, u) else 0), u


def _proven(cone: FloatArray, new: FloatArray, w: FloatArray) -> bool:
    """Whether w has all signs by more than rounding can explain."""
    every = np.vstack([cone, new])
    rounding = (len(w) + 4) * 2.3e-16 * (np.abs(every) @ np.abs(w))
    return bool((every @ w > rounding).all())
