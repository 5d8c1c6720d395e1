"""The commands, gathered; each file of this folder is one group."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

from ._plain_values import leave_plain

COMMANDS = ("demo", "backends", "fisher", "estimate", "inspect", "merge", "search", "verify")
"""Functions of that name, each in the module of that name."""
GROUPS = {"experiment": "group", "npeff": "group", "text": "group", "relu": "app"}
"""Modules with a group of commands, and its name there."""


def _show_version(wanted: bool) -> None:
    if wanted:
        from ..core.storage import versions

        typer.echo(f"fishertope {versions()['fishertope']}")
        raise typer.Exit


def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Fisher geometry and zonotope combinatorics of trained networks."""


def app_for(arguments: Sequence[str] | None) -> typer.Typer:
    """The command line, or the part of it that these arguments (``sys.argv``'s) begin with.

    Modules of other commands are then not imported: all of them take longer than a small command.
    """
    given = sys.argv[1:] if arguments is None else arguments
    first = given[0] if given else ""
    wanted = [first] if first in (*COMMANDS, *GROUPS) else [*COMMANDS, *GROUPS]
    made = typer.Typer(
        name="fishertope",
        help="Fisher geometry and zonotope combinatorics of trained networks.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(options)
    for name in wanted:
        module = import_module(f"{__package__}._{name}")
        if name in GROUPS:
            made.add_typer(getattr(module, GROUPS[name]), name=name)
        else:
            made.command(name)(getattr(module, name))
    return made


def command_for(arguments: Sequence[str] | None) -> Any:
    """:func:`app_for`, ready to be called with the arguments."""
    return leave_plain(typer.main.get_command(app_for(arguments)))


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return app_for(())
