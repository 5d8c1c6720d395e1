"""Where output goes, and options that several commands share."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console


def stdout() -> Console:
    """Results go here."""
    from rich.console import Console

    return Console(file=sys.stdout, soft_wrap=False)


def stderr() -> Console:
    """Messages and progress go here, so that results can be piped."""
    from rich.console import Console

    return Console(file=sys.stderr)


def print_page(page: Path) -> None:
    """Where the page is; the path stays in one piece, however narrow the terminal."""
    line = f"Open {page} in a browser."
    stdout().print(line, markup=False, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """One JSON document on stdout, and nothing else."""
    from ..core.storage import plain

    typer.echo(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def _known_backend(name: str) -> str:
    from ..core.backend import registered_backends

    known = ("auto", *sorted(registered_backends()))
    if name not in known:
        raise typer.BadParameter(f"{name!r} was given; choose one of {', '.join(known)}.")
    return name


BackendOption = Annotated[
    str,
    typer.Option(
        "--backend",
        "-b",
        callback=_known_backend,
        help="auto, reference, numba, torch, or a plug-in's name (`fishertope backends`).",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the results as JSON on stdout, and nothing else.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, help="CPU threads (default: FISHERTOPE_NUM_THREADS, else all granted)."
    ),
]
