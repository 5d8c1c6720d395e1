"""Attention, its masks and its cache."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import Seq2SeqConfig
from .layers import at_least_float32, normal
from .positions import ContextualBias


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
    if mask is None or _all_open(mask):
        return bias
    closed = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    closed = closed.masked_fill(~mask, torch.finfo(dtype).min)[:, None]
    return closed if bias is None else bias + closed


def _all_open(mask: Tensor) -> bool:
    """Whether nothing is hidden, where looking costs nothing: not on a GPU, nor when mapped."""
    known = mask.device.type == "cpu" and not torch._C._are_functorch_transforms_active()
    return known and not torch.compiler.is_compiling() and bool(mask.all())


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
    """``softmax(scale * q k^T + bias) v`` over several heads; no bias in any matrix.

    T5 has ``scale = 1``: the factor ``d_kv ** -0.5`` is folded into the initial scale of the query
    matrix. Cost for ``n`` queries and ``m`` keys: ``2 d_model inner (n + m) + 2 n m inner``
    multiply-adds. Source: arXiv 1910.10683.

    Parameters
    ----------
    config
        Sizes, and how the weights start.
    causal
        Self-attention in a decoder; decides on the buckets of a contextual position bias.
    cross
        Whether another sequence is read.
    """

    def __init__(self, config: Seq2SeqConfig, *, causal: bool = False, cross: bool = False) -> None:
        super().__init__()
        self.config, self.cross = config, cross
        self.heads, self.d_kv, self.scale = config.heads, config.d_kv, config.attention_scale
        self.query = nn.Linear(config.d_model, config.inner, bias=False)
        self.key = nn.Linear(config.d_model, config.inner, bias=False)
        self.value = nn.Linear(config.d_model, config.inner, bias=False)
        self.output = nn.Linear(config.inner, config.d_model, bias=False)
        self.contextual: ContextualBias | None = None
        if config.position == "rel_contextual" and not cross:
            both = not causal or config.arch == "prefix_lm"
            self.contextual = ContextualBias(config, bidirectional=both)
        self.dropout = nn.Dropout(config.dropout)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the four matrices anew."""
        c = self.config
        read, query = c.d_model**-0.5, (c.d_model * c.d_kv) ** -0.5
        write = c.inner**-0.5
        if c.scaling == "explicit":
            query = read
        if c.residual == "fixup" and not (self.cross and c.fixup_cross == "released"):
            read = query = (2.0 / c.d_model) ** 0.5 * c.sublayers ** (-1 / 6)
            write = 0.0
        normal(self.query.weight, query, generator)
        normal(self.key.weight, read, generator)
        normal(self.value.weight, read, generator)
        normal(self.output.weight, write, generator)

    def new_cache(self) -> LayerCache:
        """An empty cache for incremental use."""
        return LayerCache()

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, self.d_kv).transpose(1, 2)

    def keys_values(
        self, x: Tensor, source: Tensor | None, cache: LayerCache | None
    ) -> tuple[Tensor, Tensor]:
        """Everything visible so far, each ``(b, heads, k, d_kv)``."""
        stored = cache.stored() if cache is not None and source is not None else None
        if stored is not None:
            return stored
        read = x if source is None else source
        keys, values = self._split(self.key(read)), self._split(self.value(read))
        if cache is not None and source is None:
            return cache.append(keys, values)
        if cache is not None:
            # matmul would copy a strided view at every step.
            cache.fixed(keys.contiguous(), values.contiguous())
        return keys, values

    def forward(
        self, x: Tensor, *, source: Tensor | None = None, bias: Tensor | None = None,
        mask: Tensor | None = None, cache: LayerCache | None = None,
    ) -> Tensor:  # fmt: skip
        """Attend from ``x`` ``(b, q, d_model)`` to itself, or to ``source`` ``(b, k, d_model)``.

        ``bias`` broadcasts to ``(b, heads, q, k)`` and closes what may not be seen (``mask``, which
        other mixers need, adds nothing to it). With a cache, keys of earlier calls stay visible;
        those of ``source`` are computed once.
        """
        query = self._split(self.query(x))
        if self.scale != 1.0:
            query = query * self.scale
        keys, values = self.keys_values(x, source, cache)
        if self.contextual is not None:
            place = self.contextual(x, query, keys.shape[2])
            bias = place if bias is None else bias + place
        if torch.is_grad_enabled() or self.training:
            logits = query @ keys.transpose(-1, -2)
            if bias is not None:
                logits += bias
            heads = self.mix(logits, values)
        else:  # the same without keeping the weights
            heads = F.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=1.0)
        return self.join(heads)

    def mix(self, logits: Tensor, values: Tensor) -> Tensor:
        """``dropout(softmax(logits)) values``, ``(b, heads, q, d_kv)``."""
        weights: Tensor = self.dropout(torch.softmax(at_least_float32(logits), -1).to(values.dtype))
        return weights @ values

    def join(self, heads: Tensor) -> Tensor:
        """Heads ``(b, heads, q, d_kv)`` through the output matrix; ``(b, q, d_model)``."""
        mixed = heads.transpose(1, 2).reshape(heads.shape[0], heads.shape[2], -1)
        out: Tensor = self.output(mixed)
        return out
