"""The selected vertex: twice the least number of parameters, every target fitted."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...core.report import Column, Table
from ...theory import select_vertices, with_bias
from ..studies import Rows, Study, Summary, decide, grid, t_interval
from ..studies.study import Settings

SIZES = ("50,2", "200,9", "1000,19", "5000,9", "10000,19")


def units(quick: bool) -> list[dict[str, Any]]:
    """Normal inputs and targets of several sizes N,d."""
    return grid([0], size=SIZES[:2]) if quick else grid(range(5), size=SIZES)


def unit(settings: Settings) -> Mapping[str, Any]:
    """Units, parameters over the least number, error of the float64 weights, time."""
    n, d = (int(v) for v in settings["size"].split(","))
    rng = np.random.default_rng([settings["seed"], n, d])
    x, y = with_bias(rng.normal(size=(n, d))), rng.normal(size=n)
    start = time.perf_counter()
    vertex = select_vertices(x, y, seed=settings["seed"])
    seconds = time.perf_counter() - start
    f = np.maximum(x @ vertex.weights.T, 0) @ vertex.signs
    return {
        "units": len(vertex.signs),
        "over the least units": len(vertex.signs) / -(-n // (d + 1)),
        "relative error": float(((f - y) ** 2).mean() / (y**2).mean()),
        "inside": bool((vertex.patterns * (vertex.weights @ x.T)).min() > 0),
        "largest weight": float(np.abs(vertex.weights).max()),
        "seconds": seconds,
    }


def summarise(rows: Rows) -> Summary:
    """The ratio of units and the error, size by size."""
    lines = []
    for size in rows.distinct("size"):
        own = rows.where(size=size)
        lines.append([
            size, f"{own.values('units').mean():.0f}",
            f"{own.values('relative error').max():.1e}",
            f"{own.values('largest weight').max():.1e}",
            t_interval(own.values("seconds")).text(".2f"),
        ])  # fmt: skip
    findings = [
        decide("units over the least number that can fit", t_interval(
            rows.values("over the least units")), at_most=2.0),
        decide("largest relative squared error", t_interval(rows.values("relative error")),
               at_most=1e-10, format=".1e"),
        decide("share of vertices with all weights inside their cones",
               t_interval(rows.values("inside").astype(float)), at_least=1.0),
    ]  # fmt: skip
    table = Table(
        title="Selected vertices",
        columns=[
            Column(name="N,d", left=True),
            Column(name="units"),
            Column(name="largest relative squared error"),
            Column(name="largest weight"),
            Column(name="seconds"),
        ],
        rows=lines,
    )
    return Summary.of(findings, tables=[table])


STUDY = Study(
    id="relu-selection",
    title="A vertex that fits everything, selected in polynomial time",
    claims=(4,),
    question=(
        "Normal inputs in general position and normal targets, N = 50 to 10,000. How many units "
        "does the selected vertex have against the ⌈N/(d+1)⌉ without which nothing can fit, and "
        "do its float64 weights fit?"
    ),
    rule=(
        "Holds if at every size and seed there are at most twice the least number of units, the "
        "squared error is below 1e-10 of the targets', and all weights lie inside their cones."
    ),
    units=units,
    unit=unit,
    summarise=summarise,
    quick_seconds=2.0,
    full_minutes=1.0,
)
