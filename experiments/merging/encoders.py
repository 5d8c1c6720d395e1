"""Encoders fine-tuned on several text tasks: common bodies, heads of their own, scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from ...core.fisher import PrecisionTree, estimate_precision
from ...core.fisher.labels import LabelRule
from ..data import TextSet
from ..finetune import FineTuned, finetune, token_batches
from ..finetune.bases import save_checkpoint
from ..finetune.training import fresh_classifier

Body = Mapping[str, Any]

TASKS = ("sentiment/yelp", "sentiment/imdb", "vader/tweets", "spam")
BODY = ("*encoder*", "*pooler*")
"""What is merged; the embeddings are frozen, and every task keeps its head."""
LENGTH = 32
_BATCH = 32


def tuned(
    task: str, seed: int, *, base: str | Path = "minilm", steps: int = 60, name: str = "minilm"
) -> FineTuned:
    """A short fine-tuning, near its start: frozen embeddings and the pull of the paper's code.

    MiniLM: 60 steps of 16 texts of at most 32 tokens, 25 s of a core. ``name`` is the base at the
    beginning of a chain of fine-tunings.
    """
    rate = 1e-4 if name == "minilm" else None
    return finetune(
        task, base=base, seed=seed, steps=steps, max_length=LENGTH, learning_rate=rate, pull=3e-4,
        freeze=("*embeddings*",),
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What a body under a task's head gives on a set of texts.

    Attributes
    ----------
    accuracy, NLL : float
        Share of right answers, and mean −log p of the right one (nats).
    """

    accuracy: float
    NLL: float


class Task:
    """A fine-tuned classifier with its texts, tokenized once.

    Parameters
    ----------
    found : FineTuned
    seed : int
        Draws which texts are learned from, chosen by and reported on.
    texts : int
        Texts to report on, from the test part.
    select : int
        Texts to choose by, from the validation part.
    """

    def __init__(self, found: FineTuned, seed: int, *, texts: int, select: int = 0) -> None:
        self.name, self._model = found.task, found.model()
        self._tokenizer, data = found.tokenizer(), found.data()
        state = self._model.state_dict()
        self.body = {name: state[name].clone() for name in body_names(self._model)}
        rng = np.random.default_rng([seed, 21])
        self._train = data.train.take(rng.permutation(len(data.train)))
        parts = {"report": (data.test, texts), "select": (data.validation, select)}
        self._parts = {k: self._batches(_drawn(part, n, rng)) for k, (part, n) in parts.items()}

    def precision(
        self, n: int, *, structure: str = "diagonal", labels: LabelRule | None = None, seed: int = 0
    ) -> PrecisionTree:
        """Of its own body, from the first ``n`` of the learned texts in their drawn order."""
        batches = token_batches(
            self._tokenizer, self._train.take(range(n)), batch_size=16, max_length=LENGTH
        )
        return estimate_precision(
            self._under(self.body), [(b, b.pop("labels")) for b in batches],
            structure=structure, labels=labels, params=list(BODY), seed=seed,
        )  # fmt: skip

    def score(self, body: Body, part: str = "report") -> Scores:
        """The head of the task on a body."""
        import torch

        model, right, loss, n = self._under(body), 0, 0.0, 0
        with torch.no_grad():
            for inputs, labels in self._parts[part]:
                logits = model(**inputs).logits.double()
                right += int((logits.argmax(1) == labels).sum())
                loss += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
                n += len(labels)
        return Scores(accuracy=right / n, NLL=loss / n)

    def save(self, body: Body, folder: Path) -> None:
        """A Hugging Face checkpoint of a body under this task's head, with the tokenizer."""
        save_checkpoint(self._under(body), self._tokenizer, folder)

    def _under(self, body: Body) -> Any:
        self._model.load_state_dict(dict(body), strict=False)
        return self._model

    def _batches(self, texts: TextSet) -> list[tuple[dict[str, Any], Any]]:
        # Texts of like length together: less padding.
        order = sorted(range(len(texts)), key=lambda i: len(texts.texts[i]))
        found = token_batches(
            self._tokenizer, texts.take(order), batch_size=_BATCH, max_length=LENGTH
        )
        return [(b, b.pop("labels")) for b in found]


def body_names(model: Any) -> list[str]:
    """Names of the tensors that are merged."""
    names = [n for n, _ in model.named_parameters()]
    return [n for n in names if any(fnmatchcase(n, pattern) for pattern in BODY)]


def start_body(found: FineTuned) -> Body:
    """θ_0: the body that a fine-tuning started from."""
    model, _ = fresh_classifier(found.start, found.classes, 0)
    state = model.state_dict()
    return {name: state[name] for name in body_names(model)}


def _drawn(texts: TextSet, n: int, rng: np.random.Generator) -> TextSet:
    return texts.take(np.sort(rng.permutation(len(texts))[:n]))


def scored(row: dict[str, Any], name: str, tasks: Sequence[Task], bodies: Sequence[Body]) -> None:
    """Put accuracy and NLL of every task on its body into a row, and their means."""
    found = {t.name: t.score(b) for t, b in zip(tasks, bodies, strict=True)}
    for task, scores in found.items():
        row[f"{name}, {task}, accuracy"] = scores.accuracy
        row[f"{name}, {task}, NLL"] = scores.NLL
    row[f"{name}, accuracy"] = float(np.mean([s.accuracy for s in found.values()]))
    row[f"{name}, NLL"] = float(np.mean([s.NLL for s in found.values()]))
