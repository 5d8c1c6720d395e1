"""The supervised tasks of the studies: what is learned from, and what is scored."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from ..text2text import suite
from ..text2text.batches import Lengths
from ..text2text.formats import Example
from ..text2text.tasks import Split, Task

TASKS = ("summary", "topic", "sentiment_movie")
"""On which transfer is measured; the mean of their losses is the score of a model."""

ROWS = {
    "summary": Lengths(inputs=64, targets=20),
    "topic": Lengths(inputs=48, targets=8),
    "sentiment_movie": Lengths(inputs=64, targets=8),
    "sentiment_snippets": Lengths(inputs=64, targets=8),
    "entailment": Lengths(inputs=32, targets=8),
    "same_sense": Lengths(inputs=64, targets=8),
    "rating_movie": Lengths(inputs=64, targets=8),
    "translate_de": Lengths(inputs=48, targets=48),
    "reverse_dictionary": Lengths(inputs=48, targets=12),
}
"""Lengths of their rows."""

_PATIENCE = {"sentiment_movie": 2.0, "sentiment_snippets": 2.0}


def patience(name: str) -> float:
    """Factor of the number of fine-tuning steps: what a task needs to be learned at all."""
    return _PATIENCE.get(name, 1.0)


@functools.cache
def task(name: str) -> Task:
    """A task by name."""
    return suite.suite()[name]


@functools.cache
def examples(name: str, split: Split) -> Sequence[Example]:
    """Its examples in a random order; read once a process."""
    found = task(name).examples(split)
    order = np.random.default_rng(0).permutation(len(found))
    return [found[i] for i in order]
