"""The text-to-text Transformer with its four structures, and its loss."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishertope.core.errors import InvalidInputError

from .assembly import make_stack
from .attention import causal_mask, prefix_mask, segment_mask
from .config import Seq2SeqConfig
from .embeddings import Table, draw_table, embed, make_table, table_logits
from .fused import may_fuse, tied_cross_entropy
from .layers import at_least_float32, normal
from .positions import places_in_segments
from .softmaxes import make_head
from .stack import BaseBlock as BaseBlock, Block as Block, Cache as Cache, Stack as Stack


class Seq2Seq(nn.Module):
    """Text-to-text Transformer: T5 v1.0, its variants, and the single-stack structures.

    Parameters
    ----------
    config
        Sizes and choices.
    generator
        Source of the initial weights; ``None`` leaves them unset for loading.

    References
    ----------
    Raffel et al., arXiv 1910.10683; Narang et al., arXiv 2102.11972.
    """

    def __init__(self, config: Seq2SeqConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder: Stack | None = None
        if config.has_encoder:
            self.encoder = make_stack(config, stack="encoder")
        shared = self.encoder if config.arch == "encdec_shared" else None
        self.decoder: Stack = make_stack(config, stack="decoder", shared=shared)
        own_input = config.has_encoder and config.embedding in ("tied_dec", "untied")
        own_head = config.embedding in ("tied_inputs", "untied")
        self.embedding: Table = make_table(config)
        self.encoder_embedding: Table | None = make_table(config) if own_input else None
        shape = (config.vocab_size, config.d_model)
        self.head = nn.Parameter(torch.empty(shape)) if own_head else None
        self.softmax = make_head(config, self.embedding, self.head)
        self.stretch = config.d_model**0.5 if config.scaling == "explicit" else 1.0
        if generator is not None:
            self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all weights anew, normal with the scales of arXiv 1910.10683."""
        for module in self.modules():
            draw = getattr(module, "initialise", None)
            if draw is not None:
                draw(generator)
        draw_table(self.embedding, 1.0 / self.stretch, generator)
        if self.encoder_embedding is not None:
            draw_table(self.encoder_embedding, 1.0 / self.stretch, generator)
        if self.head is not None:
            normal(self.head, self.config.d_model**-0.5, generator)

    def new_cache(self) -> Cache:
        """An empty cache for decoding step by step."""
        return self.decoder.new_cache()

    def auxiliary_loss(self) -> Tensor | None:
        """Sum of the auxiliary losses of the last call in training mode; None without any."""
        losses: list[Tensor] = []
        for module in self.modules():
            own = None if module is self else getattr(module, "auxiliary_loss", None)
            loss = None if own is None else own()
            if loss is not None:
                losses.append(loss)
        return torch.stack(losses).sum() if losses else None

    def _embed(self, table: Table, tokens: Tensor) -> Tensor:
        out = embed(table, tokens)
        return out if self.stretch == 1.0 else out * self.stretch

    def source_mask(self, inputs: Tensor) -> Tensor:
        """Which places of the encoder's output are real, ``(batch, 1, length)`` bool."""
        if self.encoder is None:
            raise InvalidInputError(f"arch={self.config.arch!r} has no encoder")
        return self.encoder.output_mask((inputs != self.config.pad_id)[:, None, :])

    def encode(self, tokens: Tensor, segments: Tensor | None = None) -> Tensor:
        """Encode ``(batch, length)`` tokens to ``(batch, length, d_model)``; padding is unseen.

        A funnel's output is shorter; transparent cross-attention needs all layers,
        ``(batch, layers + 1, length, d_model)``.
        """
        if self.encoder is None:
            raise InvalidInputError(f"arch={self.config.arch!r} has no encoder; call decode")
        table = self.embedding if self.encoder_embedding is None else self.encoder_embedding
        places = None
        if segments is None:
            mask = (tokens != self.config.pad_id)[:, None, :]
        else:
            if self.config.pool_blocks > 1:
                raise InvalidInputError(
                    f"packed rows were given to pool_blocks={self.config.pool_blocks}; a funnel "
                    "would pool over the border of two texts, train it without packing"
                )
            mask, places = segment_mask(segments, segments), places_in_segments(segments)
        out: Tensor = self.encoder(self._embed(table, tokens), mask, places=places)
        return out

    def decode(
        self, tokens: Tensor, *, encoded: Tensor | None = None, source_mask: Tensor | None = None,
        segments: Tensor | None = None, prefix: Tensor | None = None, cache: Cache | None = None,
    ) -> Tensor:  # fmt: skip
        """Logits ``(batch, length, vocab)`` for decoder input tokens ``(batch, length)``.

        ``prefix`` is needed by, and only by, the prefix LM when several tokens are read at once.
        With a cache, ``tokens`` are the new ones only. Where the softmax is not one of a single
        product, the logits are log-probabilities.
        """
        hidden = self.read(
            tokens, encoded=encoded, source_mask=source_mask, segments=segments, prefix=prefix,
            cache=cache,
        )  # fmt: skip
        return self.logits(hidden)

    def read(
        self, tokens: Tensor, *, encoded: Tensor | None = None, source_mask: Tensor | None = None,
        segments: Tensor | None = None, prefix: Tensor | None = None, cache: Cache | None = None,
    ) -> Tensor:  # fmt: skip
        """What the softmax reads, ``(batch, length, d_model)``; arguments as for :meth:`decode`."""
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
        places = None
        if segments is not None:
            mask = mask & segment_mask(segments, segments)
            places = places_in_segments(segments)
        hidden: Tensor = self.decoder(
            self._embed(self.embedding, tokens), mask, source=encoded, source_mask=source_mask,
            cache=cache, places=places,
        )  # fmt: skip
        return hidden * self.config.d_model**-0.5 if self.config.logits_scaled else hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """``(..., vocab)`` for what :meth:`read` gives."""
        if self.softmax is not None:
            return self.softmax.log_probabilities(hidden)
        return table_logits(self.embedding if self.head is None else self.head, hidden)

    def losses(self, hidden: Tensor, targets: Tensor, z_loss: float = 0.0) -> Tensor:
        """``-log p(target)`` of each place plus ``z_loss`` · (log Z)², shape of ``targets``."""
        if self.softmax is not None:
            return self.softmax.loss(hidden, targets, z_loss)
        table = self.embedding if self.head is None else self.head
        if self.training and isinstance(table, Tensor) and may_fuse(hidden, table):
            return tied_cross_entropy(hidden, table, targets, z_loss)
        return token_losses(self.logits(hidden), targets, z_loss)

    def forward(
        self, inputs: Tensor | None, decoder_tokens: Tensor, *,
        input_segments: Tensor | None = None, target_segments: Tensor | None = None,
        prefix: Tensor | None = None, targets: Tensor | None = None, z_loss: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """Teacher-forced logits ``(batch, length, vocab)``, or with targets the loss of each.

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
        targets, z_loss
            With targets ``(batch, length)`` the result is :meth:`losses`, of the same shape; an
            adaptive softmax then computes only what the targets need.

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
            hidden = self.read(decoder_tokens, segments=target_segments, prefix=prefix)
        else:
            encoded = self.encode(inputs, input_segments)
            if (input_segments is None) != (target_segments is None):
                raise InvalidInputError("give the segments of both sides, or of neither")
            if input_segments is not None and target_segments is not None:
                source_mask = segment_mask(target_segments, input_segments)
            else:
                source_mask = self.source_mask(inputs)
            hidden = self.read(
                decoder_tokens, encoded=encoded, source_mask=source_mask, segments=target_segments
            )
        return self.logits(hidden) if targets is None else self.losses(hidden, targets, z_loss)


def shift_right(targets: Tensor, start_id: int = 0) -> Tensor:
    """Decoder input: the start id, then all targets but the last; ``(batch, length)``."""
    start = targets.new_full((targets.shape[0], 1), start_id)
    return torch.cat([start, targets[:, :-1]], 1)


def token_losses(logits: Tensor, targets: Tensor, z_loss: float = 0.0) -> Tensor:
    """``-log p(target)`` plus ``z_loss`` · (log Z)², ``(b, t)`` for logits ``(b, t, v)``."""
    wide = at_least_float32(logits)
    losses = F.cross_entropy(wide.flatten(0, 1), targets.flatten(), reduction="none")
    losses = losses.view_as(targets)
    if z_loss:  # log Z = z_target - log p(target)
        log_z = wide.gather(-1, targets[..., None])[..., 0] + losses
        losses = losses + z_loss * log_z.square()
    return losses


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
    losses = token_losses(logits, targets, z_loss)
    real = ((targets != pad_id) if weights is None else weights).to(losses.dtype)
    total = (losses * real).sum()
    if reduction == "sum":
        return total
    return total / (targets.numel() if per_position else real.sum().clamp(min=1))
