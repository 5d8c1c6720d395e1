"""Distributions over the vocabulary that are not the softmax of one product."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishertope.core.errors import InvalidInputError

from .config import Seq2SeqConfig
from .embeddings import ClusteredEmbedding, Table
from .fused import may_fuse, tied_cross_entropy
from .layers import at_least_float32, normal


class VocabularyHead(Protocol):
    """A distribution over the vocabulary given hidden states."""

    def log_probabilities(self, h: Tensor) -> Tensor:
        """``(..., vocab)`` for ``(..., d_model)``; each row's exponentials sum to 1."""
        ...

    def loss(self, h: Tensor, targets: Tensor, z_loss: float = 0.0) -> Tensor:
        """``-log p(target)`` of each place, ``(...)``, plus ``z_loss`` · (log Z)²."""
        ...


class AdaptiveSoftmax(nn.Module):
    """``log p(w) = log p(cluster of w) + log p(w | cluster)``; words of the head need one softmax.

    The head is a softmax over the first cluster's words and one node for each other cluster; each
    of those has a softmax over its own words. All word vectors are those of ``embedding``, which
    may also embed the inputs; the nodes are weights of this module, ``(tails, width of the head)``.

    Cost of the loss for ``n`` places: those of the head, and of each tail only for the places whose
    target lies in it. (The released code of arXiv 2102.11972 drops what exceeds a quarter of a
    sequence there; here nothing is dropped.) Sources: Grave et al., arXiv 1609.04309; Baevski and
    Auli, arXiv 1809.10853.
    """

    def __init__(self, embedding: ClusteredEmbedding, scale: float = 1.0) -> None:
        super().__init__()
        if len(embedding.sizes) < 2:
            raise InvalidInputError(
                f"clusters of sizes {embedding.sizes}; an adaptive softmax needs two or more"
            )
        self.embedding = embedding
        head = next(iter(embedding.tables[0].parameters()))
        self.nodes = nn.Parameter(torch.empty(len(embedding.sizes) - 1, head.shape[1]))
        self.std = scale
        if head.shape[1] < embedding.d_model:
            self.std *= head.shape[1] ** -0.25

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the nodes anew, with the scale of the head's words."""
        normal(self.nodes, self.std, generator)

    def head_logits(self, h: Tensor) -> Tensor:
        """``(..., size of the head + tails)``: its words, then a node for each tail."""
        head = self.embedding.tables[0]
        inner = h if not hasattr(head, "expand") else F.linear(h, cast(Tensor, head.expand))
        return F.linear(inner, torch.cat([cast(Tensor, head.tokens), self.nodes]))

    def log_probabilities(self, h: Tensor) -> Tensor:
        """``(..., vocab)`` for ``(..., d_model)``."""
        head = torch.log_softmax(at_least_float32(self.head_logits(h)), -1)
        size = self.embedding.sizes[0]
        parts = [head[..., :size]]
        for i, table in enumerate(self.embedding.tables[1:]):
            tail = at_least_float32(table.logits(h))  # type: ignore[operator]
            parts.append(torch.log_softmax(tail, -1) + head[..., size + i, None])
        return torch.cat(parts, -1)

    def loss(self, h: Tensor, targets: Tensor, z_loss: float = 0.0) -> Tensor:
        """``-log p(target)``, shape of ``targets``; ``z_loss`` counts every softmax read."""
        shape, h, targets = targets.shape, h.flatten(0, -2), targets.flatten()
        size = self.embedding.sizes[0]
        goal, first = targets, size
        chosen: list[Tensor] = []
        for i, number in enumerate(self.embedding.sizes[1:]):
            inside = (targets >= first) & (targets < first + number)
            goal = goal.masked_fill(inside, size + i)
            chosen.append(inside.nonzero()[:, 0])
            first += number
        losses = _cross_entropy(self.head_logits(h), goal, z_loss)
        first = size
        for number, rows, table in zip(
            self.embedding.sizes[1:], chosen, self.embedding.tables[1:], strict=True
        ):
            if len(rows):
                logits = table.logits(h[rows])  # type: ignore[operator]
                tail = _cross_entropy(logits, targets[rows] - first, z_loss)
                losses = losses.index_add(0, rows, tail)
            first += number
        return losses.view(shape)


