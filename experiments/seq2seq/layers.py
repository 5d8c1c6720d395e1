"""Normalisation and feed-forward layers."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import Activation, Seq2SeqConfig


def at_least_float32(x: Tensor) -> Tensor:
    """float16 and bfloat16 as float32; float32 and float64 as they are."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


class RMSNorm(nn.Module):
    """``y = w * x / sqrt(mean(x**2) + eps)`` over the last axis; no mean, no bias.

    The mean square is taken in float32 or wider. Source: Zhang and Sennrich, arXiv 1910.07467.
    """

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(..., width)``."""
        wide = at_least_float32(x)
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (wide * scale).to(self.weight.dtype)


def make_norm(config: Seq2SeqConfig) -> nn.Module:
    """The normalisation that the configuration names."""
    if config.norm == "rms":
        return RMSNorm(config.d_model, config.norm_eps)
    if config.norm == "layer":
        return nn.LayerNorm(config.d_model, config.norm_eps)
    return nn.Identity()


def activate(name: Activation, x: Tensor) -> Tensor:
    """Apply an activation by name; ``gelu`` is the tanh form, ``linear`` the identity."""
    match name:
        case "relu":
            return F.relu(x)
        case "gelu":
            return F.gelu(x, approximate="tanh")
        case "swish":
            return F.silu(x)
        case "elu":
            return F.elu(x)
        case "selu":
            return F.selu(x)
        case "sigmoid":
            return torch.sigmoid(x)
        case "softplus":
            return F.softplus(x)
        case "tanh":
            return torch.tanh(x)
        case "linear":
            return x


class FeedForward(nn.Module):
    """``W_out dropout(act(W_in x))``, shape ``(..., d_model)`` in and out.

    Cost: ``2 * d_model * d_ff`` multiply-adds a token. Source: arXiv 1910.10683.
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.activation: Activation = config.activation
        self.wi = nn.Linear(config.d_model, config.d_ff, bias=config.ffn_bias)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=config.ffn_bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., d_model)`` to ``(..., d_model)``."""
        out: Tensor = self.wo(self.dropout(activate(self.activation, self.wi(x))))
        return out


class GatedFeedForward(FeedForward):
    """``W_out dropout(act(W_gate x) * W_in x)``, shape ``(..., d_model)`` in and out.

    Cost: ``3 * d_model * d_ff`` multiply-adds a token. Source: Shazeer, arXiv 2002.05202.
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__(config)
        self.gate = nn.Linear(config.d_model, config.d_ff, bias=config.ffn_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., d_model)`` to ``(..., d_model)``."""
        hidden = activate(self.activation, self.gate(x)) * self.wi(x)
        out: Tensor = self.wo(self.dropout(hidden))
        return out
