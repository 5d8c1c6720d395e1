"""The Funnel encoder: the sequence becomes half as long at the border of two groups of blocks."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from fishertope.core.errors import InvalidInputError

from .attention import additive
from .config import Seq2SeqConfig
from .positions import RelativeBias
from .stack import Block, Cache, Stack


def pool_pairs(h: Tensor, real: Tensor | None = None) -> Tensor:
    """Mean of positions ``2 t`` and ``2 t + 1``: ``(b, n, d)`` to ``(b, ceil(n / 2), d)``.

    ``real`` ``(b, n)`` bool takes padding out of the mean, so that what stands there changes
    nothing; a last position without a partner is alone. Pairs of padding only give zero.
    """
    if real is None:
        real = h.new_ones((1, h.shape[1]), dtype=torch.bool)
    odd = h.shape[1] % 2
    weight = F.pad(real.to(h.dtype), (0, odd))
    pairs = F.pad(h, (0, 0, 0, odd)).view(h.shape[0], -1, 2, h.shape[2])
    weight = weight.view(weight.shape[0], -1, 2)
    total = (pairs * weight[..., None]).sum(2)
    return total / weight.sum(2).clamp(min=1)[..., None]


def pooled_mask(real: Tensor) -> Tensor:
    """Every second entry of ``(b, n)``: a pooled position is real if its first one is."""
    return real[:, ::2]


def pooling_layers(layers: int, blocks: int) -> tuple[int, ...]:
    """Layers after whose self-attention a stack of ``layers`` in equal ``blocks`` pools.

    The first one of each block but the first; lengths are ``S``, ``S / 2``, ``S / 4`` ...
    """
    size = layers // blocks
    return tuple(size * i for i in range(1, blocks))


class FunnelEncoder(Stack):
    """An encoder whose groups of blocks see ``S``, ``ceil(S / 2)``, ``ceil(S / 4)`` ... places.

    The first block of each group but the first takes the mean of pairs of ``h + f(h)`` after its
    self-attention ``f``, as the released code of arXiv 2102.11972 does (arXiv 2006.03236 pools the
    queries before it, and keeps keys and values whole). Positions are counted anew at every length.
    The decoder reads the short sequence; :meth:`output_mask` says what is real in it.

    Raises
    ------
    InvalidInputError
        Packed rows, whose segments would run together.

    References
    ----------
    Dai et al., arXiv 2006.03236; Narang et al., arXiv 2102.11972.
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__(config, stack="encoder")
        self.pools = pooling_layers(config.layers, config.pool_blocks)

    def output_mask(self, mask: Tensor) -> Tensor:
        """``(b, 1, ceil(s / 2**pools))`` of ``(b, 1, s)``."""
        return mask[..., :: 2 ** len(self.pools)]

    def forward(
        self, h: Tensor, mask: Tensor | None, *, source: Tensor | None = None,
        source_mask: Tensor | None = None, cache: Cache | None = None,
        places: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Run embedded tokens ``(b, s, d_model)`` through the stack; ``mask`` ``(b, 1, s)``."""
        if places is not None or (mask is not None and mask.shape[1] != 1):
            raise InvalidInputError(
                "a funnel pools over the borders of packed segments; give one example a row"
            )
        if self.places is not None:
            h = h + self._vectors(None, 0, h.shape[1], h)
        h = self.dropout(h)
        bias = self._bias(self.position, mask, h)
        for i, module in enumerate(self.blocks):
            block = cast(Block, module)
            own = bias if block.position is None else self._bias(block.position, mask, h)
            h = block.mix(h, bias=own, mask=mask, cache=None)
            if i in self.pools:
                h = pool_pairs(h, None if mask is None else mask[:, 0])
                mask = None if mask is None else mask[..., ::2]
                bias = self._bias(self.position, mask, h)
            h = block.finish(
                h, mask=mask, source=None, cross_bias=None, source_mask=None, cache=None
            )
        out: Tensor = self.dropout(self.final_norm(h))
        return out

    def _bias(self, table: RelativeBias | None, mask: Tensor | None, h: Tensor) -> Tensor | None:
        """Positions at the present length, and what is padding there."""
        n = h.shape[1]
        return additive(mask, None if table is None else table(n, n, 0), h.dtype)