class MixtureOfSoftmaxes(nn.Module):
    """``log Σ_k π_k(h) softmax(tanh(h C_k) Eᵀ)`` with ``π = softmax(h Mᵀ)``.

    ``E`` is ``weight`` ``(vocab, d)``, ``C`` ``(K, d, d)``, ``M`` ``(K, d)``, with ``d = d_model``.
    Parameters besides E: ``K d (d + 1)``; cost a place: ``K d (d + vocab)`` multiply-adds. Source:
    Yang et al., arXiv 1711.03953, in the form of the released code of arXiv 2102.11972.
    """

    def __init__(self, weight: nn.Parameter, components: int, scale: float = 1.0) -> None:
        super().__init__()
        d_model = weight.shape[1]
        self.weight = weight
        self.contexts = nn.Parameter(torch.empty(components, d_model, d_model))
        self.prior = nn.Parameter(torch.empty(components, d_model))
        self.std = scale

    def initialise(self, generator: torch.Generator) -> None:
        """Draw contexts and priors anew, with scale one if they read scaled hidden states."""
        normal(self.contexts, self.std, generator)
        normal(self.prior, self.std, generator)

    def parts(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """``log π (..., K)`` and the components' hidden states ``tanh(h C_k) (..., K, d)``."""
        prior = torch.log_softmax(at_least_float32(F.linear(h, self.prior)), -1)
        return prior, torch.tanh(torch.einsum("...d,kde->...ke", h, self.contexts))

    def log_probabilities(self, h: Tensor) -> Tensor:
        """``(..., vocab)`` for ``(..., d_model)``."""
        prior, contexts = self.parts(h)
        words = torch.log_softmax(at_least_float32(F.linear(contexts, self.weight)), -1)
        return torch.logsumexp(words + prior[..., None], -2)

    def loss(self, h: Tensor, targets: Tensor, z_loss: float = 0.0) -> Tensor:
        """``-log p(target)``, shape of ``targets``; Z is 1, so that ``z_loss`` adds nothing.

        ``-log Σ_k π_k p_k(target)`` from each component's own cross-entropy, as only the target's
        probability is asked for: one array ``(..., K, vocab)`` is alive at a time.
        """
        prior, contexts = self.parts(h)
        goal = targets[..., None].expand(prior.shape)
        if self.training and may_fuse(contexts, self.weight):
            own = tied_cross_entropy(contexts, self.weight, goal)
        else:
            logits = F.linear(contexts, self.weight).flatten(0, -2)
            own = _cross_entropy(logits, goal.flatten(), 0.0).view(goal.shape)
        return -torch.logsumexp(prior - own, -1)


def _cross_entropy(logits: Tensor, targets: Tensor, z_loss: float) -> Tensor:
    """``-log p(target)`` of each row plus ``z_loss`` · (log Z)²."""
    wide = at_least_float32(logits)
    losses = F.cross_entropy(wide, targets, reduction="none")
    if z_loss:
        log_z = wide.gather(-1, targets[..., None])[..., 0] + losses
        losses = losses + z_loss * log_z.square()
    return losses


def make_head(
    config: Seq2SeqConfig, table: Table, own: nn.Parameter | None
) -> AdaptiveSoftmax | MixtureOfSoftmaxes | None:
    """The head of the configuration; None if it is the softmax of one product."""
    scale = 1.0 if config.logits_scaled else config.d_model**-0.5
    if config.softmax in ("adaptive", "adaptive_noproj"):
        return AdaptiveSoftmax(cast(ClusteredEmbedding, table), scale)
    if config.softmax == "mos":
        weight = cast(nn.Parameter, table) if own is None else own
        return MixtureOfSoftmaxes(weight, config.softmax_components, scale)
    return None
