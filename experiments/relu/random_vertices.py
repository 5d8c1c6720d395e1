"""How good the best network of a random vertex is, from narrow to wide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...core.report import Column, Table
from ...theory import ReluProblem, solve_batch, with_bias
from ...theory.program import losses_of
from ..studies import Rows, Study, Summary, decide, grid, t_interval
from ..studies.study import Settings

N, DIMENSIONS = 24, (1, 2, 4)
WIDTHS = {"B": 1.0, "2B": 2.0, "4B": 4.0, "N": 0.0, "2N": -2.0}
DRAWS = 12


def units(quick: bool) -> list[dict[str, Any]]:
    """Input dimensions and widths, B = ⌈24/(d+1)⌉ the least number of units that can fit."""
    widths = list(WIDTHS) if not quick else ["B", "N"]
    return grid([0] if quick else range(6), d=DIMENSIONS[:2] if quick else DIMENSIONS, width=widths)


def unit(settings: Settings) -> Mapping[str, Any]:
    """Losses of the optima of random vertices on one data set."""
    d, share = settings["d"], WIDTHS[settings["width"]]
    least = -(-N // (d + 1))
    m = round(least * share) if share > 0 else N if share == 0 else 2 * N
    m += m % 2
    rng = np.random.default_rng([settings["seed"], d])
    x, y = with_bias(rng.normal(size=(N, d))), rng.normal(size=N)
    problem = ReluProblem(inputs=x, targets=y, signs=np.where(np.arange(m) % 2 == 0, 1.0, -1.0))
    directions = rng.normal(size=(DRAWS, m, d + 1))
    patterns = np.where(directions @ x.T > 0, 1, -1).astype(np.int8)
    weights, _ = solve_batch(problem, patterns)
    mse = 2.0 * losses_of(problem, weights) / N
    return {
        "units": m,
        "median": float(np.median(mse / (y**2).mean())),
        "zero": float((mse < 1e-10).mean()),
    }


def summarise(rows: Rows) -> Summary:
    """The share of random vertices with zero loss, and the median loss, by width."""
    lines, findings = [], []
    for d in rows.distinct("d"):
        for width in rows.distinct("width"):
            own = rows.where(d=d, width=width)
            lines.append([
                f"{d}", width, f"{own.values('units').mean():.0f}",
                t_interval(own.values("zero")).text(".2f"),
                t_interval(own.values("median")).text(".3f"),
            ])  # fmt: skip
        low, high = {"d": d, "width": "B"}, {"d": d, "width": "N"}
        findings.append(
            decide(f"d = {d}: median loss at width B less that at width N",
                   t_interval(rows.differences("median", low, high)), at_least=0.0)
        )  # fmt: skip
    table = Table(
        title=f"{DRAWS} random vertices for each of the data sets, N = {N}",
        columns=[
            Column(name="d", left=True),
            Column(name="width", left=True),
            Column(name="units"),
            Column(name="share with zero loss"),
            Column(name="median loss over that of f = 0"),
        ],
        rows=lines,
    )
    return Summary.of(findings, tables=[table])


STUDY = Study(
    id="relu-random",
    title="Random vertices against the width",
    claims=(3,),
    question=(
        "24 examples with normal inputs and targets, half of the units with negative outputs. How "
        "good is the best network of a random vertex, from the least width B that can fit to 2N?"
    ),
    rule=(
        "Holds if in every dimension the median loss of random vertices is lower at width N than "
        "at the least width B (95 % interval of the paired difference above 0)."
    ),
    units=units,
    unit=unit,
    summarise=summarise,
    quick_seconds=10.0,
    full_minutes=2.0,
)
