"""What a prepared decoder remembers, in two forms with one result.

Of one head with matrices W_q, W_k, W_v ``(d_kv, d_model)``, for a new row u after x_1 .. x_n:

    keyed   p = softmax_j((W_q u) . (W_k x_j) + bias_j),     mixed = sum_j p_j (W_v x_j)
    latent  p = softmax_j((W_k^T W_q u) . x_j + bias_j),     mixed = W_v (sum_j p_j x_j)

The keyed form keeps W_k x_j and W_v x_j of every head and layer. The latent form keeps x_j alone:
what was written once a layer, for all heads, and what the encoder wrote once for all layers. Its
dot products are ``d_model / d_kv`` times as long. With many rows the time of a token is that of
reading keys and values, and the latent form is faster; nor are the encoder's keys and values made.

It is how DeepSeek-V2, arXiv 2405.04434, section 2.1.2, reads its bottleneck; here there is none.
"""

from __future__ import annotations

from math import sqrt
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention import Attention
from .layers import RMSNorm
from .stack import Block

PAD = 16
"""Columns behind the residual stream: a cache line of float32, so that rows stay aligned."""
LATENT_ROWS = 8
"""The latent form from so many rows on; a few rows' keys and values stay in the caches."""
LATENT_LENGTH = 8
"""The latent form if its dot products are at most so many times as long."""


class Past(Protocol):
    """Attention over the tokens written so far."""

    def __call__(self, u: Tensor, bias: Tensor | None, at: int) -> Tensor:
        """``(rows, heads * d_kv)`` for the token at place ``at``, and remember it.

        ``u`` ``(rows, d_model + PAD)`` is the normed stream, ``bias`` ``(1, heads, at + 1)``.
        """
        ...

    def reorder(self, rows: Tensor) -> None:
        """Keep the given rows, in that order."""
        ...


class Source(Protocol):
    """Attention over what the encoder wrote."""

    def __call__(self, u: Tensor, closed: Tensor | None) -> Tensor:
        """``(rows, heads * d_kv)``; ``closed`` ``(rows, 1, source)`` is added to the logits."""
        ...


def remembered(block: Block, encoded: Tensor, places: int) -> tuple[Past, Source]:
    """Both memories of a block for which ``can_prepare`` holds, with room for ``places`` tokens."""
    own, cross = cast(Attention, block.self_attention), cast(Attention, block.cross_attention)
    own_norm, cross_norm = cast(RMSNorm, block.self_norm), cast(RMSNorm, block.cross_norm)
    if len(encoded) >= LATENT_ROWS and encoded.shape[-1] <= LATENT_LENGTH * own.d_kv:
        return LatentPast(own, own_norm, encoded, places), LatentSource(cross, cross_norm, encoded)
    return KeyedPast(own, own_norm, encoded, places), KeyedSource(cross, cross_norm, encoded)


class KeyedPast:
    """Keys and values ``(2, rows * heads, places, d_kv)``."""

    def __init__(self, own: Attention, norm: RMSNorm, encoded: Tensor, places: int) -> None:
        self.shape = (own.heads, own.d_kv)
        self.read = folded(norm, own.query.weight, own.key.weight, own.value.weight)
        self.kept = encoded.new_empty((2, len(encoded) * own.heads, places, own.d_kv))

    def __call__(self, u: Tensor, bias: Tensor | None, at: int) -> Tensor:
        """See :class:`Past`."""
        rows, (heads, d_kv) = len(u), self.shape
        if at == self.kept.shape[2]:
            self.kept = _longer(self.kept, 2)
        made = torch.mm(u, self.read).view(rows, 3, heads, d_kv)
        places = self.kept.view(2, rows, heads, -1, d_kv)
        places.select(3, at).copy_(made[:, 1:].transpose(0, 1))
        keys, values = self.kept[0].narrow(1, 0, at + 1), self.kept[1].narrow(1, 0, at + 1)
        query = made[:, 0].reshape(rows * heads, 1, d_kv)
        logits = torch.bmm(query, keys.transpose(1, 2)).view(rows, heads, at + 1)
        shares = _shares(logits, bias).view(rows * heads, 1, at + 1)
        return torch.bmm(shares, values).view(rows, heads * d_kv)

    def reorder(self, rows: Tensor) -> None:
        """See :class:`Past`."""
        heads, d_kv = self.shape
        old = self.kept.view(2, -1, heads, self.kept.shape[2], d_kv)
        kept = old.index_select(1, rows)
        self.kept = kept.view(2, len(rows) * heads, -1, d_kv)


