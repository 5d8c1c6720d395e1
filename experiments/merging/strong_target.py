"""Merging on top of sequential training of a strong start, with several kinds of donors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...core.fisher import estimate_precision
from ...core.merging import PairGrid, search_weights
from ...core.model import DenseNetwork
from ...core.report import Column, Table
from ...core.types import IntArray
from ..studies import Rows, Study, Summary, decide, grid, holm, paired_p, t_interval
from ..studies.study import Settings
from .networks import accuracy, digits, fresh, log_loss, train, with_head
from .transfer import LOOPS, _scores

BODY = (64, 100, 100)
PULL = 3e-4
ANOTHER = "another fine-tuning on the target"
DONORS = (ANOTHER, "the intermediate task", "odd or even", "at least five")
ALONE, UNMERGED, TWICE = "without the intermediate task", "unmerged", "two intermediate tasks"
MERGED = tuple(f"{m} with {d}" for d in DONORS for m in ("isotropic", "Fisher"))


def units(quick: bool) -> list[dict[str, Any]]:
    """One target set of 60 labels a seed."""
    return grid(range(2) if quick else range(140, 152), labels=[60], steps=[60 if quick else 400])


def unit(settings: Settings) -> Mapping[str, Any]:
    """Accuracy and NLL of the target's task: unmerged, merged with each donor, and retrained."""
    seed, n, steps = settings["seed"], settings["labels"], settings["steps"]
    splits = digits(seed)
    X, y = splits.train
    few, many = (X[:n], _loops(y[:n])), X[n:]
    select, report = ((x, _loops(t)) for x, t in (splits.select, splits.report))
    tasks = {
        "the intermediate task": (y[n:], 10),
        "odd or even": (y[n:] % 2, 2),
        "at least five": ((y[n:] >= 5).astype(np.int64), 2),
    }
    base = train(fresh(seed, (*BODY, 10)), (many, y[n:]), steps=30, seed=seed)

    def donor(start: DenseNetwork, task: str) -> DenseNetwork:
        labels, classes = tasks[task]
        head = fresh(seed + 2000, (*BODY, classes))
        return train(with_head(start, head), (many, labels), steps=steps, seed=seed, pull=PULL)

    def tuned(start: DenseNetwork, by: int = 0) -> DenseNetwork:
        head = with_head(start, fresh(seed + 1000 + by, (*BODY, 2)))
        return train(head, few, steps=300, rate=2e-3, seed=seed + by, pull=PULL)

    donors = {task: donor(base, task) for task in tasks}
    start = donors["the intermediate task"]
    donors[ANOTHER] = tuned(start, 500)
    target = tuned(start)
    found = {
        ALONE: tuned(base), UNMERGED: target, TWICE: tuned(donor(start, "odd or even")),
    }  # fmt: skip
    row: dict[str, Any] = {}
    own = estimate_precision(target, few[0])
    for name, network in donors.items():
        given = estimate_precision(network, few[0] if name == ANOTHER else many)
        for method in ("isotropic", "Fisher"):
            options: dict[str, Any] = {"method": "isotropic"}
            if method == "Fisher":
                options = {"method": "fisher", "normalize": True, "precisions": [own, given]}
            result = search_weights(
                [target, network], _scores, select, search=PairGrid(21), isotropic=False,
                sites={"layers.2.*": "take:0"}, **options,
            )  # fmt: skip
            found[f"{method} with {name}"] = result.solution.model()
            row[f"{method} with {name}, weight"] = float(result.weights[1])
    for name, network in found.items():
        row[f"{name}, accuracy"] = accuracy(network, report)
        row[f"{name}, NLL"] = log_loss(network, report)
    return row


def _loops(y: IntArray) -> IntArray:
    return np.isin(y, LOOPS).astype(np.int64)


def summarise(rows: Rows) -> Summary:
    """Merging with another fine-tuning on the target decides, and a second intermediate task."""
    merged = rows.values(f"Fisher with {ANOTHER}, accuracy")
    gain = t_interval(merged - rows.values(f"{UNMERGED}, accuracy"))
    over = t_interval(merged - rows.values(f"{TWICE}, accuracy"))
    return Summary.of(
        [
            decide("merged with another fine-tuning minus unmerged", gain, at_least=0.0),
            decide("the same minus training on two intermediate tasks", over, at_least=0.0),
        ],
        tables=[_table(rows)],
        notes=[
            "The hidden layers are merged, the target's head is kept; λ by the log-likelihood of "
            "300 selection images over 21 values with both corners; scores on 497 others.",
        ],
    )


def _table(rows: Rows) -> Table:
    names = [ALONE, UNMERGED, TWICE, *MERGED]
    plain = rows.values(f"{UNMERGED}, accuracy")
    gaps = {n: rows.values(f"{n}, accuracy") - plain for n in names if n != UNMERGED}
    p_values = dict(zip(gaps, holm([paired_p(g) for g in gaps.values()]), strict=True))
    return Table(
        title="“Has the digit a loop?” from 60 labels after training on ten classes",
        columns=[
            Column(name="model", left=True), Column(name="accuracy"),
            Column(name="minus unmerged"), Column(name="p (Holm)"), Column(name="NLL"),
            Column(name="donor's weight", format=".2f"),
        ],
        rows=[
            [
                n, t_interval(rows.values(f"{n}, accuracy")).text(),
                t_interval(gaps[n]).text("+.3f") if n in gaps else "–",
                f"{p_values[n]:.3f}" if n in gaps else "–",
                t_interval(rows.values(f"{n}, NLL")).text(),
                float(rows.values(f"{n}, weight").mean()) if n in MERGED else None,
            ]
            for n in names
        ],
    )  # fmt: skip


STUDY = Study(
    id="merging-strong",
    title="Merging on top of sequential training of a larger network",
    claims=(3, 4),
    question=(
        "A 64-100-100-10 network is trained on ten classes of digits, then on a target task of 60 "
        "labels. Does a Fisher merge with another such fine-tuning, or with donors of other tasks, "
        "improve it, and does training on a second intermediate task instead?"
    ),
    history=(
        "A small run of two seeds had been seen before the full one; the rule did not change after "
        "it."
    ),
    rule=(
        "Holds if over twelve seeds the paired 95 % intervals of the accuracy of the Fisher merge "
        "with another fine-tuning on the target minus the unmerged one's, and minus that of "
        "training on two intermediate tasks, lie above 0."
    ),
    units=units,
    unit=unit,
    summarise=summarise,
    needs=("sklearn",),
    quick_seconds=10,
    full_minutes=4,
)
