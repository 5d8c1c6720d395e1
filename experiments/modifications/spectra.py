"""The bridge to NPEFF: Fisher spectra and components of several variants, side by side."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...core.errors import ConvergenceWarning
from ...core.report import Column, Table
from ...core.types import FloatArray
from ..studies import Rows, Study, Summary, decide, grid, holm, paired_p, t_interval
from ..studies.study import Settings
from .registry import variant

VARIANTS = ("vanilla", "rms-norm", "swiglu", "block-sharing", "untied", "synthesizer-dense")
DOMAIN, COMPONENTS = "movie", 8
BARELY = 60.0
"""Accuracy in percent of two labels, below which a note says that little was learned."""
NUMBERS = {
    "effective_rank": "effective rank",
    "top": "share of the largest eigenvalue",
    "top_10": "share of the ten largest",
    "relative_loss": f"NPEFF's relative loss, {COMPONENTS} components",
    "label_share": "components with one label among their top ten",
    "embedding": "share of embeddings", "encoder": "of the encoder", "decoder": "of the decoder",
    "accuracy": "accuracy",
}  # fmt: skip


def units(quick: bool) -> list[dict[str, Any]]:
    """Each variant with each seed."""
    if quick:
        return grid(range(2), variant=VARIANTS[:2], steps=[10], tuning_steps=[4], examples=[16])
    found = grid(
        range(5), variant=VARIANTS, steps=[300], tuning_steps=[150], examples=[200]
    )  # fmt: skip
    return sorted(found, key=lambda s: int(s["seed"]))


def unit(settings: Settings) -> Mapping[str, Any]:
    """Pre-train, tune on films, and decompose the Fishers of held-out reviews."""
    from ...core.factorization import LowRankNPEFF, factorize
    from ...core.fisher import per_example_fishers
    from ..bridges import ask
    from ..text2text import TextModel
    from ..text2text.suite import OPINIONS, sentiment
    from .harness import pretrain
    from .setting import setting_for
    from .tuning import some, tune

    setting = setting_for(settings["steps"])
    own, seed = variant(settings["variant"]), settings["seed"]
    base = pretrain(own, seed, setting=setting, steps=settings["steps"]).model
    task = sentiment(DOMAIN)
    tuned: Any = tune(base, [task], setting=setting, optimizer=own.optimizer, seed=seed,
                 steps=settings["tuning_steps"])  # fmt: skip
    assert tuned is not None, "the chosen variants do not diverge"
    examples = some(task, "validation", settings["examples"])
    text_model = TextModel(
        model=tuned, vocabulary=setting.vocabulary(), lengths=setting.lengths, facts={}
    )  # fmt: skip
    question = ask(text_model, examples, labels=OPINIONS)
    fishers: Any = per_example_fishers(question.model, question.data, **question.options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # single precision; the row says so
        found = factorize(fishers, LowRankNPEFF(COMPONENTS), seed=seed)
    labels = np.array([OPINIONS.index(str(e["targets"])) for e in examples])
    rows = np.asarray(fishers.rows, dtype=np.float64)
    return {
        **spectrum(rows), **shares(rows, fishers.sites),
        "relative_loss": float(found.relative_loss),
        "status": str(found.status),
        "label_share": _label_share(np.asarray(found.top_examples(10)), labels),
        "label_share_shuffled": _label_share(
            np.asarray(found.top_examples(10)), np.random.default_rng(seed).permutation(labels)
        ),
        "accuracy": _accuracy(text_model, task, examples),
    }  # fmt: skip


def spectrum(rows: FloatArray) -> dict[str, float]:
    """Of the mean Fisher AᵀA/n of all rows, through the Gram matrix AAᵀ, which has its eigenvalues.

    The effective rank is (Σλ)² / Σλ², between 1 and the number of rows.
    """
    eigenvalues = np.linalg.eigvalsh(rows @ rows.T)[::-1].clip(min=0.0)
    total = float(eigenvalues.sum())
    return {
        "effective_rank": total**2 / float(np.square(eigenvalues).sum()),
        "top": float(eigenvalues[0]) / total,
        "top_10": float(eigenvalues[:10].sum()) / total,
    }


def shares(rows: FloatArray, sites: Any) -> dict[str, float]:
    """The mean Fisher's trace in embeddings and softmax, in the encoder and in the decoder."""
    found = dict.fromkeys(("embedding", "encoder", "decoder"), 0.0)
    at = 0
    for site in sites:
        width = int(np.prod(site.shape))
        part = float(np.square(rows[:, at : at + width]).sum())
        at += width
        stack = site.name.split(".")[0]
        found[stack if stack in ("encoder", "decoder") else "embedding"] += part
    total = sum(found.values())
    return {name: value / total for name, value in found.items()}


