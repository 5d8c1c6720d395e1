"""A decoder made ready for writing token by token.

The same function as the blocks compute, in fewer and larger operations: the norms' weights are
folded into the matrices that read them, gate and input are one product, residual sums are part of
the output product, and attention reads what :mod:`.prepared_attention` keeps.

The residual stream h has PAD more columns, of which the first is always sqrt(d eps) and the others
are zero: ``h / sqrt(mean(h**2) + eps)`` is then ``sqrt(d) h / norm(h)``, two operations. After a
large product each small one costs more than its arithmetic, for it finds the caches empty.
"""

from __future__ import annotations

from math import sqrt
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Attention
from .config import Activation
from .layers import FeedForward, GatedFeedForward, RMSNorm, activate, at_least_float32
from .model import Block, Seq2Seq, Stack
from .positions import RelativeBias
from .prepared_attention import PAD, folded, remembered

FIRST_ROOM = 16
"""Places of a new key buffer if nobody says how many will come; it doubles when it is full."""
MOST_ROOM = 256
"""Places of a new key buffer at most: rows may end early."""


def can_prepare(model: Seq2Seq) -> bool:
    """Whether every layer of the decoder is one that a prepared decoder knows, without gradients.

    Anything else (other norms, biases, adapters, training) is decoded by the blocks themselves.
    """
    if model.encoder is None or model.training or torch.is_grad_enabled():
        return False
    c = model.config
    plain = (
        type(model.decoder) is Stack and c.position in ("rel_shared", "none")
        and c.cross == "plain" and c.residual == "plain" and c.scaling == "folded"
        and not c.shares_blocks("decoder") and model.softmax is None
        and isinstance(model.embedding, Tensor)
    )  # fmt: skip
    return plain and all(_knows(b) for b in model.decoder.blocks) and (
        type(model.decoder.final_norm) is RMSNorm
    )  # fmt: skip


def _knows(b: nn.Module) -> bool:
    return (
        type(b) is Block
        and type(b.self_norm) is RMSNorm and type(b.cross_norm) is RMSNorm
        and type(b.feed_norm) is RMSNorm and type(b.self_attention) is Attention
        and type(b.cross_attention) is Attention and b.adapter is None and b.position is None
        and type(b.feed_forward) in (FeedForward, GatedFeedForward)
        and cast(FeedForward, b.feed_forward).wi.bias is None
    )  # fmt: skip


class PreparedDecoder:
    """Writes one token a row and call; keeps what attention reads of those written.

    Parameters
    ----------
    model
        For which :func:`can_prepare` holds.
    encoded
        ``(rows, s, d_model)``.
    source_mask
        ``(rows, 1, s)`` bool, true where the encoder has a token.
    room
        How many tokens will be written at most; more may come, at the price of a copy.

    Notes
    -----
    Preparing costs one pass over the decoder's weights and, with few rows or long heads, the
    products of the encoder's keys and values. Memory: a copy of the decoder's matrices, and what
    :mod:`.prepared_attention` keeps.
    """

    def __init__(
        self, model: Seq2Seq, encoded: Tensor, source_mask: Tensor, *, room: int = FIRST_ROOM
    ) -> None:
        c = model.config
        self.model, self.length = model, 0
        self.tail = encoded.new_zeros((1, PAD))
        self.tail[0, 0] = sqrt(c.d_model * c.norm_eps)
        self.table: RelativeBias | None = model.decoder.position
        self.far: Tensor | None = None
        blocks = [cast(Block, block) for block in model.decoder.blocks]
        places = max(1, min(room, MOST_ROOM))
        encoded = encoded.contiguous()
        self.layers = [_Layer(b, encoded, places) for b in blocks]
        self.closed: Tensor | None = None
        if not bool(source_mask.all()):
            low = torch.finfo(encoded.dtype).min
            closed = torch.zeros(source_mask.shape, dtype=encoded.dtype, device=encoded.device)
            self.closed = closed.masked_fill(~source_mask, low)
        scale = c.d_model**-0.5 if c.logits_scaled else 1.0
        norm = cast(RMSNorm, model.decoder.final_norm)
        self.words = cast(nn.Parameter, model.embedding)
        head = self.words if model.head is None else model.head
        self.head = folded(norm, head * scale)

    def step(self, tokens: Tensor) -> Tensor:
        """Logits ``(rows, vocab)`` after reading ``(rows, 1)`` tokens."""
        words = F.embedding(tokens[:, 0], self.words)
        h = torch.cat([words, self.tail.expand(len(words), -1)], 1)
        bias = self._bias()
        for layer in self.layers:
            h = layer(h, bias, self.closed, self.length)
        self.length += 1
        return torch.mm(_unit(h), self.head)

    def _bias(self) -> Tensor | None:
        """``(1, heads, length + 1)``: the end of the row of the last place that there is room for.

        It depends on distances alone, and is computed as often as the room doubles.
        """
        if self.table is None:
            return None
        far = self.far
        if far is None or far.shape[-1] <= self.length:
            room = FIRST_ROOM
            while room <= self.length:
                room *= 2
            far = cast(Tensor, self.table(1, room, room - 1)[:, :, 0]).contiguous()
            self.far = far
        return far[..., far.shape[-1] - 1 - self.length :]

    def reorder(self, rows: Tensor) -> None:
        """Keep the given rows, in that order; of a beam search, within the same source."""
        for layer in self.layers:
            layer.past.reorder(rows)


def _unit(h: Tensor) -> Tensor:
    """``h / norm(h)``; the norm in float32 or wider."""
    wide = at_least_float32(h)
    norm: Tensor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return (wide / norm).to(h.dtype)


class _Layer:
    """One block: what it remembers, and matrices that hold the norms."""

    def __init__(self, block: Block, encoded: Tensor, places: int) -> None:
        self.past, self.source = remembered(block, encoded, places)
        self.write = _written(cast(Attention, block.self_attention).output.weight)
        self.cross_write = _written(cast(Attention, block.cross_attention).output.weight)
        feed = cast(FeedForward, block.feed_forward)
        self.activation: Activation = feed.activation
        self.gated = isinstance(feed, GatedFeedForward)
        inner = [feed.wi.weight]
        if isinstance(feed, GatedFeedForward):
            inner.insert(0, feed.gate.weight)
        self.feed_read = folded(cast(RMSNorm, block.feed_norm), *inner)
        self.feed_write = _written(feed.wo.weight)

    def __call__(self, h: Tensor, bias: Tensor | None, closed: Tensor | None, at: int) -> Tensor:
        """The stream after this block, written over ``h``."""
        h.addmm_(self.past(_unit(h), bias, at), self.write)
        h.addmm_(self.source(_unit(h), closed), self.cross_write)
        hidden = torch.mm(_unit(h), self.feed_read)
        if self.gated:
            gate, value = hidden.chunk(2, -1)
            hidden = activate(self.activation, gate) * value
        elif self.activation == "relu":
            hidden = hidden.relu_()
        else:
            hidden = activate(self.activation, hidden)
        return h.addmm_(hidden, self.feed_write)


def _written(matrix: Tensor) -> Tensor:
    """``(width, d_model + PAD)``: transposed; the columns behind the stream stay as they are."""
    return F.pad(matrix.t(), (0, PAD)).contiguous()
