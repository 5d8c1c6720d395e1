"""Four times the compute: longer, larger batches, larger models, or several: table 13."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...core.report import Column, Table
from ...core.storage import OutputFolder
from ..studies import Rows, Summary, decide
from ..studies.study import Settings
from .conditions import Condition, axis_study, gap, table
from .recipes import SIZES, Recipe, pretrained
from .tasks import TASKS
from .transfer import Tuning, fine_tune, judge, kept, means

BASELINE = "1×"
QUARTER: dict[str, Any] = {"longer": 0.25}
CONDITIONS: dict[str, Condition] = {
    "1×": Condition(changes=QUARTER, paper=83.28),
    "4× steps": Condition(paper=85.33),
    "4× batch": Condition(changes=QUARTER | {"larger": 4.0}, paper=84.60),
    "2× size, 2× steps": Condition(changes={"longer": 0.5, "width": 1.5}, paper=86.18),
    "4× size": Condition(changes=QUARTER | {"width": 2.0}, paper=85.91),
    "4 models, ensembled": Condition(changes=QUARTER, paper=84.77),
    "4 fine-tunings, ensembled": Condition(changes=QUARTER, paper=84.05),
}
MEMBERS = 4
_VERSION = 1


def unit(settings: Settings) -> Mapping[str, Any]:
    """One way to spend four times the compute."""
    name = settings["condition"]
    recipe = Recipe(size=settings["size"], seed=settings["seed"], **CONDITIONS[name].changes)
    facts = {"parameters": float(sum(p.numel() for p in recipe.model().parameters())),
             "text tokens seen": float(_tokens(recipe))}  # fmt: skip
    if not name.endswith("ensembled"):
        return CONDITIONS[name].scores(settings) | facts
    return _ensemble(recipe, whole=name.startswith("4 models")) | facts


def _tokens(recipe: Recipe) -> int:
    from .recipes import corpus_stream

    rows = round(recipe.facts.batch_size * recipe.larger)
    return recipe.steps * rows * corpus_stream(recipe).raw_length


def _ensemble(recipe: Recipe, *, whole: bool) -> dict[str, float]:
    """Members pre-trained apart, or only fine-tuned apart (another order of the examples)."""
    seeds = [100 * (k + 1) + recipe.seed for k in range(MEMBERS)]
    recipes = [replace(recipe, seed=seed if whole else recipe.seed) for seed in seeds]

    def fill(out: OutputFolder) -> Mapping[str, Any]:
        from .ensemble import Ensemble

        scores: dict[str, float] = {}
        for task in TASKS:
            members = []
            for seed, own in zip(seeds, recipes, strict=True):
                model = pretrained(own).model
                fine_tune(model, task, recipe.size, Tuning(), seed=seed)
                members.append(model)
            found = judge(Ensemble(members).eval(), task, recipe.size)
            scores |= {f"{task}, {k}": v for k, v in found.items()}
        out.write_text("scores.json", json.dumps(scores | means(scores, TASKS), indent=1))
        return {}

    facts = {"ensemble": [r.key() for r in recipes], "seeds": seeds, "version": _VERSION}
    return kept(facts, fill)


def summarise(rows: Rows) -> Summary:
    """Every way of scaling helps; steps and size more than ensembles."""
    ways = [name for name in CONDITIONS if name != BASELINE]
    single = [name for name in ways if not name.endswith("ensembled")]
    several = [name for name in ways if name.endswith("ensembled")]
    findings = [
        decide(f"transfer loss: 1× minus {name}", gap(rows, BASELINE, name), at_least=0.0)
        for name in ways
    ]
    findings.append(
        decide("transfer loss: ensembles minus single models of four times the compute",
               gap(rows, several, single), at_least=0.0)
    )  # fmt: skip
    costs = Table(
        title="Sizes",
        columns=[Column(name="condition", left=True), Column(name="parameters", format=",.0f"),
                 Column(name="text tokens seen", format=",.0f")],
        rows=[[name, float(rows.values("parameters", condition=name).mean()),
               float(rows.values("text tokens seen", condition=name).mean())]
              for name in CONDITIONS],
        note=f"A member's, of ensembles; they have {MEMBERS} members.",
    )  # fmt: skip
    return Summary.of(
        findings,
        reason="The paper: every way to spend four times the compute helps.",
        tables=[table(rows, CONDITIONS, BASELINE, "table 13", "Four times the compute"), costs],
        notes=[
            "Twice the size is 1.5 times the width (2.25 times the blocks' and 1.5 times the "
            "embedding's parameters), four times the size twice the width. Fine-tuning takes the "
            "same steps for all."
        ],
    )


STUDY = axis_study(
    CONDITIONS,
    id="t5-scaling",
    title="Every way to spend four times the compute helps, steps and size more than ensembles",
    question=(
        f"From a model of width 64 pre-trained for {round(SIZES['nano'].steps / 4)} steps on: four "
        "times the steps, four times the batch, twice the size and steps, four times the size, "
        "four models or four fine-tunings ensembled (mean logits): which lowers the losses most?"
    ),
    rule=(
        "Holds if over three seeds each way has a lower transfer loss than 1×, and the mean of "
        "both ensembles is above that of the four single models (paired 95 % intervals)."
    ),
    history="Fixed before any of these but 4× steps, the model of t5-objectives, had been trained.",
    unit=unit,
    summarise=summarise,
    quick_seconds=12,
    full_minutes=10,
)