def _label_share(top: Any, labels: Any) -> float:
    """Share of the components whose top examples all have one label."""
    return float(np.mean([len(set(labels[members].tolist())) == 1 for members in top]))


def _accuracy(text_model: Any, task: Any, examples: Any) -> float:
    from ..text2text.evaluation import Decoder, generate

    made = generate(
        text_model.model, [str(e["inputs"]) for e in examples], text_model.vocabulary,
        lengths=text_model.lengths, decoder=Decoder(how="rank"), labels=task.labels,
    )  # fmt: skip
    return float(task.score(examples, made)["accuracy"])


def summarise(rows: Rows) -> Summary:
    """All numbers by variant; which differ from vanilla's."""
    names = rows.distinct("variant")
    others = [n for n in names if n != "vanilla"]
    table = Table(
        title="Fishers of 2-label ranking on held-out film reviews, by variant",
        columns=[Column(name="number", left=True),
                 *(Column(name=variant(n).title) for n in names)],
        rows=[
            [text, *(t_interval(rows.values(key, variant=n)).text(".3g") for n in names)]
            for key, text in NUMBERS.items()
        ],
        note="The label share with shuffled labels is "
             f"{float(rows.values('label_share_shuffled').mean()):.2f}.",
    )  # fmt: skip
    gaps = {
        (key, n): rows.differences(key, {"variant": n}, {"variant": "vanilla"})
        for key in ("effective_rank", "relative_loss") for n in others
    }  # fmt: skip
    corrected = dict(zip(gaps, holm([paired_p(g) for g in gaps.values()]), strict=True))
    against = Table(
        title="Minus vanilla's, paired by seed",
        columns=[Column(name="number", left=True), Column(name="variant", left=True),
                 Column(name="difference [95 %]"), Column(name="p (Holm)", format=".3f")],
        rows=[
            [NUMBERS[key], variant(n).title, t_interval(gap).text("+.3g"),
             float(corrected[(key, n)])]
            for (key, n), gap in gaps.items()
        ],
        note="p by flipping signs, of which five seeds give .06 at the least.",
    )  # fmt: skip
    ratios = [
        decide(f"{variant(n).title}: effective rank over vanilla's",
               t_interval(rows.values("effective_rank", variant=n)
                          / rows.values("effective_rank", variant="vanilla")),
               at_most=2.0, claim=3)
        for n in others
    ]  # fmt: skip
    accuracy = float(np.mean([row["accuracy"] for row in rows]))
    notes = []
    if accuracy < BARELY:
        notes.append(
            f"The tuned models are right about {accuracy:.0f} % of the reviews in the mean, hardly "
            "more than chance: these are spectra of models that say nearly the same of every "
            "review, and their likeness tells little of models that have learned the task."
        )
    return Summary.of(ratios, tables=[table, against], notes=notes)


STUDY = Study(
    id="modifications-spectra",
    title="Do modifications change the Fisher's spectrum and its components?",
    claims=(3,),
    question="Six variants are pre-trained (nano, 300 steps) and tuned on the sentiment of film "
    "reviews. The Fishers of 200 held-out reviews, over the two ranked labels, are "
    "decomposed: is the spectrum of their mean, or how well eight components explain them, "
    "another one?",
    rule="Whether a Fisher is low-dimensional is taken as a matter of the task, not of the "
    "variant: holds if for each variant the 95 % interval over five seeds of its effective "
    "rank over vanilla's lies below 2.",
    history="The rule was fixed before any run.",
    units=units,
    unit=unit,
    summarise=summarise,
    needs=("torch", "sentencepiece"),
    quick_seconds=60,
    full_minutes=25,
)
