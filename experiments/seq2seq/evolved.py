"""The Evolved Transformer: gated linear unit, branched convolutions, and its double blocks."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Attention, LayerCache
from .config import Seq2SeqConfig
from .conv import WindowCache, depthwise, sees_part, visible_band, windowed
from .layers import FeedForward, GatedFeedForward, make_norm
from .positions import RelativeBias
from .stack import BaseBlock


class _Sight:
    """What windows may see: which positions are real, and how packed rows cut the windows."""

    def __init__(self, mask: Tensor | None, x: Tensor, *, causal: bool) -> None:
        self.real = None if mask is None else mask.any(1)[:, -x.shape[1] :, None]
        cut = mask is not None and sees_part(mask, x.shape[0], causal=causal)
        self.mask = mask if cut else None
        self.causal = causal

    def hide(self, x: Tensor) -> Tensor:
        """Zeros at positions that are not real."""
        return x if self.real is None else x * self.real

    def band(self, width: int) -> Tensor | None:
        """Windows of packed rows, ``(b, n, width, 1)``; None where windows are whole."""
        if self.mask is None:
            return None
        left = width - 1 if self.causal else (width - 1) // 2
        return visible_band(self.mask, width, left)[..., None]


def pad_channels(x: Tensor, width: int) -> Tensor:
    """Zeros behind the last channel of ``(..., c)`` up to ``(..., width)``."""
    return F.pad(x, (0, width - x.shape[-1]))


class GatedLinearUnit(nn.Module):
    """``(W x + b) * sigmoid(V x + c)``, ``(..., d_model)`` in and out.

    Cost: ``2 d_model**2`` multiply-adds a token. Source: Dauphin et al., arXiv 1612.08083.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.both = nn.Linear(d_model, 2 * d_model)
        self.initialise()

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Normal weights of variance ``1 / d_model``, no biases."""
        self.both.weight.normal_(0.0, self.both.in_features**-0.5, generator=generator)
        self.both.bias.zero_()

    @staticmethod
    def count(d_model: int) -> int:
        """Number of parameters."""
        return 2 * d_model * (d_model + 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., d_model)`` to ``(..., d_model)``."""
        value, gate = self.both(x).chunk(2, -1)
        out: Tensor = value * torch.sigmoid(gate)
        return out


