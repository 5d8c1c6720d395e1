"""From what a language model returns to the outputs z (n, C) that a distribution takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class LabelWords:
    """Classification by a language model: the logits of a few words at one position.

    p is renormalised over the words, as in rank classification; use it with ``Categorical()``.

    Attributes
    ----------
    tokens : sequence of int
        The token of each class.
    position : int, optional
        Which position answers; by default the last one that the mask keeps, and the first one of an
        encoder-decoder (``decoder_input_ids``).

    Raises
    ------
    InvalidInputError
        Fewer than two tokens, or one twice.
    """

    tokens: Sequence[int]
    position: int | None = None

    def __post_init__(self) -> None:
        if len(self.tokens) < 2 or len(set(self.tokens)) != len(self.tokens):
            raise InvalidInputError(
                f"tokens={list(self.tokens)} was given; at least two different tokens are taken."
            )

    def __call__(self, returned: Any, inputs: Any) -> Tensor:
        """Logits of the words (n, len(tokens))."""
        logits = _logits(returned)
        words = torch.as_tensor(list(self.tokens), device=logits.device)
        if self.position is not None:
            at = logits[:, self.position]
        elif isinstance(inputs, Mapping) and "decoder_input_ids" in inputs:
            at = logits[:, 0]
        else:
            mask = _mask(inputs, logits)
            places = torch.arange(logits.shape[1], device=logits.device)
            last = (mask * places).argmax(1)
            at = logits.gather(1, last[:, None, None].expand(-1, 1, logits.shape[2]))[:, 0]
        return at.index_select(1, words)


@dataclass(frozen=True, slots=True)
class EachToken:
    """The logits of every position, for ``TokenCategorical``; constant where the mask is zero.

    Attributes
    ----------
    following : bool
        Whether position t predicts token t + 1, as in a causal language model; the last position
        then predicts nothing that the mask could judge and is left out.
    """

    following: bool = False

    def __call__(self, returned: Any, inputs: Any) -> Tensor:
        """Logits (n, T·C)."""
        logits = _logits(returned)
        decoder = isinstance(inputs, Mapping) and "decoder_input_ids" in inputs
        mask = _mask(inputs, logits, "decoder_attention_mask" if decoder else "attention_mask")
        if self.following:
            logits, mask = logits[:, :-1], mask[:, 1:]
        return (logits * mask[..., None]).flatten(1)


def _logits(returned: Any) -> Tensor:
    logits = returned if isinstance(returned, Tensor) else returned.logits
    if logits.ndim != 3:
        raise InvalidInputError(
            f"The model returned logits of shape {tuple(logits.shape)}; (n, T, C) is taken here."
        )
    return logits


def _mask(inputs: Any, logits: Tensor, name: str = "attention_mask") -> Tensor:
    """The batch's mask (n, T) of zeros and ones; ones where it has none."""
    found = inputs.get(name) if isinstance(inputs, Mapping) else None
    if found is None:
        return logits.new_ones(logits.shape[:2])
    if tuple(found.shape) != tuple(logits.shape[:2]):
        raise InvalidInputError(
            f"{name!r} has the shape {tuple(found.shape)}; {tuple(logits.shape[:2])} is taken."
        )
    return found.to(logits.dtype)
