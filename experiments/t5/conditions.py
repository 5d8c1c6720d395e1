"""What the studies of one axis share: a condition is a change of one recipe, beside the paper."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ...core.report import Column, Table
from ...core.report.figures import COLOURS, INK, figure_svg
from ...core.report.tables import Cell
from ...core.types import FloatArray
from ..studies import Figure, Interval, Rows, Study, Summary, grid, t_interval
from ..studies.study import Settings
from .recipes import Recipe
from .transfer import Tuning, transfer

SEEDS = 3
NEEDS = ("torch", "sentencepiece")


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One row of a comparison.

    Attributes
    ----------
    changes : mapping
        Fields of the recipe that differ from its defaults.
    tuning : Tuning
    fresh : bool
        No pre-training.
    paper : float, optional
        The paper's GLUE average of this row.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    tuning: Tuning = field(default_factory=Tuning)
    fresh: bool = False
    paper: float | None = None

    def scores(self, settings: Settings) -> dict[str, float]:
        """Pre-train and fine-tune, or take from the cache what another study made."""
        recipe = Recipe(size=settings["size"], seed=settings["seed"], **self.changes)
        return transfer(recipe, self.tuning, fresh=self.fresh)


def condition_scores(conditions: Mapping[str, Condition], settings: Settings) -> dict[str, float]:
    """Scores of the condition that the settings name."""
    return conditions[settings["condition"]].scores(settings)


def axis_study(
    conditions: Mapping[str, Condition], *, id: str, title: str, question: str, rule: str,
    history: str, summarise: Callable[[Rows], Summary],
    unit: Callable[[Settings], Mapping[str, Any]] | None = None,
    quick_seconds: float, full_minutes: float,
) -> Study:  # fmt: skip
    """A study that compares the conditions of one axis over three seeds.

    ``unit`` is given where a unit tells more than the scores of its condition.
    """
    names = list(conditions)
    return Study(
        id=id, title=title, claims=(2,), question=question, rule=rule, history=history,
        units=lambda quick: units(names, quick),
        unit=unit or partial(condition_scores, conditions),
        summarise=summarise, figures=lambda rows: [picture(rows, names)], needs=NEEDS,
        least_seeds=SEEDS, quick_seconds=quick_seconds, full_minutes=full_minutes,
    )  # fmt: skip


def units(conditions: Iterable[str], quick: bool) -> list[dict[str, Any]]:
    """Every condition under every seed; the quick ones train a tiny model for a few steps."""
    seeds, size = (range(2), "pico") if quick else (range(SEEDS), "nano")
    return grid(seeds, condition=list(conditions), size=[size])


def values(rows: Rows, names: str | Sequence[str], key: str = "loss") -> FloatArray:
    """A number by seed, the mean over several conditions."""
    chosen = [names] if isinstance(names, str) else names
    mean: FloatArray = np.mean([rows.values(key, condition=name) for name in chosen], axis=0)
    return mean


def gap(
    rows: Rows, worse: str | Sequence[str], better: str | Sequence[str], key: str = "loss"
) -> Interval:
    """``worse`` minus ``better``, paired by seed: above 0 where the paper's direction holds."""
    return t_interval(values(rows, worse, key) - values(rows, better, key))


def table(
    rows: Rows, conditions: Mapping[str, Condition], baseline: str, source: str, title: str
) -> Table:
    """All numbers of a comparison, beside the paper's differences."""
    lines = [_line(rows, name, c, conditions[baseline], baseline) for name, c in conditions.items()]
    return Table(
        title=title,
        columns=[
            Column(name="condition", left=True), Column(name="transfer loss"),
            Column(name=f"minus {baseline}"), Column(name="summary, loss"),
            Column(name="topic, %", format=".1f"), Column(name="sentiment, %", format=".1f"),
            Column(name="pre-training loss", format=".3f"),
            Column(name="paper: GLUE", format=".2f"),
            Column(name="paper: difference", format="+.2f"),
            Column(name="same direction", left=True),
        ],
        rows=lines,
        note=(
            "Transfer loss: the mean of the held-out losses of three fine-tunings (summary in nats "
            "a token; topic and sentiment −log p of the right label among all labels), lower is "
            "better. Differences are paired by seed. Pre-training losses of different objectives "
            f"do not compare. The paper's numbers: arXiv 1910.10683, {source}; higher is better."
        ),
    )  # fmt: skip


def _line(
    rows: Rows, name: str, condition: Condition, base: Condition, baseline: str
) -> list[Cell]:
    def text(key: str, form: str) -> str:
        found = rows.values(key, condition=name)
        return t_interval(found).text(form) if np.isfinite(found).all() else "–"

    line: list[Cell] = [name, text("loss", ".3f")]
    own = name == baseline
    measured = None if own else gap(rows, name, baseline)
    line.append("–" if measured is None else measured.text("+.3f"))
    line += [
        t_interval(rows.values("summary, loss", condition=name)).text(".3f"),
        float(rows.values("topic, accuracy", condition=name).mean()),
        float(rows.values("sentiment_movie, accuracy", condition=name).mean()),
    ]
    known = [r["pre-training loss"] for r in rows.where(condition=name)
             if "pre-training loss" in r.result]  # fmt: skip
    line.append(float(np.mean(known)) if known and np.isfinite(known).all() else None)
    line.append(condition.paper)
    if own or condition.paper is None or base.paper is None or measured is None:
        return [*line, None, "–"]
    difference = condition.paper - base.paper
    return [*line, difference, agreement(measured, difference)]


def agreement(measured: Interval, difference: float) -> str:
    """Whether a difference of losses goes the way of the paper's difference of scores."""
    if measured.low <= 0 <= measured.high:
        return "open"
    return "yes" if (measured.mean < 0) == (difference > 0) else "no"


def picture(rows: Rows, conditions: Sequence[str], key: str = "loss") -> Figure:
    """Every seed's value and the mean, a line a condition."""

    def draw(axes: Any) -> None:
        for place, name in enumerate(conditions):
            found = rows.values(key, condition=name)
            axes.plot(found, [place] * len(found), "o", color=COLOURS[0], markersize=4)
            axes.plot([found.mean()], [place], "|", color=INK, markersize=14)
        axes.set_yticks(range(len(conditions)), list(conditions))
        axes.invert_yaxis()
        axes.set_xlabel("transfer loss")

    height = 1.0 + 0.28 * len(conditions)
    svg = figure_svg(draw, height=height, label=f"{key} of {', '.join(conditions)}")
    return Figure(
        picture=svg,
        caption="Mean held-out loss of the fine-tuned tasks; a dot a seed, the bar their mean.",
    )
