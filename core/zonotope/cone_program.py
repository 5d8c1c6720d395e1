"""Least squares on a cone by non-negative least squares, every system formed by QR.

Slow and hard to upset: what the compiled dual active set does not finish comes here as well.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..types import FloatArray

_ROUNDS = 60
# Singular values on the null space below this share of ‖Φ‖ count as zero.
_RANK = 1e-13


def vertex_program(
    x: FloatArray, y: FloatArray, v: FloatArray, patterns: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Weights (m, d) and multipliers (m, n) of min ½‖Φw − y‖² subject to S_j X w_j ≥ 0."""
    (n, d), m = x.shape, len(v)
    phi = np.hstack([v[j] * (patterns[j] > 0)[:, None] * x for j in range(m)])
    w, mu = cone_least_squares(phi, cone_of(x, patterns), y, blocks=m)
    return w.reshape(m, d), mu.reshape(m, n)


def cone_of(x: FloatArray, patterns: FloatArray) -> FloatArray:
    """G = blockdiag(S_j X) (m n, m d)."""
    (n, d), m = x.shape, len(patterns)
    cone = np.zeros((m * n, m * d))
    for j in range(m):
        cone[j * n : (j + 1) * n, j * d : (j + 1) * d] = patterns[j][:, None] * x
    return cone


def cone_least_squares(
    phi: FloatArray, cone: FloatArray, y: FloatArray, *, blocks: int = 1
) -> tuple[FloatArray, FloatArray]:
    """The w (p,) of min ½‖Φw − y‖², Gw ≥ 0, and the multipliers μ ≥ 0 of the rows of G.

    The proximal point method w⁺ = argmin ½‖Φw − y‖² + ½ε‖w − w°‖² on the cone. With
    Rᵀ R = ΦᵀΦ + εI from a QR of [Φ; √ε I] and t = R(w − w°), a step is the least-distance problem
    min ½‖t − t°‖², B t ≥ b, whose dual is one non-negative least squares (Lawson & Hanson 1974,
    ch. 23). The minimiser over the working set it finds, without ε, ends the rounds if it lies in
    the cone; multipliers are then a non-negative least squares over all tight rows.

    Parameters
    ----------
    phi, cone, y : arrays (n, p), (k, p), (n,)
    blocks : int
        Equal blocks that w consists of; a block that is rounding is set to zero.
    """
    lengths = np.linalg.norm(cone, axis=1)
    lengths = np.where(lengths > 0, lengths, 1.0)
    cone = cone / lengths[:, None]
    size = float(np.linalg.norm(phi))
    w: FloatArray = np.zeros(phi.shape[1])
    if size == 0.0:
        return w, np.zeros(len(cone))
    # A weight of this size moves a prediction by ‖y‖; what is far below it is rounding.
    unit = float(np.linalg.norm(y) / np.linalg.norm(phi, axis=1).max())
    best, least = w, 0.5 * float(y @ y)
    for share in (1e-9, 1e-6, 1e-4):
        for found in _proximal(phi, cone, y, share * size**2 / phi.shape[1]):
            w = _settled(found, unit, blocks)
            loss = 0.5 * float(((phi @ w - y) ** 2).sum())
            top = max(float(np.abs(w).max()), unit)
            if (cone @ w < -1e-11 * top).any():
                continue
            if loss <= least * (1 + 1e-15):
                best, least = w, loss
            mu, miss = _multipliers(phi, cone, y, w, 1e-10 * top)
            if miss <= 1e-11:
                return w, mu / lengths
    mu, _ = _multipliers(phi, cone, y, best, 1e-10 * max(float(np.abs(best).max()), unit))
    return best, mu / lengths


