"""``docs/relu-pictures.md``: the theory of shallow ReLU networks, explained with pictures.

``python -m fishertope.experiments.relu.gallery docs`` writes the page and its SVG files, from five
points in the plane and from the rows of the studies in ``docs/claims/rows``; with ``--html FILE``
also one page that needs no other file.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ...core.report import Html, Page, curves, tag
from ...core.storage import write_text
from ...core.types import FloatArray
from ...theory import greedy_search
from ..studies import Rows
from ..studies.documents import stored
from ..studies.registry import find_study
from .pictures import chambers, data, five_points, greedy_path, zonohedron

PAGE = "relu-pictures.md"
ZERO_LOSS = "Twice the least width always suffices, and a vertex can be written down"
Chapter = tuple[str, str, list[tuple[str, Callable[[Path], Html]]]]
TITLE = "Shallow ReLU networks as zonotopes, in pictures"


def rows_of(docs: Path, name: str) -> Rows:
    """The kept rows of a study."""
    return stored(docs / "claims", find_study(name)).rows


def random_vertices(docs: Path) -> Html:
    """Median loss of random vertices against the width."""
    rows = rows_of(docs, "relu-random")
    series = {}
    for d in rows.distinct("d"):
        own = [rows.where(d=d, width=w) for w in rows.distinct("width")]
        at = {float(o.values("units").mean()): float(o.values("median").mean()) for o in own}
        least = -(-24 // (int(d) + 1))
        widths = sorted(at)
        series[f"d = {d}"] = (
            np.array(widths) / (least + least % 2),
            np.array([at[w] for w in widths]),
        )
    return curves(
        series, label="Loss of random vertices against the width", x_label="units / B",
        y_label="median loss over that of f = 0",
    )  # fmt: skip


def threshold(docs: Path) -> Html:
    """Share of data sets that a search fits against the width."""
    study = find_study("relu-threshold")
    return study.figures(rows_of(docs, study.id))[0].picture


def jump(docs: Path) -> Html:
    """The smallest loss of the six points on both sides of the jump."""
    return curves(
        {
            "signs + −": _by_shift(docs, "loss"),
            "weight decay 1e-2 (objective)": _by_shift(docs, "weight decay"),
        },
        label="The smallest loss near six points",
        x_label="shift −1e-1, −1e-2, −1e-3, 0, 1e-4, 1e-3, 1e-2, 1e-1, in even steps",
        y_label="smallest value",
    )


def _by_shift(docs: Path, name: str) -> tuple[FloatArray, FloatArray]:
    rows = sorted(rows_of(docs, "relu-jump"), key=lambda r: r.settings["shift"])
    return np.arange(len(rows)) - 3.0, np.array([r.result[name] for r in rows])


def growth(docs: Path) -> Html:
    """How large the weights of the optimum become."""
    rows = [r for r in rows_of(docs, "relu-jump") if r.settings["shift"] > 0]
    rows.sort(key=lambda r: float(r.settings["shift"]))
    shifts = np.array([r.settings["shift"] for r in rows])
    return curves(
        {"‖W‖ of the optimum": (shifts, np.array([r.result["norm"] for r in rows]))},
        label="Weights of the optimum near the jump", x_label="shift", y_label="‖W‖",
        log_x=True, log_y=True,
    )  # fmt: skip


def chapters(docs: Path) -> list[Chapter]:
    """Heading, text, and the figures with their file names; without what has not been run."""
    complete = stored(docs / "claims", find_study("relu-threshold")).complete
    return [c for c in _chapters() if complete or c[0] != ZERO_LOSS]


def _chapters() -> list[Chapter]:
    reached = greedy_search(five_points(), n_starts=1, seed=0).loss
    return [
        (
            "Five examples cut the weights of a unit into chambers",
            "A unit (w·x)₊ is on for an example x if w·x > 0. With a bias an example is "
            "(x, 1), and w has three entries. Each example is a plane through the origin of weight "
            "space; the slice w₃ = 1 shows it as a line. Inside a chamber no example changes side: "
            "the same examples are on, the unit is linear in w on all of them, and the squared "
            "loss is convex. The number is the smallest loss with one unit of that pattern; darker "
            "is lower.",
            [("data", lambda _: data()), ("chambers", lambda _: chambers())],
        ),
        (
            "The chambers are the vertices of a zonotope",
            "Add up the examples that are on: Σ (x_i, 1) over the pattern. These points are the "
            "vertices of the zonotope Z = Σ [0, (x_i, 1)], and w lies in the chamber of the vertex "
            "that is farthest in direction w. Crossing one line moves along one edge, which is "
            "that example. A network of m units is a vertex of the m-fold product; its optimum is "
            "the best of finitely many convex programs. N examples in general position have "
            "V = 2 Σ_{k ≤ d} C(N−1, k) patterns: here 22, and each has a vertex below in the "
            "colour of its chamber.",
            [("zonotope", lambda _: zonohedron())],
        ),
        (
            "A greedy search walks along the edges",
            "At the optimum of a vertex the multipliers say which neighbours are better, without "
            "solving their programs; when none is, and no edge leads lower, the network is a local "
            "minimum of the true, non-convex loss. The arrows are one such search, from the start "
            "with the longest way; one step may flip several examples. From a random start the "
            f"search ends at a loss of {reached:.3f}.",
            [("path", lambda _: greedy_path())],
        ),
        (
            "Wide networks have good random vertices",
            "Fewer than B = ⌈N/(d+1)⌉ units cannot fit generic targets. The wider the network, the "
            "better the best weights of a random vertex, until almost every vertex contains zero "
            "loss (24 examples, normal targets; `relu-random`).",
            [("random", random_vertices)],
        ),
        (
            ZERO_LOSS,
            "With 2B units one vertex fits every target, and sorting the examples along a "
            "direction finds it (`select_vertices`). Tight flips alone fit earlier than that "
            "(`relu-threshold`).",
            [("threshold", threshold)],
        ),
        (
            "The smallest loss may jump",
            "Six points in general position, two units with output signs + and −. Move the fifth "
            "point by any small amount, and the smallest loss falls from 3/16 to 5/32, with "
            "weights that grow like the inverse of the move. With weight decay nothing jumps "
            "(`relu-jump`). General position alone is therefore not enough for continuity.",
            [("jump", jump), ("growth", growth)],
        ),
    ]


def standalone(picture: Html) -> str:
    """An SVG file: colours written out, as there is no page to take them from."""
    text = re.sub(r"var\(--\w+,(#\w+)\)", r"\1", str(picture.text))
    text = text[text.index("<svg") : text.rindex("</svg>") + len("</svg>")]
    text = re.sub(
        r'style="max-width:([0-9.]+)rem"',
        lambda found: f'width="{16 * float(found[1]):.0f}" style="background:#fff"',
        text,
        count=1,
    )
    if "xmlns=" not in text.split(">", 1)[0]:
        text = text.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return text + "\n"


def markdown_page(names: Sequence[tuple[str, str, Sequence[str]]]) -> str:
    """The page's text; pictures are files beside it."""
    lines = [
        f"# {TITLE}",
        "",
        "Matena & Raffel 2022 ([arXiv:2210.00176](https://arxiv.org/abs/2210.00176)) read the "
        "training of a shallow ReLU network as a search over the vertices of a zonotope. What the "
        "functions are called is in [relu.md](relu.md), what was measured in "
        "[claims/relu.md](claims/relu.md). Written by "
        "`python -m fishertope.experiments.relu.gallery docs`.",
    ]
    for heading, text, figures in names:
        lines += ["", f"## {heading}", "", text, ""]
        lines += [f"![{heading}](pictures/relu-{name}.svg)" for name in figures]
    return "\n".join(lines) + "\n"


def write(docs: Path, html: Path | None = None) -> Path:
    """Write the page and its pictures into ``docs``; returns the page's place."""
    folder = docs / "pictures"
    folder.mkdir(exist_ok=True)
    page = Page(TITLE, subtitle="fishertope")
    names = []
    for heading, text, figures in chapters(docs):
        pictures = [(name, draw(docs)) for name, draw in figures]
        for name, picture in pictures:
            write_text(folder / f"relu-{name}.svg", standalone(picture))
        page.section(heading, text, *(tag("figure", picture) for _, picture in pictures))
        names.append((heading, text, [name for name, _ in pictures]))
    write_text(docs / PAGE, markdown_page(names))
    if html is not None:
        write_text(html, page.render())
    return docs / PAGE


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("docs", type=Path, help="the folder docs of a checkout")
    parser.add_argument("--html", type=Path, help="also one page without other files")
    given = parser.parse_args()
    print(write(given.docs, given.html))


if __name__ == "__main__":
    main()
