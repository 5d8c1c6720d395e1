"""The sweep over the cells of a simple arrangement, batched: all cells of a call in one LU."""

from __future__ import annotations

from typing import Any

import torch

from ...core.backend.subsets import subset_of_rank

Tensor = torch.Tensor


@torch.no_grad()
def sweep_chambers(rotated: Tensor, *, level: int, start: int, count: int) -> tuple[Tensor, Tensor]:
    """Patterns (count, n) int8 and clearances (count,) of consecutive cells of one level."""
    y = rotated.to(torch.float64)
    n, d = y.shape
    r = d - 1 - level
    c = 1.0 if level == 0 else -1.0
    subsets = torch.as_tensor(_subsets(start, count, n - 1, r), device=y.device)
    w = y.new_zeros((count, d))
    w[:, level] = c
    pivot = y.new_ones(count)
    gap = y.new_full((count,), torch.inf)
    multipliers = y.new_zeros((count, r))
    if r > 0 and count > 0:
        a = y[subsets][:, :, level + 1 :]
        lu, swaps, _ = torch.linalg.lu_factor_ex(a)
        singular = (lu.diagonal(dim1=1, dim2=2) == 0).any(dim=1)
        # Distances of each row from the span of those before it.
        distances = torch.linalg.qr(a.mT, mode="r").R.diagonal(dim1=1, dim2=2).abs()
        pivot = torch.where(singular, 0.0, distances.amin(dim=1).clamp(max=1.0))
        lu[singular] = torch.eye(r, dtype=y.dtype, device=y.device)
        right = -c * y[:, level][subsets]
        w[:, level + 1 :] = torch.linalg.lu_solve(lu, swaps, right[:, :, None])[:, :, 0]
        unit = y.new_zeros((count, r, 1))
        unit[:, 0] = 1.0
        multipliers = torch.linalg.lu_solve(lu, swaps, unit, adjoint=True)[:, :, 0]
        gap = (multipliers.abs() / multipliers.norm(dim=1, keepdim=True)).amin(dim=1)
    products = w @ y.T
    signs = torch.where(products > 0, 1, -1).to(torch.int8)
    signs.scatter_(1, subsets, torch.where(multipliers > 0, 1, -1).to(torch.int8))
    signs[:, -1] = 1
    sizes = products.abs() / w.norm(dim=1, keepdim=True)
    sizes.scatter_(1, subsets, 1.0)
    sizes[:, -1] = 1.0
    clearance = torch.minimum(gap, sizes.amin(dim=1)) * pivot
    signs[pivot == 0] = 1
    return signs, clearance.to(rotated.dtype)


def _subsets(start: int, count: int, n: int, r: int) -> Any:
    """``count`` consecutive r-subsets of range(n) in lexicographic order, from rank ``start``."""
    import numpy as np

    if count == 0 or r == 0:
        return np.zeros((count, r), dtype=np.int64)
    out = np.empty((count, r), dtype=np.int64)
    out[0] = subset_of_rank(start, n, r)
    for k in range(1, count):
        out[k] = out[k - 1]
        i = int(np.flatnonzero(out[k] != np.arange(n - r, n))[-1])
        out[k, i:] = out[k, i] + 1 + np.arange(r - i)
    return out
