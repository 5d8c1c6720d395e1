"""All variants in one setting: the loss after an early share of training, over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..studies import Figure, Rows, Study, Summary
from ..studies.study import Settings
from .registry import VARIANTS, variant

STEPS, QUICK_STEPS = 300, 10
SEEDS, VANILLA_SEEDS = 3, 6
QUICK = ("vanilla", "geglu", "rms-norm", "rezero", "layers-6", "block-sharing", "factorized",
         "adaptive-softmax", "synthesizer-dense", "switch", "position-sinusoidal")  # fmt: skip


def settings_of(name: str, seed: int, *, steps: int) -> dict[str, Any]:
    """A unit's settings; the variant's revision is part of them."""
    own = variant(name)
    return {
        "variant": name, "optimizer": own.optimizer, "scale": "nano", "steps": steps,
        "revision": own.revision, "seed": seed,
    }  # fmt: skip


def units(quick: bool) -> list[dict[str, Any]]:
    """Seed 0 of every variant first, so that an interrupted run has a table already."""
    if quick:
        return [settings_of(n, s, steps=QUICK_STEPS) for s in range(2) for n in QUICK]
    return [
        settings_of(name, seed, steps=STEPS)
        for seed in range(max(SEEDS, VANILLA_SEEDS))
        for name in VARIANTS
        if seed < (VANILLA_SEEDS if name == "vanilla" else SEEDS)
    ]


def unit(settings: Settings) -> Mapping[str, Any]:
    """Pre-train one variant with one seed."""
    from .harness import pretrain
    from .setting import setting_for

    run = pretrain(
        settings["variant"], settings["seed"], setting=setting_for(settings["steps"]),
        steps=settings["steps"], optimizer=settings["optimizer"],
    )  # fmt: skip
    return run.row


def summarise(rows: Rows) -> Summary:
    """The table of all variants, and the claims."""
    from .report import early_summary

    return early_summary(rows)


def figures(rows: Rows) -> Sequence[Figure]:
    """Ranking with intervals; loss against parameters and against time."""
    from .pictures import early_figures

    return early_figures(rows)


STUDY = Study(
    id="modifications-early",
    title="All modifications of the Transformer in one setting",
    claims=(1, 2),
    question="Vanilla, the 51 modifications of Table 1 and the four positions of Table 2 are pre-"
    "trained by span corruption of WordNet for 300 steps at nano scale (0.3 M parameters), "
    "three seeds each and six of vanilla, which differ in initial weights and order of the "
    "text. Which have another held-out loss than vanilla, and does that agree with the "
    "paper?",
    rule="Claim 1 holds if Wilson's 95 % interval of the share of variants that improve on "
    "vanilla lies below one half; a variant improves if its difference is negative with p <"
    " .05 (Welch's test on variances drawn together, Holm's correction over all variants). "
    "Claim 2 holds if, of those that improve, the share that is of one of the paper's three"
    " kinds (minor change; more parameters or slower; from the paper's code base) has an "
    "interval above the share of those kinds among all variants.",
    history="The rule was fixed when one run of vanilla and one of GeGLU had been seen. Three seeds"
    " and not five, as a full run takes 1.5 hours of two cores; the tests allow for it.",
    units=units,
    unit=unit,
    summarise=summarise,
    figures=figures,
    needs=("torch", "sentencepiece"),
    quick_seconds=90,
    full_minutes=90,
    least_seeds=3,
    partial=True,
    pictured=True,
)
