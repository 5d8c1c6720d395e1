"""Every family of tasks as text to text: one model, one loss, one way of decoding."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ...core.report import Column, Table
from ...core.report.figures import bars
from ...core.storage import OutputFolder
from ..studies import Figure, Rows, Study, Summary, decide, grid, t_interval
from ..studies.study import Settings
from ..text2text.streams import BatchStream, TaskStream
from . import corpora
from .conditions import NEEDS, SEEDS
from .recipes import Recipe, pretrained
from .tasks import ROWS, examples, task
from .transfer import kept

FAMILIES = {
    "sentiment_movie": ("SST-2", "accuracy"),
    "entailment": ("MNLI", "accuracy"),
    "same_sense": ("WiC", "accuracy"),
    "rating_movie": ("STS-B", "spearman"),
    "summary": ("CNN/Daily Mail", "rouge2"),
    "translate_de": ("WMT", "bleu"),
    "reverse_dictionary": ("closed-book answers", "f1"),
    "topic": ("–", "accuracy"),
}
"""Tasks, the paper's task whose form each has, and the metric that is shown."""
CAP = 2**12
_VERSION = 1


def units(quick: bool) -> list[dict[str, Any]]:
    """One model a seed."""
    seeds, size = (range(2), "pico") if quick else (range(SEEDS), "nano")
    return grid(seeds, size=[size])


def recipe(settings: Settings) -> Recipe:
    """Text and all families together, for twice the usual steps."""
    return Recipe(
        size=settings["size"], seed=settings["seed"], tasks=tuple(FAMILIES), cap=CAP, longer=2.0
    )


def unit(settings: Settings) -> Mapping[str, Any]:
    """Losses with the own and with another example's target, and each task's metrics."""
    own = recipe(settings)

    def fill(out: OutputFolder) -> Mapping[str, Any]:
        scores: dict[str, float] = {}
        model = pretrained(own).model
        for name in FAMILIES:
            found = _losses(model, name, own) | _metrics(model, name, own)
            scores |= {f"{name}, {k}": v for k, v in found.items()}
        out.write_text("scores.json", json.dumps(scores, indent=1))
        return {}

    facts = {"families": own.key(), "version": _VERSION,
             "rows": {name: asdict(ROWS[name]) for name in FAMILIES}}  # fmt: skip
    return kept(facts, fill)


def _losses(model: Any, name: str, own: Recipe) -> dict[str, float]:
    """Nats a target token: right targets, and those of other examples of the test part."""
    from ..text2text.steps import mean_loss

    words, found = corpora.vocabulary(own.facts.vocabulary), {}
    chosen = examples(name, "test")[: own.facts.scored]
    moved = [a | {"targets": b["targets"]} for a, b in zip(chosen, _rolled(chosen), strict=True)]
    for kind, rows in (("loss", chosen), ("loss, others' targets", moved)):
        stream = TaskStream(rows, words, ROWS[name], shuffle=False)
        batches = BatchStream(stream, ROWS[name], batch_size=min(50, len(rows)))
        found[kind] = mean_loss(model, [next(batches) for _ in range(max(1, len(rows) // 50))])
    return found


def _rolled(items: Sequence[Any]) -> list[Any]:
    """Each item's successor: nobody keeps its own."""
    return [*items[1:], items[0]]


def _metrics(model: Any, name: str, own: Recipe) -> dict[str, float]:
    """The task's metric: greedy decoding, and the most frequent target for everything."""
    from ..text2text.evaluation import Decoder, generate

    chosen = examples(name, "test")[: min(200, own.facts.scored)]
    made = generate(
        model, [str(e["inputs"]) for e in chosen], corpora.vocabulary(own.facts.vocabulary),
        lengths=ROWS[name], decoder=Decoder(how="greedy"), batch_size=50,
    )  # fmt: skip
    common = Counter(str(e["targets"]) for e in examples(name, "train")).most_common(1)[0][0]
    one = task(name)
    scores, constant = one.score(chosen, made), one.score(chosen, [common] * len(chosen))
    key = FAMILIES[name][1]
    finite = {"metric": scores[key], "metric, constant answer": constant[key]}
    return {k: v if np.isfinite(v) else 0.0 for k, v in finite.items()}


def summarise(rows: Rows) -> Summary:
    """In every family the model's loss depends on the inputs."""
    gaps = {
        name: t_interval(
            rows.values(f"{name}, loss, others' targets") - rows.values(f"{name}, loss")
        )
        for name in FAMILIES
    }
    lines: list[list[Any]] = []
    for name, (like, key) in FAMILIES.items():
        lines.append([
            name, like, *(t_interval(rows.values(f"{name}, {k}")).text()
                          for k in ("loss", "loss, others' targets")),
            key, t_interval(rows.values(f"{name}, metric")).text(".1f"),
            float(rows.values(f"{name}, metric, constant answer").mean()),
        ])  # fmt: skip
    table = Table(
        title="One model, all families of tasks",
        columns=[
            Column(name="task", left=True), Column(name="form of", left=True),
            Column(name="loss a target token"), Column(name="with others' targets"),
            Column(name="metric", left=True), Column(name="greedy decoding"),
            Column(name="most frequent target", format=".1f"),
        ],
        rows=lines,
        note="Test examples. The metric is × 100, where it is undefined 0.",
    )  # fmt: skip
    return Summary.of(
        [
            decide(f"{name}: loss with others' targets minus loss", gap, at_least=0.0)
            for name, gap in gaps.items()
        ],
        reason="The same loss and the same decoder serve classes, numbers and free text.",
        tables=[table],
        notes=[
            "Others' targets are the control: a model that does not read the inputs loses nothing "
            "by them. What the metrics reach at this size is shown, not asked for.",
        ],
    )


def figures(rows: Rows) -> Sequence[Figure]:
    """What the inputs are worth, by task."""
    worth = [
        float(np.mean(rows.values(f"{n}, loss, others' targets") - rows.values(f"{n}, loss")))
        for n in FAMILIES
    ]
    picture = bars(np.array(worth), list(FAMILIES), label="what the inputs are worth", axis="nats")
    return [Figure(picture=picture, caption="Loss with others' targets minus loss, nats a token.")]


STUDY = Study(
    id="t5-families",
    title="Classes, numbers and free text are learned by one model with one loss",
    claims=(1,),
    question=(
        "One encoder-decoder of 0.30 M parameters is trained on WordNet's texts and eight tasks "
        "together (two-sentence and one-sentence classes, a rating as text, a summary, a "
        "translation, an answer) by one cross-entropy: does it use the inputs of every one of "
        "them, decoded and scored by one code?"
    ),
    rule=(
        "Holds if over three seeds, for each of the eight tasks, the held-out loss a target token "
        "is lower with the example's own target than with another example's (95 % intervals)."
    ),
    history="Fixed before such a mixture had been trained.",
    units=units,
    unit=unit,
    summarise=summarise,
    figures=figures,
    needs=(*NEEDS, "sacrebleu", "rouge_score"),
    least_seeds=SEEDS,
    quick_seconds=12,
    full_minutes=5,
)
