"""The small text-to-text models that the bridges start from, and how they are judged."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...core.model import engine_for
from ...core.storage import OutputFolder
from ...core.types import FloatArray
from ..data._made import cached
from ..text2text.evaluation import Decoder
from ..text2text.folders import TextModel, load_model
from ..text2text.formats import Example
from ..text2text.runs import finetune, pretrain
from ..text2text.suite import OPINIONS, corpus, sentiment
from ..text2text.tasks import Task
from .fishers import ask

DOMAINS = ("movie", "tweets", "nyt", "snippets")
"""Films, tweets, editorials and shop reviews, each negative or positive by 20 people's ratings."""
LABELS = OPINIONS


def base_model(steps: int = 1200, seed: int = 0) -> TextModel:
    """A nano model pre-trained by span corruption of WordNet, made once and kept in the cache.

    0.30 M parameters, 1,024 SentencePiece ids; about two minutes for 1,200 steps.

    Raises
    ------
    DataMissingError
        If WordNet has not been fetched; says how.
    PackageMissingError
        Without sentencepiece.
    """
    facts = {"scale": "nano", "corpus": "wordnet", "steps": steps, "seed": seed, "version": 1}
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def fill(out: OutputFolder) -> dict[str, Any]:
        documents = corpus("wordnet")
        run = pretrain(out.working, documents, scale="nano", steps=steps, seed=seed)
        (out.working / "results.json").unlink()  # the folder's own takes its place
        return {"loss": run.results["loss"], "facts": facts}

    folder = cached(f"text-nano-{steps}-{key[:12]}", key, fill, command="bridges")
    return load_model(folder / "model")


def tuned(
    start: TextModel, tasks: Task | Sequence[Task], *, steps: int, seed: int, rate: float = 1e-3
) -> TextModel:
    """A copy of ``start``, fine-tuned on a task or a mixture; nothing is kept."""
    with tempfile.TemporaryDirectory() as folder:
        run = finetune(
            Path(folder) / "run", start, tasks, steps=steps, rate=rate, seed=seed, most=1,
            decoder=Decoder(how="rank"),
        )  # fmt: skip
    return run.text_model


def opinions(domain: str) -> Task:
    """The sentiment task of one of ``DOMAINS``."""
    return sentiment(domain)


def label_log_probabilities(
    text_model: TextModel, examples: Sequence[Example], labels: Sequence[str] = LABELS
) -> FloatArray:
    """Of each label, log p(label|x) (n, C), by rank classification."""
    question = ask(text_model, examples, labels=labels, batch_size=64)
    engine = engine_for(question.model, output=question.options["output"])
    parts = [torch.log_softmax(engine.predict(batch), 1) for batch in question.data]
    return torch.cat(parts).double().cpu().numpy()


def judged(
    text_model: TextModel, examples: Sequence[Example], labels: Sequence[str] = LABELS
) -> Mapping[str, float]:
    """Accuracy and mean −log p of the right label."""
    found = label_log_probabilities(text_model, examples, labels)
    right = [list(labels).index(str(e["targets"])) for e in examples]
    return {
        "accuracy": float((found.argmax(1) == right).mean()),
        "NLL": float(-found[range(len(right)), right].mean()),
    }
