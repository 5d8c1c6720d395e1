"""Branched attention of the Weighted Transformer: each head passes the feed-forward layer."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishertope.core.errors import InvalidInputError

from .attention import Attention
from .config import Activation, Seq2SeqConfig
from .layers import activate, normal

LEAST = 1e-4
"""The smallest weight of a branch before weights are divided by their sum."""


def branch_weights(raw: Tensor) -> Tensor:
    """``max(z, 1e-4)`` divided by its sum: positive weights that sum to 1."""
    positive = raw.clamp(min=LEAST)
    return positive / positive.sum()


class WeightedAttention(Attention):
    """``sum_h alpha_h FFN(kappa_h o_h W_o^h)``: attention and feed-forward layer in one.

    ``o_h`` is what head ``h`` reads, ``FFN(u) = W_2 act(W_1 u + b_1) + b_2`` is shared by the
    heads, ``kappa`` and ``alpha`` are positive and sum to 1 each. A block made of it has no other
    feed-forward layer; in a decoder, attention to the encoder has this form too.

    Parameters
    ----------
    config
        ``d_model, heads, d_kv, d_ff, activation, ffn_bias, dropout`` are read.

    Notes
    -----
    ``(batch, n, d_model)`` in and out. ``W_2`` is linear, so that branches are summed before it,
    and ``W_1 W_o^h`` is one matrix: beside attention the cost is ``2 d_model d_ff`` multiply-adds
    a token and ``heads d_ff`` activations, instead of ``2 heads d_model d_ff`` of the formula as
    it stands (:meth:`by_branch`). Sources: Ahmed et al., arXiv 1711.02132; Narang et al.,
    arXiv 2102.11972, where the weights stand still for the last steps: :func:`freeze_branches`.
    """

    def __init__(self, config: Seq2SeqConfig, *, causal: bool = False, cross: bool = False) -> None:
        super().__init__(config, causal=causal, cross=cross)
        self.activation: Activation = config.activation
        self.wi = nn.Linear(config.d_model, config.d_ff, bias=config.ffn_bias)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=config.ffn_bias)
        self.kappa = nn.Parameter(torch.ones(config.heads))
        self.alpha = nn.Parameter(torch.ones(config.heads))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Attention and ``FFN`` as elsewhere, ``kappa`` and ``alpha`` uniform in 0 ... 1."""
        super().initialise(generator)
        for linear in (self.wi, self.wo):
            normal(linear.weight, linear.in_features**-0.5, generator)
            if linear.bias is not None:
                linear.bias.zero_()
        self.kappa.uniform_(0.0, 1.0, generator=generator)
        self.alpha.uniform_(0.0, 1.0, generator=generator)

    @staticmethod
    def count(d_model: int, d_ff: int, heads: int, d_kv: int, *, ffn_bias: bool) -> int:
        """Number of parameters."""
        feed = 2 * d_model * d_ff + (d_model + d_ff if ffn_bias else 0)
        return 4 * d_model * heads * d_kv + feed + 2 * heads

    def _by_head(self) -> Tensor:
        """``kappa_h W_o^h`` as ``(heads, d_model, d_kv)``."""
        joined = self.output.weight.view(-1, self.heads, self.d_kv).transpose(0, 1)
        return joined * branch_weights(self.kappa)[:, None, None]

    def join(self, heads: Tensor) -> Tensor:
        """From heads ``(batch, heads, n, d_kv)`` to the output ``(batch, n, d_model)``."""
        first = self.wi.weight @ self._by_head()
        summed: Tensor | None = None
        # One head at a time: the hidden layers of all heads together leave the processor's cache.
        for head, matrix, alpha in zip(
            heads.unbind(1), first.unbind(), branch_weights(self.alpha).unbind(), strict=True
        ):
            hidden = activate(self.activation, F.linear(head, matrix, self.wi.bias))
            hidden = self.dropout(hidden)
            summed = hidden * alpha if summed is None else torch.addcmul(summed, hidden, alpha)
        assert summed is not None
        return F.linear(summed, self.wo.weight, self.wo.bias)

    def by_branch(self, heads: Tensor) -> Tensor:
        """The same from the formula as it stands; without dropout."""
        out = heads.new_zeros((heads.shape[0], heads.shape[2], self.wo.out_features))
        kappa, alpha = branch_weights(self.kappa), branch_weights(self.alpha)
        for h in range(self.heads):
            matrix = self.output.weight[:, h * self.d_kv : (h + 1) * self.d_kv]
            branch = kappa[h] * F.linear(heads[:, h], matrix)
            out = out + alpha[h] * self.wo(activate(self.activation, self.wi(branch)))
        return out


def freeze_branches(model: nn.Module) -> int:
    """Take all ``kappa`` and ``alpha`` of a model out of training; returns how many layers it met.

    Call it before the last steps (the last 10,000 or 20,000 of 524,288 in arXiv 2102.11972), and
    give an optimizer that decays weights the parameters that are left.
    """
    layers = [m for m in model.modules() if isinstance(m, WeightedAttention)]
    if not layers:
        raise InvalidInputError(
            "the model has no WeightedAttention; build it with mixer='weighted'"
        )
    for layer in layers:
        layer.kappa.requires_grad_(False)
        layer.alpha.requires_grad_(False)
    return len(layers)