class SeparableConvolution(nn.Module):
    """A depthwise convolution of ``width`` taps, then a linear map with a bias.

    ``y[t] = W sum_j k[j] * x[t + j] + b``; the input has ``width - 1`` more positions than the
    output. Cost: ``width * into + into * out`` multiply-adds a position.
    """

    def __init__(self, into: int, out: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.kernel = nn.Parameter(torch.empty(width, into))
        self.pointwise = nn.Linear(into, out)
        self.initialise()

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Normal with variances ``1 / width`` and ``1 / into``, no bias."""
        self.kernel.normal_(0.0, self.width**-0.5, generator=generator)
        self.pointwise.weight.normal_(0.0, self.kernel.shape[1] ** -0.5, generator=generator)
        self.pointwise.bias.zero_()

    @staticmethod
    def count(into: int, out: int, width: int) -> int:
        """Number of parameters."""
        return width * into + out * (into + 1)

    def forward(self, padded: Tensor, band: Tensor | None = None) -> Tensor:
        """``(batch, n + width - 1, into)`` to ``(batch, n, out)``.

        ``band`` ``(batch, n, width, 1)`` takes taps out of single windows.
        """
        if band is None:
            mixed = depthwise(padded, self.kernel)
        else:
            mixed = windowed(padded, self.kernel * band)
        out: Tensor = self.pointwise(mixed)
        return out


class EvolvedEncoderConvolution(nn.Module):
    """``pad(Sep9(LN(pad(ReLU(Conv3 x)) + ReLU(W x))))``.

    ``W`` is ``(4 d, d)``, ``Conv3`` an ordinary convolution of 3 taps to ``d / 2`` channels, both
    without bias; the sum has ``4 d`` channels; ``Sep9`` maps them to ``d / 2``; ``pad`` puts zeros
    behind the last channel. Windows are centred.

    Notes
    -----
    ``(batch, n, d)`` in and out, ``d`` even. Cost: ``7.5 d**2 + 36 d`` multiply-adds a position.
    Sources: So et al., arXiv 1901.11117; Narang et al., arXiv 2102.11972.
    """

    def __init__(self, d_model: int, *, dropout: float = 0.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.wide = nn.Linear(d_model, 4 * d_model, bias=False)
        self.narrow = nn.Linear(3 * d_model, d_model // 2, bias=False)
        self.norm = nn.LayerNorm(4 * d_model, eps)
        self.separable = SeparableConvolution(4 * d_model, d_model // 2, 9)
        self.dropout = nn.Dropout(dropout)
        self.initialise()

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Normal weights of variance ``1 / inputs``."""
        for linear in (self.wide, self.narrow):
            linear.weight.normal_(0.0, linear.in_features**-0.5, generator=generator)
        self.norm.weight.fill_(1.0)
        self.norm.bias.zero_()

    @staticmethod
    def count(d_model: int) -> int:
        """Number of parameters."""
        own = 4 * d_model**2 + 3 * d_model * (d_model // 2) + 8 * d_model
        return own + SeparableConvolution.count(4 * d_model, d_model // 2, 9)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Map ``(batch, n, d_model)``; what ``mask`` ``(b, q, n)`` hides counts as zero."""
        sight = _Sight(mask, x, causal=False)
        x = sight.hide(x)
        left = self.dropout(torch.relu(self.wide(x)))
        # Three taps of an ordinary convolution are one product of neighbours side by side.
        triples = F.pad(x, (0, 0, 1, 1)).unfold(1, 3, 1).transpose(2, 3)
        band = sight.band(3)
        if band is not None:
            triples = triples * band
        right = self.dropout(torch.relu(self.narrow(triples.flatten(2))))
        hidden = sight.hide(self.norm(left + pad_channels(right, left.shape[-1])))
        out = self.dropout(self.separable(F.pad(hidden, (0, 0, 4, 4)), sight.band(9)))
        return pad_channels(out, x.shape[-1])


class ConvolutionCache:
    """What a decoder convolution keeps: 10 inputs and 6 hidden states."""

    def __init__(self) -> None:
        self.inputs, self.hidden = WindowCache(10), WindowCache(6)

    @property
    def length(self) -> int:
        """Number of positions read so far."""
        return self.inputs.length

    def reorder(self, rows: Tensor) -> None:
        """Keep the given rows of the batch, in that order."""
        self.inputs.reorder(rows)
        self.hidden.reorder(rows)


class EvolvedDecoderConvolution(nn.Module):
    """``Sep7(LN(ReLU(Sep11 x) + pad(Sep7' x)))``, all windows ending at the position.

    ``Sep11`` maps to ``2 d`` channels, ``Sep7'`` to ``d / 2``, the last one ``2 d`` to ``d``.

    Notes
    -----
    ``(batch, n, d)`` in and out, ``d`` even. Cost: ``4.5 d**2 + 32 d`` multiply-adds a position.
    Sources: So et al., arXiv 1901.11117; Narang et al., arXiv 2102.11972.
    """

    def __init__(self, d_model: int, *, dropout: float = 0.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.left = SeparableConvolution(d_model, 2 * d_model, 11)
        self.right = SeparableConvolution(d_model, d_model // 2, 7)
        self.norm = nn.LayerNorm(2 * d_model, eps)
        self.last = SeparableConvolution(2 * d_model, d_model, 7)
        self.dropout = nn.Dropout(dropout)
        self.initialise()

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draws nothing: the convolutions have their own."""
        self.norm.weight.fill_(1.0)
        self.norm.bias.zero_()

    @staticmethod
    def count(d_model: int) -> int:
        """Number of parameters."""
        one = SeparableConvolution.count
        return (
            one(d_model, 2 * d_model, 11) + one(d_model, d_model // 2, 7)
            + one(2 * d_model, d_model, 7) + 4 * d_model
        )  # fmt: skip

    def new_cache(self) -> ConvolutionCache:
        """A cache for one sequence."""
        return ConvolutionCache()

    def forward(
        self, x: Tensor, *, mask: Tensor | None = None, cache: ConvolutionCache | None = None
    ) -> Tensor:
        """Map ``(batch, n, d_model)``; what ``mask`` ``(b, q, k)`` hides counts as zero.

        With a cache, ``x`` is new and follows what was given before.
        """
        sight = _Sight(mask, x, causal=True)
        x = sight.hide(x)
        padded = F.pad(x, (0, 0, 10, 0)) if cache is None else cache.inputs.extend(x)
        left = self.dropout(torch.relu(self.left(padded, sight.band(11))))
        right = self.dropout(self.right(padded[:, 4:], sight.band(7)))
        hidden = sight.hide(self.norm(left + pad_channels(right, left.shape[-1])))
        ahead = F.pad(hidden, (0, 0, 6, 0)) if cache is None else cache.hidden.extend(hidden)
        out: Tensor = self.dropout(self.last(ahead, sight.band(7)))
        return out


def _feed_forward(config: Seq2SeqConfig) -> FeedForward:
    return GatedFeedForward(config) if config.gated else FeedForward(config)


class _EvolvedBlock(BaseBlock):
    """A row of sublayers, each ``h + dropout(f(norm(h)))``."""

    def __init__(
        self, config: Seq2SeqConfig, sublayers: int, own_position: RelativeBias | None
    ) -> None:
        super().__init__()
        self.norms = nn.ModuleList(make_norm(config) for _ in range(sublayers))
        self.dropout = nn.Dropout(config.dropout)
        self.position, self.adapter = own_position, None

    def _end(self, h: Tensor) -> Tensor:
        if self.adapter is not None:
            h = self.adapter(h)
        return h


class EvolvedEncoderBlock(_EvolvedBlock):
    """Gated linear unit, branched convolution, self-attention, feed-forward: as deep as two blocks.

    Sources: So et al., arXiv 1901.11117; Narang et al., arXiv 2102.11972.
    """

    def __init__(self, config: Seq2SeqConfig, *, own_position: RelativeBias | None = None) -> None:
        super().__init__(config, 4, own_position)
        self.unit = GatedLinearUnit(config.d_model)
        self.convolution = EvolvedEncoderConvolution(
            config.d_model, dropout=config.dropout, eps=config.norm_eps
        )
        self.self_attention = Attention(config)
        self.feed_forward = _feed_forward(config)

    def forward(
        self, h: Tensor, *, bias: Tensor | None, mask: Tensor | None, source: Tensor | None,
        cross_bias: Tensor | None, source_mask: Tensor | None, cache: None,
    ) -> Tensor:  # fmt: skip
        """Map ``(batch, length, d_model)`` to the same shape."""
        h = h + self.dropout(self.unit(self.norms[0](h)))
        h = h + self.dropout(self.convolution(self.norms[1](h), mask=mask))
        h = h + self.dropout(self.self_attention(self.norms[2](h), bias=bias))
        return self._end(h + self.dropout(self.feed_forward(self.norms[3](h))))


class EvolvedCache:
    """What an Evolved decoder block keeps: four attentions and a convolution."""

    def __init__(self) -> None:
        self.first, self.first_cross = LayerCache(), LayerCache()
        self.convolution = ConvolutionCache()
        self.second, self.cross = LayerCache(), LayerCache()

    def reorder(self, rows: Tensor) -> None:
        """Keep the given rows of the batch, in that order."""
        for part in (self.first, self.first_cross, self.convolution, self.second, self.cross):
            part.reorder(rows)


class EvolvedDecoderBlock(_EvolvedBlock):
    """Two attentions side by side, convolution, attentions, feed-forward: as deep as two blocks.

    In order: the sum of self-attention with twice the heads and cross-attention, both of one norm;
    branched convolution; self-attention; cross-attention; feed-forward with Swish. The wide
    self-attention takes the position biases of the stack's heads twice over, so that it needs no
    table of its own. Sources: So et al., arXiv 1901.11117; Narang et al., arXiv 2102.11972.
    """

    def __init__(self, config: Seq2SeqConfig, *, own_position: RelativeBias | None = None) -> None:
        super().__init__(config, 5, own_position)
        wide = dataclasses.replace(config, heads=2 * config.heads)
        self.wide_attention = Attention(wide, causal=True)
        self.first_cross = Attention(config, cross=True)
        self.convolution = EvolvedDecoderConvolution(
            config.d_model, dropout=config.dropout, eps=config.norm_eps
        )
        self.self_attention = Attention(config, causal=True)
        self.cross_attention = Attention(config, cross=True)
        self.feed_forward = _feed_forward(dataclasses.replace(config, activation="swish"))

    def new_cache(self) -> EvolvedCache:
        """An empty cache for incremental use."""
        return EvolvedCache()

    def forward(
        self, h: Tensor, *, bias: Tensor | None, mask: Tensor | None, source: Tensor | None,
        cross_bias: Tensor | None, source_mask: Tensor | None, cache: EvolvedCache | None,
    ) -> Tensor:  # fmt: skip
        """Map ``(batch, length, d_model)`` to the same shape."""
        twice = bias
        if bias is not None and bias.shape[1] > 1:
            twice = torch.cat([bias, bias], 1)
        kept = (None,) * 5 if cache is None else (
            cache.first, cache.first_cross, cache.convolution, cache.second, cache.cross
        )  # fmt: skip
        x = self.norms[0](h)
        own = self.wide_attention(x, bias=twice, cache=kept[0])
        other = self.first_cross(x, source=source, bias=cross_bias, cache=kept[1])
        h = h + self.dropout(own + other)
        h = h + self.dropout(self.convolution(self.norms[1](h), mask=mask, cache=kept[2]))
        h = h + self.dropout(self.self_attention(self.norms[2](h), bias=bias, cache=kept[3]))
        read = self.cross_attention(self.norms[3](h), source=source, bias=cross_bias, cache=kept[4])
        h = h + self.dropout(read)
        return self._end(h + self.dropout(self.feed_forward(self.norms[4](h))))
