"""Gradients written out where autograd keeps and passes over more than they need.

Used in training only; whatever maps or differentiates the model in another way (function
transforms, forward mode) goes through the plain operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def may_fuse(*tensors: Tensor) -> bool:
    """Whether plain reverse-mode gradients of float32 or float64 tensors are being recorded."""
    return (
        torch.is_grad_enabled()
        and not torch._C._are_functorch_transforms_active()
        and not torch.compiler.is_compiling()
        and forward_ad._current_level < 0
        and all(t.dtype in (torch.float32, torch.float64) for t in tensors)
        and len({t.dtype for t in tensors}) == 1
    )


class _RootMeanSquare(torch.autograd.Function):
    """``y = w ∘ x s``, ``s = (mean x² + ε)^-½``.

    With x̂ = x s and g = w ∘ ∂y: ∂x = s (g − x̂ mean(g ∘ x̂)), ∂w = Σ ∂y ∘ x̂.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True).add_(eps))
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, scale = ctx.saved_tensors
        (grad,) = grads
        unit = x * scale
        inner = grad * unit
        of_weight = inner.flatten(0, -2).sum(0)
        # mean(g ∘ x̂) with g = w ∘ ∂y, as a product with the vector w.
        along = (inner @ weight).div_(x.shape[-1])[..., None]
        return (grad * weight).sub_(unit.mul_(along)).mul_(scale), of_weight, None


def root_mean_square(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``w * x / sqrt(mean(x**2) + eps)`` over the last axis; keeps x and one number a row."""
    out: Tensor = _RootMeanSquare.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return out


class _TiedCrossEntropy(torch.autograd.Function):
    """``−log p(target) + ζ (log Z)²`` of ``z = h Eᵀ``; one array (n, V) is alive at a time.

    ∂z = (p (1 + 2 ζ log Z) − e_target) ∂loss, written over log p.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, table: Tensor, targets: Tensor, z_loss: float) -> Tensor:
        logits = h @ table.t()
        at = targets[:, None]
        picked = logits.gather(1, at)[:, 0]
        log_p = torch.log_softmax(logits, -1)
        del logits
        losses = -log_p.gather(1, at)[:, 0]
        log_z = picked + losses
        ctx.save_for_backward(h, table, targets, log_p, log_z)
        ctx.z_loss = z_loss
        return losses + z_loss * log_z.square() if z_loss else losses

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        h, table, targets, log_p, log_z = ctx.saved_tensors
        (grad,) = grads
        row = grad if not ctx.z_loss else grad * (1.0 + 2.0 * ctx.z_loss * log_z)
        slope = log_p.exp_().mul_(row[:, None])
        slope.scatter_add_(1, targets[:, None], -grad[:, None])
        return slope @ table, slope.t() @ h, None, None


def tied_cross_entropy(h: Tensor, table: Tensor, targets: Tensor, z_loss: float = 0.0) -> Tensor:
    """Losses ``(b, t)`` of hidden states ``(b, t, d)`` against a matrix ``(V, d)``.

    Differentiable once: the backward pass writes over what the forward pass kept, and autograd
    refuses a second one.
    """
    flat: Tensor = _TiedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        h.reshape(-1, h.shape[-1]), table, targets.reshape(-1), z_loss
    )
    return flat.view_as(targets)
