"""Normalisation and feed-forward layers."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishertope.core.errors import InvalidInputError

from .config import Activation, Seq2SeqConfig
from .fused import may_fuse, root_mean_square
from .residual import Shift


def at_least_float32(x: Tensor) -> Tensor:
    """float16 and bfloat16 as float32; float32 and float64 as they are."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


@torch.no_grad()
def normal(weight: Tensor, std: float, generator: torch.Generator) -> None:
    """Draw a weight from N(0, std²); a scale of zero sets it to zero and draws nothing."""
    if std == 0.0:
        weight.zero_()
    else:
        weight.normal_(0.0, std, generator=generator)


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
        if self.training and x.ndim > 1 and may_fuse(x, self.weight):
            return root_mean_square(x, self.weight, self.eps)
        wide = at_least_float32(x)
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (wide * scale).to(self.weight.dtype)


class PartialRMSNorm(nn.Module):
    """``y = w * x / sqrt(mean(x[:k]**2) + eps)``, ``k = ceil(part * width)``; the rest unread.

    Zhang and Sennrich call it pRMSNorm (arXiv 1910.07467); the configuration behind the "RMS Norm"
    row of arXiv 2102.11972 has ``part = 0.0675``. ``part = 1`` is :class:`RMSNorm`.
    """

    def __init__(self, width: int, part: float = 0.0675, eps: float = 1e-6) -> None:
        super().__init__()
        if not 0.0 < part <= 1.0:
            raise InvalidInputError(f"part={part}; give a part of the channels in (0, 1]")
        self.weight = nn.Parameter(torch.ones(width))
        self.read = math.ceil(part * width)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(..., width)``."""
        wide = at_least_float32(x)
        scale = torch.rsqrt(wide[..., : self.read].square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (wide * scale).to(self.weight.dtype)


def make_norm(config: Seq2SeqConfig) -> nn.Module:
    """The normalisation that the configuration names; Fixup has a scalar shift in its place."""
    if config.residual == "fixup":
        return Shift()
    if config.norm == "rms":
        return RMSNorm(config.d_model, config.norm_eps)
    if config.norm == "partial_rms":
        return PartialRMSNorm(config.d_model, config.norm_part, config.norm_eps)
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

    With Fixup a scalar is added to what ``W_out`` reads. Cost: ``2 * d_model * d_ff``
    multiply-adds a token. Source: arXiv 1910.10683.

    Parameters
    ----------
    config
        Sizes, activation, biases.
    width
        Number of hidden units; ``None`` means ``d_ff``.
    """

    def __init__(self, config: Seq2SeqConfig, width: int | None = None) -> None:
        super().__init__()
        self.config, self.width = config, config.d_ff if width is None else width
        self.activation: Activation = config.activation
        self.wi = nn.Linear(config.d_model, self.width, bias=config.ffn_bias)
        self.wo = nn.Linear(self.width, config.d_model, bias=config.ffn_bias)
        self.dropout = nn.Dropout(config.dropout)
        self.shift = Shift() if config.residual == "fixup" else None

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the matrices anew; biases are zero."""
        c = self.config
        fixup = c.residual == "fixup"
        normal(self.wi.weight, self.read_scale(), generator)
        normal(self.wo.weight, 0.0 if fixup else self.width**-0.5, generator)
        for linear in self.children():
            if isinstance(linear, nn.Linear) and linear.bias is not None:
                normal(linear.bias, 0.0, generator)

    def read_scale(self) -> float:
        """Initial scale of the matrices that read ``d_model`` channels."""
        c = self.config
        if c.residual == "fixup":
            return float((2.0 / c.d_model / c.sublayers) ** 0.5)
        return float(c.d_model**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., d_model)`` to ``(..., d_model)``."""
        return self.write(activate(self.activation, self.wi(x)))

    def write(self, hidden: Tensor) -> Tensor:
        """From the hidden units ``(..., d_ff)`` to ``(..., d_model)``."""
        hidden = self.dropout(hidden)
        out: Tensor = self.wo(hidden if self.shift is None else self.shift(hidden))
        return out


class GatedFeedForward(FeedForward):
    """``W_out dropout(act(W_gate x) * W_in x)``, shape ``(..., d_model)`` in and out.

    GLU is the sigmoid form, LiGLU the linear one. Cost: ``3 * d_model * d_ff`` multiply-adds a
    token. Source: Shazeer, arXiv 2002.05202.
    """

    def __init__(self, config: Seq2SeqConfig, width: int | None = None) -> None:
        super().__init__(config, width)
        self.gate = nn.Linear(config.d_model, self.width, bias=config.ffn_bias)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the matrices anew; biases are zero."""
        super().initialise(generator)
        normal(self.gate.weight, self.read_scale(), generator)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., d_model)`` to ``(..., d_model)``."""
        return self.write(activate(self.activation, self.gate(x)) * self.wi(x))
