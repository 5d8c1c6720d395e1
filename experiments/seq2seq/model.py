"""The text-to-text Transformer: blocks, stacks, and the model with its four structures."""

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishertope.core.errors import InvalidInputError

from .adapter import Adapter
from .attention import (
    Attention,
    LayerCache,
    RelativeBias,
    additive,
    causal_mask,
    prefix_mask,
    segment_mask,
)
from .config import Seq2SeqConfig
from .layers import FeedForward, GatedFeedForward, at_least_float32, make_norm


class Cache:
    """Keys and values of a whole decoder: one pair of layer caches for each block."""

    def __init__(self, layers: int) -> None:
        self.self_layers = [LayerCache() for _ in range(layers)]
        self.cross_layers = [LayerCache() for _ in range(layers)]

    @property
    def length(self) -> int:
        """Number of decoder places read so far."""
        return self.self_layers[0].length

    def reorder(self, rows: Tensor) -> None:
        """Keep the given rows of the batch, in that order (beam search)."""
        for layer in (*self.self_layers, *self.cross_layers):
            layer.reorder(rows)


class Block(nn.Module):
    """Self-attention, optional cross-attention and feed-forward, each ``h + dropout(f(norm(h)))``.

    ``shared`` gives a block whose self-attention and feed-forward layers, with their norms, are
    used here too.
    """

    def __init__(
        self, config: Seq2SeqConfig, *, cross: bool, own_position: RelativeBias | None = None,
        shared: "Block | None" = None,
    ) -> None:  # fmt: skip
        super().__init__()
        feed = GatedFeedForward if config.gated else FeedForward
        self.self_norm: nn.Module = make_norm(config) if shared is None else shared.self_norm
        self.self_attention: Attention = (
            Attention(config) if shared is None else shared.self_attention
        )
        self.position = own_position
        self.cross_norm = make_norm(config) if cross else None
        self.cross_attention = Attention(config) if cross else None
        self.feed_norm: nn.Module = make_norm(config) if shared is None else shared.feed_norm
        self.feed_forward: FeedForward = feed(config) if shared is None else shared.feed_forward
        self.dropout = nn.Dropout(config.dropout)
        self.adapter: Adapter | None = None

    def forward(
        self, h: Tensor, *, bias: Tensor | None, source: Tensor | None, cross_bias: Tensor | None,
        caches: tuple[LayerCache, LayerCache] | None,
    ) -> Tensor:  # fmt: skip
        """Map ``(batch, length, d_model)`` to the same shape."""
        own, other = (None, None) if caches is None else caches
        mixed = self.self_attention(self.self_norm(h), bias=bias, cache=own)
        h = h + self.dropout(mixed)
        if self.cross_attention is not None and self.cross_norm is not None:
            read = self.cross_attention(
                self.cross_norm(h), source=source, bias=cross_bias, cache=other
            )
            h = h + self.dropout(read)
        out: Tensor = h + self.dropout(self.feed_forward(self.feed_norm(h)))
        return out if self.adapter is None else self.adapter(out)


class Stack(nn.Module):
    """Blocks, the position bias that they share, and the last norm."""

    def __init__(
        self, config: Seq2SeqConfig, *, depth: int, bidirectional: bool, cross: bool,
        shared: "Stack | None" = None,
    ) -> None:  # fmt: skip
        super().__init__()

        def table(kind: str) -> RelativeBias | None:
            if config.position != kind:
                return None
            return RelativeBias(config, bidirectional=bidirectional)

        self.position = table("rel_shared")
        self.blocks: nn.ModuleList = nn.ModuleList(
            Block(
                config,
                cross=cross,
                own_position=table("rel_per_layer"),
                shared=None if shared is None else cast(Block, shared.blocks[i]),
            )
            for i in range(depth)
        )
        self.final_norm = make_norm(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, h: Tensor, mask: Tensor | None, *, source: Tensor | None = None,
        source_mask: Tensor | None = None, cache: Cache | None = None,
    ) -> Tensor:  # fmt: skip
        """Run embedded tokens ``(b, q, d_model)`` through the stack; masks ``(b, q, k)`` bool."""
        offset = 0 if cache is None else cache.length
        queries, keys = h.shape[1], h.shape[1] + offset
        shared = None if self.position is None else self.position(queries, keys, offset)
        common = additive(mask, shared, h.dtype)
        cross_bias = additive(source_mask, None, h.dtype)
        h = self.dropout(h)
        for i, module in enumerate(self.blocks):
            block = cast(Block, module)
            bias = common
            if block.position is not None:
                bias = additive(mask, block.position(queries, keys, offset), h.dtype)
            caches = None if cache is None else (cache.self_layers[i], cache.cross_layers[i])
            h = block(h, bias=bias, source=source, cross_bias=cross_bias, caches=caches)
        out: Tensor = self.dropout(self.final_norm(h))
        return out


