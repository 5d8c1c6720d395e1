"""The Universal Transformer: a gated residual sum, embeddings of steps, a recurrent stack."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from .config import Seq2SeqConfig, StackName
from .stack import Stack


class GatedResidual(nn.Module):
    """``x + (1 - u) * y + u * c``: a residual sum whose summand passes a gated unit.

    ``u = sigmoid(W_u [x; y] + b_u)``, ``r = sigmoid(W_r [x; y] + b_r)``, ``c = sigmoid(W_c [r * x;
    y] + b_c)``; ``y`` is what the sublayer made of the norm of ``x``. The candidate has a sigmoid
    too, as in the released code of arXiv 2102.11972; that code also normalises ``x`` and ``y``
    before the maps, without parameters worth a count, which is left out here. With ``u = 0`` (the
    gate open) it is the plain sum.

    Notes
    -----
    ``(..., d_model)``, twice in, once out. Parameters: ``6 d_model**2 + 3 d_model``; cost:
    ``6 d_model**2`` multiply-adds a token. Sources: Dehghani et al., arXiv 1807.03819; Narang et
    al., arXiv 2102.11972.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.gates = nn.Linear(2 * d_model, 2 * d_model)
        self.candidate = nn.Linear(2 * d_model, d_model)
        self.initialise()

    @classmethod
    def from_config(cls, config: Seq2SeqConfig) -> Self:
        """The layer that a configuration describes."""
        return cls(config.d_model)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Normal weights of variance ``1 / inputs``, no biases."""
        for linear in (self.gates, self.candidate):
            linear.weight.normal_(0.0, linear.in_features**-0.5, generator=generator)
            linear.bias.zero_()

    @staticmethod
    def count(d_model: int) -> int:
        """Number of parameters."""
        return 6 * d_model**2 + 3 * d_model

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Add ``y`` to ``x`` through the gates."""
        update, reset = torch.sigmoid(self.gates(torch.cat([x, y], -1))).chunk(2, -1)
        candidate = torch.sigmoid(self.candidate(torch.cat([reset * x, y], -1)))
        return x + torch.lerp(y, candidate, update)


class StepEmbedding(nn.Module):
    """One learned vector for each step of a recurrent stack, added to all positions.

    Parameters: ``steps * d_model``, normal of variance 1 (as the embeddings of tokens).
    """

    def __init__(self, steps: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(steps, d_model))
        self.initialise()

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Normal of variance 1."""
        self.weight.normal_(0.0, 1.0, generator=generator)

    @staticmethod
    def count(steps: int, d_model: int) -> int:
        """Number of parameters."""
        return steps * d_model

    def forward(self, h: Tensor, step: int) -> Tensor:
        """``h`` ``(batch, n, d_model)`` plus the vector of a step."""
        return h + self.weight[step]


class UniversalStack(Stack):
    """The blocks of a stack (one in the paper), passed ``recurrence`` times.

    Each time a learned vector of the step is added to all positions first. There is no halting:
    the text of arXiv 2102.11972 gives a threshold, but its configuration does a fixed number of
    steps. Each pass has its own cache. Sources: Dehghani et al., arXiv 1807.03819; Narang et al.,
    arXiv 2102.11972.
    """

    def __init__(self, config: Seq2SeqConfig, *, stack: StackName) -> None:
        super().__init__(config, stack=stack)
        self.depth = config.recurrence * len(self.blocks)
        self.steps = StepEmbedding(config.recurrence, config.d_model)

    def enter(self, h: Tensor, i: int) -> Tensor:
        """Add the vector of the step before its first block."""
        if i % len(self.blocks):
            return h
        entered: Tensor = self.steps(h, i // len(self.blocks))
        return entered
