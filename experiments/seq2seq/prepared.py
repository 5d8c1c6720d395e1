"""A decoder made ready for writing token by token.

The same function as the blocks compute, in fewer and larger operations: the norms' weights are
folded into the matrices that read them, query, key and value (gate and input) are one product,
residual sums are part of the output product, and keys of the encoder are laid out once.

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

FIRST_ROOM = 16
"""Places of a new key buffer if nobody says how many will come; it doubles when it is full."""
MOST_ROOM = 256
"""Places of a new key buffer at most: rows may end early."""
PAD = 16
"""Columns behind the residual stream: a cache line of float32, so that rows stay aligned."""


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
    """Writes one token a row and call; keeps keys and values of what was written.

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
    Preparing costs one pass over the decoder's weights and the products of the encoder's keys and
    values. Memory: a copy of the decoder's matrices.
    """

    def __init__(
        self, model: Seq2Seq, encoded: Tensor, source_mask: Tensor, *, room: int = FIRST_ROOM
    ) -> None:
        c = model.config
        self.model, self.heads, self.d_kv = model, c.heads, c.d_kv
        self.rows, self.length = len(encoded), 0
        self.constant = sqrt(c.d_model * c.norm_eps)
        self.table: RelativeBias | None = model.decoder.position
        self.far: Tensor | None = None
        blocks = [cast(Block, block) for block in model.decoder.blocks]
        places = max(1, min(room, MOST_ROOM))
        self.layers = [_Layer(b, encoded, self.heads, self.d_kv, places) for b in blocks]
        self.closed: Tensor | None = None
        if not bool(source_mask.all()):
            low = torch.finfo(encoded.dtype).min
            closed = torch.zeros(source_mask.shape, dtype=encoded.dtype, device=encoded.device)
            closed = closed.masked_fill(~source_mask, low)[:, None]
            self.closed = closed.expand(-1, c.heads, -1, -1).reshape(
                self.rows * c.heads, 1, source_mask.shape[-1]
            )
        scale = c.d_model**-0.5 if c.logits_scaled else 1.0
        norm = cast(RMSNorm, model.decoder.final_norm)
        self.words = cast(nn.Parameter, model.embedding)
        head = self.words if model.head is None else model.head
        self.head = _folded(norm, head * scale)

    def step(self, tokens: Tensor) -> Tensor:
        """Logits ``(rows, vocab)`` after reading ``(rows, 1)`` tokens."""
        h = F.pad(F.embedding(tokens[:, 0], self.words), (0, PAD))
        h[:, -PAD] = self.constant
        bias = self._bias()
        for layer in self.layers:
            h = layer(h, bias, self.closed, self.length)
        self.length += 1
        return torch.mm(_unit(h), self.head)

    def _bias(self) -> Tensor | None:
        """``(heads, 1, length + 1)``: the end of the row of the last place that there is room for.

        It depends on distances alone, and is computed as often as the room doubles.
        """
        if self.table is None:
            return None
        far = self.far
        if far is None or far.shape[-1] <= self.length:
            room = FIRST_ROOM
            while room <= self.length:
                room *= 2
            far = cast(Tensor, self.table(1, room, room - 1)[0]).contiguous()
            self.far = far
        return far[..., far.shape[-1] - 1 - self.length :]

    def reorder(self, rows: Tensor) -> None:
        """Keep the given rows, in that order; of a beam search, within the same source."""
        for layer in self.layers:
            layer.reorder(rows, self.rows)
        self.rows = len(rows)


def _unit(h: Tensor) -> Tensor:
    """``h / norm(h)``; the norm in float32 or wider."""
    wide = at_least_float32(h)
    norm: Tensor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return (wide / norm).to(h.dtype)


class _Layer:
    """One block: fused matrices, and keys and values ``(2, rows * heads, places, d_kv)``."""

    def __init__(self, block: Block, encoded: Tensor, heads: int, d_kv: int, places: int) -> None:
        own = cast(Attention, block.self_attention)
        cross = cast(Attention, block.cross_attention)
        self.heads, self.d_kv, self.inner = heads, d_kv, heads * d_kv
        self.read = _folded(block.self_norm, own.query.weight, own.key.weight, own.value.weight)
        self.write = _written(own.output.weight)
        self.cross_read = _folded(cast(RMSNorm, block.cross_norm), cross.query.weight)
        self.cross_write = _written(cross.output.weight)
        rows, source = encoded.shape[:2]

        def laid_out(matrix: Tensor) -> Tensor:
            flat = F.linear(encoded, matrix).view(rows, source, heads, d_kv)
            return flat.permute(0, 2, 3, 1).reshape(rows * heads, d_kv, source)

        # Both with the source's places last: one query a row reads them fastest so.
        self.cross_keys = laid_out(cross.key.weight)
        self.cross_values = laid_out(cross.value.weight).transpose(1, 2)
        feed = cast(FeedForward, block.feed_forward)
        self.activation: Activation = feed.activation
        self.gated = isinstance(feed, GatedFeedForward)
        inner = [feed.wi.weight]
        if isinstance(feed, GatedFeedForward):
            inner.insert(0, feed.gate.weight)
        self.feed_read = _folded(cast(RMSNorm, block.feed_norm), *inner)
        self.feed_write = _written(feed.wo.weight)
        self.kept = encoded.new_empty((2, rows * heads, places, d_kv))

    def __call__(self, h: Tensor, bias: Tensor | None, closed: Tensor | None, at: int) -> Tensor:
        rows = len(h)
        if at == self.kept.shape[2]:
            self.kept = _longer(self.kept)
        made = torch.mm(_unit(h), self.read).view(rows, 3, self.heads, self.d_kv)
        shape = (rows * self.heads, 1, self.d_kv)
        query = made[:, 0].reshape(shape)
        places = self.kept.view(2, rows, self.heads, -1, self.d_kv)
        places.select(3, at).copy_(made[:, 1:].transpose(0, 1))
        keys, values = self.kept[0].narrow(1, 0, at + 1), self.kept[1].narrow(1, 0, at + 1)
        logits = torch.bmm(query, keys.transpose(1, 2))
        if bias is not None:
            logits.view(rows, self.heads, 1, at + 1).add_(bias)
        mixed = torch.bmm(torch.softmax(logits, -1), values)
        h = torch.addmm(h, mixed.view(rows, self.inner), self.write)
        query = torch.mm(_unit(h), self.cross_read).view(shape)
        logits = torch.bmm(query, self.cross_keys)
        if closed is not None:
            logits += closed
        mixed = torch.bmm(torch.softmax(logits, -1), self.cross_values)
        h = torch.addmm(h, mixed.view(rows, self.inner), self.cross_write)
        hidden = torch.mm(_unit(h), self.feed_read)
        if self.gated:
            gate, value = hidden.chunk(2, -1)
            hidden = activate(self.activation, gate) * value
        elif self.activation == "relu":
            hidden = hidden.relu_()
        else:
            hidden = activate(self.activation, hidden)
        return torch.addmm(h, hidden, self.feed_write)

    def reorder(self, rows: Tensor, before: int) -> None:
        """Keep rows of what was written; the source of a row is that of the row it replaces."""
        old = self.kept.view(2, before, self.heads, *self.kept.shape[2:])
        kept = old.index_select(1, rows)
        self.kept = kept.view(2, len(rows) * self.heads, *self.kept.shape[2:])


def _longer(old: Tensor) -> Tensor:
    """The same with twice as many places."""
    places = old.shape[2]
    new = old.new_empty((*old.shape[:2], 2 * places, old.shape[3]))
    new[:, :, :places] = old
    return new


def _folded(norm: nn.Module, *matrices: Tensor) -> Tensor:
    """``(d_model + PAD, sum of widths)``: transposed, for ``h / norm(h)`` in the norm's place."""
    weight = cast(RMSNorm, norm).weight
    whole = (torch.cat(matrices) * (weight * sqrt(len(weight)))).t()
    return F.pad(whole, (0, 0, 0, PAD)).contiguous()


def _written(matrix: Tensor) -> Tensor:
    """``(width, d_model + PAD)``: transposed; the columns behind the stream stay as they are."""
    return F.pad(matrix.t(), (0, PAD)).contiguous()
