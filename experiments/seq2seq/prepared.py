"""A decoder made ready for writing token by token.

The same function as the blocks compute, in fewer and larger operations: the norms' weights are
folded into the matrices that read them, query, key and value (gate and input) are one product,
residual sums are part of the output product, and keys of the encoder are laid out once.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Attention
from .config import Activation
from .layers import FeedForward, GatedFeedForward, RMSNorm, activate
from .model import Block, Seq2Seq, Stack
from .positions import RelativeBias

FIRST_ROOM = 16
"""Places of a new key buffer; it doubles when it is full."""


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

    Notes
    -----
    Preparing costs one pass over the decoder's weights and the products of the encoder's keys and
    values. Memory: a copy of the decoder's matrices.
    """

    def __init__(self, model: Seq2Seq, encoded: Tensor, source_mask: Tensor) -> None:
        c = model.config
        self.model, self.heads, self.d_kv = model, c.heads, c.d_kv
        self.rows, self.length, self.eps = len(encoded), 0, c.norm_eps
        self.table: RelativeBias | None = model.decoder.position
        self.far: Tensor | None = None
        blocks = [cast(Block, block) for block in model.decoder.blocks]
        self.layers = [_Layer(block, encoded, self.heads, self.d_kv) for block in blocks]
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
        self.head = (head * (norm.weight * scale)).t().contiguous()

    def step(self, tokens: Tensor) -> Tensor:
        """Logits ``(rows, vocab)`` after reading ``(rows, 1)`` tokens."""
        h = F.embedding(tokens[:, 0], self.words)
        bias = self._bias()
        for layer in self.layers:
            h = layer(h, bias, self.closed, self.length, self.eps)
        self.length += 1
        return _unit(h, self.eps) @ self.head

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


def _unit(x: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x**2) + eps)``."""
    return F.rms_norm(x, x.shape[-1:], None, eps)


class _Layer:
    """One block: fused matrices, and buffers ``(rows * heads, places, d_kv)``."""

    def __init__(self, block: Block, encoded: Tensor, heads: int, d_kv: int) -> None:
        own = cast(Attention, block.self_attention)
        cross = cast(Attention, block.cross_attention)
        self.heads, self.d_kv, self.inner = heads, d_kv, heads * d_kv
        self.read = _folded(block.self_norm, own.query.weight, own.key.weight, own.value.weight)
        self.write = own.output.weight.t().contiguous()
        self.cross_read = _folded(cast(RMSNorm, block.cross_norm), cross.query.weight)
        self.cross_write = cross.output.weight.t().contiguous()
        rows, places = encoded.shape[:2]

        def laid_out(matrix: Tensor) -> Tensor:
            flat = F.linear(encoded, matrix).view(rows, places, heads, d_kv)
            return flat.transpose(1, 2).reshape(rows * heads, places, d_kv)

        self.cross_keys = laid_out(cross.key.weight).transpose(1, 2).contiguous()
        self.cross_values = laid_out(cross.value.weight).contiguous()
        feed = cast(FeedForward, block.feed_forward)
        self.activation: Activation = feed.activation
        self.gated = isinstance(feed, GatedFeedForward)
        inner = [feed.wi.weight]
        if isinstance(feed, GatedFeedForward):
            inner.insert(0, feed.gate.weight)
        self.feed_read = _folded(cast(RMSNorm, block.feed_norm), *inner)
        self.feed_write = feed.wo.weight.t().contiguous()
        self.keys = encoded.new_empty((rows * heads, FIRST_ROOM, d_kv))
        self.values = torch.empty_like(self.keys)

    def __call__(
        self, h: Tensor, bias: Tensor | None, closed: Tensor | None, at: int, eps: float
    ) -> Tensor:
        rows = len(h)
        if at == self.keys.shape[1]:
            self.keys, self.values = _longer(self.keys), _longer(self.values)
        made = (_unit(h, eps) @ self.read).view(rows, 3, self.heads, self.d_kv)
        shape = (rows * self.heads, 1, self.d_kv)
        query = made[:, 0].reshape(shape)
        for place, kept in ((1, self.keys), (2, self.values)):
            kept.view(rows, self.heads, -1, self.d_kv)[:, :, at] = made[:, place]
        logits = torch.bmm(query, self.keys[:, : at + 1].transpose(1, 2))
        if bias is not None:
            logits.view(rows, self.heads, 1, at + 1).add_(bias)
        mixed = torch.bmm(torch.softmax(logits, -1), self.values[:, : at + 1])
        h = torch.addmm(h, mixed.view(rows, self.inner), self.write)
        query = (_unit(h, eps) @ self.cross_read).view(shape)
        logits = torch.bmm(query, self.cross_keys)
        if closed is not None:
            logits += closed
        mixed = torch.bmm(torch.softmax(logits, -1), self.cross_values)
        h = torch.addmm(h, mixed.view(rows, self.inner), self.cross_write)
        hidden = _unit(h, eps) @ self.feed_read
        if self.gated:
            gate, value = hidden.chunk(2, -1)
            hidden = activate(self.activation, gate) * value
        else:
            hidden = activate(self.activation, hidden)
        return torch.addmm(h, hidden, self.feed_write)

    def reorder(self, rows: Tensor, before: int) -> None:
        """Keep rows of what was written; the source of a row is that of the row it replaces."""
        for name in ("keys", "values"):
            old = getattr(self, name)
            kept = old.view(before, self.heads, *old.shape[1:]).index_select(0, rows)
            setattr(self, name, kept.view(len(rows) * self.heads, *old.shape[1:]))


def _longer(old: Tensor) -> Tensor:
    """The same with twice as many places."""
    places = old.shape[1]
    new = old.new_empty((len(old), 2 * places, old.shape[2]))
    new[:, :places] = old
    return new


def _folded(norm: torch.nn.Module, *matrices: Tensor) -> Tensor:
    """``(d_model, sum of widths)``: the matrices, transposed, with the norm's weights inside."""
    weight = cast(RMSNorm, norm).weight
    return (torch.cat(matrices) * weight).t().contiguous()