class Seq2Seq(nn.Module):
    """Text-to-text Transformer: T5 v1.0, its gated form, and the single-stack structures.

    Parameters
    ----------
    config
        Sizes and choices.
    generator
        Source of the initial weights; ``None`` leaves them unset for loading.

    References
    ----------
    Raffel et al., arXiv 1910.10683.
    """

    def __init__(self, config: Seq2SeqConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder: Stack | None = None
        if config.has_encoder:
            self.encoder = Stack(config, depth=config.layers, bidirectional=True, cross=False)
        self.decoder = Stack(
            config,
            depth=config.decoder_depth,
            bidirectional=config.arch == "prefix_lm",
            cross=config.has_encoder,
            shared=self.encoder if config.arch == "encdec_shared" else None,
        )
        own_input = config.has_encoder and config.embedding in ("tied_dec", "untied")
        own_head = config.embedding in ("tied_inputs", "untied")
        shape = (config.vocab_size, config.d_model)
        self.embedding = nn.Parameter(torch.empty(shape))
        self.encoder_embedding = nn.Parameter(torch.empty(shape)) if own_input else None
        self.head = nn.Parameter(torch.empty(shape)) if own_head else None
        if generator is not None:
            self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all weights anew, normal with the scales of arXiv 1910.10683."""
        c = self.config

        def draw(weight: Tensor, std: float) -> None:
            weight.normal_(0.0, std, generator=generator)

        for module in self.modules():
            if isinstance(module, Attention):
                draw(module.query.weight, (c.d_model * c.d_kv) ** -0.5)
                draw(module.key.weight, c.d_model**-0.5)
                draw(module.value.weight, c.d_model**-0.5)
                draw(module.output.weight, c.inner**-0.5)
            elif isinstance(module, FeedForward):
                draw(module.wi.weight, c.d_model**-0.5)
                draw(module.wo.weight, c.d_ff**-0.5)
                if isinstance(module, GatedFeedForward):
                    draw(module.gate.weight, c.d_model**-0.5)
                for linear in module.children():
                    if isinstance(linear, nn.Linear) and linear.bias is not None:
                        linear.bias.zero_()
            elif isinstance(module, RelativeBias):
                draw(module.weight, c.d_model**-0.5)
        draw(self.embedding, 1.0)
        if self.encoder_embedding is not None:
            draw(self.encoder_embedding, 1.0)
        if self.head is not None:
            draw(self.head, c.d_model**-0.5)

    def encode(self, tokens: Tensor, segments: Tensor | None = None) -> Tensor:
        """Encode ``(batch, length)`` tokens to ``(batch, length, d_model)``; padding is unseen."""
        if self.encoder is None:
            raise InvalidInputError(f"arch={self.config.arch!r} has no encoder; call decode")
        table = self.embedding if self.encoder_embedding is None else self.encoder_embedding
        if segments is None:
            mask = (tokens != self.config.pad_id)[:, None, :]
        else:
            mask = segment_mask(segments, segments)
        out: Tensor = self.encoder(F.embedding(tokens, table), mask)
        return out

    def decode(
        self, tokens: Tensor, *, encoded: Tensor | None = None, source_mask: Tensor | None = None,
        segments: Tensor | None = None, prefix: Tensor | None = None, cache: Cache | None = None,
    ) -> Tensor:  # fmt: skip
        """Logits ``(batch, length, vocab)`` for decoder input tokens ``(batch, length)``.

        ``prefix`` is needed by, and only by, the prefix LM when several tokens are read at once.
        With a cache, ``tokens`` are the new ones only.
        """
        offset, length = (0 if cache is None else cache.length), tokens.shape[1]
        if prefix is not None and (self.config.arch != "prefix_lm" or offset):
            raise InvalidInputError(
                f"a prefix was given to arch={self.config.arch!r} at place {offset}; only a "
                "prefix LM takes one, in its first call"
            )
        if self.config.arch == "prefix_lm" and prefix is None and not offset:
            raise InvalidInputError("a prefix LM needs prefix=, true at its input tokens")
        mask = prefix_mask(prefix) if prefix is not None else causal_mask(
            length, length + offset, offset, tokens.device
        )  # fmt: skip
        if segments is not None:
            mask = mask & segment_mask(segments, segments)
        hidden = self.decoder(
            F.embedding(tokens, self.embedding), mask, source=encoded, source_mask=source_mask,
            cache=cache,
        )  # fmt: skip
        if self.config.logits_scaled:
            hidden = hidden * self.config.d_model**-0.5
        return F.linear(hidden, self.embedding if self.head is None else self.head)

    def forward(
        self, inputs: Tensor | None, decoder_tokens: Tensor, *,
        input_segments: Tensor | None = None, target_segments: Tensor | None = None,
        prefix: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Teacher-forced logits ``(batch, length, vocab)``.

        Parameters
        ----------
        inputs
            Encoder tokens ``(batch, source)``; ``None`` exactly for a single-stack structure.
        decoder_tokens
            Targets shifted right (:func:`shift_right`).
        input_segments, target_segments
            Segment numbers of packed rows, 0 at padding.
        prefix
            Of the prefix LM, ``(batch, length)`` bool.

        Raises
        ------
        InvalidInputError
            Inputs given to a single stack, or missing for two.
        """
        if (inputs is not None) != self.config.has_encoder:
            raise InvalidInputError(
                f"inputs are {'missing' if inputs is None else 'given'} and "
                f"arch={self.config.arch!r}; two stacks need them, a single stack takes None and "
                "the concatenated sequence as decoder_tokens"
            )
        if inputs is None:
            return self.decode(decoder_tokens, segments=target_segments, prefix=prefix)
        encoded = self.encode(inputs, input_segments)
        if (input_segments is None) != (target_segments is None):
            raise InvalidInputError("give the segments of both sides, or of neither")
        if input_segments is not None and target_segments is not None:
            source_mask = segment_mask(target_segments, input_segments)
        else:
            source_mask = (inputs != self.config.pad_id)[:, None, :]
        return self.decode(
            decoder_tokens, encoded=encoded, source_mask=source_mask, segments=target_segments
        )


def shift_right(targets: Tensor, start_id: int = 0) -> Tensor:
    """Decoder input: the start id, then all targets but the last; ``(batch, length)``."""
    start = targets.new_full((targets.shape[0], 1), start_id)
    return torch.cat([start, targets[:, :-1]], 1)


def token_loss(
    logits: Tensor, targets: Tensor, *, pad_id: int = 0, z_loss: float = 0.0,
    per_position: bool = False, weights: Tensor | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:  # fmt: skip
    """Cross-entropy of the real targets plus ``z_loss * log(Z)**2``.

    Parameters
    ----------
    logits, targets
        ``(b, t, v)`` and ``(b, t)``.
    weights
        ``(b, t)``, how much each target counts; ``None`` counts every one that is no padding.
    per_position
        Divide by the number of all positions, as the released training code does, instead of
        the sum of the weights.
    reduction
        "sum" does not divide at all.
    """
    wide = at_least_float32(logits)
    losses = F.cross_entropy(wide.flatten(0, 1), targets.flatten(), reduction="none")
    losses = losses.view_as(targets)
    real = ((targets != pad_id) if weights is None else weights).to(losses.dtype)
    if z_loss:  # log Z = z_target - log p(target)
        log_z = wide.gather(-1, targets[..., None])[..., 0] + losses
        losses = losses + z_loss * log_z.square()
    total = (losses * real).sum()
    if reduction == "sum":
        return total
    return total / (targets.numel() if per_position else real.sum().clamp(min=1))
