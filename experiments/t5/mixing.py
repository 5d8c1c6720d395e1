"""How to mix tasks in multi-task training: table 11."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...core.report import Column, Table
from ..studies import Figure, Rows, Study, Summary, decide, t_interval
from ..studies.study import Settings
from .conditions import NEEDS, SEEDS, agreement, gap, picture, units
from .recipes import SIZES, Recipe, rates
from .transfer import Tuning, transfer, tuning_steps

TASKS = ("summary", "topic", "sentiment_snippets")
_LARGE = 2**16
MIXTURES: dict[str, tuple[dict[str, Any], float]] = {
    "equal": ({"temperature": None}, 76.13),
    "proportional, K = 2^9": ({"cap": 2**9}, 80.45),
    "proportional, K = 2^11": ({"cap": 2**11}, 81.67),
    "proportional, K = 2^14": ({"cap": 2**14}, 80.80),
    "temperature 2": ({"temperature": 2.0, "cap": _LARGE}, 81.90),
    "temperature 8": ({"temperature": 8.0, "cap": _LARGE}, 77.21),
}
"""Settings of the rates, and the paper's GLUE average of the like row."""
SEPARATE = "pre-train, then fine-tune each"
PAPER_SEPARATE = 83.28
NAMES = (SEPARATE, *MIXTURES)


def _recipe(settings: Settings) -> Recipe:
    plain = Recipe(size=settings["size"], seed=settings["seed"])
    if settings["condition"] == SEPARATE:
        return plain
    whole = 1.0 + tuning_steps(settings["size"], TASKS) / plain.facts.steps
    changes = MIXTURES[settings["condition"]][0]
    return Recipe(
        size=settings["size"], seed=settings["seed"], tasks=TASKS, longer=whole, **changes
    )


def unit(settings: Settings) -> Mapping[str, Any]:
    """One model on text and all tasks together; or one fine-tuning a task."""
    recipe = _recipe(settings)
    how = Tuning(method="all" if settings["condition"] == SEPARATE else "none")
    share = {f"share of {k}": v for k, v in rates(recipe).items()} if recipe.tasks else {}
    return transfer(recipe, how, tasks=TASKS) | share


def _table(rows: Rows) -> Table:
    lines: list[list[Any]] = []
    for name in NAMES:
        paper = PAPER_SEPARATE if name == SEPARATE else MIXTURES[name][1]
        measured = None if name == SEPARATE else gap(rows, name, SEPARATE)
        share = "–"
        if name != SEPARATE:
            row = rows.where(condition=name)[0]
            share = ", ".join(f"{100 * row[f'share of {t}']:.0f}" for t in (*TASKS, "unlabeled"))
        lines.append([
            name, share, t_interval(rows.values("loss", condition=name)).text(),
            "–" if measured is None else measured.text("+.3f"),
            *(t_interval(rows.values(f"{t}, loss", condition=name)).text() for t in TASKS),
            paper, None if measured is None else paper - PAPER_SEPARATE,
            "–" if measured is None else agreement(measured, paper - PAPER_SEPARATE),
        ])  # fmt: skip
    return Table(
        title="Multi-task training by mixing rates",
        columns=[
            Column(name="mixture", left=True),
            Column(name="% of summary, topic, sentiment, text"), Column(name="transfer loss"),
            Column(name="minus separate"), *(Column(name=f"{t}, loss") for t in TASKS),
            Column(name="paper: GLUE", format=".2f"),
            Column(name="paper: difference", format="+.2f"),
            Column(name="same direction", left=True),
        ],
        rows=lines,
        note=(
            "Losses as in t5-objectives. The paper's rows beside K = 2^9, 2^11 and 2^14 are those "
            "of 2^16, 2^18 and 2^20 (its tasks are larger); arXiv 1910.10683, table 11."
        ),
    )  # fmt: skip


def summarise(rows: Rows) -> Summary:
    """Every mixture is behind separate fine-tuning; equal mixing is behind the others."""
    limited = [name for name in MIXTURES if name not in ("equal", "temperature 8")]
    return Summary.of(
        [
            decide("transfer loss: mean of all mixtures minus separate fine-tuning",
                   gap(rows, list(MIXTURES), SEPARATE), at_least=0.0),
            decide("transfer loss: equal mixing minus the mean of K and T = 2",
                   gap(rows, "equal", limited), at_least=0.0),
            decide("transfer loss: K = 2^14 minus K = 2^11",
                   gap(rows, "proportional, K = 2^14", "proportional, K = 2^11"), at_least=0.0),
        ],
        reason=(
            "The paper: multi-task training is behind pre-training and fine-tuning, equal mixing "
            "far behind, and the limit K has a best value in the middle."
        ),
        tables=[_table(rows)],
    )  # fmt: skip


def figures(rows: Rows) -> Sequence[Figure]:
    """Losses by mixture."""
    return [picture(rows, NAMES)]


STUDY = Study(
    id="t5-mixing",
    title="Multi-task training is behind fine-tuning, and equal mixing behind the rest",
    claims=(2,),
    question=(
        "One model is trained on WordNet's texts and three tasks of very different sizes together, "
        f"with as many steps as pre-training and three fine-tunings take ({SIZES['nano'].steps} + "
        f"{tuning_steps('nano', TASKS)}), under six mixtures: how do its losses compare?"
    ),
    rule=(
        "Holds if over three seeds the mean transfer loss of the mixtures is above that of "
        "separate fine-tuning, that of equal mixing above the mean of the three limits K and "
        "temperature 2, and that of K = 2^14 above that of K = 2^11 (paired 95 % intervals)."
    ),
    history="Fixed before any mixture had been trained.",
    units=lambda quick: units(NAMES, quick),
    unit=unit,
    summarise=summarise,
    figures=figures,
    needs=NEEDS,
    least_seeds=SEEDS,
    quick_seconds=8,
    full_minutes=9,
)