class LatentPast:
    """The normed stream ``(rows, places, d_model)``."""

    def __init__(self, own: Attention, norm: RMSNorm, encoded: Tensor, places: int) -> None:
        self.read = folded(norm, own.query.weight)
        self.up, self.down = _absorbed(own, _scale(norm))
        self.kept = encoded.new_empty((len(encoded), places, encoded.shape[-1]))

    def __call__(self, u: Tensor, bias: Tensor | None, at: int) -> Tensor:
        """See :class:`Past`."""
        if at == self.kept.shape[1]:
            self.kept = _longer(self.kept, 1)
        self.kept.select(1, at).copy_(u.narrow(1, 0, self.kept.shape[2]))
        past = self.kept.narrow(1, 0, at + 1)
        return _latent(torch.mm(u, self.read), self.up, self.down, past, bias)

    def reorder(self, rows: Tensor) -> None:
        """See :class:`Past`."""
        self.kept = self.kept.index_select(0, rows)


class KeyedSource:
    """Keys and values, both with the places last: one query a row reads them fastest so."""

    def __init__(self, cross: Attention, norm: RMSNorm, encoded: Tensor) -> None:
        self.shape = heads, d_kv = cross.heads, cross.d_kv
        self.read = folded(norm, cross.query.weight)
        rows, source = encoded.shape[:2]

        def laid_out(matrix: Tensor) -> Tensor:
            flat = F.linear(encoded, matrix).view(rows, source, heads, d_kv)
            return flat.permute(0, 2, 3, 1).reshape(rows * heads, d_kv, source)

        self.keys = laid_out(cross.key.weight)
        self.values = laid_out(cross.value.weight).transpose(1, 2)

    def __call__(self, u: Tensor, closed: Tensor | None) -> Tensor:
        """See :class:`Source`."""
        rows, (heads, d_kv) = len(u), self.shape
        query = torch.mm(u, self.read).view(rows * heads, 1, d_kv)
        logits = torch.bmm(query, self.keys).view(rows, heads, -1)
        shares = _shares(logits, closed).view(rows * heads, 1, -1)
        return torch.bmm(shares, self.values).view(rows, heads * d_kv)


class LatentSource:
    """What the encoder wrote ``(rows, source, d_model)``, the same tensor for every layer."""

    def __init__(self, cross: Attention, norm: RMSNorm, encoded: Tensor) -> None:
        self.read = folded(norm, cross.query.weight)
        self.up, self.down = _absorbed(cross)
        self.encoded = encoded

    def __call__(self, u: Tensor, closed: Tensor | None) -> Tensor:
        """See :class:`Source`."""
        return _latent(torch.mm(u, self.read), self.up, self.down, self.encoded, closed)


def _latent(query: Tensor, up: Tensor, down: Tensor, x: Tensor, added: Tensor | None) -> Tensor:
    """Attention of ``query`` ``(rows, heads * d_kv)`` over ``x`` ``(rows, places, d_model)``.

    The heads of a row stand where a sequence's queries do: they all read the same x. ``added``
    ``(rows or 1, heads or 1, places)``.
    """
    rows, (heads, d_kv, _) = len(query), up.shape
    by_head = query.view(rows, heads, d_kv).transpose(0, 1)
    long = torch.bmm(by_head, up).transpose(0, 1)
    keys = x[:, None]
    mask = None if added is None else added[:, None]
    mixed = F.scaled_dot_product_attention(long[:, None], keys, keys, mask, scale=1.0)[:, 0]
    mixed = torch.bmm(mixed.transpose(0, 1), down)
    return mixed.transpose(0, 1).reshape(rows, heads * d_kv)


def _absorbed(read: Attention, scale: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """Keys' and values' matrices, ``(heads, d_kv, d_model)`` and ``(heads, d_model, d_kv)``."""
    pair = (read.key.weight * scale, read.value.weight * scale)
    up, down = (matrix.view(read.heads, read.d_kv, -1) for matrix in pair)
    return up.contiguous(), down.transpose(1, 2).contiguous()


def _shares(logits: Tensor, added: Tensor | None) -> Tensor:
    """Softmax over the last dimension; the logits are written over."""
    return torch.softmax(logits if added is None else logits.add_(added), -1)


def _longer(old: Tensor, dim: int) -> Tensor:
    """The same with twice as many places in ``dim``."""
    shape, places = list(old.shape), old.shape[dim]
    shape[dim] *= 2
    new = old.new_empty(shape)
    new.narrow(dim, 0, places).copy_(old)
    return new


def _scale(norm: RMSNorm) -> Tensor:
    """What a norm multiplies ``h / norm(h)`` with."""
    return norm.weight * sqrt(len(norm.weight))


def folded(norm: RMSNorm, *matrices: Tensor) -> Tensor:
    """``(d_model + PAD, sum of widths)``: transposed, for ``h / norm(h)`` in the norm's place."""
    whole = (torch.cat(matrices) * _scale(norm)).t()
    return F.pad(whole, (0, 0, 0, PAD)).contiguous()
