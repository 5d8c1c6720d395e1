"""What merges and searches of weights show of themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..merging import MergeSolution, WeightSearch
from .figures import COLOURS, FAINT, INK, figure_svg
from .markup import Html
from .results import MOST_ROWS, facts_of, pictures_of, tables_of
from .tables import Cell, Column, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


@facts_of.register
def _(result: MergeSolution) -> dict[str, Cell]:
    merged = [s for s in result.sites if s.action == "merge"]
    return {
        "method": f"{result.method} ({result.facts.get('reference', '')})",
        "sources": len(result.weights),
        "weights": ", ".join(f"{w:.4g}" for w in result.weights),
        "sites merged": f"{len(merged)} of {len(result.sites)}",
        "parameters": result.n_parameters,
        "objective": _number(result.objective),
        "largest residual": result.residual,
        "largest condition": _number(result.condition),
        "without precision": f"{result.fallback} coordinates or directions",
        "converged": "yes" if result.converged else "no: stopped early",
    }


@tables_of.register
def _(result: MergeSolution) -> tuple[Table, ...]:
    ranked = sorted(result.sites, key=lambda s: (s.action == "merge", -s.size))[:MOST_ROWS]
    rows: list[list[Cell]] = [
        [s.name, s.size, s.action, s.solver, s.why, _number(s.residual), _number(s.condition)]
        for s in ranked
    ]
    columns = [
        Column(name="site", left=True),
        Column(name="entries"),
        Column(name="action", left=True),
        Column(name="solved by", left=True),
        Column(name="why", left=True),
        Column(name="residual", format=".1e"),
        Column(name="condition", format=".1e"),
    ]
    title = f"Sites, what was not merged first ({len(rows)} of {len(result.sites)})"
    return (Table(columns=columns, rows=rows, title=title),)


@facts_of.register
def _(result: WeightSearch) -> dict[str, Cell]:
    facts: dict[str, Cell] = {
        "method": result.solution.method,
        "weights": ", ".join(f"{w:.4g}" for w in result.weights),
        "score on the selection split": result.selection_score,
        "evaluations": len(result.trials) + len(result.isotropic_trials),
    }
    if result.report:
        facts["score on the report split"] = result.report["merged"]
    if result.leak:
        facts["leak"] = f"reported on data of the choice: {result.facts.get('leak')}"
    return facts


@tables_of.register
def _(result: WeightSearch) -> tuple[Table, ...]:
    if not result.report:
        return ()
    rows: list[list[Cell]] = [["merged", result.report["merged"], None, None, None]]
    for name, gap in result.differences.items():
        score = result.report[name]
        rows.append([name, score, gap.mean, _number(gap.low), _number(gap.high)])
    columns = [
        Column(name="model", left=True),
        Column(name="report score", format=".4g"),
        Column(name="merged minus it", format="+.4g"),
        Column(name="low", format="+.4g"),
        Column(name="high", format="+.4g"),
    ]
    title = f"Scores on the report split, differences with {result.level:.0%} intervals"
    return (Table(columns=columns, rows=rows, title=title),)


@pictures_of.register
def _(result: WeightSearch) -> tuple[Html, ...]:
    weights, scores = result.curve
    if len(scores) < 3 or weights.shape[1] != 2:
        return ()
    own = np.argsort(weights[:, 1], kind="stable")
    plain = [t for t in result.isotropic_trials if t.n_examples is None]

    def draw(axes: Axes) -> None:
        axes.plot(weights[own, 1], scores[own], color=COLOURS[0], label=result.solution.method)
        if plain:
            line = sorted((t.weights[1], t.score) for t in plain)
            axes.plot(*zip(*line, strict=True), color=COLOURS[2], label="isotropic")
        axes.axvline(result.weights[1], color=FAINT)
        axes.set_xlabel("weight of source 1", color=INK)
        axes.set_ylabel("selection score", color=INK)
        axes.legend(frameon=False, labelcolor=INK)

    return (figure_svg(draw, label="Score on the selection split by the weight of source 1"),)
