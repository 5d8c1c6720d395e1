"""All variants pre-trained further and fine-tuned: what pre-training losses say of transfer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...core.report import Column, Table
from ...core.report.figures import COLOURS, figure_svg
from ...core.report.tables import Cell
from ...core.types import FloatArray
from ..studies import Figure, Finding, Rows, Study, Summary, decide, share_interval, t_interval
from ..studies.study import Settings
from .early import settings_of
from .paper import TRANSFER, transfer_correlations
from .pictures import name_extremes
from .registry import VARIANTS
from .statistics import rank_correlation
from .tuning import SCORES, TITLES

STEPS, TUNING_STEPS = 600, 200
QUICK_STEPS, QUICK_TUNING_STEPS = 10, 4
EXAMPLES, QUICK_EXAMPLES = 250, 32
"""Validation examples of a task, or of a domain, that are scored."""
SEEDS = 3
MOST_DIFFERENT = (
    "swiglu", "geglu", "selu", "fixup", "rezero", "block-sharing-factorized-tied",
    "adaptive-softmax", "dynamic-convolution", "synthesizer-random", "position-sinusoidal",
)  # fmt: skip
"""Ten variants far from vanilla on either side, which have as many seeds as vanilla."""
QUICK = ("vanilla", "swiglu", "layers-6", "untied")


def units(quick: bool) -> list[dict[str, Any]]:
    """One seed of every variant, then further ones of vanilla and the most different."""
    if quick:
        sizes = QUICK_STEPS, QUICK_TUNING_STEPS, QUICK_EXAMPLES
        return [_settings(name, 0, *sizes) for name in QUICK]
    order = [(name, 0) for name in VARIANTS]
    order += [(name, s) for s in range(1, SEEDS) for name in ("vanilla", *MOST_DIFFERENT)]
    return [_settings(name, seed, STEPS, TUNING_STEPS, EXAMPLES) for name, seed in order]


def _settings(
    name: str, seed: int, steps: int, tuning_steps: int, examples: int
) -> dict[str, Any]:  # fmt: skip
    own = settings_of(name, seed, steps=steps)
    return {**own, "tuning_steps": tuning_steps, "examples": examples}


def unit(settings: Settings) -> Mapping[str, Any]:
    """Pre-train one variant with one seed and tune it on each task."""
    from .harness import pretrain
    from .setting import setting_for
    from .tuning import transfer

    setting = setting_for(settings["steps"], early=settings["steps"] // 2)
    name, seed, optimizer = settings["variant"], settings["seed"], settings["optimizer"]
    run = pretrain(
        name, seed, setting=setting, steps=settings["steps"], optimizer=optimizer
    )  # fmt: skip
    if run.row["status"] != "finished":
        losses = [f"{score}_loss" for score in SCORES]
        return {**run.row, **dict.fromkeys((*SCORES, *losses, "sentiment_majority"))}
    scores = transfer(run.model, setting=setting, optimizer=optimizer, seed=seed,
                      steps=settings["tuning_steps"], most=settings["examples"])  # fmt: skip
    return {**run.row, **scores}


def _means(rows: Rows, name: str) -> dict[str, float]:
    """Mean of a number over the seeds of each variant that has it."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row[name] is not None:
            found.setdefault(row["variant"], []).append(float(row[name]))
    return {v: float(np.mean(x)) for v, x in found.items()}


def _pairs(rows: Rows, score: str) -> tuple[FloatArray, FloatArray, list[str]]:
    """Minus the final loss, a score, and the name of each variant that has both."""
    loss, scores = _means(rows, "final"), _means(rows, score)
    names = [v for v in loss if v in scores]
    return np.array([-loss[v] for v in names]), np.array([scores[v] for v in names]), names


def _with_loss(rows: Rows, score: str) -> str | None:
    """Rank correlation of the final loss with the loss of a task."""
    x, y, _ = _pairs(rows, f"{score}_loss")
    return rank_correlation(-x, y).text("+.2f") if len(x) >= 4 and np.ptp(y) else None


def summarise(rows: Rows) -> Summary:
    """Spearman's correlations, the complete numbers, and who beats vanilla everywhere."""
    in_paper = transfer_correlations()
    findings: list[Finding] = []
    lines: list[list[Cell]] = []
    for score in SCORES:
        x, y, _ = _pairs(rows, score)
        if len(x) < 4 or np.ptp(y) == 0:
            continue
        rho = rank_correlation(x, y)
        lines.append([TITLES[score], len(x), rho.text("+.2f"), _with_loss(rows, score)])
        findings.append(
            decide(f"rank correlation of final loss and {TITLES[score]}", rho, at_least=0.0,
                   format="+.2f", claim=3)
        )  # fmt: skip
    winners, tried = _better_everywhere(rows)
    if tried:
        findings.append(
            decide("share of variants better than vanilla in final loss and every score",
                   share_interval(len(winners), tried), at_most=0.5, format=".2f", claim=1)
        )  # fmt: skip
    correlations = Table(
        title="Does the pre-training loss predict transfer?",
        columns=[
            Column(name="task", left=True), Column(name="variants"),
            Column(name="Spearman's ρ of −loss and score [95 %]", help="bootstrap over variants"),
            Column(name="of loss and the task's loss",
                   help="on the same examples; finer than the score"),
        ],
        rows=lines,
        note="In the paper: " + ", ".join(f"{k} {in_paper[k]:.3f}" for k in TRANSFER)
             + " (from its table; it states .87, .80 and .69 for the first three).",
    )  # fmt: skip
    missing = [VARIANTS[n].title for n in VARIANTS if not len(rows.where(variant=n))]
    notes = [
        "Scores × 100. Sentiment: four domains, tuned on all, accuracy of the better-ranked label; "
        "the more frequent label alone has "
        f"{_majority(rows)}. BLEU on a few hundred messages is near zero for models of this size, "
        "and says little.",
        *([f"Not run yet: {', '.join(missing)}."] if missing else []),
    ]
    if not findings:
        from ..studies import Outcome

        return Summary(outcome=Outcome.UNDECIDED, reason="Fewer than four variants have scores.",
                       tables=[_table(rows)], notes=notes)  # fmt: skip
    reason = (
        f"Better than vanilla in final loss and every score: {', '.join(winners) or 'none'} "
        f"(of {tried}; in the paper 6 of 51)."
    )
    return Summary.of(findings, reason=reason, tables=[correlations, _table(rows)], notes=notes)


