"""Pictures of the modifications: the ranking, and loss against size and time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...core.report.figures import COLOURS, FAINT, figure_svg
from ..studies import Figure, Rows
from .results import Result, Results, results_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMED = 8


def early_figures(rows: Rows) -> Sequence[Figure]:
    """Ranking, loss against parameters, loss against time, and against the paper."""
    found = results_of(rows)
    if not found.compared or found.prior is None:
        return []
    return [
        ranking(found),
        scatter(found, "parameters", "parameters", "Early loss against parameters"),
        scatter(found, "seconds", "time of a step over vanilla's", "Early loss against time"),
        beside_paper(found),
    ]


def ranking(found: Results) -> Figure:
    """Differences from vanilla with their intervals, best on top."""
    order = sorted(found.compared, key=lambda r: r.delta)
    top = max(min(3 * float(np.median(np.abs([r.delta for r in order]))), 2.0), 0.05)
    shown = [r for r in order if r.delta <= top]

    def draw(axes: Axes) -> None:
        axes.axvline(0.0, color=FAINT, linewidth=1)
        for i, r in enumerate(shown):
            assert r.against is not None
            low, high = r.against.interval.low, r.against.interval.high
            colour = COLOURS[2] if r.verdict == "–" else COLOURS[3 if r.delta < 0 else 1]
            axes.plot([low, high], [i, i], color=colour, linewidth=1.4)
            axes.plot([r.delta], [i], "o", color=colour, markersize=4)
        axes.set_yticks(range(len(shown)), [r.variant.title for r in shown], fontsize=8)
        axes.invert_yaxis()
        axes.margins(y=0.01)
        axes.set_xlabel("early loss minus vanilla's, 95 % interval")

    picture = figure_svg(
        draw, width=6.4, height=0.8 + 0.17 * len(shown), label="Variants by early loss"
    )
    left_out = [f"{r.variant.title} ({r.delta:+.2f})" for r in order if r.delta > top]
    rest = f" Not in the picture, as they are far worse: {', '.join(left_out)}." if left_out else ""
    caption = "Coloured: told apart from vanilla after Holm's correction." + rest
    return Figure(picture=picture, caption=caption)


def scatter(found: Results, attribute: str, axis: str, label: str) -> Figure:
    """Early loss against a cost, on a log scale if it varies much; extremes are named."""
    base = found.by_name["vanilla"]
    scale = base.seconds if attribute == "seconds" else 1.0
    points = [base, *found.compared]
    x = np.array([getattr(r, attribute) for r in points], dtype=np.float64) / scale
    y = np.array([r.mean for r in points])

    def draw(axes: Axes) -> None:
        axes.scatter(x[1:], y[1:], s=14, color=COLOURS[0])
        axes.scatter(x[:1], y[:1], s=40, color=COLOURS[1], marker="D")
        axes.axhline(y[0], color=FAINT, linewidth=0.8)
        if x.max() > 5 * x.min():
            axes.set_xscale("log")
        for i in _extremes(x, y):
            axes.annotate(points[i].variant.title, (x[i], y[i]), fontsize=7,
                          xytext=(3, 3), textcoords="offset points")  # fmt: skip
        axes.set_xlabel(axis)
        axes.set_ylabel("early loss")

    return Figure(
        picture=figure_svg(draw, height=3.4, label=label),
        caption=f"{label}; the diamond is vanilla.",
    )


def _extremes(x: np.ndarray, y: np.ndarray) -> list[int]:
    """The best, the worst, the cheapest and the dearest."""
    half = NAMED // 4
    orders = [np.argsort(y)[:half], np.argsort(-y)[:half], np.argsort(x)[:half],
              np.argsort(-x)[:half]]  # fmt: skip
    return sorted({0, *(int(i) for order in orders for i in order)})


def beside_paper(found: Results) -> Figure:
    """Differences here against the paper's."""
    points: list[Result] = found.compared
    x = np.array([r.paper_delta for r in points])
    y = np.array([r.delta for r in points])

    def draw(axes: Axes) -> None:
        axes.axhline(0.0, color=FAINT, linewidth=0.8)
        axes.axvline(0.0, color=FAINT, linewidth=0.8)
        axes.scatter(x, y, s=14, color=COLOURS[0])
        for i in _extremes(x, y):
            axes.annotate(points[i].variant.title, (x[i], y[i]), fontsize=7,
                          xytext=(3, 3), textcoords="offset points")  # fmt: skip
        axes.set_xlabel("paper's early loss minus its vanilla's")
        axes.set_ylabel("here")

    label = "Differences from vanilla, here and in the paper"
    return Figure(
        picture=figure_svg(draw, height=3.4, label=label),
        caption=f"{label}; lower left and upper right agree in sign.",
    )
