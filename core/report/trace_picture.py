"""A trace as a picture: blocks from the bottom up, positions from left to right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .markup import Html, tag

if TYPE_CHECKING:
    from ..factorization import Trace

CELL, ROW, LEFT, FOOT = 46, 26, 132, 62
MOST_LINES = 40
LEAST_LINE = 0.02


def trace_svg(trace: Trace, *, stack: str | None = None) -> Html:
    """Inline SVG of one stack: shares as shaded cells, the largest flows as lines between them.

    Blue strengthens the response, orange weakens it; the colours are the page's.

    Parameters
    ----------
    trace : Trace
    stack : str, optional
        Which one, where there are several; the last by default.
    """
    stacks = trace.flows.stacks
    chosen = stacks[-1] if stack is None else stack
    own = [b for b, s in enumerate(stacks) if s == chosen]
    if not own:
        return tag("p", "Nothing to draw: this model has no blocks.")
    columns = max(len(trace.positions[b]) for b in own)
    width, height = LEFT + CELL * columns + 8, ROW * len(own) + FOOT
    level = {b: i for i, b in enumerate(own)}
    shares = trace.shares
    largest = max(float(np.abs(shares[b]).max(initial=0.0)) for b in own) or 1.0

    def x(t: int) -> float:
        return LEFT + CELL * (t + 0.5)

    def y(b: int) -> float:
        return ROW * (len(own) - 1 - level[b]) + ROW / 2

    pieces: list[Html] = []
    for source, target, s, t, value in _flows(trace, level):
        pieces.append(
            tag(
                "line", x1=f"{x(s):.0f}", y1=f"{y(source):.0f}", x2=f"{x(t):.0f}",
                y2=f"{y(target):.0f}", stroke=_colour(value),
                stroke_width=f"{0.6 + 5 * min(abs(value), 1):.1f}", opacity="0.55",
            )
        )  # fmt: skip
    for b in own:
        pieces.append(
            tag(
                "text", _short(trace.blocks[b]), x=LEFT - 8, y=f"{y(b) + 4:.0f}",
                text_anchor="end", font_size=10.5, fill="var(--soft,#555)",
            )
        )  # fmt: skip
        for t, label in enumerate(trace.positions[b]):
            share = float(shares[b][t])
            shade = 0.06 + 0.9 * abs(share) / largest
            box = tag(
                "rect", tag("title", f"{trace.blocks[b]}, {label}: {share:+.1%}"),
                x=f"{x(t) - CELL / 2 + 3:.0f}", y=f"{y(b) - ROW / 2 + 3:.0f}", width=CELL - 6,
                height=ROW - 6, rx=4, fill=_colour(share), fill_opacity=f"{shade:.2f}",
            )  # fmt: skip
            pieces.append(box)
            if abs(share) >= 0.03:
                pieces.append(
                    tag(
                        "text", f"{share:.0%}", x=f"{x(t):.0f}", y=f"{y(b) + 3.6:.0f}",
                        text_anchor="middle", font_size=10, fill="var(--ink,#222)",
                    )
                )  # fmt: skip
    for t, label in enumerate(trace.positions[own[0]]):
        at = f"translate({x(t):.0f},{ROW * len(own) + 12}) rotate(-38)"
        pieces.append(
            tag(
                "text", label[:14], transform=at, text_anchor="end", font_size=11,
                fill="var(--ink,#222)",
            )
        )  # fmt: skip
    svg = tag(
        "svg", *pieces, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}",
        style=f"max-width:{width}px;min-width:{min(width, 620)}px",
    )  # fmt: skip
    label = f"Where component {trace.component} acts, by block and position"
    return tag("div", svg, class_="figure", role="img", aria_label=label)


def _flows(trace: Trace, level: dict[int, int]) -> list[tuple[int, int, int, int, float]]:
    """The largest flows between positions of the stack, the strongest last so that it is on top."""
    found = []
    for e in trace.flows.edges:
        if e.source not in level or e.target not in level:
            continue
        values = trace.share(e.values)
        if e.kind == "residual":
            for t in np.flatnonzero(np.abs(values) >= LEAST_LINE):
                found.append((e.source, e.target, int(t), int(t), float(values[t])))
            continue
        for s, t in np.argwhere(np.abs(values) >= LEAST_LINE):
            found.append((e.source, e.target, int(s), int(t), float(values[s, t])))
    return sorted(found, key=lambda f: abs(f[-1]))[-MOST_LINES:]


def _colour(value: float) -> str:
    return "var(--c1,#2563eb)" if value >= 0 else "var(--c2,#c2570c)"


def _short(name: str) -> str:
    parts = [p for p in name.split(".") if p not in ("encoder", "decoder", "model", "bert")]
    return ".".join(parts[-3:])[-22:]
