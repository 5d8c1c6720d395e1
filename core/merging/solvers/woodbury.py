"""Diagonal plus low rank: (diag f + U Uᵀ) d = r through a system of the rank's size."""

from __future__ import annotations

from array_api_compat import array_namespace

from ...types import Array
from .dense import DenseAnswer, solve_psd


def solve_woodbury(diagonal: Array, factor: Array, right: Array) -> DenseAnswer:
    """D = f⁻¹r − f⁻¹U (I + Uᵀ f⁻¹ U)⁻¹ Uᵀ f⁻¹ r for f (p,) > 0, U (p, k), r (p,).

    Cost O(p k² + k³). ``condition`` is that of the inner system.
    """
    xp = array_namespace(diagonal)
    k = int(factor.shape[1])
    scaled = factor / diagonal[:, None]
    inner = xp.eye(k, dtype=xp.float64, device=_device(factor)) + factor.T @ scaled

    def once(r: Array) -> DenseAnswer:
        start = r / diagonal
        answer = solve_psd(inner, (factor.T @ start)[:, None])
        return DenseAnswer(
            start - scaled @ answer.x[:, 0], answer.how, answer.condition, answer.null
        )

    first = once(right)
    rest = right - (diagonal * first.x + factor @ (factor.T @ first.x))
    return DenseAnswer(first.x + once(rest).x, "woodbury", first.condition, 0)


def _device(x: Array) -> object:
    return getattr(x, "device", None)
