"""Merging models of one task against their mean, plain averaging and the ensemble of outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...core.fisher import estimate_precision
from ...core.merging import merge
from ...core.report import Column, Table
from ..studies import Rows, Study, Summary, decide, grid, holm, paired_p, t_interval
from ..studies.study import Settings
from .networks import PRE_STEPS, accuracy, digits, fresh, log_loss, log_probabilities, train

MODELS = 5
MERGED = ("isotropic", "diagonal", "kronecker", "gram")
NAMES = ("mean of the models", *MERGED, "ensemble of outputs")


def units(quick: bool) -> list[dict[str, Any]]:
    """Five fine-tunings a seed."""
    return grid(range(2) if quick else range(20, 32), n=[200])


def unit(settings: Settings) -> Mapping[str, Any]:
    """Accuracy and NLL on the report images."""
    seed, n = settings["seed"], settings["n"]
    splits = digits(seed)
    X, y = splits.train
    base = train(fresh(seed), (X[n:], y[n:]), steps=PRE_STEPS // 4, seed=seed)
    rng = np.random.default_rng([seed, 15])
    models, trees = [], {s: [] for s in MERGED[1:]}  # type: ignore[var-annotated]
    for k in range(MODELS):
        # As found in the wild: other draws of the data, step sizes and lengths of training.
        own = rng.integers(n, size=n)
        rate, steps = float(rng.choice([2e-3, 5e-3, 1e-2])), int(rng.integers(150, 400))
        models.append(
            train(base, (X[:n][own], y[:n][own]), steps=steps, rate=rate, seed=seed * 10 + k)
        )
        for structure in trees:
            trees[structure].append(estimate_precision(models[-1], X[:n][own], structure=structure))
    row: dict[str, Any] = {
        "mean of the models, accuracy": float(
            np.mean([accuracy(m, splits.report) for m in models])
        ),
        "mean of the models, NLL": float(np.mean([log_loss(m, splits.report) for m in models])),
    }
    merged = {"isotropic": merge(models, method="isotropic").model()}
    merged["diagonal"] = merge(models, trees["diagonal"], method="fisher").model()
    for structure in ("kronecker", "gram"):
        tried = [
            merge(models, trees[structure], damping=(rho, "relative_trace")).model()
            for rho in (1.0, 0.1, 0.01)
        ]
        merged[structure] = min(tried, key=lambda m: log_loss(m, splits.select))
    for name, network in merged.items():
        row[f"{name}, accuracy"] = accuracy(network, splits.report)
        row[f"{name}, NLL"] = log_loss(network, splits.report)
    test, labels = splits.report
    p = np.mean([np.exp(log_probabilities(m, test)) for m in models], axis=0)
    row["ensemble of outputs, accuracy"] = float((p.argmax(1) == labels).mean())
    row["ensemble of outputs, NLL"] = float(-np.log(p[np.arange(len(labels)), labels]).mean())
    return row


def summarise(rows: Rows) -> Summary:
    """Diagonal against isotropic, and against the ensemble."""
    plain = rows.values("isotropic, accuracy")
    gaps = {n: rows.values(f"{n}, accuracy") - plain for n in NAMES if n != "isotropic"}
    p_values = dict(zip(gaps, holm([paired_p(g) for g in gaps.values()]), strict=True))
    table = Table(
        title=f"{MODELS} fine-tunings of one network on 200 resampled images",
        columns=[
            Column(name="model", left=True), Column(name="accuracy"),
            Column(name="minus isotropic"), Column(name="p (Holm)"), Column(name="NLL"),
            Column(name="cost of a prediction"),
        ],
        rows=[
            [
                n, t_interval(rows.values(f"{n}, accuracy")).text(),
                t_interval(gaps[n]).text("+.3f") if n in gaps else "–",
                f"{p_values[n]:.3f}" if n in gaps else "–",
                t_interval(rows.values(f"{n}, NLL")).text(),
                f"{MODELS} networks" if n == "ensemble of outputs" else "1 network",
            ]
            for n in NAMES
        ],
    )  # fmt: skip
    to_ensemble = rows.values("diagonal, accuracy") - rows.values("ensemble of outputs, accuracy")
    return Summary.of(
        [
            decide("accuracy minus isotropic", t_interval(gaps["diagonal"]), at_least=0.0),
            decide("accuracy minus the ensemble's", t_interval(to_ensemble),
                   at_least=-0.01),
        ],
        tables=[table],
        notes=["λ = 1/5; damping of the structured merges is chosen on 300 selection images."],
    )  # fmt: skip


STUDY = Study(
    id="merging-ensemble",
    title="Merging instead of ensembling",
    claims=(2, 5),
    question=(
        "Five copies of a briefly trained network are tuned on resamples of 200 images with "
        "different step sizes and lengths. Is their merge by diagonal Fishers better than plain "
        "averaging, and as good as the ensemble of their outputs at a fifth of its cost?"
    ),
    history=("One quick unit had been seen before the full run; the rule did not change after it."),
    rule=(
        "Holds if over twelve seeds the paired 95 % interval of accuracy minus isotropic accuracy "
        "lies above 0, and that of accuracy minus the ensemble's above −0.01."
    ),
    units=units,
    unit=unit,
    summarise=summarise,
    needs=("sklearn",),
    quick_seconds=8,
    full_minutes=3,
)
