"""The merging kernels for torch tensors: one source after another, in float64, on any device.

Sources may also be bfloat16 or float16; every result has the dtype of the sources.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def merge_linear(sources: Tensor, weights: Tensor, totals: Tensor) -> tuple[Tensor, Tensor]:
    """S_k x_r + Σ_i w_ki (x_i − x_r) (k, p), and how many entries are not finite (k,)."""
    w, s = weights.double(), totals.double()
    out = sources.new_empty((w.shape[0], sources.shape[1]))
    for k, r in enumerate(w.abs().argmax(dim=1).tolist()):
        base = sources[r].double()
        total = s[k] * base
        for i in range(sources.shape[0]):
            if i != r:
                total += w[k, i] * (sources[i].double() - base)
        # Where nothing moved the entry keeps its bits, the sign of zero among them.
        out[k] = torch.where(total == base, base, total).to(out.dtype)
    return out, _not_finite(out)


@torch.no_grad()
def merge_diagonal(
    sources: Tensor, precisions: Tensor, weights: Tensor, ridges: Tensor, floors: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_r + Σ_i q_i (x_i − x_r) / Σ_i q_i (k, p), with three counts (k,)."""
    n, p = sources.shape
    w, ridge = weights.double(), ridges.double()
    out = sources.new_empty((w.shape[0], p))
    empty = torch.zeros(w.shape[0], dtype=torch.int64, device=sources.device)
    x = sources.double()
    f = precisions.double()
    lifted = torch.where(f < floors.double()[:, None], floors.double()[:, None], f)
    for k in range(w.shape[0]):
        q = w[k, :, None] * lifted + ridge[k, :, None]
        base, best = x[0].clone(), q[0].clone()
        total, moment = torch.zeros_like(base), torch.zeros_like(base)
        low, high = torch.full_like(base, torch.inf), torch.full_like(base, -torch.inf)
        for i in range(n):
            better = q[i] > best
            base, best = torch.where(better, x[i], base), torch.where(better, q[i], best)
            total += q[i]
            low = torch.where((q[i] > 0) & (x[i] < low), x[i], low)
            high = torch.where((q[i] > 0) & (x[i] > high), x[i], high)
        for i in range(n):
            moment += q[i] * (x[i] - base)
        none = total == 0
        empty[k] = none.sum()
        value = base + moment / torch.where(none, 1.0, total)
        value = torch.where(~none & (value < low), low, value)
        value = torch.where(~none & (value > high), high, value)
        out[k] = torch.where(value == base, base, value).to(out.dtype)
    negative = (f < 0).sum().expand(w.shape[0]).clone()
    return out, _not_finite(out), empty, negative


def _not_finite(out: Tensor) -> Tensor:
    return (~out.isfinite()).sum(dim=1)
