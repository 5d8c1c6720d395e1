"""From which width on a search fits every target: from the least number of units to twice it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...core.report import Column, Table, curves
from ...theory import ReluProblem, greedy_search, with_bias
from ..studies import Figure, Rows, Study, Summary, decide, grid, t_interval
from ..studies.study import Settings
from .descent import ADAM_RATES, adam, starts

N, DIMENSIONS, WIDTHS, RESTARTS, ZERO = 24, (2, 5), (1.0, 1.25, 1.5, 2.0), 5, 1e-6


def units(quick: bool) -> list[dict[str, Any]]:
    """Widths as multiples of B = ⌈24/(d+1)⌉, below which generic targets cannot be fitted."""
    if quick:
        return grid([0], d=DIMENSIONS[:1], width=[1.0, 2.0])
    return grid(range(8), d=DIMENSIONS, width=WIDTHS)


def unit(settings: Settings) -> Mapping[str, Any]:
    """Best of five starts of greedy search over tight flips, and of Adam over three rates."""
    d = settings["d"]
    m = round(-(-N // (d + 1)) * settings["width"])
    m += m % 2
    rng = np.random.default_rng([settings["seed"], d])
    x, y = with_bias(rng.normal(size=(N, d))), rng.normal(size=N)
    problem = ReluProblem(inputs=x, targets=y, signs=np.where(np.arange(m) % 2 == 0, 1.0, -1.0))
    streams = rng.spawn(RESTARTS)
    greedy = [greedy_search(problem, neighbourhood="tight", seed=s).mse for s in streams]
    begin = np.concatenate([starts(problem, RESTARTS, rng)] * len(ADAM_RATES))
    errors, _ = adam(problem, begin, np.repeat(ADAM_RATES, RESTARTS))
    scale = float((y**2).mean())
    return {
        "units": m,
        "greedy": float(min(greedy)) / scale,
        "adam": float(errors.min()) / scale,
        "greedy fits": bool(min(greedy) < ZERO * scale),
        "adam fits": bool(errors.min() < ZERO * scale),
    }


def summarise(rows: Rows) -> Summary:
    """The share of data sets that each fits, by width."""
    lines, findings = [], []
    for d in rows.distinct("d"):
        for width in rows.distinct("width"):
            own = rows.where(d=d, width=width)
            lines.append([
                f"{d}", f"{width:g} B", f"{own.values('units').mean():.0f}",
                t_interval(own.values("greedy fits").astype(float)).text(".2f"),
                t_interval(own.values("adam fits").astype(float)).text(".2f"),
                f"{np.median(own.values('greedy')):.1e}", f"{np.median(own.values('adam')):.1e}",
            ])  # fmt: skip
        fits = rows.where(d=d, width=2.0).values("greedy fits").astype(float)
        findings.append(
            decide(f"d = {d}: share that greedy search fits at width 2B", t_interval(fits),
                   at_least=1.0)
        )  # fmt: skip
    table = Table(
        title=f"Noise at N = {N}, best of {RESTARTS} starts (Adam: of three rates as well)",
        columns=[
            Column(name="d", left=True), Column(name="width", left=True), Column(name="units"),
            Column(name="greedy: share of zero loss"), Column(name="Adam: share of zero loss"),
            Column(name="greedy: median relative loss"), Column(name="Adam: median relative loss"),
        ],
        rows=lines,
    )  # fmt: skip
    return Summary.of(
        findings,
        tables=[table],
        notes=[f"Zero: a mean squared error below {ZERO:g} of that of f = 0; 4000 steps of Adam."],
    )


def figures(rows: Rows) -> Sequence[Figure]:
    """Shares of zero loss against the width."""
    x = np.array(sorted(rows.distinct("width")))
    series = {}
    for d in rows.distinct("d"):
        for name in ("greedy", "adam"):
            shares = [
                rows.where(d=d, width=w).values(f"{name} fits").astype(float).mean() for w in x
            ]
            series[f"{'Adam' if name == 'adam' else name}, d = {d}"] = (x, np.array(shares))
    picture = curves(
        series, label="Share of data sets fitted against the width", x_label="units / B",
        y_label="share with zero loss", dashed=[k for k in series if k.startswith("Adam")],
    )  # fmt: skip
    return [Figure(picture=picture, caption="Noise, 24 examples, best of five starts.")]


STUDY = Study(
    id="relu-threshold",
    title="Where zero loss begins",
    claims=(4, 5),
    question=(
        "Normal targets for 24 examples can be fitted with no fewer than B = ⌈24/(d+1)⌉ units, and "
        "the selected vertex fits them with 2B. From which width on does greedy search over tight "
        "flips alone fit them, and Adam?"
    ),
    history="Fixed before the run, after a pilot at 1.5 B of the specification.",
    rule="Holds if greedy search fits every data set with the 2B units of the guarantee.",
    units=units,
    unit=unit,
    summarise=summarise,
    figures=figures,
    needs=("torch",),
    quick_seconds=10.0,
    full_minutes=4.0,
)
