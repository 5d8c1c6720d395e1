"""Attention without the ``1/sqrt(d_kv)`` factor, relative position buckets, masks and the cache."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import Seq2SeqConfig
from .layers import at_least_float32


def relative_buckets(
    relative: Tensor, *, bidirectional: bool, buckets: int = 32, max_distance: int = 128
) -> Tensor:
    """Bucket of each relative position ``key - query``.

    With ``nb`` buckets a side and ``m = nb / 2``, a distance ``n < m`` has its own bucket and a
    larger one ``min(nb - 1, m + floor(ln(n/m) / ln(max_distance/m) * (nb - m)))``. Bidirectional
    use gives each side half of the buckets; causal use puts all later keys into bucket 0.

    Parameters
    ----------
    relative
        Whole numbers of any shape.

    Returns
    -------
    Tensor
        int64 of the same shape, in ``[0, buckets)``.

    References
    ----------
    Raffel et al., arXiv 1910.10683, section 2.1.
    """
    if bidirectional:
        buckets //= 2
        offset = (relative > 0).long() * buckets
        distance = relative.abs()
    else:
        offset = torch.zeros_like(relative)
        distance = (-relative).clamp(min=0)
    exact = buckets // 2
    ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (ratio * (buckets - exact)).long()).clamp(max=buckets - 1)
    return offset + torch.where(distance < exact, distance, far)


class RelativeBias(nn.Module):
    """One learned scalar for each (bucket, head), added to self-attention logits."""

    def __init__(self, config: Seq2SeqConfig, *, bidirectional: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.buckets, config.heads))
        self.bidirectional = bidirectional
        self.max_distance = config.max_distance

    def forward(self, queries: int, keys: int, offset: int = 0) -> Tensor:
        """Bias ``(1, heads, queries, keys)``; the first query stands at place ``offset``."""
        device = self.weight.device
        key = torch.arange(keys, device=device)
        query = torch.arange(offset, offset + queries, device=device)
        bucket = relative_buckets(
            key[None, :] - query[:, None],
            bidirectional=self.bidirectional,
            buckets=self.weight.shape[0],
            max_distance=self.max_distance,
        )
        return self.weight[bucket].permute(2, 0, 1)[None]


def causal_mask(queries: int, keys: int, offset: int, device: torch.device) -> Tensor:
    """Whether query ``i + offset`` may see key ``j``: ``j <= i + offset``; ``(1, q, k)`` bool."""
    query = torch.arange(offset, offset + queries, device=device)
    return (torch.arange(keys, device=device)[None, :] <= query[:, None])[None]


def prefix_mask(prefix: Tensor) -> Tensor:
    """Causal mask opened for the prefix: ``j <= i`` or both ends lie in it.

    ``prefix`` ``(batch, length)`` is true at the input tokens and at the place that reads the
    last of them and predicts the first target. The result is ``(batch, length, length)`` bool.
    """
    causal = causal_mask(prefix.shape[1], prefix.shape[1], 0, prefix.device)
    return causal | (prefix[:, :, None] & prefix[:, None, :])


def segment_mask(query_segments: Tensor, key_segments: Tensor) -> Tensor:
    """Equal segment numbers, and not 0 (padding); ``(batch, q, k)`` bool."""
    same = query_segments[:, :, None] == key_segments[:, None, :]
    return same & (key_segments > 0)[:, None, :]


def additive(mask: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Bias plus the smallest finite number wherever the mask is false; ``(b, h, q, k)``."""
    if mask is None:
        return bias
    closed = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    closed = closed.masked_fill(~mask, torch.finfo(dtype).min)[:, None]
    return closed if bias is None else bias + closed


class LayerCache:
    """Keys and values of one attention layer, in buffers that double when they are full."""

    def __init__(self) -> None:
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    @property
    def filled(self) -> bool:
        """Whether anything was stored."""
        return self._keys is not None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store ``(batch, heads, new, d_kv)`` and return everything stored so far."""
        end = self.length + keys.shape[2]
        if self._keys is None or self._values is None or end > self._keys.shape[2]:
            self._keys = self._grown(self._keys, keys, end)
            self._values = self._grown(self._values, values, end)
        self._keys[:, :, self.length : end] = keys
        self._values[:, :, self.length : end] = values
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def _grown(self, old: Tensor | None, like: Tensor, end: int) -> Tensor:
        batch, heads, _, width = like.shape
        fresh = like.new_zeros((batch, heads, max(16, 2 * end), width))
        if old is not None:
            fresh[:, :, : self.length] = old[:, :, : self.length]
        return fresh

    def fixed(self, keys: Tensor, values: Tensor) -> None:
        """Store keys and values that never grow (cross-attention)."""
        self._keys, self._values, self.length = keys, values, keys.shape[2]

    def stored(self) -> tuple[Tensor, Tensor] | None:
        """Everything stored, or None."""
        if self._keys is None or self._values is None:
            return None
        return self._keys[:, :, : self.length], self._values[:, :, : self.length]

    def reorder(self, rows: Tensor) -> None:
        """Keep the given rows of the batch, in that order."""
        if self._keys is not None and self._values is not None:
            self._keys = self._keys.index_select(0, rows)
            self._values = self._values.index_select(0, rows)


class Attention(nn.Module):
    """``softmax(q k^T + bias) v`` over several heads; no bias in any matrix, no ``1/sqrt(d_kv)``.

    The factor is folded into the initial scale of the query matrix. Cost for ``n`` queries and
    ``m`` keys: ``2 d_model inner (n + m) + 2 n m inner`` multiply-adds. Source: arXiv 1910.10683.
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.heads, self.d_kv = config.heads, config.d_kv
        self.query = nn.Linear(config.d_model, config.inner, bias=False)
        self.key = nn.Linear(config.d_model, config.inner, bias=False)
        self.value = nn.Linear(config.d_model, config.inner, bias=False)
        self.output = nn.Linear(config.inner, config.d_model, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, self.d_kv).transpose(1, 2)

    def forward(
        self,
        x: Tensor,
        *,
        source: Tensor | None = None,
        bias: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Attend from ``x`` ``(b, q, d_model)`` to itself, or to ``source`` ``(b, k, d_model)``.

        ``bias`` broadcasts to ``(b, heads, q, k)``. With a cache, keys of earlier calls stay
        visible; those of ``source`` are computed once.
        """
        query = self._split(self.query(x))
        stored = cache.stored() if cache is not None and source is not None else None
        if stored is not None:
            keys, values = stored
        else:
            read = x if source is None else source
            keys, values = self._split(self.key(read)), self._split(self.value(read))
            if cache is not None and source is None:
                keys, values = cache.append(keys, values)
            elif cache is not None:
                # matmul would copy a strided view at every step.
                cache.fixed(keys.contiguous(), values.contiguous())
        if torch.is_grad_enabled() or self.training:
            logits = query @ keys.transpose(-1, -2)
            if bias is not None:
                logits += bias
            weights = self.dropout(torch.softmax(at_least_float32(logits), -1).to(values.dtype))
            heads = weights @ values
        else:  # the same without keeping the weights
            heads = F.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=1.0)
        mixed = heads.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1)
        out: Tensor = self.output(mixed)
        return out
