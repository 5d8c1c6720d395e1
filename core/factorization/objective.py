"""The objective of low-rank NPEFF and its derivatives, without forming any m×m matrix.

L(W, G) = Σ_i ‖A_iᵀA_i − Σ_k W_ik g_k g_kᵀ‖²_F over W ≥ 0 (n, r) and G (r, m), with rows g_k.
With the products B = A Gᵀ (h, r), N_ik = Σ_{j in rows(i)} B_jk² = ‖A_i g_k‖² and the small
matrices S = GGᵀ, H = S∘S, V = WᵀW (r, r) and the constant T = Σ_i ‖A_iA_iᵀ‖²_F:

    L       = T − 2⟨W, N⟩ + ⟨V, H⟩
    ∇_W L   = 2(WH − N)
    ∇_G L   = 4[(V∘S)G − (W̃∘B)ᵀA],   W̃ = rows of W repeated for every row of A

Along a direction D, with E = ADᵀ, N₁ = 2Σ B∘E, N₂ = Σ E∘E, P = GDᵀ, R = DDᵀ, Q = P + Pᵀ, the
loss L(W, G + tD) is the exact quartic of :func:`line_coefficients`.

Source: Matena & Raffel 2023, arXiv:2310.04649 (objective); the line search is ours.
"""

from __future__ import annotations

import math

import numpy as np
from array_api_compat import array_namespace

from ..types import Array, FloatArray
from .team import ALONE, Team


def inner(x: Array, y: Array, team: Team = ALONE) -> float:
    """⟨x, y⟩ = Σ x∘y, accumulated in float64 whatever the dtype; of all processes' examples."""
    xp = array_namespace(x, y)
    if x.dtype == y.dtype == xp.float64 and x.shape == y.shape:  # one pass, no product in memory
        flat = (-1,)
        return team.add(float(xp.vecdot(xp.reshape(x, flat), xp.reshape(y, flat))))
    return team.add(float(xp.sum(x * y, dtype=xp.float64)))


def gram(x: Array, y: Array | None = None) -> Array:
    """X yᵀ (r, r) in float64; ``y`` defaults to ``x``."""
    xp = array_namespace(x)
    product = xp.matmul(x, (x if y is None else y).T)
    return xp.astype(product, xp.float64)


def coefficient_gram(W: Array, team: Team = ALONE) -> Array:
    """V = WᵀW (r, r) in float64, over the examples of all processes."""
    xp = array_namespace(W)
    return team.sum(xp.astype(xp.matmul(W.T, W), xp.float64))


def loss_value(
    total: float, W: Array, N: Array, S: Array, team: Team = ALONE, *, V: Array | None = None
) -> float:
    """L = T − 2⟨W, N⟩ + ⟨V, S∘S⟩, with V = WᵀW where it is not given."""
    V = coefficient_gram(W, team) if V is None else V
    return total - 2.0 * inner(W, N, team) + inner(V, S * S)


def coefficient_gradient(W: Array, N: Array, S: Array) -> Array:
    """∇_W L = 2(WH − N) (n, r)."""
    xp = array_namespace(W)
    return 2.0 * (xp.matmul(W, xp.astype(S * S, W.dtype)) - N)


def component_gradient(W: Array, G: Array, S: Array, pullback: Array, team: Team = ALONE) -> Array:
    """∇_G L = 4[(V∘S)G − pullback] (r, m), where pullback = (W̃∘B)ᵀA."""
    xp = array_namespace(G)
    M = coefficient_gram(W, team) * S
    return 4.0 * (xp.matmul(xp.astype(M, G.dtype), G) - pullback)


def line_coefficients(
    total: float,
    W: Array,
    N: Array,
    N1: Array,
    N2: Array,
    S: Array,
    P: Array,
    R: Array,
    team: Team = ALONE,
    *,
    V: Array | None = None,
) -> FloatArray:
    """Coefficients (c₀, c₁, c₂, c₃, c₄) of L(W, G + tD) = Σ_j c_j t^j in float64.

    c₀ = T − 2⟨W,N⟩ + ⟨V,S∘S⟩;  c₁ = −2⟨W,N₁⟩ + 2⟨V,S∘Q⟩;
    c₂ = −2⟨W,N₂⟩ + ⟨V,Q∘Q + 2S∘R⟩;  c₃ = 2⟨V,Q∘R⟩;  c₄ = ⟨V,R∘R⟩ ≥ 0.
    """
    V = coefficient_gram(W, team) if V is None else V
    Q = P + P.T
    linear = team.sum(np.array([inner(W, N), inner(W, N1), inner(W, N2)]))
    return np.array(
        [
            total - 2.0 * linear[0] + inner(V, S * S),
            -2.0 * linear[1] + 2.0 * inner(V, S * Q),
            -2.0 * linear[2] + inner(V, Q * Q + 2.0 * S * R),
            2.0 * inner(V, Q * R),
            inner(V, R * R),
        ]
    )


