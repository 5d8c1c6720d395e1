"""Matrices between token ids and hidden states: full, factorized, or in clusters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import Seq2SeqConfig
from .layers import normal


class FactorizedEmbedding(nn.Module):
    """``E = A B``, ``A`` ``(vocab, inner)`` and ``B`` ``(inner, d_model)``.

    Embedding: row ``A_t B``; logits: ``A (B h)``. Parameters: ``inner * (vocab + d_model)``. The
    logits cost ``inner * (vocab + d_model)`` multiply-adds a place, not ``vocab * d_model``.
    Source: Lan et al., arXiv 1909.11942. Each factor starts with scale ``inner ** -0.25``, so that
    the entries of E have scale one.
    """

    def __init__(self, vocab_size: int, inner: int, d_model: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(vocab_size, inner))
        self.expand = nn.Parameter(torch.empty(inner, d_model))

    def draw(self, generator: torch.Generator, scale: float = 1.0) -> None:
        """Draw both factors anew, for entries of E with standard deviation ``scale``."""
        std = self.expand.shape[0] ** -0.25
        normal(self.tokens, std * scale, generator)
        normal(self.expand, std, generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed ids of any shape; ``(..., d_model)``."""
        return F.embedding(tokens, self.tokens) @ self.expand

    def logits(self, h: Tensor) -> Tensor:
        """``(..., vocab)`` for ``(..., d_model)``."""
        return F.linear(F.linear(h, self.expand), self.tokens)


class ClusteredEmbedding(nn.Module):
    """Consecutive ranges of ids, each with a width of its own, projected to ``d_model``.

    A cluster of the full width is one matrix, any other a :class:`FactorizedEmbedding`. Ids are
    thought to be ordered by frequency. With one cluster of the full width it is a plain embedding.
    Parameters: ``Σ n_c w_c + w_c d_model``, the second term only where ``w_c < d_model``. Source:
    Baevski and Auli, arXiv 1809.10853.
    """

    def __init__(self, clusters: Sequence[int], widths: Sequence[int], d_model: int) -> None:
        super().__init__()
        self.d_model, self.sizes = d_model, tuple(clusters)
        self.tables = nn.ModuleList(
            FullEmbedding(n, d_model) if w == d_model else FactorizedEmbedding(n, w, d_model)
            for n, w in zip(clusters, widths, strict=True)
        )

    def draw(self, generator: torch.Generator, scale: float = 1.0) -> None:
        """Draw all tables anew, for entries with standard deviation ``scale``."""
        for table in self.tables:
            table.draw(generator, scale)  # type: ignore[operator]

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed ids of any shape; ``(..., d_model)``."""
        first, parts = 0, []
        for size, table in zip(self.sizes, self.tables, strict=True):
            inside = (tokens >= first) & (tokens < first + size)
            parts.append(table((tokens - first).clamp(0, size - 1)) * inside[..., None])
            first += size
        return torch.stack(parts).sum(0)

    def logits(self, h: Tensor) -> Tensor:
        """``(..., vocab)`` for ``(..., d_model)``."""
        return torch.cat([table.logits(h) for table in self.tables], -1)  # type: ignore[operator]


class FullEmbedding(nn.Module):
    """One matrix ``(vocab, d_model)``."""

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(vocab_size, d_model))

    def draw(self, generator: torch.Generator, scale: float = 1.0) -> None:
        """Draw the matrix anew."""
        normal(self.tokens, scale, generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed ids of any shape; ``(..., d_model)``."""
        return F.embedding(tokens, self.tokens)

    def logits(self, h: Tensor) -> Tensor:
        """``(..., vocab)`` for ``(..., d_model)``."""
        return F.linear(h, self.tokens)


Table: TypeAlias = nn.Parameter | FactorizedEmbedding | ClusteredEmbedding


def make_table(config: Seq2SeqConfig) -> Table:
    """An embedding of the configuration's form: a bare matrix if it is a full one."""
    if config.softmax in ("adaptive", "adaptive_noproj") or config.embedding_form == "adaptive":
        return ClusteredEmbedding(config.clusters, config.cluster_widths, config.d_model)
    if config.embedding_form == "factorized":
        return FactorizedEmbedding(config.vocab_size, config.embedding_inner, config.d_model)
    return nn.Parameter(torch.empty(config.vocab_size, config.d_model))


def embed(table: Table, tokens: Tensor) -> Tensor:
    """Embed ids of any shape; ``(..., d_model)``."""
    if isinstance(table, Tensor):
        return F.embedding(tokens, table)
    out: Tensor = table(tokens)
    return out


def table_logits(table: Table, h: Tensor) -> Tensor:
    """``(..., vocab)`` for ``(..., d_model)``."""
    return F.linear(h, table) if isinstance(table, Tensor) else table.logits(h)


def draw_table(table: Table, scale: float, generator: torch.Generator) -> None:
    """Draw an embedding anew, for entries with standard deviation ``scale``."""
    if isinstance(table, Tensor):
        normal(table, scale, generator)
    else:
        table.draw(generator, scale)
