"""Figures as inline SVG that takes its colours from the page, in daylight and in the dark.

matplotlib draws; it is imported when a figure is asked for, and its global state is not touched.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidInputError
from ..types import FloatArray
from .markup import Html, tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Stand-ins that no figure uses for data; the finished SVG gets the page's variables instead.
INK, FAINT = "#010203", "#040506"
COLOURS = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05")
_VARIABLES = {
    INK: "var(--ink,#222)",
    FAINT: "var(--faint,#bbb)",
    COLOURS[0]: "var(--c1,#2563eb)",
    COLOURS[1]: "var(--c2,#d97706)",
    COLOURS[2]: "var(--c3,#64748b)",
    COLOURS[3]: "var(--c4,#059669)",
    COLOURS[4]: "var(--c5,#a21caf)",
}


def figure_svg(
    draw: Callable[[Axes], None],
    *,
    width: float = 5.2,
    height: float = 3.0,
    label: str,
) -> Html:
    """Inline SVG of whatever ``draw`` puts on an axes.

    Parameters
    ----------
    draw : callable
        Called with a matplotlib ``Axes``; colours from :data:`COLOURS`, :data:`INK` and
        :data:`FAINT` follow the page's light or dark theme.
    width, height : float
        Inches at 100 % size; the page scales it down where it must.
    label : str
        What the figure shows, for those who cannot see it.

    Returns
    -------
    Html
        The same bytes for the same figure.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": label,
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": FAINT,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": INK,
        "ytick.color": INK,
        "legend.frameon": False,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0.0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0.0)
        draw(axes)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(stream.getvalue(), width, label)


def log_scale(axes: Axes, *which: str) -> None:
    """Make axes ("x", "y") logarithmic; over less than two decades with few plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for name in which:
        (axes.set_xscale if name == "x" else axes.set_yscale)("log")
        axis = axes.xaxis if name == "x" else axes.yaxis
        low, high = sorted(axis.get_view_interval())
        few = high < 100 * low
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=8))
        if few:
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_locator(NullLocator())


def bars(
    values: FloatArray,
    names: Sequence[str],
    *,
    label: str,
    axis: str = "",
    percent: bool = False,
) -> Html:
    """Horizontal bars, the first on top, each with its value.

    Parameters
    ----------
    values : array (k,)
    names : sequence of str
    label : str
        What the figure shows.
    axis : str
        What the values are.
    percent : bool
        Write values as percentages.
    """
    _finite("bars", values)

    def draw(axes: Axes) -> None:
        y = np.arange(len(values))
        axes.barh(y, values, color=COLOURS[0], height=0.7)
        for i, value in enumerate(values):
            text = f" {value:.1%}" if percent else f" {value:.3g}"
            axes.text(max(float(value), 0.0), i, text, va="center", fontsize=9)
        axes.set_yticks(y, names)
        axes.invert_yaxis()
        axes.tick_params(left=False, bottom=False, labelbottom=False)
        axes.spines["bottom"].set_visible(False)
        axes.set_xlabel(axis)
        axes.margins(x=0.12, y=0.02)

    return figure_svg(draw, height=0.6 + 0.22 * len(values), label=label)


def curves(
    series: Mapping[str, tuple[FloatArray, FloatArray]],
    *,
    label: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    bands: Mapping[str, tuple[FloatArray, FloatArray]] | None = None,
    dashed: Sequence[str] = (),
    height: float = 3.2,
) -> Html:
    """Lines y(x) by name, in the order given.

    Parameters
    ----------
    series : mapping of name to (x, y)
        At most five; more cannot be told apart.
    label, x_label, y_label : str
    log_x, log_y : bool
    bands : mapping of name to (low, high), optional
        Shaded range around a line.
    dashed : sequence of str
        Names of lines that are drawn dashed.
    """
    if len(series) > len(COLOURS):
        raise InvalidInputError(f"{len(series)} lines were given; at most {len(COLOURS)} fit.")
    for name, (x, y) in series.items():
        _finite(f"curves, {name!r}", x)
        _finite(f"curves, {name!r}", y)

    def draw(axes: Axes) -> None:
        for colour, (name, (x, y)) in zip(COLOURS, series.items(), strict=False):
            style = "--" if name in dashed else "-"
            marker = "o" if len(x) <= 12 else None
            axes.plot(
                x, y, style, color=colour, label=name, linewidth=1.8, marker=marker, markersize=4
            )
            if bands and name in bands:
                axes.fill_between(x, *bands[name], color=colour, alpha=0.15, linewidth=0)
        if log_x:
            log_scale(axes, "x")
            places = sorted({float(v) for x, _ in series.values() for v in x})
            if len(places) <= 12:
                axes.set_xticks(places, [f"{v:g}" for v in places])
                axes.minorticks_off()
        if log_y:
            log_scale(axes, "y")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(color=FAINT, linewidth=0.5, alpha=0.5)
        if len(series) > 1:
            # Above the axes, where no line can be.
            axes.legend(
                loc="lower left", bbox_to_anchor=(0.0, 1.0), fontsize=9, ncols=2, borderaxespad=0.2
            )

    return figure_svg(draw, height=height, label=label)


def heatmap(
    values: FloatArray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    label: str,
    low: float,
    high: float,
    format: str = ".2f",
    corner: str = "",
) -> Html:
    """A table whose cells are shaded by their value: a heat map whose numbers can be read.

    Parameters
    ----------
    values : array (len(rows), len(columns))
        NaN is an empty cell.
    rows, columns : sequence of str
    label : str
        What it shows.
    low, high : float
        Values of no and of full shade; outside they are clipped.
    format : str
        How values are written.
    corner : str
        Heading of the row names.
    """
    if values.shape != (len(rows), len(columns)):
        raise InvalidInputError(
            f"values of shape {values.shape} were given for {len(rows)} rows and {len(columns)} "
            "columns; these must agree."
        )
    head = tag("tr", tag("th", corner, class_="left"), *(tag("th", c) for c in columns))
    body = []
    for name, line in zip(rows, values, strict=True):
        cells = [tag("th", name, class_="left", scope="row")]
        for value in line:
            if not np.isfinite(value):
                cells.append(tag("td"))
                continue
            shade = float(np.clip((value - low) / (high - low), 0.0, 1.0))
            cells.append(tag("td", f"{value:{format}}", style=f"--s:{shade:.3f}"))
        body.append(tag("tr", *cells))
    table = tag("table", tag("thead", head), tag("tbody", *body), class_="heat", aria_label=label)
    return tag("div", table, class_="scroll")


def _finite(what: str, values: FloatArray) -> None:
    if not np.all(np.isfinite(values)):
        raise InvalidInputError(
            f"{what}: NaN or infinite values were given; finite ones are drawn."
        )


def _inline(svg: str, width: float, label: str) -> Html:
    """Without the XML prologue, with the page's colours, and with ids that nobody else has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.S)
    prefix = f"f{abs(hash_text(label)):x}-"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = svg.replace("url(#", f"url(#{prefix}").replace('href="#', f'href="#{prefix}')
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    svg = re.sub(r' (width|height)="[^"]*pt"', "", svg, count=2)
    picture = Html(svg.replace("<svg", f'<svg style="max-width:{width * 6:.1f}rem"', 1))
    return tag("div", picture, class_="figure", role="img", aria_label=label)


def hash_text(text: str) -> int:
    """A number from a text, the same in every process."""
    from zlib import crc32

    return crc32(text.encode("utf-8", "replace"))
