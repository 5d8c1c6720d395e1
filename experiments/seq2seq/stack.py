"""Blocks, stacks of them, and what a decoder keeps between two steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from . import assembly
from .adapter import Adapter
from .attention import LayerCache, additive
from .config import Seq2SeqConfig, StackName
from .layers import make_norm, normal
from .positions import RelativeBias, absolute_positions, check_length
from .residual import fixup_end


class Reorderable(Protocol):
    """What a mixer or a block keeps between steps."""

    def reorder(self, rows: Tensor) -> None:
        """Keep the given rows of the batch, in that order."""


class BlockCache:
    """The caches of a block's mixers, one for itself and one for cross-attention."""

    def __init__(self, own: Reorderable, cross: Reorderable) -> None:
        self.own, self.cross = own, cross

    def reorder(self, rows: Tensor) -> None:
        """Keep the given rows of the batch, in that order."""
        self.own.reorder(rows)
        self.cross.reorder(rows)


class Cache:
    """What a decoder keeps between steps: one cache for each pass through a block.

    ``Cache(layers)`` is that of a decoder of attention blocks; ``model.new_cache()`` makes the
    right one for any configuration.
    """

    def __init__(self, passes: int | Sequence[Reorderable]) -> None:
        self.length = 0
        """Number of decoder places read so far."""
        if isinstance(passes, int):
            passes = [BlockCache(LayerCache(), LayerCache()) for _ in range(passes)]
        self.passes: list[Reorderable] = list(passes)

    def reorder(self, rows: Tensor) -> None:
        """Keep the given rows of the batch, in that order (beam search)."""
        for one in self.passes:
            one.reorder(rows)


class BaseBlock(nn.Module):
    """What every kind of block has: an optional position table and adapter, and its own cache.

    ``forward(h, *, bias, mask, source, cross_bias, source_mask, cache)`` maps ``(b, q, d_model)``
    to the same shape; ``bias`` and ``cross_bias`` are additive and include the masks.
    """

    position: RelativeBias | None
    adapter: Adapter | None

    def new_cache(self) -> Reorderable:
        """An empty cache for incremental use."""
        raise NotImplementedError


