"""Merging as intermediate-task transfer: a target of few labels, donors of many, other heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...core.fisher import estimate_precision
from ...core.merging import PairGrid, search_weights
from ...core.model import DenseNetwork
from ...core.report import Column, Table
from ...core.types import FloatArray, IntArray
from ..studies import Rows, Study, Summary, decide, grid, holm, paired_p, t_interval
from ..studies.study import Settings
from .networks import accuracy, digits, fresh, log_loss, log_probabilities, train, with_head

LOOPS = (0, 6, 8, 9)
PULL = 3e-4
NAMES = (
    "target alone", "isotropic merge", "Fisher merge", "sequential", "sequential + isotropic merge",
    "sequential + Fisher merge", "sequential + Fisher merge, other donor",
)  # fmt: skip
Data = tuple[FloatArray, IntArray]


def units(quick: bool) -> list[dict[str, Any]]:
    """One target set of 60 labels a seed."""
    return grid(range(2) if quick else range(60, 72), labels=[60])


def unit(settings: Settings) -> Mapping[str, Any]:
    """Accuracy and NLL of the target task."""
    seed, n = settings["seed"], settings["labels"]
    splits = digits(seed)
    X, y = splits.train
    few = X[:n], _loops(y[:n])
    select, report = ((x, _loops(t)) for x, t in (splits.select, splits.report))
    base = train(fresh(seed), (X[n:], y[n:]), steps=30, seed=seed)
    donors = [
        train(base, (X[n:], y[n:]), steps=400, seed=seed * 10 + k, pull=PULL) for k in range(2)
    ]
    head = fresh(seed + 1000, (64, 20, 20, 2))

    def tuned(start: DenseNetwork) -> DenseNetwork:
        return train(with_head(start, head), few, steps=300, rate=2e-3, seed=seed, pull=PULL)

    alone, sequential = tuned(base), tuned(donors[0])
    own = {id(m): estimate_precision(m, few[0]) for m in (alone, sequential)}
    given = [estimate_precision(d, X[n:]) for d in donors]
    found = {"target alone": alone, "sequential": sequential}

    def merged(target: DenseNetwork, donor: int, method: str) -> tuple[DenseNetwork, float]:
        options: dict[str, Any] = {"normalize": True} if method == "fisher" else {}
        result = search_weights(
            [target, donors[donor]], _scores, select,
            precisions=[own[id(target)], given[donor]] if method == "fisher" else None,
            method=method, search=PairGrid(21), isotropic=False,
            sites={"layers.2.*": "take:0"}, **options,
        )  # fmt: skip
        return result.solution.model(), float(result.weights[1])

    row: dict[str, Any] = {}
    for name, (target, donor, method) in {
        "isotropic merge": (alone, 0, "isotropic"),
        "Fisher merge": (alone, 0, "fisher"),
        "sequential + isotropic merge": (sequential, 0, "isotropic"),
        "sequential + Fisher merge": (sequential, 0, "fisher"),
        "sequential + Fisher merge, other donor": (sequential, 1, "fisher"),
    }.items():
        found[name], row[f"{name}, donor's weight"] = merged(target, donor, method)
    for name, network in found.items():
        row[f"{name}, accuracy"] = accuracy(network, report)
        row[f"{name}, NLL"] = log_loss(network, report)
    return row


def _loops(y: IntArray) -> IntArray:
    """Whether the digit has a closed loop."""
    return np.isin(y, LOOPS).astype(np.int64)


def _scores(network: DenseNetwork, data: Data) -> FloatArray:
    return np.asarray(log_probabilities(network, data[0])[np.arange(len(data[1])), data[1]])


def summarise(rows: Rows) -> Summary:
    """Merged against the target alone and against sequential training."""
    base = rows.values("target alone, accuracy")
    gaps = {n: rows.values(f"{n}, accuracy") - base for n in NAMES[1:]}
    p_values = dict(zip(gaps, holm([paired_p(g) for g in gaps.values()]), strict=True))
    table = Table(
        title="“Has the digit a loop?” from 60 labels, with a donor of ten classes and 940 labels",
        columns=[
            Column(name="model", left=True), Column(name="accuracy"),
            Column(name="minus target alone"), Column(name="p (Holm)"), Column(name="NLL"),
            Column(name="donor's weight", format=".2f"),
        ],
        rows=[
            [
                n, t_interval(rows.values(f"{n}, accuracy")).text(),
                t_interval(gaps[n]).text("+.3f") if n in gaps else "–",
                f"{p_values[n]:.3f}" if n in gaps else "–",
                t_interval(rows.values(f"{n}, NLL")).text(),
                float(rows.values(f"{n}, donor's weight").mean()) if "merge" in n else None,
            ]
            for n in NAMES
        ],
    )  # fmt: skip
    fisher, sequential = rows.values("Fisher merge, accuracy"), rows.values("sequential, accuracy")
    on_top = rows.values("sequential + Fisher merge, accuracy") - sequential
    return Summary.of(
        [
            decide("Fisher merge minus target alone", t_interval(gaps["Fisher merge"]),
                   at_least=0.0),
            decide("Fisher merge minus sequential training", t_interval(fisher - sequential),
                   at_least=-0.02),
            decide("merging on top of sequential training", t_interval(on_top), at_least=0.0),
        ],
        tables=[table],
        notes=[
            "The hidden layers are merged, the target's head is kept; λ by the log-likelihood of "
            "300 selection images over 21 values with both corners; scores on 497 others.",
        ],
    )  # fmt: skip


STUDY = Study(
    id="merging-transfer",
    title="Merging as intermediate-task transfer",
    claims=(3, 4),
    question=(
        "From a weakly pre-trained network, a target task with 60 labels is tuned, and a donor on "
        "all ten digits. Does merging the donor's hidden layers in by Fishers help the target, as "
        "much as training on the donor's task first does, and does it help on top of that?"
    ),
    history=("One quick unit had been seen before the full run; the rule did not change after it."),
    rule=(
        "Holds if over twelve seeds the paired 95 % interval of accuracy minus the target alone's "
        "lies above 0, that minus sequential training's above −0.02, and that of merging on top of "
        "sequential training above 0."
    ),
    units=units,
    unit=unit,
    summarise=summarise,
    needs=("sklearn",),
    quick_seconds=10,
    full_minutes=4,
)
