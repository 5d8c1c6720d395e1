"""E10: how much each choice of NPEFF matters, one at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...core.factorization import matched_cosines
from ...core.fisher import (
    DataLabels,
    ExactLabels,
    RandomProjection,
    SampledLabels,
    ThinSVD,
    per_example_fishers,
)
from ...core.report import Column, Table
from ...core.report.figures import bars
from ..studies import Figure, Rows, Study, Summary, decide, grid, t_interval
from ..studies.study import Settings
from .scores import track
from .subjects import fit, make_subject

DEFAULT: dict[str, Any] = {
    "components": 16, "examples": 200, "projection": 0, "normalize": True, "labels": "exact",
    "rank": 0, "starts": 4,
}  # fmt: skip
AXES: dict[str, tuple[Any, ...]] = {
    "components": (8, 32),
    "examples": (50, 100, 400),
    "projection": (32, 128, 512),
    "normalize": (False,),
    "labels": ("sampled 1", "sampled 4", "data"),
    "rank": (1, 2),
    "starts": (1,),
}
TEST = 300


def units(quick: bool) -> list[dict[str, Any]]:
    """The default, and every choice changed alone."""
    if quick:
        axes: list[tuple[str, Any]] = [("default", None), ("projection", 32)]
        return [{"axis": a, "value": v, "seed": 0, "examples": 60} for a, v in axes]
    cells = [("default", None)] + [(a, v) for a, values in AXES.items() for v in values]
    return [
        settings
        for axis, value in cells
        for settings in grid(range(10, 15), axis=[axis], value=[value])
    ]


def unit(settings: Settings) -> Mapping[str, Any]:
    """Two fits on disjoint examples; how alike they see common others, and what they track."""
    choice = dict(DEFAULT)
    choice["examples"] = settings.get("examples", choice["examples"])
    if settings["axis"] != "default":
        choice[settings["axis"]] = settings["value"]
    seed, n = settings["seed"], choice["examples"]
    subject = make_subject("digits", seed, TEST + 2 * n)
    fishers = _fishers(subject, choice, seed)
    # The examples that judge always have exact, unreduced labels wherever columns allow it.
    judged = _fishers(subject, choice | {"labels": "exact", "rank": 0}, seed)
    test = judged.select(np.arange(TEST))
    coefficients, losses = [], []
    for part in (0, 1):
        own = fishers.select(np.arange(TEST + part * n, TEST + (part + 1) * n))
        found = fit(
            own, choice["components"], seed + part,
            normalize=choice["normalize"], n_starts=choice["starts"],
        )  # fmt: skip
        coefficients.append(np.asarray(found.transform(test), dtype=np.float64))
        losses.append(found.relative_loss)
    cosines, _ = matched_cosines(coefficients[0].T, coefficients[1].T)
    rng = np.random.default_rng([seed, 8])
    chance, _ = matched_cosines(coefficients[0].T, rng.permutation(coefficients[1]).T)
    enough = subject.labels[:TEST].sum(axis=0) >= 10
    tracked = track(coefficients[0], subject.labels[:TEST, enough], rng)
    return {
        "stability": float(cosines.mean()),
        "stability_shuffled": float(chance.mean()),
        "auroc": float(np.nanmean(tracked.auroc)),
        "shuffled": float(np.nanmean(tracked.shuffled)),
        "relative_loss": float(np.mean(losses)),
    }


def _fishers(subject: Any, choice: Mapping[str, Any], seed: int) -> Any:
    rules: dict[str, Any] = {
        "exact": ExactLabels(), "sampled 1": SampledLabels(1), "sampled 4": SampledLabels(4),
        "data": DataLabels(),
    }  # fmt: skip
    reduce: list[Any] = []
    if choice["projection"]:
        reduce.append(RandomProjection(choice["projection"]))
    if choice["rank"]:
        reduce.append(ThinSVD(choice["rank"]))
    data = subject.inputs
    if choice["labels"] == "data":
        data = (subject.inputs, subject.classes)
    return per_example_fishers(
        subject.model, data, labels=rules[choice["labels"]], reduce=reduce or None, seed=seed
    )


def summarise(rows: Rows) -> Summary:
    """Every choice against the default, paired by seed."""
    names = ("auroc", "stability", "relative_loss")
    base = rows.where(axis="default")
    lines = [["default", "", *(t_interval(base.values(k)).text() for k in names),
              None, None, float(base.values("shuffled").mean()),
              float(base.values("stability_shuffled").mean())]]  # fmt: skip
    findings, gains = [], {}
    for axis in [a for a in rows.distinct("axis") if a != "default"]:
        best = None
        for value in rows.where(axis=axis).distinct("value"):
            own = rows.where(axis=axis, value=value)
            change = {k: t_interval(own.values(k) - base.values(k)) for k in ("auroc", "stability")}
            lines.append(
                [axis, str(value), *(t_interval(own.values(k)).text() for k in names),
                 change["auroc"].text(), change["stability"].text(),
                 float(own.values("shuffled").mean()),
                 float(own.values("stability_shuffled").mean())]
            )  # fmt: skip
            gains[f"{axis} {value}"] = change["auroc"]
            if best is None or change["auroc"].mean > best[1].mean:
                best = (value, change["auroc"])
        assert best is not None
        findings.append(
            decide(f"{axis}: AUROC that its best other value ({best[0]}) gains over the default",
                   best[1], at_most=0.05)
        )  # fmt: skip
    worst = min(gains, key=lambda k: gains[k].mean)
    return Summary.of(
        findings,
        reason=f"{sum(f.outcome == 'holds' for f in findings)} of {len(findings)} choices have no "
        f"value that gains more than 0.05 of AUROC over the default. The costliest change is "
        f"{worst}: {gains[worst].text()}.",
        tables=[
            Table(
                title="One choice changed at a time",
                columns=[
                    Column(name="choice", left=True), Column(name="value", left=True),
                    Column(name="AUROC"), Column(name="stability"), Column(name="relative loss"),
                    Column(name="AUROC minus default"), Column(name="stability minus default"),
                    Column(name="AUROC, shuffled", format=".2f"),
                    Column(name="stability, shuffled", format=".2f"),
                ],
                rows=lines,
            )
        ],
        notes=[
            "Digits perceptron. Stability: two fits on disjoint examples give coefficients for the "
            f"same {TEST} others; mean matched cosine of their columns (shuffled: the examples of "
            "one of them permuted). AUROC: mean over the pairs of digits that are the two "
            "likeliest answers of at least 10 of these examples, best component chosen on one half "
            "and judged on the other.",
            f"Default: {_default_text()}; projection 0 and rank 0 mean none. Data: gradients at "
            "the data's own labels (the empirical Fisher), which is no Fisher of the model.",
        ],
    )  # fmt: skip


def _default_text() -> str:
    return ", ".join(f"{k} {v}" for k, v in DEFAULT.items())


def figures(rows: Rows) -> Sequence[Figure]:
    """Stability and AUROC of every choice."""
    cells = list(dict.fromkeys((r["axis"], r["value"]) for r in rows))
    names = [f"{a} {'' if v is None else v}".strip() for a, v in cells]
    found = []
    for kind, title in (("auroc", "AUROC"), ("stability", "stability")):
        values = [float(rows.where(axis=a, value=v).values(kind).mean()) for a, v in cells]
        picture = bars(np.array(values), names, label=f"{title} by choice", axis=title)
        found.append(Figure(picture=picture, caption=f"Mean {title} over seeds."))
    return found


STUDY = Study(
    id="npeff-e10",
    title="Ablations: what each choice of NPEFF does",
    claims=(4,),
    question="On the digits perceptron, components, examples, projection dimension, normalisation, "
    "label rule, rank of each Fisher and number of starts are changed one at a time. What do "
    "stability between disjoint fits and agreement with pairs of digits lose or gain?",
    history="The rule was given beforehand.",
    rule="The default choices hold if for each of them no other value gains more than 0.05 of "
    "AUROC.",
    units=units,
    unit=unit,
    summarise=summarise,
    figures=figures,
    needs=("sklearn",),
    quick_seconds=10,
    full_minutes=6,
)