def minimise_quartic(c: FloatArray) -> tuple[float, float]:
    """Global minimiser t* and minimum of Σ_j c_j t^j with c₄ ≥ 0, by the roots of its derivative.

    Returns ``(0.0, c₀)`` when no real stationary point is lower than t = 0.
    """
    scale = float(np.max(np.abs(c[1:])))
    if not np.isfinite(c).all() or scale == 0.0:
        return 0.0, float(c[0])
    derivative = (4 * c[4] / scale, 3 * c[3] / scale, 2 * c[2] / scale, c[1] / scale)
    real = _cubic_roots(*(float(x) for x in derivative))
    best_t, best = 0.0, 0.0
    for t in real:
        value = float((((c[4] * t + c[3]) * t + c[2]) * t + c[1]) * t)
        if value < best:
            best_t, best = t, value
    return best_t, float(c[0]) + best


def _cubic_roots(a: float, b: float, c: float, d: float) -> list[float]:
    """Real roots of a t³ + b t² + c t + d; by formula, polished, where it is a sound cubic."""
    if abs(a) <= 1e-6 * max(abs(b), abs(c), abs(d)):
        any_roots = np.roots(np.trim_zeros(np.array([a, b, c, d]), "f"))
        return [float(t.real) for t in any_roots if abs(t.imag) <= 1e-8 * (1.0 + abs(t.real))]
    # With t = x − b/3a: x³ + p x + q = 0.
    shift, b, c, d = b / (3.0 * a), b / a, c / a, d / a
    p, q = c - 3.0 * shift * shift, 2.0 * shift**3 - shift * c + d
    half = 0.5 * q
    inside = half * half + (p / 3.0) ** 3
    if inside > 0:  # one real root: the two terms have one sign, so that nothing cancels
        u = -math.copysign(math.cbrt(abs(half) + math.sqrt(inside)), q)
        found = [u - p / (3.0 * u)]
    else:
        size = math.sqrt(max(0.0, -p / 3.0))
        cube = size**3
        ratio = -half / cube if cube > 0 else 0.0
        angle = math.acos(min(1.0, max(-1.0, ratio))) / 3.0
        found = [2.0 * size * math.cos(angle - 2.0 * math.pi * k / 3.0) for k in range(3)]
    return [_polished(x - shift, b, c, d) for x in found]


def _polished(t: float, b: float, c: float, d: float) -> float:
    """A root of t³ + b t² + c t + d, by Newton's steps as long as these bring it nearer."""
    value = ((t + b) * t + c) * t + d
    for _ in range(4):
        slope = (3.0 * t + 2.0 * b) * t + c
        if slope == 0.0:
            break
        moved = t - value / slope
        new = ((moved + b) * moved + c) * moved + d
        if not abs(new) < abs(value):
            break
        t, value = moved, new
    return t


def kkt_residual(W: Array, N: Array, H: Array, team: Team = ALONE) -> float:
    """How far W is from optimal for fixed Gram H and targets N, relative to the size of N.

    With ∇ = 2(WH − N): max(max|W∘∇|/max W, −min ∇) / (2 max|N|), which is zero exactly when W ≥ 0,
    ∇ ≥ 0 and W∘∇ = 0.
    """
    xp = array_namespace(W)
    gradient = 2.0 * (xp.matmul(W, xp.astype(H, W.dtype)) - N)
    some = W.shape[0] > 0
    top = team.most(float(xp.max(W)) if some else 0.0)
    size = 2.0 * team.most(float(xp.max(xp.abs(N))) if some else 0.0)
    if top == 0.0 or size == 0.0:
        return 0.0
    complementarity = float(xp.max(xp.abs(W * gradient))) / top if some else 0.0
    below = -float(xp.min(gradient)) if some else 0.0
    return team.most(max(complementarity, below, 0.0)) / size


def removal_costs(W: Array, N: Array, S: Array, team: Team = ALONE) -> FloatArray:
    """Rise of L when component k alone is removed (r,): 2⟨W_k,N_k⟩ − 2Σ_l V_kl H_kl + V_kk H_kk."""
    from ..backend import to_numpy

    xp = array_namespace(W)
    VH = to_numpy(coefficient_gram(W, team) * S * S)
    linear = to_numpy(team.sum(xp.sum(W * N, axis=0, dtype=xp.float64)))
    return np.asarray(2.0 * linear - 2.0 * VH.sum(axis=1) + np.diag(VH))
