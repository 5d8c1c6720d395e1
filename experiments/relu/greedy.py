"""Greedy search over vertices against gradient descent on under-parameterised problems."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...core.report import Column, Table
from ...core.types import FloatArray
from ...theory import ReluProblem, greedy_search, with_bias
from ..studies import Rows, Study, Summary, decide, grid, t_interval
from ..studies.study import Settings

SIZES = ("30,2,2", "50,2,4", "50,3,4", "60,5,6")
RATES = (1e-2, 3e-2, 1e-1)
RESTARTS, STEPS = 10, 4000


def units(quick: bool) -> list[dict[str, Any]]:
    """Targets of a random teacher of the same size, or noise; sizes N,d,m."""
    if quick:
        return grid([0], task=["teacher", "noise"], size=SIZES[:1])
    return grid(range(6), task=["teacher", "noise"], size=SIZES)


def made(task: str, size: str, seed: int) -> ReluProblem:
    """One data set."""
    n, d, m = (int(v) for v in size.split(","))
    rng = np.random.default_rng([seed, n, d, m])
    x = with_bias(rng.normal(size=(n, d)))
    signs = np.where(np.arange(m) % 2 == 0, 1.0, -1.0)
    y = rng.normal(size=n)
    if task == "teacher":
        y = np.maximum(x @ rng.normal(size=(m, d + 1)).T, 0) @ signs
        y = y / y.std()
    return ReluProblem(inputs=x, targets=y, signs=signs)


def unit(settings: Settings) -> Mapping[str, Any]:
    """Mean squared errors of equally many starts, Adam at its best rate for this data set."""
    problem = made(settings["task"], settings["size"], settings["seed"])
    rng = np.random.default_rng([settings["seed"], 1])
    start = time.perf_counter()
    greedy = [greedy_search(problem, seed=s).mse for s in rng.spawn(RESTARTS)]
    greedy_seconds = time.perf_counter() - start
    begin = rng.normal(size=(RESTARTS, *problem.sizes[:0:-1]))
    runs, seconds = {}, {}
    for rate in RATES:
        start = time.perf_counter()
        runs[rate] = adam(problem, begin, rate)
        seconds[rate] = time.perf_counter() - start
    best = min(RATES, key=lambda r: float(runs[r].mean()))
    return {
        "greedy mean": float(np.mean(greedy)),
        "greedy best": float(np.min(greedy)),
        "greedy seconds": greedy_seconds,
        "adam mean": float(runs[best].mean()),
        "adam best": float(min(r.min() for r in runs.values())),
        "adam rate": best,
        "adam seconds": seconds[best],
        "mean difference": float(runs[best].mean() - np.mean(greedy)),
        "best difference": float(min(r.min() for r in runs.values()) - np.min(greedy)),
    }


def adam(problem: ReluProblem, begin: FloatArray, rate: float) -> FloatArray:
    """Mean squared errors after full-batch Adam with a cosine rate, all starts at once.

    The start with the pattern that it has at the end of training is what counts: the last iterate.
    """
    x, y, v = problem.inputs, problem.targets, problem.signs
    w = begin.reshape(len(begin), len(v), x.shape[1]).copy()
    first, second = np.zeros_like(w), np.zeros_like(w)
    for step in range(1, STEPS + 1):
        z = w @ x.T
        r = np.einsum("m,rmn->rn", v, np.maximum(z, 0)) - y
        gradient = ((z > 0) * (v[:, None] * r[:, None, :])) @ x / len(y)
        first += 0.1 * (gradient - first)
        second += 0.001 * (gradient**2 - second)
        size = rate * 0.5 * (1 + np.cos(np.pi * step / STEPS))
        rate_now = size * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        w -= rate_now * first / (np.sqrt(second) + 1e-12)
    f = np.einsum("m,rmn->rn", v, np.maximum(w @ x.T, 0))
    return np.asarray(((f - y) ** 2).mean(axis=1))


def summarise(rows: Rows) -> Summary:
    """Paired differences, Adam minus greedy, by task and size."""
    lines, findings = [], []
    for task in rows.distinct("task"):
        for size in rows.distinct("size"):
            own = rows.where(task=task, size=size)
            lines.append([
                task, size,
                f"{own.values('greedy mean').mean():.4f} / {own.values('greedy best').mean():.4f}",
                f"{own.values('adam mean').mean():.4f} / {own.values('adam best').mean():.4f}",
                t_interval(own.values("mean difference")).text(".4f"),
                t_interval(own.values("best difference")).text(".4f"),
                f"{own.values('greedy seconds').mean():.2f} / "
                f"{own.values('adam seconds').mean():.2f}",
            ])  # fmt: skip
            findings.append(
                decide(f"{task} {size}: mean loss of Adam less that of greedy",
                       t_interval(own.values("mean difference")), at_least=0.0, format=".4f")
            )  # fmt: skip
    table = Table(
        title=f"Mean squared error, mean / best of {RESTARTS} starts",
        columns=[
            Column(name="targets", left=True),
            Column(name="N,d,m", left=True),
            Column(name="greedy"),
            Column(name="Adam"),
            Column(name="mean: Adam − greedy"),
            Column(name="best: Adam − greedy"),
            Column(name="seconds, greedy / Adam"),
        ],
        rows=lines,
    )
    return Summary.of(
        findings,
        tables=[table],
        notes=[
            f"Adam: full batch, {STEPS} steps, cosine rate; mean at the best of {RATES} for each "
            "data set, best over all three rates, so with three times the starts. Greedy: edges, "
            "dead units given new patterns. Times are of one data set's starts on a shared machine."
        ],
    )


STUDY = Study(
    id="relu-greedy",
    title="Greedy vertex search against gradient descent",
    claims=(5,),
    question=(
        "Under-parameterised networks (fewer weights than examples), targets of a teacher or "
        "noise. Ten starts each of greedy search over all edges and of Adam at its best learning "
        "rate: which has the lower loss?"
    ),
    rule=(
        "Holds if for every kind of targets and size the mean loss of greedy starts is below that "
        "of Adam's (95 % interval of the paired difference over data sets)."
    ),
    units=units,
    unit=unit,
    summarise=summarise,
    quick_seconds=10.0,
    full_minutes=5.0,
)
