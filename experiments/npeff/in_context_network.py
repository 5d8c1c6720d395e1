"""A small causal language model that knows some words and learns others from its context.

A sequence is four demonstrations "word label" and a query word; the model says the query's label.
Known words have a label of their own, always the same; new words get one for each sequence, which
the context shows or does not (compare arXiv:2205.05055, and induction heads, arXiv:2209.11895).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core.types import IntArray, NumpyArray

KNOWN, NEW, LABELS, SHOTS = 12, 24, 4, 4
LENGTH = 2 * SHOTS + 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sequences:
    """Tokens (n, 9), right labels, demonstrations of the query, whether it is new, all (n,)."""

    tokens: IntArray
    labels: IntArray
    shots: IntArray
    new: NumpyArray


def draw_sequences(n: int, shots: IntArray, new: NumpyArray, rng: np.random.Generator) -> Sequences:
    """Contexts of other words, with ``shots`` (n,) demonstrations of the query among them.

    New words without a demonstration have a random right label; known words are never shown with
    another label than theirs.
    """
    own = np.arange(KNOWN) % LABELS
    words = np.argsort(rng.random((n, KNOWN + NEW)), axis=1)
    shown = words[:, :SHOTS].copy()
    query = np.where(new, KNOWN + rng.integers(0, NEW, n), rng.integers(0, KNOWN, n))
    # Not the query by accident: another word takes its place.
    for j in range(SHOTS):
        clash = shown[:, j] == query
        shown[clash, j] = words[clash, SHOTS]
    answer = np.where(new, rng.integers(0, LABELS, n), own[query % KNOWN])
    labels = np.where(shown < KNOWN, own[shown % KNOWN], rng.integers(0, LABELS, (n, SHOTS)))
    order = np.argsort(rng.random((n, SHOTS)), axis=1)
    match = order < shots[:, None]
    shown = np.where(match, query[:, None], shown)
    labels = np.where(match, answer[:, None], labels)
    tokens = np.empty((n, LENGTH), dtype=np.int64)
    tokens[:, 0:-1:2], tokens[:, 1::2], tokens[:, -1] = shown, KNOWN + NEW + labels, query
    return Sequences(tokens=tokens, labels=answer, shots=shots, new=new)


def train_in_context(seed: int, *, steps: int) -> Any:
    """A two-layer causal transformer on known words and on new words that the context shows."""
    import torch

    from .tiny_transformer import TinyTransformer, train

    rng = np.random.default_rng([seed, 1])
    model = TinyTransformer(
        KNOWN + NEW + LABELS, LENGTH, 32, LABELS, [(4, 8, 48)] * 2, read=-1, causal=True
    )

    def batch(step: int) -> tuple[Any, Any]:
        new = rng.random(128) < 0.7
        shots = np.where(new, rng.integers(1, SHOTS + 1, 128), rng.integers(0, 2, 128))
        drawn = draw_sequences(128, shots, new, rng)
        return torch.from_numpy(drawn.tokens), torch.from_numpy(drawn.labels)

    train(model, batch, steps=steps, rate=3e-3)
    return model.eval()