def _proximal(
    phi: FloatArray, cone: FloatArray, y: FloatArray, ridge: float
) -> Iterator[FloatArray]:
    """The weights of each round: polished on their working set, then as the step left them."""
    from scipy.linalg import solve_triangular
    from scipy.optimize import nnls

    size = phi.shape[1]
    q, r = np.linalg.qr(np.vstack([phi, np.sqrt(ridge) * np.eye(size)]))
    sides = solve_triangular(r.T, cone.T, lower=True).T
    heights = np.linalg.norm(sides, axis=1)
    heights = np.where(heights > 0, heights, 1.0)
    unit = sides / heights[:, None]
    w = np.zeros(size)
    for _ in range(_ROUNDS):
        free = q[: len(y)].T @ (y - phi @ w)
        offset = -(cone @ w) / heights
        # min ½‖t − free‖², unit·t ≥ offset. With p = t − free this is a least distance.
        gap = offset - unit @ free
        if (gap <= 0).all():
            step, tight = free, np.zeros(len(cone), dtype=bool)
        else:
            # Dual: μ ≥ 0 minimising ½‖unitᵀμ‖² − μ·gap, as least squares with one more row.
            scale = float(gap.max())
            system = np.vstack([unit.T, gap / scale])
            target = np.zeros(size + 1)
            target[-1] = 1.0
            try:
                mu, _ = nnls(system, target, maxiter=30 * len(cone))
            except RuntimeError:
                return
            rest = target - system @ mu
            if rest[-1] <= 0:
                return
            step = free - scale * rest[:size] / rest[-1]
            tight = mu > 0
        moved = w + solve_triangular(r, step)
        yield _polished(phi, cone[tight], y, moved)
        yield moved
        if np.abs(moved - w).max() <= 1e-15 * np.abs(moved).max():
            return
        w = moved


def _polished(phi: FloatArray, tight: FloatArray, y: FloatArray, w: FloatArray) -> FloatArray:
    """The nearest minimiser of ‖Φw − y‖ to w with the tight rows at zero."""
    size = phi.shape[1]
    basis = np.eye(size)
    if len(tight):
        _, values, right = np.linalg.svd(tight)
        basis = right[int((values > 1e-12 * values[0]).sum()) :].T
    w = basis @ (basis.T @ w)
    half = phi @ basis
    for _ in range(2):
        left, values, right = np.linalg.svd(half, full_matrices=False)
        kept = values > _RANK * np.linalg.norm(phi)
        w = w + basis @ (right[kept].T @ ((left[:, kept].T @ (y - phi @ w)) / values[kept]))
    return w


def _settled(w: FloatArray, unit: float, blocks: int) -> FloatArray:
    """Blocks that are rounding are zero."""
    parts = w.reshape(blocks, -1) if len(w) % blocks == 0 else w[None]
    sizes = np.abs(parts).max(axis=1, keepdims=True)
    return np.where(sizes <= 1e-14 * max(unit, float(sizes.max())), 0.0, parts).ravel()


def _multipliers(
    phi: FloatArray, cone: FloatArray, y: FloatArray, w: FloatArray, tol: float
) -> tuple[FloatArray, float]:
    """μ ≥ 0 on the tight rows with Gᵀμ ≈ Φᵀr, and the largest miss relative to its terms."""
    from scipy.optimize import nnls

    force = phi.T @ (phi @ w - y)
    size = float(np.linalg.norm(phi, axis=1).max()) * (float(np.linalg.norm(y)) or 1.0)
    mu = np.zeros(len(cone))
    tight = np.flatnonzero(np.abs(cone @ w) <= tol)
    if len(tight):
        try:
            mu[tight], _ = nnls(cone[tight].T, force, maxiter=30 * len(tight))
        except RuntimeError:
            return mu, np.inf
    return mu, float(np.abs(force - cone.T @ mu).max()) / size


def column_scaled(x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Columns x_c / 2^e_c of largest modulus in [1/2, 1), exactly, and the exponents e."""
    top = np.abs(x).max(axis=0, initial=0.0)
    _, exponents = np.frexp(top)
    return np.ldexp(x, -exponents), exponents
