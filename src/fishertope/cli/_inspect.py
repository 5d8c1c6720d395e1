"""``fishertope inspect``: what a file or a folder holds, and whether it is sound."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ._console import JsonOption, print_json, stdout


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            help="A .safetensors file, or a results folder.", exists=True, show_default=False
        ),
    ],
    json: JsonOption = False,
) -> None:
    """Show what a file or results folder holds, after checking that it is unaltered."""
    from ..core.storage import inspect_file, load_arrays, verify_folder

    if path.is_dir():
        found: dict[str, Any] = verify_folder(path)
    else:
        found = inspect_file(path)
        if found["kind"] is not None:
            load_arrays(path, mapped=True)  # checks every array's bytes
    if json:
        print_json(found)
        return
    _show(path, found)


def _show(path: Path, found: dict[str, Any]) -> None:
    from json import dumps

    from ..core.report import Column, Table

    console = stdout()
    rows: list[list[str | int]]
    if "files" in found:
        console.print(
            f"{path}: results of {found['command']!r}, complete and unaltered",
            markup=False,
            highlight=False,
        )
        columns = [Column(name="file", left=True), Column(name="bytes", format=",")]
        rows = [[name, facts["bytes"]] for name, facts in found["files"].items()]
        facts = found["settings"]
    else:
        kind, size = found["kind"], found["bytes"]
        state = (
            "a safetensors file of another program; its header is sound"
            if kind is None
            else f"{kind}, complete and unaltered"
        )
        console.print(f"{path}: {state} ({size:,} bytes)", markup=False, highlight=False)
        columns = [Column(name=n, left=True) for n in ("array", "dtype", "shape")]
        rows = [
            [name, a["dtype"], " × ".join(map(str, a["shape"])) or "scalar"]
            for name, a in found["arrays"].items()
        ]
        facts = found["facts"]
    console.print(Table(columns=columns, rows=rows))
    pairs = [
        [key, value if isinstance(value, str) else dumps(value)[:200]]
        for key, value in facts.items()
    ]
    names = [Column(name="fact", left=True), Column(name="value", left=True)]
    console.print(Table(columns=names, rows=pairs))
