"""The commands, gathered; each file of this folder is one group."""

from __future__ import annotations

from typing import Annotated

import typer

from . import (
    _backends,
    _demo,
    _estimate,
    _experiment,
    _fisher,
    _inspect,
    _merge,
    _npeff,
    _relu,
    _search,
    _text,
    _verify,
)

app = typer.Typer(
    name="fishertope",
    help="Fisher geometry and zonotope combinatorics of trained networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from ..core.storage import versions

        typer.echo(f"fishertope {versions()['fishertope']}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Fisher geometry and zonotope combinatorics of trained networks."""


app.command("demo")(_demo.demo)
app.command("backends")(_backends.backends)
app.command("fisher")(_fisher.fisher)
app.command("estimate")(_estimate.estimate)
app.command("inspect")(_inspect.inspect)
app.command("merge")(_merge.merge)
app.command("search")(_search.search)
app.command("verify")(_verify.verify)
app.add_typer(_experiment.group, name="experiment")
app.add_typer(_npeff.group, name="npeff")
app.add_typer(_text.group, name="text")
app.add_typer(_relu.app)
