"""All parameters, adapters or gradual unfreezing; multi-task pre-training: tables 10 and 12."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..studies import Rows, Summary, decide
from ..studies.study import Settings
from .conditions import Condition, axis_study, gap, table
from .recipes import SIZES, Recipe
from .tasks import TASKS
from .transfer import Tuning, means, transfer, tuning_steps

BASELINE = "all parameters"
CAP = 2**13
"""Most examples that a task counts for in a mixture; the corpus counts for as many."""


def _adapters(width: int, paper: float) -> Condition:
    tuning = Tuning(method="adapters", width=width, optimizer="adam", rate=1e-2)
    return Condition(tuning=tuning, paper=paper)


MIXED: dict[str, Any] = {"tasks": TASKS, "cap": CAP}
CONDITIONS: dict[str, Condition] = {
    "all parameters": Condition(paper=83.28),
    "adapters, d = 4": _adapters(4, 80.52),
    "adapters, d = 16": _adapters(16, 81.51),
    "adapters, d = 64": _adapters(64, 81.54),
    "gradual unfreezing": Condition(tuning=Tuning(method="unfreeze"), paper=82.50),
    "multi-task training only": Condition(
        changes=MIXED | {"longer": 1.0 + tuning_steps("nano", TASKS) / SIZES["nano"].steps},
        tuning=Tuning(method="none"), paper=81.42,
    ),
    "multi-task pre-training, then all": Condition(changes=MIXED, paper=83.11),
    "supervised pre-training, then all": Condition(
        changes=MIXED | {"unlabeled": False}, paper=79.93
    ),
    "leave-one-out, then all": Condition(changes=MIXED, paper=81.98),
}  # fmt: skip


def unit(settings: Settings) -> Mapping[str, Any]:
    """One approach on the three tasks."""
    name = settings["condition"]
    if not name.startswith("leave-one-out"):
        return CONDITIONS[name].scores(settings)
    scores: dict[str, float] = {}
    for left in TASKS:  # a model that never saw the task is fine-tuned on it
        rest = tuple(t for t in TASKS if t != left)
        changes: dict[str, Any] = {**MIXED, "tasks": rest}
        recipe = Recipe(size=settings["size"], seed=settings["seed"], **changes)
        found = transfer(recipe, tasks=(left,))
        scores |= {k: v for k, v in found.items() if k.startswith(left)}
    return scores | means(scores, TASKS)


def summarise(rows: Rows) -> Summary:
    """All parameters against adapters and unfreezing; pre-training variants."""
    pairs = [
        ("adapters, d = 4", BASELINE),
        ("adapters, d = 4", "adapters, d = 64"),
        ("multi-task training only", BASELINE),
        ("supervised pre-training, then all", BASELINE),
    ]
    findings = [
        decide(f"transfer loss: {worse} minus {better}", gap(rows, worse, better), at_least=0.0)
        for worse, better in pairs
    ]
    return Summary.of(
        findings,
        reason=(
            "The paper: tuning all parameters is best, small adapters lose most, multi-task "
            "pre-training with fine-tuning is about as good, purely supervised pre-training worse."
        ),
        tables=[table(rows, CONDITIONS, BASELINE, "tables 10 and 12", "Ways to transfer")],
        notes=[
            "Adapters start at the identity and are trained by Adam (rate 0.01), everything else "
            "by Adafactor, whose relative steps leave matrices that start at zero where they are. "
            "The paper's widths beside them are 32, 128 and 512.",
            "Multi-task training alone takes the steps of pre-training and of all fine-tunings "
            "together. Leave-one-out pre-trains one model a task, without that task.",
        ],
    )


STUDY = axis_study(
    CONDITIONS,
    id="t5-approaches",
    title="Tuning all parameters after unsupervised pre-training is the best way to transfer",
    question=(
        "The span-corruption models of t5-objectives, fine-tuned wholly, by adapters of width 4, "
        "16 and 64, or from the top down; and models pre-trained on text and tasks together, on "
        "the tasks alone, or on all tasks but the one that follows: which has the lowest losses?"
    ),
    rule=(
        "Holds if over three seeds the transfer loss of adapters of width 4 is above that of all "
        "parameters and above that of width 64, and multi-task training alone and supervised "
        "pre-training are above unsupervised pre-training with fine-tuning (paired 95 % "
        "intervals)."
    ),
    history=(
        "Fixed before any of these but tuning all parameters had been run, except adapters of "
        "width 16 once, on a seed outside the study, with Adam's rate at 0.003: they had hardly "
        "learned, and the rate was raised to 0.01."
    ),
    unit=unit,
    summarise=summarise,
    quick_seconds=12,
    full_minutes=10,
)
