"""How many examples a Fisher needs, and which labels: the ablation of the estimator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...core.fisher import DataLabels, ExactLabels, SampledLabels, estimate_precision
from ...core.fisher.labels import LabelRule
from ...core.merging import merge
from ...core.report import Column, Table
from ...core.report.figures import curves
from ...core.report.tables import Cell
from ..studies import Figure, Rows, Study, Summary, decide, grid, t_interval
from ..studies.study import Settings
from .networks import accuracy, digits, halves, log_loss, two_specialists

COUNTS = (8, 32, 128, 512)
LABELS = ("exact", "1 sample", "16 samples", "data")
OPTIONS: dict[str, dict[str, Any]] = {
    "no floor": {},
    "floor 1e-6 on the target": {"floor": 1e-6},
    "floor 1e-6 on all": {"floor": 1e-6, "floor_on": "all"},
    "floor 1e-3 on all": {"floor": 1e-3, "floor_on": "all"},
    "normalised": {"normalize": True},
    "floor 1e-6, normalised": {"floor": 1e-6, "normalize": True},
}


def units(quick: bool) -> list[dict[str, Any]]:
    """One pair of specialists a seed."""
    return grid(range(2) if quick else range(10, 20), most=[512])


def unit(settings: Settings) -> Mapping[str, Any]:
    """Accuracy and NLL for each count and label rule, and for floors and normalisation."""
    seed = settings["seed"]
    splits = digits(seed)
    _, models = two_specialists(seed, splits)
    parts = [half for half in halves(splits.train)]
    row: dict[str, Any] = {}

    def put(name: str, found: Any) -> None:
        row[f"{name}, accuracy"] = accuracy(found.model(), splits.report)
        row[f"{name}, NLL"] = log_loss(found.model(), splits.report)

    put("isotropic", merge(models, method="isotropic"))
    trees: list[Any] = []
    for n in [c for c in COUNTS if c <= settings["most"]]:
        for label in LABELS:
            trees = [
                estimate_precision(
                    m, (x[:n], y[:n]) if label == "data" else x[:n], labels=_rule(label), seed=seed
                )
                for m, (x, y) in zip(models, parts, strict=True)
            ]
            put(f"{label}, n={n}", merge(models, trees, method="fisher"))
    most = settings["most"]
    trees = [estimate_precision(m, x[:most]) for m, (x, _) in zip(models, parts, strict=True)]
    for name, options in OPTIONS.items():
        put(name, merge(models, trees, method="fisher", **options))
    return row


def _rule(label: str) -> LabelRule:
    rules: dict[str, LabelRule] = {
        "exact": ExactLabels(),
        "1 sample": SampledLabels(1),
        "16 samples": SampledLabels(16),
        "data": DataLabels(),
    }
    return rules[label]


def summarise(rows: Rows) -> Summary:
    """Few examples against many; the rest is told."""

    def against(name: str, key: str, sign: float) -> Any:
        return sign * (rows.values(f"{name}, {key}") - rows.values(f"isotropic, {key}"))

    lines: list[list[Cell]] = []
    for label, n in [("isotropic", None), *((label, n) for label in LABELS for n in COUNTS)]:
        name = label if n is None else f"{label}, n={n}"
        line: list[Cell] = [label, n]
        for key, sign in (("accuracy", 1), ("NLL", -1)):
            gap = "–" if n is None else t_interval(against(name, key, sign)).text("+.3f")
            line += [t_interval(rows.values(f"{name}, {key}")).text(), gap]
        lines.append(line)
    table = Table(
        title="Diagonal Fisher merges: accuracy and NLL by examples and labels",
        columns=[
            Column(name="labels", left=True), Column(name="examples"), Column(name="accuracy"),
            Column(name="minus isotropic"), Column(name="NLL"), Column(name="NLL below isotropic"),
        ],
        rows=lines,
    )  # fmt: skip
    design = Table(
        title="Floor and normalisation (exact labels, 512 examples)",
        columns=[
            Column(name="variant", left=True), Column(name="accuracy"),
            Column(name="minus no floor"), Column(name="NLL"),
        ],
        rows=[
            [name, t_interval(rows.values(f"{name}, accuracy")).text(),
             t_interval(
                 rows.values(f"{name}, accuracy") - rows.values("no floor, accuracy")
             ).text("+.3f") if name != "no floor" else "–",
             t_interval(rows.values(f"{name}, NLL")).text()]
            for name in OPTIONS
        ],
    )  # fmt: skip
    few = rows.values("exact, n=32, NLL")
    many = rows.values("exact, n=512, NLL")
    cost = t_interval(few - many)
    gain = t_interval(rows.values("isotropic, NLL") - few)
    return Summary.of(
        [
            decide("NLL of isotropic minus that with 32 examples", gain, at_least=0.0),
            decide("NLL with 32 examples minus that with 512", cost, at_most=0.1),
        ],
        tables=[table, design],
        notes=["The first n training images of each half; 1 and 16 sampled labels an image."],
    )


def figures(rows: Rows) -> Sequence[Figure]:
    """NLL over the number of examples."""
    x = np.array(COUNTS, dtype=np.float64)
    lines = {
        label: (x, np.array([rows.values(f"{label}, n={n}, NLL").mean() for n in COUNTS]))
        for label in LABELS
    }
    lines["isotropic"] = (x, np.full(len(COUNTS), rows.values("isotropic, NLL").mean()))
    picture = curves(
        lines, label="NLL of diagonal merges by examples and labels", x_label="examples",
        y_label="NLL", log_x=True, dashed=("isotropic",),
    )  # fmt: skip
    return [Figure(picture=picture, caption="Mean NLL over seeds on the report images.")]


STUDY = Study(
    id="merging-examples",
    title="Few examples suffice for a Fisher",
    claims=(6,),
    question=(
        "The two specialists of merging-structures, merged by diagonal Fishers of 8 to 512 images "
        "each, with exact, sampled and data labels, with floors and normalisation: from how few "
        "images on does the merge beat plain averaging?"
    ),
    history=("One quick unit had been seen before the full run; the rule did not change after it."),
    rule=(
        "Holds if over ten seeds a Fisher of 32 images (exact labels) has a lower NLL than plain "
        "averaging, and at most 0.1 more than one of 512 images (paired 95 % intervals)."
    ),
    units=units,
    unit=unit,
    summarise=summarise,
    figures=figures,
    needs=("sklearn",),
    quick_seconds=10,
    full_minutes=3,
)
