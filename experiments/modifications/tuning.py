"""Fine-tuning of a pre-trained variant on three tasks, as the paper's transfer columns do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...core.errors import DataMissingError
from .harness import Watch
from .registry import OptimizerName
from .setting import Setting

if TYPE_CHECKING:
    from ..seq2seq import Seq2Seq
    from ..text2text import Task
    from ..text2text.streams import Stream

DOMAINS = ("movie", "tweets", "nyt", "snippets")
SHARE = 1.0
"""Of the rate of pre-training: with the paper's tenth nothing is learned in so few steps."""
DROPOUT = 0.1
SCORES = ("sentiment", "rating", "en_de")
TITLES = {
    "sentiment": "sentiment, accuracy", "rating": "ratings, Spearman's ρ", "en_de": "En→De, BLEU",
}  # fmt: skip


def transfer(
    model: Seq2Seq, *, setting: Setting, optimizer: OptimizerName, seed: int, steps: int,
    most: int,
) -> dict[str, Any]:  # fmt: skip
    """Scores × 100 of copies of a model that were tuned on each task.

    Parameters
    ----------
    most : int
        Validation examples of a task, or of a domain, that are scored.

    Returns
    -------
    dict
        ``sentiment``: accuracy of ranking the two labels, mean over four domains, tuned on all of
        them; ``sentiment_majority``: that of the more frequent label. ``rating``: Spearman's ρ of
        written ratings. ``en_de``: BLEU of messages of user interfaces. ``None`` where a catalogue
        is not installed; 0 where the run diverged. With ``_loss`` behind the name: the loss a
        token on the same examples.
    """
    from ..text2text.suite import rating, translation

    options: dict[str, Any] = {
        "setting": setting, "optimizer": optimizer, "seed": seed, "steps": steps,
    }  # fmt: skip
    domains = _domains()
    tuned = tune(model, domains, **options)
    parts = [_score(tuned, task, "accuracy", setting, most, how="rank") for task in domains]
    found: dict[str, Any] = {
        "sentiment": float(np.mean(parts)),
        "sentiment_loss": _loss(tuned, domains, setting, most),
        "sentiment_majority": float(np.mean([_majority(task, most) for task in domains])),
    }
    task = rating("movie")
    tuned = tune(model, [task], **options)
    found["rating"] = _score(tuned, task, "spearman", setting, most)
    found["rating_loss"] = _loss(tuned, [task], setting, most)
    try:
        task = translation("de")
        tuned = tune(model, [task], **options)
        found["en_de"] = _score(tuned, task, "bleu", setting, most)
        found["en_de_loss"] = _loss(tuned, [task], setting, most)
    except DataMissingError:
        found |= {"en_de": None, "en_de_loss": None}
    return found


def _loss(
    model: Seq2Seq | None, tasks: Sequence[Task], setting: Setting, most: int
) -> float | None:
    """Loss a token on the scored examples of all tasks; ``None`` of a diverged run."""
    from ..text2text import BatchStream, TaskStream
    from ..text2text.steps import mean_loss

    if model is None:
        return None
    examples = [e for task in tasks for e in some(task, "validation", most)]
    stream = TaskStream(examples, setting.vocabulary(), setting.lengths, shuffle=False)
    batches = BatchStream(stream, setting.lengths, batch_size=setting.batch_size)
    count = max(len(examples) // setting.batch_size, 1)
    return mean_loss(model, [next(batches) for _ in range(count)], next(model.parameters()).device)


@cache
def _domains() -> tuple[Task, ...]:
    from ..text2text.suite import sentiment

    return tuple(sentiment(domain) for domain in DOMAINS)


def tune(
    model: Seq2Seq, tasks: Sequence[Task], *, setting: Setting, optimizer: OptimizerName,
    seed: int, steps: int, pull: float = 0.0,
) -> Seq2Seq | None:  # fmt: skip
    """A tuned copy, the tasks in equal parts; ``None`` if the run diverged."""
    from ..seq2seq import Seq2Seq
    from ..text2text.training import TrainingPlan, train

    own = Seq2Seq(replace(model.config, dropout=DROPOUT))
    own.load_state_dict(model.state_dict())
    device = next(model.parameters()).device
    own.to(device)
    plan = TrainingPlan(
        steps=steps, batch_size=setting.batch_size, lengths=setting.lengths, seed=seed, pull=pull,
        log_every=max(steps, 1), **setting.optimizer_options(optimizer, share=SHARE),
    )  # fmt: skip
    watch = Watch(bound=float(np.log(model.config.vocab_size)))
    run = train(own, _stream(tasks, setting, seed), plan, callback=watch, device=device)
    own.eval()
    return own if run.status == "finished" else None


def _stream(tasks: Sequence[Task], setting: Setting, seed: int) -> Stream:
    from ..text2text import MixtureStream, TaskStream

    words = setting.vocabulary()
    streams: Mapping[str, Stream] = {
        t.name: TaskStream(_read(t, "train"), words, setting.lengths, seed=seed) for t in tasks
    }
    return MixtureStream(streams, dict.fromkeys(streams, 1.0), seed=seed)


_EXAMPLES: dict[tuple[str, str], Any] = {}


def _read(task: Task, split: Literal["train", "validation"]) -> Any:
    """Examples of a split, read once a process."""
    key = (task.name, split)
    if key not in _EXAMPLES:
        _EXAMPLES[key] = task.examples(split)
    return _EXAMPLES[key]


def _score(
    model: Seq2Seq | None, task: Task, metric: str, setting: Setting, most: int, *,
    how: Any = "greedy",
) -> float:  # fmt: skip
    """A score × 100 on validation examples; 0 of a diverged run, and where it is not defined."""
    from ..text2text.evaluation import Decoder, generate

    if model is None:
        return 0.0
    examples = some(task, "validation", most)
    own: Any = model
    made = generate(
        own, [str(e["inputs"]) for e in examples], setting.vocabulary(),
        lengths=setting.lengths, decoder=Decoder(how=how), batch_size=64, labels=task.labels,
    )  # fmt: skip
    value = float(task.score(examples, made)[metric])
    return value if np.isfinite(value) else 0.0


def some(task: Task, split: Literal["train", "validation"], most: int) -> list[Any]:
    """At most so many examples, evenly from the whole split, whose order may mean something."""
    found = _read(task, split)
    if len(found) <= most:
        return list(found)
    return [found[i] for i in np.linspace(0, len(found) - 1, most).astype(int)]


def _majority(task: Task, most: int) -> float:
    """Accuracy × 100 of the more frequent label on the scored examples."""
    labels = [str(e["targets"]) for e in some(task, "validation", most)]
    return 100.0 * max(labels.count(label) for label in set(labels)) / len(labels)
