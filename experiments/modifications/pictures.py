"""Pictures of the modifications: the ranking, and loss against size and time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...core.report.figures import COLOURS, FAINT, figure_svg, log_scale
from ..studies import Figure, Rows
from .results import Result, Results, results_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMED = 12
LETTER, LINE = 0.0135, 0.05
"""Width and height of a small letter, as shares of a picture of the usual size."""


def early_figures(rows: Rows) -> Sequence[Figure]:
    """Ranking, loss against parameters, loss against time, and against the paper."""
    found = results_of(rows)
    if not found.compared or found.prior is None:
        return []
    return [
        ranking(found),
        scatter(found, "parameters", "parameters, thousands", "Early loss against parameters"),
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
    scale = base.seconds if attribute == "seconds" else 1e3
    points = [base, *found.compared]
    x = np.array([getattr(r, attribute) for r in points], dtype=np.float64) / scale
    y = np.array([r.mean for r in points])

    def draw(axes: Axes) -> None:
        axes.scatter(x[1:], y[1:], s=14, color=COLOURS[0])
        axes.scatter(x[:1], y[:1], s=40, color=COLOURS[1], marker="D")
        axes.axhline(y[0], color=FAINT, linewidth=0.8)
        if x.max() > 5 * x.min():
            log_scale(axes, "x")
        name_extremes(axes, x, y, [point.variant.title for point in points])
        axes.set_xlabel(axis)
        axes.set_ylabel("early loss")

    return Figure(
        picture=figure_svg(draw, height=3.4, label=label),
        caption=f"{label}; the diamond is vanilla.",
    )


def _extremes(x: np.ndarray, y: np.ndarray) -> list[int]:
    """The best, the worst, the cheapest and the dearest, those furthest out first."""
    half = NAMED // 4
    orders = [np.argsort(y)[:half], np.argsort(-y)[:half], np.argsort(x)[:half],
              np.argsort(-x)[:half]]  # fmt: skip
    return list(dict.fromkeys(int(i) for row in zip(*orders, strict=True) for i in row))


def name_extremes(axes: Axes, x: np.ndarray, y: np.ndarray, titles: Sequence[str]) -> None:
    """Names beside the points furthest out; one that would lie on another is left out."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    taken: list[tuple[float, float, float]] = []
    for i in _extremes(x, y):
        across, up = (x[i] - left) / (right - left), (y[i] - low) / (high - low)
        width = LETTER * len(titles[i])
        flip = across + width > 1.0  # would leave the picture
        start = across - width if flip else across
        if any(abs(up - v) < LINE and start < t and s < start + width for s, t, v in taken):
            continue
        taken.append((start, start + width, up))
        axes.annotate(titles[i], (x[i], y[i]), fontsize=7, ha="right" if flip else "left",
                      xytext=(-3 if flip else 3, 3), textcoords="offset points")  # fmt: skip


def beside_paper(found: Results) -> Figure:
    """Differences here against the paper's."""
    points: list[Result] = found.compared
    x = np.array([r.paper_delta for r in points])
    y = np.array([r.delta for r in points])

    def draw(axes: Axes) -> None:
        axes.axhline(0.0, color=FAINT, linewidth=0.8)
        axes.axvline(0.0, color=FAINT, linewidth=0.8)
        axes.scatter(x, y, s=14, color=COLOURS[0])
        name_extremes(axes, x, y, [point.variant.title for point in points])
        axes.set_xlabel("paper's early loss minus its vanilla's")
        axes.set_ylabel("here")

    label = "Differences from vanilla, here and in the paper"
    return Figure(
        picture=figure_svg(draw, height=3.4, label=label),
        caption=f"{label}; lower left and upper right agree in sign.",
    )
