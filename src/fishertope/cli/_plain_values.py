"""Values of a command line that are what they were typed: strings, paths, defaults.

typer (from 0.29) has pydantic convert every value, and imports it for that: 80 ms before a command
begins, for strings that stay strings. Here only what must be converted or checked goes there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_args, get_origin

import typer


def leave_plain(command: Any) -> Any:
    """The same command (of ``typer.main.get_command``) that converts only what must be.

    The attribute it sets is typer's own; a version that does not read it converts everything.
    """
    known = command.get_params

    def get_params(ctx: Any) -> Any:
        found = known(ctx)
        for param in found:
            if getattr(param, "_runtime_param", False) is None:
                param._runtime_param = _Conversion()
        return found

    command.get_params = get_params  # the option for help is only made there
    for inner in getattr(command, "commands", {}).values():
        leave_plain(inner)
    return command


class _Conversion:
    """In the place of typer's ``RuntimeParam`` of one parameter."""

    def __init__(self) -> None:
        self._typers: Any = None

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """The value as its annotation has it."""
        many = param.multiple or param.nargs == -1
        if value is None:
            return () if many else None
        kind = param.type_descriptor.annotation
        info = param.type_descriptor.parameter_info
        if many and get_origin(kind) is list and not isinstance(value, str):
            (kind,) = get_args(kind)
            if all(_is_plain(item, kind, info) for item in value):
                return [kind(item) for item in value]
        elif not many and _is_plain(value, kind, info):
            return kind(value)
        elif not many and value is param.default and type(value) is kind:
            return value
        if self._typers is None:
            from typer._coercion import build_runtime_param

            self._typers = build_runtime_param(param.type_descriptor)
        return self._typers.coerce(value, param=param, ctx=ctx)


_ASKED = ("exists", "file_okay", "dir_okay", "writable", "readable", "resolve_path", "allow_dash",
          "path_type", "parser")  # fmt: skip
_USUAL = {name: getattr(typer.models.OptionInfo(), name) for name in _ASKED}


def _is_plain(value: Any, kind: Any, info: Any) -> bool:
    """Whether nothing about the value is left to convert or to check."""
    if kind not in (str, Path) or type(value) not in (str, kind):
        return False
    if any(getattr(info, name) != usual for name, usual in _USUAL.items()):
        return False
    # typer refuses paths that are there and cannot be read.
    return kind is str or not os.path.exists(value) or os.access(value, os.R_OK)
