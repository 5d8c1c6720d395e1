"""Several models as one: the mean of their logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fishertope.experiments.seq2seq import Seq2Seq


class Ensemble(nn.Module):
    """``logits = (1/n) Σ_k logits_k`` of models with one vocabulary, token by token.

    Source: Raffel et al., arXiv 1910.10683, section 3.6.
    """

    def __init__(self, members: Sequence[Seq2Seq]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.config = members[0].config

    def forward(self, inputs: Tensor | None, decoder_tokens: Tensor, **options: Any) -> Tensor:
        """Mean logits ``(batch, length, vocab)``."""
        return torch.stack([m(inputs, decoder_tokens, **options) for m in self.members]).mean(0)
