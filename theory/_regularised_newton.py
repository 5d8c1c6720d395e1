"""The last digits of a regularised optimum: fewer units, then Newton steps on their faces."""

from __future__ import annotations

import numpy as np

from ..core.types import FloatArray
from .losses import Loss

Units = list[tuple[FloatArray, float]]


def objective_of(
    x: FloatArray, y: FloatArray, weights: FloatArray, outputs: FloatArray, lam: float, loss: Loss
) -> float:
    """Σ ℓ(f_i, y_i) + (λ/2)(‖W‖² + ‖a‖²) of the network itself."""
    f = np.maximum(x @ weights.T, 0) @ outputs
    return loss.value(f, y) + 0.5 * lam * float((weights**2).sum() + (outputs**2).sum())


def balanced(units: Units, d: int) -> tuple[FloatArray, FloatArray]:
    """Weights u with |α| = ‖u‖ for products v = |α| u with the sign of α."""
    if not units:
        return np.zeros((0, d)), np.zeros(0)
    v = np.array([u for u, _ in units])
    root = np.sqrt(np.linalg.norm(v, axis=1))
    root = np.where(root > 0, root, 1.0)
    return v / root[:, None], root * np.array([s for _, s in units])


def refined(
    x: FloatArray, y: FloatArray, network: tuple[FloatArray, FloatArray], lam: float, loss: Loss
) -> tuple[FloatArray, FloatArray, float]:
    """Weights, outputs and objective, never above the given network's by more than 1e-12 of it."""
    weights, outputs = network
    d = x.shape[1]
    start = objective_of(x, y, weights, outputs, lam, loss)
    units: Units = [
        (np.abs(a) * w, float(np.sign(a))) for w, a in zip(weights, outputs, strict=True) if a
    ]
    best = (weights, outputs, start)
    for room in (1e-8, 1e-12):
        trial = _fewer(x, y, units, lam, loss, start * (1 + room))
        if loss.name != "hinge":
            trial = _newton(x, y, trial, lam, loss)
        w, a = balanced(trial, d)
        value = objective_of(x, y, w, a, lam, loss)
        if value <= start + 1e-12 * abs(start):
            return w, a, value
    return best


def _fewer(
    x: FloatArray, y: FloatArray, units: Units, lam: float, loss: Loss, limit: float
) -> Units:
    """Join units of one sign that point the same way, and drop what is rounding.

    An interior-point method spreads one unit over the cones that share its direction.
    """
    units = sorted(units, key=lambda unit: -float(np.linalg.norm(unit[0])))
    k = len(units) - 1
    while k >= 0:
        v, sign = units[k]
        rest = units[:k] + units[k + 1 :]
        trials = [rest]
        near = [
            (float(u @ v) / (float(np.linalg.norm(u)) * float(np.linalg.norm(v)) + 1e-300), i)
            for i, (u, other) in enumerate(rest)
            if other == sign
        ]
        if near and max(near)[0] > 1 - 1e-4:
            i = max(near)[1]
            trials.append([*rest[:i], (rest[i][0] + v, sign), *rest[i + 1 :]])
        for trial in trials:
            if objective_of(x, y, *balanced(trial, x.shape[1]), lam, loss) <= limit:
                units = trial
                break
        k -= 1
    return units


def _newton(x: FloatArray, y: FloatArray, units: Units, lam: float, loss: Loss) -> Units:
    """Newton's method for Σ ℓ + λ Σ ‖v_j‖ with the rows that are tight held tight."""
    if not units:
        return units
    signs = np.array([s for _, s in units])
    v = np.array([u for u, _ in units])
    lengths = np.linalg.norm(x, axis=1)
    products = v @ x.T
    tight = np.abs(products) <= 1e-5 * lengths * np.linalg.norm(v, axis=1)[:, None]
    faces = [_face(x[t]) for t in tight]
    v = np.array([z @ (z.T @ u) for z, u in zip(faces, v, strict=True)])
    on = (products > 0) & ~tight
    phi = np.hstack([s * (o[:, None] * x) @ z for s, o, z in zip(signs, on, faces, strict=True)])
    ends = np.cumsum([z.shape[1] for z in faces])
    t = np.concatenate([z.T @ u for z, u in zip(faces, v, strict=True)])

    def parts(point: FloatArray) -> list[FloatArray]:
        return np.split(point, ends[:-1])

    def value(point: FloatArray) -> float:
        return loss.value(phi @ point, y) + lam * sum(
            float(np.linalg.norm(p)) for p in parts(point)
        )

    now = value(t)
    for _ in range(30):
        f = phi @ t
        curvature = (
            np.ones(len(y))
            if loss.name == "squared"
            else np.abs(loss.slope(f, y)) * (1 - np.abs(loss.slope(f, y)))
        )
        sizes = [float(np.linalg.norm(p)) for p in parts(t)]
        if min(sizes) <= 1e-12 * max(sizes):
            return units
        slope = phi.T @ loss.slope(f, y)
        slope += lam * np.concatenate([p / q for p, q in zip(parts(t), sizes, strict=True)])
        bend = phi.T @ (curvature[:, None] * phi)
        at = 0
        for p, q in zip(parts(t), sizes, strict=True):
            k = len(p)
            bend[at : at + k, at : at + k] += lam * (np.eye(k) - np.outer(p, p) / q**2) / q
            at += k
        step = np.linalg.lstsq(bend, -slope, rcond=1e-13)[0]
        share = 1.0
        while share > 1e-6 and not value(t + share * step) <= now + 1e-15 * abs(now):
            share *= 0.5
        if share <= 1e-6:
            break
        t = t + share * step
        now = value(t)
        if np.abs(step).max() <= 1e-15 * np.abs(t).max():
            break
    return [(z @ p, s) for z, p, s in zip(faces, parts(t), signs, strict=True)]


def _face(tight: FloatArray) -> FloatArray:
    """Orthonormal basis (d, k) of the directions in which the tight rows stay at zero."""
    if len(tight) == 0:
        return np.eye(tight.shape[1])
    _, values, right = np.linalg.svd(tight / np.linalg.norm(tight, axis=1, keepdims=True))
    rank = int((values > 1e-9).sum())
    return np.asarray(right[min(rank, tight.shape[1] - 1) :].T)
