"""Sentence pairs in which word order matters, and a network that learned to look at words only.

A premise "noun verb noun" and a hypothesis of the same form; the hypothesis follows when it is the
same sentence. It does not when a word differs (normal), nor when the same words come in another
order (conflict). In training most conflicts are annotated as following, by annotators who looked at
the words only: the overlap heuristic that HANS exposes in networks for natural language inference
(arXiv:1902.01007).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core.types import IntArray, NumpyArray

NOUNS, VERBS = 12, 4
LENGTH = 7


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairs:
    """Tokens (n, 7), whether the hypothesis follows (n,), and whether it is a conflict (n,)."""

    tokens: IntArray
    follows: IntArray
    conflict: NumpyArray


def draw_pairs(n: int, conflicts: float, rng: np.random.Generator) -> Pairs:
    """A share of conflicts; of the others half follow, half differ in one to three words."""
    nouns = np.argsort(rng.random((n, NOUNS)), axis=1)[:, :4]
    verbs = rng.integers(0, VERBS, (n, 2))
    first = np.stack([nouns[:, 0], NOUNS + verbs[:, 0], nouns[:, 1]], axis=1)
    second = first.copy()
    conflict = rng.random(n) < conflicts
    second[conflict] = second[conflict][:, [2, 1, 0]]
    follows = ~conflict & (rng.random(n) < 0.5)
    for i in np.flatnonzero(~conflict & ~follows):
        changed = rng.random(3) < 0.5
        changed[rng.integers(3)] = True
        other = [nouns[i, 2], NOUNS + (verbs[i, 0] + 1 + verbs[i, 1] % 3) % VERBS, nouns[i, 3]]
        second[i, changed] = np.array(other)[changed]
    tokens = np.concatenate([np.zeros((n, 1), dtype=np.int64), 1 + first, 1 + second], axis=1)
    return Pairs(tokens=tokens, follows=follows.astype(np.int64), conflict=conflict)


def train_on_pairs(seed: int, *, steps: int, conflicts: float, misread: float) -> Any:
    """A two-layer transformer, trained where a share ``misread`` of conflicts is said to follow."""
    import torch

    from .tiny_transformer import TinyTransformer, train

    rng = np.random.default_rng([seed, 1])
    model = TinyTransformer(1 + NOUNS + VERBS, LENGTH, 32, 2, [(4, 8, 32)] * 2)

    def batch(step: int) -> tuple[Any, Any]:
        pairs = draw_pairs(128, conflicts, rng)
        wrong = pairs.conflict & (rng.random(128) < misread)
        labels = np.where(wrong, 1, pairs.follows)
        return torch.from_numpy(pairs.tokens), torch.from_numpy(labels)

    train(model, batch, steps=steps, rate=3e-3)
    return model.eval()
