"""Packages whose names are imported when they are first asked for (PEP 562).

A package that reaches into every part of the toolkit would otherwise load all of them for a command
that needs one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any


def lazy_names(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package, for the imports under its ``TYPE_CHECKING``.

    No name may be that of a submodule: importing the submodule would hide it.

    Parameters
    ----------
    package : str
        Its ``__name__``.
    file : str
        Its ``__file__``, the source.

    Examples
    --------
    >>> import fishertope
    >>> "merge" in dir(fishertope)
    True
    """

    @cache
    def where() -> dict[str, str]:
        return declared(Path(file).read_text(encoding="utf-8"))

    def load(name: str) -> Any:
        # Those with underscores belong to Python, which asks for them while it imports.
        if name.startswith("__") or name not in where():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(import_module(where()[name], package), name)
        setattr(import_module(package), name, found)
        return found

    def names() -> list[str]:
        here = vars(import_module(package))
        own = {n for n, x in here.items() if n.startswith("__") or isinstance(x, ModuleType)}
        return sorted(own | set(where()))

    return load, names


def declared(source: str) -> dict[str, str]:
    """Names that are imported under ``if TYPE_CHECKING:``, with the relative module of each."""
    import ast

    blocks = [
        node.body
        for node in ast.parse(source).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    return {
        alias.name: "." * line.level + (line.module or "")
        for block in blocks
        for line in block
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }
