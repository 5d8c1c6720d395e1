"""One set of rows, shown in a terminal, in a notebook and on a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InvalidInputError
from .markup import Html, join, tag

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Cell = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column's heading, and how its cells are written.

    Attributes
    ----------
    name : str
    format : str
        Format specification for numbers (".1%", ".3g", ","); text is written as it is.
    left : bool
        Align to the left (text); numbers are better on the right.
    help : str
        What the column means, for those who do not know: shown under tables on pages.
    """

    name: str
    format: str = ""
    left: bool = False
    help: str = ""

    def write(self, cell: Cell) -> str:
        """A cell as text; ``None`` is a dash.

        Examples
        --------
        >>> Column(name="share", format=".1%").write(0.1234)
        '12.3%'
        """
        if cell is None:
            return "–"
        if isinstance(cell, str):
            return cell
        if isinstance(cell, bool):
            return "yes" if cell else "no"
        return format(cell, self.format)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows under columns.

    Attributes
    ----------
    columns : sequence of Column
    rows : sequence of sequences
        Text, numbers, truth values or ``None``.
    title, note : str

    Raises
    ------
    InvalidInputError
        If a row is not as long as there are columns.

    Examples
    --------
    >>> t = Table(columns=[Column(name="digit"), Column(name="share", format=".0%")],
    ...           rows=[[7, 0.25]])
    >>> print(t.html())
    <div><div class="scroll"><table><thead><tr><th>digit</th><th>share</th></tr></thead>\
<tbody><tr><td>7</td><td>25%</td></tr></tbody></table></div></div>
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise InvalidInputError(
                    f"Row {number} has {len(row)} cells; there are {len(self.columns)} columns. "
                    "Give one cell a column (None for an empty one)."
                )

    def written(self) -> list[list[str]]:
        """All cells as text."""
        return [
            [column.write(cell) for column, cell in zip(self.columns, row, strict=True)]
            for row in self.rows
        ]

    def html(self) -> Html:
        """The table as HTML that scrolls sideways on narrow screens."""
        sides = ["left" if c.left else None for c in self.columns]
        head = tag(
            "tr",
            *(
                tag("th", c.name, class_=s, title=c.help or None)
                for c, s in zip(self.columns, sides, strict=True)
            ),
        )
        body = [
            tag("tr", *(tag("td", cell, class_=s) for cell, s in zip(row, sides, strict=True)))
            for row in self.written()
        ]
        caption = tag("caption", self.title) if self.title else None
        table = tag("table", caption, tag("thead", head), tag("tbody", *body))
        note = tag("p", self.note, class_="note") if self.note else None
        explained = [c for c in self.columns if c.help]
        legend = None
        if explained:
            terms = (tag("li", tag("b", c.name), ": ", c.help) for c in explained)
            legend = tag("ul", *terms, class_="note")
        shown = tag("div", join([tag("div", table, class_="scroll"), note]))
        return shown if legend is None else tag("div", shown, legend, class_="tabled")

    def rich(self) -> RichTable:
        """The table for a terminal."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(
            title=self.title and Text(self.title),
            caption=self.note and Text(self.note),
            box=box.SIMPLE_HEAD,
            title_justify="left",
            caption_justify="left",
            title_style="bold",
        )
        for column in self.columns:
            side: Any = "left" if column.left else "right"
            # Words may wrap; a number that is cut is a wrong number.
            table.add_column(Text(column.name), justify=side, no_wrap=not column.left)
        for row in self.written():
            table.add_row(*(Text(cell) for cell in row))
        return table

    def __rich__(self) -> RichTable:
        return self.rich()

    def _repr_html_(self) -> str:
        return self.html().text