class Block(BaseBlock):
    """Self-attention (or another mixer), optional cross-attention, feed-forward.

    Each of them is ``h = join(h, dropout(f(norm(h))))``. ``shared`` gives a block whose
    self-attention and feed-forward layers, with their norms, are used here too. A weighted mixer
    has its feed-forward layers inside: the block has none then.
    """

    def __init__(
        self, config: Seq2SeqConfig, *, stack: StackName, index: int,
        own_position: RelativeBias | None = None, shared: Block | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        cross = stack == "decoder" and config.has_encoder
        causal = stack == "decoder"
        self.self_norm: nn.Module = make_norm(config) if shared is None else shared.self_norm
        self.self_attention: nn.Module = (
            assembly.make_mixer(config, causal=causal) if shared is None else shared.self_attention
        )
        self.position = own_position
        self.cross_norm = make_norm(config) if cross else None
        self.cross_attention = (
            assembly.make_mixer(config, causal=False, cross=True) if cross else None
        )
        self.feed_norm: nn.Module | None
        self.feed_forward: nn.Module | None
        if shared is None:
            self.feed_forward = assembly.make_feed_forward(config, stack=stack, index=index)
            self.feed_norm = None if self.feed_forward is None else make_norm(config)
        else:
            self.feed_norm, self.feed_forward = shared.feed_norm, shared.feed_forward
        self.self_join = assembly.make_residual(config)
        self.cross_join = assembly.make_residual(config) if cross else None
        self.feed_join = None if self.feed_forward is None else assembly.make_residual(config)
        self.dropout = nn.Dropout(config.dropout)
        self.adapter: Adapter | None = None

    def new_cache(self) -> BlockCache:
        """An empty cache for incremental use."""
        own = cast(Reorderable, self.self_attention.new_cache())  # type: ignore[operator]
        if self.cross_attention is None:
            return BlockCache(own, LayerCache())
        return BlockCache(own, self.cross_attention.new_cache())  # type: ignore[operator]

    def forward(
        self, h: Tensor, *, bias: Tensor | None, mask: Tensor | None, source: Tensor | None,
        cross_bias: Tensor | None, source_mask: Tensor | None, cache: BlockCache | None,
    ) -> Tensor:  # fmt: skip
        """Map ``(batch, length, d_model)`` to the same shape."""
        h = self.mix(h, bias=bias, mask=mask, cache=cache)
        return self.finish(
            h, mask=mask, source=source, cross_bias=cross_bias, source_mask=source_mask,
            cache=cache,
        )  # fmt: skip

    def mix(
        self, h: Tensor, *, bias: Tensor | None, mask: Tensor | None, cache: BlockCache | None
    ) -> Tensor:
        """The first sublayer: self-attention, or what stands for it."""
        own = None if cache is None else cache.own
        mixed = self.self_attention(self.self_norm(h), bias=bias, mask=mask, cache=own)
        return cast(Tensor, self.self_join(h, self.dropout(mixed)))

    def finish(
        self, h: Tensor, *, mask: Tensor | None, source: Tensor | None, cross_bias: Tensor | None,
        source_mask: Tensor | None, cache: BlockCache | None,
    ) -> Tensor:  # fmt: skip
        """The other sublayers."""
        other = None if cache is None else cache.cross
        if (
            self.cross_attention is not None
            and self.cross_norm is not None
            and self.cross_join is not None
        ):
            read = self.cross_attention(
                self.cross_norm(h), source=source, bias=cross_bias, mask=source_mask, cache=other
            )
            h = self.cross_join(h, self.dropout(read))
        if (
            self.feed_forward is not None
            and self.feed_norm is not None
            and self.feed_join is not None
        ):
            h = self.feed_join(h, self.dropout(self._feed(self.feed_norm(h), mask)))
        return h if self.adapter is None else cast(Tensor, self.adapter(h))

    def _feed(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The feed-forward layer; one with experts is told which places no query may see."""
        feed = cast(nn.Module, self.feed_forward)
        if mask is None or not getattr(feed, "routes", False):
            return cast(Tensor, feed(x))
        return cast(Tensor, feed(x, mask=mask.any(1)[:, -x.shape[1] :]))


class TransparentMixture(nn.Module):
    """What each decoder block reads: ``Σ_i softmax_i(W_ij) · e_i`` over all encoder layers.

    ``e_0`` is the embedded input, ``e_i`` the output of block i, the last one after the encoder's
    last norm. Parameters: ``(layers + 1) * decoder_layers``; each column of the softmax sums to 1.
    Source: Bapna et al., arXiv 1808.07561; initial scale and dropout as in the released code of
    arXiv 2102.11972.
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.layers + 1, config.decoder_depth))
        self.dropout = nn.Dropout(config.dropout)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the weights anew."""
        normal(self.weight, self.weight.shape[0] ** -0.5, generator)

    def weights(self) -> Tensor:
        """``(layers + 1, decoder_layers)``, columns sum to 1."""
        return torch.softmax(self.dropout(self.weight), 0)

    def forward(self, encoded: Tensor) -> Sequence[Tensor]:
        """A source ``(b, s, d_model)`` for each block, of ``(b, layers + 1, s, d_model)``."""
        mixed = torch.einsum("bisd,ij->jbsd", encoded, self.weights())
        return mixed.unbind(0)


class Stack(nn.Module):
    """Blocks, the position information that they share, and the last norm.

    With shared blocks there is one block, which the sequence passes ``depth`` times.
    """

    def __init__(
        self, config: Seq2SeqConfig, *, stack: StackName, shared: Stack | None = None
    ) -> None:
        super().__init__()
        self.config, self.stack, self.depth = config, stack, config.depth(stack)

        def table(kind: str) -> RelativeBias | None:
            if config.position != kind or not assembly.reads_biases(config):
                return None
            both = stack == "encoder" or config.arch == "prefix_lm"
            return RelativeBias(config, bidirectional=both)

        self.position = table("rel_shared")
        self.places = absolute_positions(config)
        number = 1 if config.shares_blocks(stack) else self.depth
        self.blocks: nn.ModuleList = nn.ModuleList(
            assembly.make_block(
                config, stack=stack, index=i, own_position=table("rel_per_layer"),
                shared=None if shared is None else shared.blocks[i],
            )
            for i in range(number)
        )  # fmt: skip
        mixes = config.cross == "transparent" and stack == "decoder"
        self.mixture = TransparentMixture(config) if mixes else None
        self.final_norm: nn.Module = make_norm(config)
        if config.residual == "fixup":
            self.final_norm = fixup_end(config, encoder=stack == "encoder")
        self.dropout = nn.Dropout(config.dropout)

    def new_cache(self) -> Cache:
        """An empty cache, with a part for every pass through a block."""
        blocks = [cast(BaseBlock, self.blocks[i % len(self.blocks)]) for i in range(self.depth)]
        return Cache([block.new_cache() for block in blocks])

    def output_mask(self, mask: Tensor) -> Tensor:
        """Which places of the output are real, ``(b, 1, s)``, for those of the input."""
        return mask

    def forward(
        self, h: Tensor, mask: Tensor | None, *, source: Tensor | None = None,
        source_mask: Tensor | None = None, cache: Cache | None = None,
        places: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Run embedded tokens ``(b, q, d_model)`` through the stack; masks ``(b, q, k)`` bool.

        ``places`` ``(b, q)`` are given for packed rows, whose segments each begin at 0. With
        transparent cross-attention an encoder returns all layers, ``(b, layers + 1, q, d_model)``.
        """
        offset = 0 if cache is None else cache.length
        queries, keys = h.shape[1], h.shape[1] + offset
        if self.places is not None:
            h = h + self._vectors(places, offset, queries, h)
        shared = None if self.position is None else self.position(queries, keys, offset)
        common = additive(mask, shared, h.dtype)
        cross_bias = additive(source_mask, None, h.dtype)
        sources = self._sources(source, cache)
        h = self.dropout(h)
        layers = [h]
        for i in range(self.depth):
            h = self.enter(h, i)
            block = cast(BaseBlock, self.blocks[i % len(self.blocks)])
            bias = common
            if block.position is not None:
                bias = additive(mask, block.position(queries, keys, offset), h.dtype)
            h = block(
                h, bias=bias, mask=mask, source=source if sources is None else sources[i],
                cross_bias=cross_bias, source_mask=source_mask,
                cache=None if cache is None else cache.passes[i],
            )  # fmt: skip
            layers.append(h)
        if cache is not None:
            cache.length += queries
        out: Tensor = self.dropout(self.final_norm(h))
        if self.config.cross == "transparent" and self.stack == "encoder":
            return torch.stack([*layers[:-1], out], 1)
        return out

    def enter(self, h: Tensor, i: int) -> Tensor:
        """What pass ``i`` through a block reads, given what the last one left."""
        return h

    def _vectors(self, places: Tensor | None, offset: int, queries: int, like: Tensor) -> Tensor:
        if places is None:
            check_length(self.config, offset + queries)
            places = torch.arange(offset, offset + queries, device=like.device)
        else:
            check_length(self.config, queries)
        vectors: Tensor = cast(nn.Module, self.places)(places)
        return vectors.to(like.dtype)

    def _sources(self, source: Tensor | None, cache: Cache | None) -> Sequence[Tensor] | None:
        """A source for each block, where they differ; later steps read the cached keys."""
        if self.mixture is None or source is None:
            return None
        if cache is not None and cache.length:
            return [source[:, -1]] * self.depth
        return cast(Sequence[Tensor], self.mixture(source))
