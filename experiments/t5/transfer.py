"""Transfer: fine-tune a model on a task, and rank the labels of the test examples."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...core.errors import InvalidInputError
from ...core.storage import OutputFolder, read_json
from ...core.types import FloatArray
from ..data._made import cached
from ..text2text.streams import BatchStream, TaskStream
from ..text2text.tasks import tokenize
from . import corpora
from .recipes import SIZES, Recipe, digest, pretrained
from .tasks import ROWS, TASKS, examples, patience, task

if TYPE_CHECKING:
    from fishertope.experiments.seq2seq import Seq2Seq

    from .ensemble import Ensemble

_COMMAND = "the studies of T5"
_VERSION = 1
"""Counts up when the same settings come to give other scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """How a model is fine-tuned.

    Attributes
    ----------
    method : {"all", "adapters", "unfreeze", "none"}
        ``"none"`` scores the model as it is.
    width : int
        Of the adapters.
    rate : float
    optimizer : {"adafactor", "adam"}
        Adafactor's steps are relative to a matrix's own size and leave one that starts at zero, as
        those of adapters do, where it is for thousands of steps.
    """

    method: str = "all"
    width: int = 16
    rate: float = 1e-2
    optimizer: Literal["adafactor", "adam"] = "adafactor"


def transfer(
    recipe: Recipe, tuning: Tuning | None = None, *, fresh: bool = False,
    tasks: Sequence[str] = TASKS, tune_seed: int | None = None,
) -> dict[str, float]:  # fmt: skip
    """Scores on each task after fine-tuning on it, × 100, and their mean.

    Kept in the cache, so that studies share what they have in common.

    Parameters
    ----------
    recipe
        Of the pre-training.
    fresh
        Fine-tune the untrained model of the recipe instead: no pre-training.
    tune_seed
        Of the order of the examples; the recipe's seed otherwise.

    Returns
    -------
    dict
        ``score`` (mean accuracy); ``NLL`` (mean of −log p(label) under the ranking); both for
        each task; ``pre-training loss``.
    """
    how = Tuning() if tuning is None else tuning
    seed = recipe.seed if tune_seed is None else tune_seed
    facts = {
        "recipe": recipe.key(), "tuning": asdict(how), "fresh": fresh, "tasks": list(tasks),
        "rows": {name: asdict(ROWS[name]) for name in tasks}, "seed": seed,
        "steps": tuning_steps(recipe.size, tasks), "scored": recipe.facts.scored,
        "version": _VERSION,
    }  # fmt: skip

    def fill(out: OutputFolder) -> Mapping[str, Any]:
        scores = _scores(recipe, how, fresh, tasks, seed)
        out.write_text("scores.json", json.dumps(scores, indent=1))
        return {}

    return kept(facts, fill)


def kept(
    facts: Mapping[str, Any], fill: Callable[[OutputFolder], Mapping[str, Any]]
) -> dict[str, float]:
    """Scores of these facts from the cache; ``fill`` writes ``scores.json`` if need be."""
    key = digest(facts)
    folder = cached(f"t5-scores-{key}", key, fill, command=_COMMAND)
    return {name: float(value) for name, value in read_json(folder / "scores.json").items()}


def _scores(
    recipe: Recipe, how: Tuning, fresh: bool, tasks: Sequence[str], seed: int
) -> dict[str, float]:
    scores: dict[str, float] = {}
    if not fresh and recipe.unlabeled:
        scores["pre-training loss"] = pretrained(recipe).loss
    for name in tasks:
        model = recipe.model() if fresh else pretrained(recipe).model
        fine_tune(model, name, recipe.size, how, seed=seed)
        scores |= {f"{name}, {k}": v for k, v in judge(model, name, recipe.size).items()}
    return scores | means(scores, tasks)


def means(scores: Mapping[str, float], tasks: Sequence[str]) -> dict[str, float]:
    """``loss`` over all tasks, ``accuracy`` over those that have labels."""
    out = {"loss": float(np.mean([scores[f"{name}, loss"] for name in tasks]))}
    ranked = [scores[f"{n}, accuracy"] for n in tasks if f"{n}, accuracy" in scores]
    return out | ({"accuracy": float(np.mean(ranked))} if ranked else {})


def tuning_steps(size: str, tasks: Sequence[str]) -> int:
    """Updates of the fine-tunings on these tasks together."""
    return sum(round(SIZES[size].tune_steps * patience(name)) for name in tasks)


def fine_tune(model: Seq2Seq, name: str, size: str, how: Tuning, *, seed: int) -> None:
    """Train a model on a task, in place."""
    from ..text2text.finetuning import add_adapters, unfreeze_gradually
    from ..text2text.training import Trainable, TrainingPlan, train

    facts = SIZES[size]
    trainable: Trainable | None = None
    steps = tuning_steps(size, [name])
    if how.method == "none":
        return
    if how.method == "adapters":
        names = add_adapters(model, how.width, seed=seed)
        trainable = lambda step: names  # noqa: E731
    elif how.method == "unfreeze":
        trainable = unfreeze_gradually(model, steps)
    elif how.method != "all":
        raise InvalidInputError(f"method={how.method!r}; accepted are all, adapters, unfreeze")
    stream = TaskStream(
        examples(name, "train"), corpora.vocabulary(facts.vocabulary), ROWS[name], seed=seed
    )
    plan = TrainingPlan(
        steps=steps, batch_size=16, lengths=ROWS[name], rate=how.rate,
        optimizer=how.optimizer, seed=seed, log_every=50,
    )  # fmt: skip
    train(model, stream, plan, trainable=trainable)
    model.eval()


def log_likelihoods(model: Seq2Seq | Ensemble, name: str, size: str) -> FloatArray:
    """Each label's log p(label | input) for the test examples: ``(n, classes)``."""
    from ..text2text.evaluation import label_scores

    facts = SIZES[size]
    words = corpora.vocabulary(facts.vocabulary)
    rows = [
        tokenize(e, words, inputs_length=ROWS[name].inputs, targets_length=1).inputs
        for e in examples(name, "test")[: facts.scored]
    ]
    return label_scores(model, rows, task(name).labels, words, batch_size=128)


def judge(model: Seq2Seq | Ensemble, name: str, size: str) -> dict[str, float]:
    """Scores on the test examples.

    With labels: ``accuracy`` of the best-ranked one × 100, and ``loss`` −log softmax at the right
    one; otherwise ``loss`` in nats a target token.
    """
    if task(name).labels:
        return ranked(log_likelihoods(model, name, size), name)
    from ..text2text.steps import mean_loss

    facts = SIZES[size]
    stream = TaskStream(
        examples(name, "test")[: facts.scored], corpora.vocabulary(facts.vocabulary), ROWS[name],
        shuffle=False,
    )  # fmt: skip
    batches = BatchStream(stream, ROWS[name], batch_size=50, arch=model.config.arch)
    return {"loss": mean_loss(model, [next(batches) for _ in range(-(-len(stream) // 50))])}


def ranked(scores: FloatArray, name: str) -> dict[str, float]:
    """Accuracy × 100, and the mean of −log softmax at the right label."""
    labels = task(name).labels
    right = np.array([labels.index(e["targets"]) for e in examples(name, "test")[: len(scores)]])
    top = scores.max(1, keepdims=True)
    log_p = scores - top - np.log(np.exp(scores - top).sum(1, keepdims=True))
    return {
        "accuracy": 100.0 * float(np.mean(scores.argmax(1) == right)),
        "loss": -float(np.mean(log_p[np.arange(len(right)), right])),
    }
