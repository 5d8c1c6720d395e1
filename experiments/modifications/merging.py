"""The bridge to merging: RMS norms, gated layers, shared blocks, untied embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...core.report import Column, Table
from ..studies import Rows, Study, Summary, decide, grid, holm, paired_p, t_interval
from ..studies.study import Settings
from .registry import variant

VARIANTS = ("vanilla", "rms-norm", "swiglu", "block-sharing", "untied")
DOMAINS = ("movie", "snippets")
PULL = 3e-4
KINDS = ("one model", "isotropic merge", "Fisher merge")


def units(quick: bool) -> list[dict[str, Any]]:
    """Each variant with each seed."""
    if quick:
        return grid(range(2), variant=VARIANTS[:2], steps=[10], tuning_steps=[4], examples=[16])
    found = grid(
        range(6), variant=VARIANTS, steps=[300], tuning_steps=[150], examples=[250]
    )  # fmt: skip
    return sorted(found, key=lambda s: int(s["seed"]))


def unit(settings: Settings) -> Mapping[str, Any]:
    """Two copies tuned on two domains, merged; −log p of the right label, mean of both domains."""
    from ...core.fisher import estimate_precision
    from ...core.merging import merge
    from ..seq2seq import Seq2Seq
    from ..text2text.suite import sentiment
    from .harness import pretrain
    from .setting import setting_for
    from .tuning import some, tune

    setting = setting_for(settings["steps"])
    own, seed, n = variant(settings["variant"]), settings["seed"], settings["examples"]
    base = pretrain(own, seed, setting=setting, steps=settings["steps"]).model
    tasks = [sentiment(domain) for domain in DOMAINS]
    tuned: list[Any] = [
        tune(base, [task], setting=setting, optimizer=own.optimizer, seed=seed * 10 + k,
             steps=settings["tuning_steps"], pull=PULL)
        for k, task in enumerate(tasks)
    ]  # fmt: skip
    held_out = [some(task, "validation", n) for task in tasks]
    questions = [
        _question(model, some(task, "train", n), setting)
        for model, task in zip(tuned, tasks, strict=True)
    ]
    precisions = [estimate_precision(q.model, q.data, **q.options) for q in questions]
    found = {
        "isotropic merge": merge(tuned, method="isotropic").params,
        "Fisher merge": merge(tuned, precisions, method="fisher", normalize=True).params,
    }
    scores = {"one model": [_judged(m, held_out, setting) for m in tuned]}
    for name, params in found.items():
        merged = Seq2Seq(tuned[0].config)
        merged.load_state_dict({k: params.get(k, v) for k, v in tuned[0].state_dict().items()})
        scores[name] = [_judged(merged, held_out, setting)]
    row: dict[str, Any] = {}
    for name, values in scores.items():
        nll, accuracy = np.mean(values, axis=0)
        row |= {f"{name}, NLL": float(nll), f"{name}, accuracy": float(accuracy)}
    return row


def _question(model: Any, examples: Sequence[Any], setting: Any) -> Any:
    from ..bridges import ask
    from ..text2text import TextModel
    from ..text2text.suite import OPINIONS

    text_model = TextModel(
        model=model, vocabulary=setting.vocabulary(), lengths=setting.lengths, facts={}
    )  # fmt: skip
    return ask(text_model, examples, labels=OPINIONS)


def _judged(model: Any, parts: Sequence[Sequence[Any]], setting: Any) -> tuple[float, float]:
    """Mean −log p of the right label, and accuracy, each the mean over the domains."""
    import torch

    from ..text2text.suite import OPINIONS

    nll, right = [], []
    for examples in parts:
        question = _question(model.eval(), examples, setting)
        with torch.no_grad():
            z = torch.cat([torch.log_softmax(question.model(**b), 1) for b in question.data])
        truth = torch.tensor([OPINIONS.index(str(e["targets"])) for e in examples])
        nll.append(float(-z[torch.arange(len(truth)), truth].mean()))
        right.append(float((z.argmax(1) == truth).double().mean()))
    return float(np.mean(nll)), float(np.mean(right))


def summarise(rows: Rows) -> Summary:
    """Gains of merging by variant, and their differences from vanilla's."""
    names = rows.distinct("variant")
    gain = {
        n: rows.values("one model, NLL", variant=n) - rows.values("Fisher merge, NLL", variant=n)
        for n in names
    }
    extra = {
        n: rows.values("isotropic merge, NLL", variant=n)
        - rows.values("Fisher merge, NLL", variant=n)
        for n in names
    }
    others = [n for n in names if n != "vanilla"]
    gaps = {n: gain[n] - gain["vanilla"] for n in others}
    corrected = dict(zip(others, holm([paired_p(gaps[n]) for n in others]), strict=True))
    table = Table(
        title="Two models of two domains, one merged: −log p of the right label on both domains",
        columns=[
            Column(name="variant", left=True), *(Column(name=k) for k in KINDS),
            Column(name="gain of the Fisher merge"), Column(name="Fisher over isotropic"),
            Column(name="gain minus vanilla's"), Column(name="p (Holm)", format=".3f"),
            Column(name="accuracy, Fisher merge"),
        ],
        rows=[
            [
                variant(n).title,
                *(t_interval(rows.values(f"{k}, NLL", variant=n)).text() for k in KINDS),
                t_interval(gain[n]).text("+.3f"), t_interval(extra[n]).text("+.4f"),
                t_interval(gaps[n]).text("+.3f") if n in gaps else "–",
                float(corrected[n]) if n in gaps else None,
                t_interval(rows.values("Fisher merge, accuracy", variant=n)).text(),
            ]
            for n in names
        ],
        note="Intervals at 95 % over seeds; differences are paired by seed, p by flipping signs.",
    )  # fmt: skip
    findings = [
        decide("vanilla: NLL of one model minus the Fisher merge's", t_interval(gain["vanilla"]),
               at_least=0.0, claim=3)
    ]  # fmt: skip
    for n in others:
        value = t_interval(np.abs(gaps[n]) - np.abs(gain["vanilla"]))
        findings.append(
            decide(f"{variant(n).title}: change of the gain, minus vanilla's gain", value,
                   at_most=0.0, claim=3)
        )  # fmt: skip
    return Summary.of(findings, tables=[table])


STUDY = Study(
    id="modifications-merging",
    title="Does merging behave differently under a modification?",
    claims=(3,),
    question="Vanilla, RMS norm, SwiGLU, shared blocks and untied embeddings: each is pre-trained "
    "(nano, 300 steps) and tuned twice, on films and on shop reviews, with a pull to the "
    "start. How much better on both domains is the merged model than one of the two, and is"
    " the Fisher merge better than the plain mean?",
    rule="“Behaves the same” holds if merging by Fishers gains with vanilla (the 95 % interval "
    "over six seeds above 0), and every variant's gain differs from vanilla's by less than "
    "vanilla's gain itself (interval of the difference's size minus that gain below 0).",
    history="The rule was fixed before any run.",
    units=units,
    unit=unit,
    summarise=summarise,
    needs=("torch", "sentencepiece"),
    quick_seconds=60,
    full_minutes=25,
)
