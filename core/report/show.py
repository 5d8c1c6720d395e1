"""What a result says about itself in one line, in a notebook and in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .markup import Content, Html, tag
from .page import STYLE
from .tables import Cell, Column, Table

if TYPE_CHECKING:
    from rich.console import RenderableType


def one_line(name: str, facts: Mapping[str, Cell]) -> str:
    """``Name(fact=value, ...)`` with numbers to four digits.

    Examples
    --------
    >>> one_line("Fit", {"n": 3, "loss": 0.123456, "status": "converged"})
    "Fit(n=3, loss=0.1235, status='converged')"
    """
    return f"{name}({', '.join(f'{k}={_short(v)}' for k, v in facts.items())})"


def facts_table(title: str, facts: Mapping[str, Cell]) -> Table:
    """Facts, one a row."""
    columns = [Column(name="", left=True), Column(name="", left=True)]
    rows = [[key, v if isinstance(v, str) else _short(v)] for key, v in facts.items()]
    return Table(columns=columns, rows=rows, title=title)


def repr_html(title: str, facts: Mapping[str, Cell], *pieces: Content) -> str:
    """For ``_repr_html_``: the facts as a table, and a small picture or further tables.

    Parameters
    ----------
    title : str
    facts : mapping
    *pieces : Html or text
        ``figures.curves(...)``, ``Table.html()``, ...
    """
    return framed(facts_table(title, facts).html(), *pieces)


def framed(*pieces: Content) -> str:
    """For ``_repr_html_``: pieces with the page's style, which stays inside their frame."""
    return tag("div", Html(f"<style>{scoped_style()}</style>"), *pieces, class_="fishertope").text


def rich_panel(title: str, facts: Mapping[str, Cell], *tables: Table) -> RenderableType:
    """For ``__rich__``: the facts and further tables under one another."""
    from rich.console import Group

    return Group(facts_table(title, facts).rich(), *(t.rich() for t in tables))


def scoped_style() -> str:
    """The page's style, confined to a ``div.fishertope`` so that a notebook keeps its own."""
    return f".fishertope{{all:revert}}@scope(.fishertope){{{STYLE}}}"


def _short(value: Cell) -> str:
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return repr(value)
