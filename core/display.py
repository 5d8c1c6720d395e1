"""How results show themselves: they ask the reports by name, which are a floor above them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = "fishertope.core.report.results"


class Shown:
    """Gives a result its table and picture in notebooks and its table in terminals."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return str(import_module(_HOME).html_of(self))

    def __rich__(self) -> Any:
        return import_module(_HOME).rich_of(self)
