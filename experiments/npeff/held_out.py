"""E6: whether components mean the same on examples that they were not fitted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...core.report import Column, Table, auroc
from ...core.report.figures import bars
from ..studies import Figure, Rows, Study, Summary, decide, grid, t_interval
from ..studies.study import Settings
from .scores import track
from .subjects import COMPONENTS, fishers_of, fit, make_subject

SUBJECTS = ("digits", "known rules")


def units(quick: bool) -> list[dict[str, Any]]:
    """Half of the examples are fitted, half held out."""
    if quick:
        return grid([0], subject=["digits"], n=[300])
    return grid(range(10, 15), subject=SUBJECTS, n=[800])


def unit(settings: Settings) -> Mapping[str, Any]:
    """AUROC of each label's best component on fitted and on new examples."""
    seed, name = settings["seed"], settings["subject"]
    subject = make_subject(name, seed, settings["n"])
    fishers = fishers_of(subject)
    order = np.random.default_rng([seed, 5]).permutation(len(fishers))
    fitted, new = np.array_split(order, 2)
    found = fit(fishers.select(fitted), COMPONENTS[name], seed)
    W = np.asarray(found.coefficients, dtype=np.float64)
    W_new = np.asarray(found.transform(fishers.select(new)), dtype=np.float64)
    enough = (subject.labels[fitted].sum(axis=0) >= 8) & (subject.labels[new].sum(axis=0) >= 4)
    labels = subject.labels[:, enough]
    tracked = track(W, labels[fitted], np.random.default_rng([seed, 6]))
    columns = np.arange(labels.shape[1])
    again = auroc(W_new, labels[new])[tracked.unit, columns]
    shuffled = labels[np.random.default_rng([seed, 7]).permutation(new)]
    chance = auroc(W_new, shuffled)[tracked.unit, columns]
    return {
        "labels": int(enough.sum()),
        "fitted": float(np.nanmean(tracked.auroc)),
        "held_out": float(np.nanmean(again)),
        "difference": float(np.nanmean(tracked.auroc) - np.nanmean(again)),
        "worst_difference": float(np.nanmax(tracked.auroc - again)),
        "shuffled": float(np.nanmean(chance)),
        "relative_loss": found.relative_loss,
        "held_out_loss": _relative_loss(fishers.select(new).normalized(), W_new, found.components),
    }


def _relative_loss(fishers: Any, W: Any, components: Any) -> float:
    """Σ_i ‖F_i − Σ_k W_ik g_kg_kᵀ‖² over Σ_i ‖F_i‖², by Gram matrices."""
    G = np.asarray(components, dtype=np.float64)
    rows = np.asarray(fishers.rows, dtype=np.float64)
    N = np.add.reduceat(np.square(rows @ G.T), fishers.offsets[:-1], axis=0)
    total = float(np.square(fishers.norms).sum())
    return float(1.0 - (2 * (W * N).sum() - ((W.T @ W) * (G @ G.T) ** 2).sum()) / total)


def summarise(rows: Rows) -> Summary:
    """Fitted against held out."""
    lines, findings = [], []
    for subject in rows.distinct("subject"):
        own = rows.where(subject=subject)
        lines.append(
            [
                subject,
                *(t_interval(own.values(k)).text() for k in ("fitted", "held_out", "difference")),
                float(own.values("shuffled").mean()),
                float(own.values("worst_difference").mean()),
                t_interval(own.values("relative_loss")).text(),
                t_interval(own.values("held_out_loss")).text(),
            ]
        )
        findings.append(
            decide(f"{subject}: AUROC on fitted minus on held-out examples",
                   t_interval(own.values("difference")), at_most=0.05)
        )  # fmt: skip
    table = Table(
        title="Best component of each label, means over labels",
        columns=[
            Column(name="network", left=True), Column(name="AUROC, fitted"),
            Column(name="AUROC, held out"), Column(name="difference"),
            Column(name="held out, shuffled", format=".2f"),
            Column(name="worst label's difference", format=".2f"),
            Column(name="relative loss, fitted"), Column(name="relative loss, held out"),
        ],
        rows=lines,
    )  # fmt: skip
    return Summary.of(
        findings,
        tables=[table],
        notes=[
            "The component of a label is chosen on one half of the fitted examples; its AUROC is "
            "that on the other half, and that of its exact non-negative coefficients on the "
            "held-out ones. Labels: pairs of digits that are the two likeliest answers; rules.",
        ],
    )


def figures(rows: Rows) -> Sequence[Figure]:
    """The three numbers of each network."""
    names, values = [], []
    for subject in rows.distinct("subject"):
        for kind in ("fitted", "held_out", "shuffled"):
            names.append(f"{subject}, {kind.replace('_', ' ')}")
            values.append(float(rows.where(subject=subject).values(kind).mean()))
    picture = bars(np.array(values), names, label="AUROC on fitted and held-out examples")
    return [Figure(picture=picture, caption="Mean AUROC over labels and seeds; 0.5 is chance.")]


STUDY = Study(
    id="npeff-e6",
    title="Components keep their meaning on new examples",
    claims=(1, 2),
    question="Components are fitted to 400 examples of a digits perceptron and of a Transformer "
    "with known rules; exact coefficients of 400 other examples follow with the components frozen. "
    "Does each label's component find the label there as well?",
    history="The rule was given beforehand.",
    rule="For each network, the mean AUROC of the labels' best components on held-out examples is "
    "within 0.05 of that on fitted ones.",
    units=units,
    unit=unit,
    summarise=summarise,
    figures=figures,
    needs=("torch", "sklearn"),
    quick_seconds=8,
    full_minutes=4,
)