def _majority(rows: Rows) -> str:
    known = [float(r["sentiment_majority"]) for r in rows if r["sentiment_majority"] is not None]
    return f"{known[0]:.1f}" if known else "–"


def _better_everywhere(rows: Rows) -> tuple[list[str], int]:
    """Titles of the variants whose means beat vanilla's in all columns, and how many were tried."""
    numbers = {name: _means(rows, name) for name in ("final", *SCORES)}
    used = {k: v for k, v in numbers.items() if "vanilla" in v}
    if "final" not in used:
        return [], 0
    tried = [n for n in VARIANTS if n != "vanilla" and all(n in v for v in used.values())]

    def better(name: str) -> bool:
        gains = [v[name] - v["vanilla"] for k, v in used.items() if k != "final"]
        return used["final"][name] < used["final"]["vanilla"] and all(g > 0 for g in gains)

    return [VARIANTS[n].title for n in tried if better(n)], len(tried)


def _table(rows: Rows) -> Table:
    """One row a variant."""
    lines = []
    for name, variant in VARIANTS.items():
        own = rows.where(variant=name)
        if not own:
            continue
        cells: list[Cell] = [variant.title, variant.group, len(own)]
        for number, form in (("early", ".3f"), ("final", ".3f"), *((s, ".1f") for s in SCORES)):
            values = [float(r[number]) for r in own if r[number] is not None]
            cells.append(
                None if not values
                else t_interval(values).text(form) if len(values) > 1 else f"{values[0]:{form}}"
            )  # fmt: skip
        lines.append(cells)
    return Table(
        title="Losses and scores of every variant",
        columns=[
            Column(name="variant", left=True), Column(name="group", left=True),
            Column(name="seeds"), Column(name="loss half-way"), Column(name="final loss"),
            *(Column(name=TITLES[s]) for s in SCORES),
        ],
        rows=lines,
        note="Intervals at 95 % over seeds, where there are several.",
    )  # fmt: skip


def figures(rows: Rows) -> Sequence[Figure]:
    """Scores against final loss."""
    found = []
    for score in SCORES:
        x, y, names = _pairs(rows, score)
        if len(x) >= 4:
            found.append(_scatter(-x, y, names, score))
    return found


def _scatter(
    loss: FloatArray, score: FloatArray, variants: Sequence[str], name: str
) -> Figure:  # fmt: skip
    label = f"{TITLES[name]}, against the final loss"

    def draw(axes: Any) -> None:
        axes.scatter(loss, score, s=14, color=COLOURS[0])
        name_extremes(axes, loss, score, [VARIANTS[v].title for v in variants])
        axes.set_xlabel("final loss of pre-training")
        axes.set_ylabel(TITLES[name])

    return Figure(picture=figure_svg(draw, label=label), caption=f"{label}, one point a variant.")


STUDY = Study(
    id="modifications-transfer",
    title="Does the pre-training loss of a modification predict transfer?",
    claims=(1, 3),
    question="Each variant is pre-trained for 600 steps (nano, as in modifications-early) and "
    "tuned for 200 steps on each of three tasks: sentiment of four domains, ratings of films, and "
    "English to German messages. Do variants with a smaller loss score better, and which beat "
    "vanilla everywhere? One seed of every variant, three of vanilla and of ten that are far from "
    "it.",
    rule="Holds if the 95 % bootstrap interval over variants of Spearman's ρ of −final loss and "
    "score lies above 0 for each task, and Wilson's interval of the share of variants that "
    "beat vanilla in final loss and all scores lies below one half.",
    history="Fixed before any full run of it, when the rate of fine-tuning had been chosen with "
    "vanilla (of 0.1, 0.3 and 1 times that of pre-training, the last was the first to learn). "
    "Three seeds and one, as a unit takes two minutes; the claims are about the set of variants, "
    "and no variant is judged by its own seeds. Three seeds of every variant were planned first.",
    units=units,
    unit=unit,
    summarise=summarise,
    figures=figures,
    needs=("torch", "sentencepiece", "sacrebleu"),
    quick_seconds=60,
    full_minutes=160,
    seeded=False,
    partial=True,
    pictured=True,
)
