"""The one setting that all variants share: text, vocabulary, rows, batches, optimizers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .registry import OptimizerName, Variant, config_of

if TYPE_CHECKING:
    from ..seq2seq import Seq2SeqConfig
    from ..text2text import Batch, CorpusStream, Lengths, Vocabulary
    from ..text2text.training import TrainingPlan

Corpus: TypeAlias = Literal["wordnet", "manual"]
Words: TypeAlias = Literal["pieces", "bytes"]

VOCABULARY_EVERY = 24
"""The vocabulary is trained on every 24th line of the corpus: seconds instead of minutes."""
LETTERS = "ä ö ü Ä Ö Ü ß ă â î ș ț é è à ç ê"
"""A line that brings letters of the translation tasks, which the corpus lacks, into it."""
PUBLISHED_RATE, PUBLISHED_WIDTH = 0.05, 768
"""Adam's rate over Adafactor's, and the width for which it was published."""
WARM_UP = 4_000 / 65_536
"""Warm-up of Adam, as a share of the early phase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a run's numbers depend on, apart from variant, optimizer, steps and seed.

    Attributes
    ----------
    scale : str
        Of the registry.
    corpus : {"wordnet", "manual"}
        "manual" ships with Python, for tests.
    words : {"pieces", "bytes"}
    batch_size : int
    held_out : int
        Batches of the held-out loss.
    early : int
        Steps at which the early loss is taken, 1/8 of the paper's training.
    """

    scale: str = "nano"
    corpus: Corpus = "wordnet"
    words: Words = "pieces"
    batch_size: int = 32
    held_out: int = 40
    early: int = 300

    @property
    def lengths(self) -> Lengths:
        """Of a row."""
        from ..text2text.runs import SCALES

        return SCALES[self.scale].lengths

    def vocabulary(self) -> Vocabulary:
        """Trained on the corpus, once a process."""
        return _text(self.corpus, self.words, self.scale)[0]

    def config(self, chosen: str | Variant, optimizer: OptimizerName) -> Seq2SeqConfig:
        """The configuration of a variant, for the vocabulary of the setting.

        Adam goes with the scales of arXiv 2102.11972's Adam runs: embeddings of size 1/√width that
        are scaled up when read, and an explicit 1/√d_kv.
        """
        found = config_of(chosen, self.scale, vocab_size=self.vocabulary().size)
        return found if optimizer == "adafactor" else replace(found, scaling="explicit")

    def stream(self, seed: int) -> CorpusStream:
        """Span corruption of the corpus: mean length 3, 15 % of the tokens."""
        from ..text2text import CorpusStream

        words, train, _ = _text(self.corpus, self.words, self.scale)
        return CorpusStream(train, words, self.lengths, seed=seed)

    def held_out_batches(self) -> Sequence[Batch]:
        """The same for all variants and seeds."""
        return _held_out(self)

    def plan(self, *, steps: int, optimizer: OptimizerName, seed: int) -> TrainingPlan:
        """The pre-training of every variant."""
        from ..text2text.training import TrainingPlan

        return TrainingPlan(
            steps=steps, batch_size=self.batch_size, lengths=self.lengths, seed=seed,
            evaluate_every=self.early, log_every=min(50, self.early),
            **self.optimizer_options(optimizer),
        )  # fmt: skip

    def optimizer_options(self, optimizer: OptimizerName, *, share: float = 1.0) -> dict[str, Any]:
        """Adafactor as published, or Adam with the published rate carried to this width.

        The published Adam has 0.05 times Adafactor's rate at width 768. Adafactor multiplies its
        rate by the size of a matrix, which is 1/√width at the start, so Adam's is carried over
        with √(768/width).

        Parameters
        ----------
        share : float
            Of the rate, for fine-tuning.
        """
        if optimizer == "adafactor":
            return {"optimizer": "adafactor", "rate": 1e-2 * share}
        from .registry import vanilla

        base = vanilla(self.scale)
        return {
            "optimizer": "adam", "warmup": max(round(self.early * WARM_UP), 1),
            "rate": 1e-2 * PUBLISHED_RATE * (PUBLISHED_WIDTH / base.d_model) ** 0.5 * share,
        }  # fmt: skip


def setting_for(steps: int, *, early: int | None = None) -> Setting:
    """The setting of a run of so many steps; a very short one is judged on few rows."""
    return Setting(early=steps if early is None else early, held_out=40 if steps >= 100 else 8)


@cache
def _text(
    corpus: Corpus, words: Words, scale: str
) -> tuple[Vocabulary, list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Vocabulary, and the tokens of the documents to learn from and of those held out."""
    from ..text2text import ByteVocabulary, SentencePieceVocabulary, tokenized
    from ..text2text.runs import SCALES
    from ..text2text.suite import corpus as documents

    train, held_out = documents(corpus), documents(corpus, held_out=True)
    made: Vocabulary = ByteVocabulary()
    if words == "pieces":
        lines = [line for text in train for line in text.splitlines() if line.strip()]
        some = lines[:: VOCABULARY_EVERY if corpus == "wordnet" else 1]
        made = SentencePieceVocabulary.train([LETTERS, *some], size=SCALES[scale].vocab_size)
    return made, tokenized(train, made), tokenized(held_out, made)


@cache
def _held_out(setting: Setting) -> Sequence[Batch]:
    from ..text2text import BatchStream, CorpusStream

    words, _, held_out = _text(setting.corpus, setting.words, setting.scale)
    stream = CorpusStream(held_out, words, setting.lengths, seed=0)
    batches = BatchStream(stream, setting.lengths, batch_size=setting.batch_size)
    return [next(batches) for _ in range(setting.held_out)]
