"""A small Transformer without normalisation layers, whose every part is a plain linear map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Attention over all positions, or over earlier ones (``causal``)."""

    def __init__(self, width: int, heads: int, size: int, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.size, self.causal = heads, size, causal
        self.q, self.k, self.v = (nn.Linear(width, heads * size, bias=False) for _ in range(3))
        self.o = nn.Linear(heads * size, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, length, width) to the same."""
        n, length, _ = x.shape
        q, k, v = (
            part(x).reshape(n, length, self.heads, self.size).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        scores = q @ k.transpose(2, 3)
        if self.causal:
            later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(later, float("-inf"))
        mixed = scores.softmax(-1) @ v
        out: Tensor = self.o(mixed.transpose(1, 2).reshape(n, length, -1))
        return out


class Block(nn.Module):
    """Attention, then two linear maps with a ReLU between, each added to what came in."""

    def __init__(
        self, width: int, heads: int, size: int, hidden: int, *, causal: bool = False
    ) -> None:
        super().__init__()
        self.attention = Attention(width, heads, size, causal=causal)
        self.inner, self.outer = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, length, width) to the same."""
        x = x + self.attention(x)
        out: Tensor = x + self.outer(self.inner(x).relu())
        return out


class TinyTransformer(nn.Module):
    """Tokens (n, length) to the logits (n, C) of one position.

    Parameters
    ----------
    vocabulary, length, width, classes : int
    blocks : sequence of (heads, head size, hidden units)
    read : int
        The position whose logits are returned.
    causal : bool
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        width: int,
        classes: int,
        blocks: list[tuple[int, int, int]],
        *,
        read: int = 0,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.read = read
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, *b, causal=causal) for b in blocks))
        self.head = nn.Linear(width, classes)

    def hidden(self, tokens: Tensor) -> Tensor:
        """The residual stream (n, width) at the position that is read."""
        places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        x = self.blocks(self.tokens(tokens) + self.places(places))
        out: Tensor = x[:, self.read]
        return out

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (n, C)."""
        out: Tensor = self.head(self.hidden(tokens))
        return out


def train(
    model: nn.Module,
    batch: Any,
    *,
    steps: int,
    rate: float = 2e-3,
    weight_decay: float = 1e-4,
) -> float:
    """Cross-entropy by AdamW with a linear decay; the last batches' mean loss.

    Parameters
    ----------
    batch : callable
        ``batch(step)``: inputs and labels.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=weight_decay)
    recent = 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 50) * (1 - step / steps)
        inputs, labels = batch(step)
        loss = nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        recent = float(loss.detach()) if step == 0 else 0.95 * recent + 0.05 * float(loss.detach())
    return recent
