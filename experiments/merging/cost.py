"""What merging costs beside fine-tuning: processor seconds, and arithmetic counted by hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...core.fisher import estimate_precision
from ...core.merging import merge
from ...core.report import Column, Table
from ..studies import Rows, Study, Summary, decide, grid, t_interval
from ..studies.study import Settings
from .networks import accuracy, digits, fresh, train

EPOCHS = 10
BATCH = 64
GRID = 51
PARTS = ("fine-tuning", "one Fisher", "one merge", "one evaluation")
TOTALS = {
    "isotropic": (("one merge", 1), ("one evaluation", 1)),
    "Fisher, the donor's known": (("one Fisher", 1), ("one merge", 1), ("one evaluation", 1)),
    "Fisher, both": (("one Fisher", 2), ("one merge", 1), ("one evaluation", 1)),
    f"Fisher, both, {GRID} weights": (
        ("one Fisher", 2), ("one merge", GRID), ("one evaluation", GRID),
    ),
}  # fmt: skip


def units(quick: bool) -> list[dict[str, Any]]:
    """Repetitions."""
    return grid(range(2) if quick else range(8), hidden=[128])


def unit(settings: Settings) -> Mapping[str, Any]:
    """Seconds of the processor, median of three after one to warm up."""
    seed, h = settings["seed"], settings["hidden"]
    splits = digits(seed)
    X, _ = splits.train
    sizes = (64, h, h, 10)
    base = fresh(seed, sizes)
    steps = EPOCHS * len(X) // BATCH
    models = [train(base, splits.train, steps=60, seed=seed + k) for k in range(2)]
    trees = [estimate_precision(m, X) for m in models]
    seconds = {
        "fine-tuning": _seconds(lambda: train(base, splits.train, steps=steps, seed=seed)),
        "one Fisher": _seconds(lambda: estimate_precision(models[0], X)),
        "one merge": _seconds(
            lambda: merge(models, trees, method="fisher", check_models=False).model()
        ),
        "one evaluation": _seconds(lambda: accuracy(models[0], splits.select)),
    }
    p = sum(a * (b + 1) for a, b in zip(sizes[1:], sizes[:-1], strict=True))
    weights = p - sum(sizes[1:])
    # Forward 2 operations a weight, backward 4; the Fisher sends C − 1 gradients back through the
    # activations and takes one product of squares; a merge is 7 operations a parameter.
    flops = {
        "fine-tuning": 6.0 * weights * EPOCHS * len(X),
        "one Fisher": (2.0 + 9 * 2.0 + 2.0) * weights * len(X),
        "one merge": 7.0 * p,
        "one evaluation": 2.0 * weights * len(splits.select[0]),
    }
    row: dict[str, Any] = {}
    for part in PARTS:
        row[f"{part}, seconds"], row[f"{part}, operations"] = seconds[part], flops[part]
    for name, parts in TOTALS.items():
        for unit_name, values in (("seconds", seconds), ("operations", flops)):
            total = sum(count * values[part] for part, count in parts)
            row[f"{name}, {unit_name}"] = total
            row[f"{name}, times cheaper in {unit_name}"] = values["fine-tuning"] / total
    return row


def _seconds(work: Callable[[], Any]) -> float:
    work()
    taken = []
    for _ in range(3):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return float(np.median(taken))


def summarise(rows: Rows) -> Summary:
    """Times cheaper than fine-tuning."""
    parts = Table(
        title=f"Parts ({EPOCHS} epochs over 1,000 images; exact Fisher of the 1,000)",
        columns=[
            Column(name="part", left=True), Column(name="processor seconds"),
            Column(name="operations", format=".2e"),
        ],
        rows=[
            [p, t_interval(rows.values(f"{p}, seconds")).text(".4f"),
             float(rows.values(f"{p}, operations")[0])]
            for p in PARTS
        ],
    )  # fmt: skip
    totals = Table(
        title="Times cheaper than fine-tuning",
        columns=[
            Column(name="what is counted", left=True), Column(name="by the clock"),
            Column(name="by operations", format=".1f"),
        ],
        rows=[
            [n, t_interval(rows.values(f"{n}, times cheaper in seconds")).text(".1f"),
             float(rows.values(f"{n}, times cheaper in operations")[0])]
            for n in TOTALS
        ],
    )  # fmt: skip
    found = t_interval(rows.values("Fisher, both, times cheaper in seconds"))
    return Summary.of(
        [decide("fine-tuning over Fishers of both models, one merge and one evaluation", found,
                at_least=2.0, format=".1f")],
        tables=[parts, totals],
        notes=[
            "Processor seconds of one thread, so that other work on the machine does not count. "
            "The paper charges one Fisher and one evaluation; a grid of weights costs more.",
        ],
    )  # fmt: skip


STUDY = Study(
    id="merging-cost",
    title="The cost of a merge",
    claims=(5,),
    question=(
        "A 64-128-128-10 network: processor time and operations of 10 epochs of fine-tuning on "
        "1,000 images, of exact diagonal Fishers of as many, of a merge, of an evaluation, and of "
        "a search over 51 weights."
    ),
    history=("One quick unit had been seen before the full run; the rule did not change after it."),
    rule=(
        "Holds if fine-tuning costs at least twice the Fishers of both models, one merge and one "
        "evaluation together (95 % interval over eight repetitions)."
    ),
    units=units,
    unit=unit,
    summarise=summarise,
    needs=("sklearn",),
    quick_seconds=10,
    full_minutes=2,
)
