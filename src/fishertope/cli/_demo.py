"""``fishertope demo``: the main job on real data, in about a minute."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._console import (
    BackendOption,
    JsonOption,
    QuietOption,
    ThreadsOption,
    print_json,
    print_page,
    stderr,
    stdout,
)


def demo(
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder of the results; an earlier demo is replaced."),
    ] = Path("demo-results"),
    backend: BackendOption = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Decides every random draw.")] = 0,
    components: Annotated[int, typer.Option(min=1, help="How many components to look for.")] = 20,
    threads: ThreadsOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a small classifier of digits, and show by which strategies it decides."""
    from ..core.backend import thread_limit
    from ..experiments.demo import DemoSettings, run_demo

    settings = DemoSettings(backend=backend, seed=seed, n_components=components)
    with thread_limit(threads):
        summary = run_demo(settings, out=out, console=None if quiet or json else stderr())
    if json:
        print_json(summary.results)
    elif not quiet:
        stdout().print(summary)
        print_page(summary.report)
