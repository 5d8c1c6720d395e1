"""``fishertope inspect``: what a file or a folder holds, and whether it is sound."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._console import JsonOption, print_json, stdout

if TYPE_CHECKING:
    from rich.console import Console

    from ..core.fisher import FisherStore


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            help="A Fisher store, a .safetensors file (a precision, a decomposition), or a results "
            "folder.",
            exists=True,
            show_default=False,
        ),
    ],
    json: JsonOption = False,
) -> None:
    """Show what a store, file or results folder holds, after checking that it is unaltered."""
    found = facts_of(path)
    if json:
        print_json(found)
    else:
        show(path, found, stdout())


def facts_of(path: Path) -> dict[str, Any]:
    """Read and check all of it.

    Raises
    ------
    FishertopeError
        Something is missing, altered, unfinished or not ours.
    """
    from ..core.storage import inspect_file, load_arrays, verify_folder
    from ..core.storage.shards import PLAN, is_store, read_plan, unfinished

    if path.is_dir() and unfinished(path):
        plan = read_plan(path)
        done = sorted(path.glob("shard-*.safetensors"))
        return {
            "kind": plan["kind"], "finished": False, "facts": plan["identity"],
            "shards": [{"file": p.name, "bytes": p.stat().st_size} for p in done],
            "bytes": sum(p.stat().st_size for p in done) + (path / PLAN).stat().st_size,
        }  # fmt: skip
    if path.is_dir() and is_store(path):
        from ..core.fisher import FisherStore

        store = FisherStore.open(path)
        for _ in store.blocks():  # checks every byte
            pass
        return store_facts(store)
    if path.is_dir():
        return verify_folder(path)
    found = inspect_file(path)
    if found["kind"] is not None:
        load_arrays(path, mapped=True)  # checks every array's bytes
    return found | _meaning(path, found["kind"])


def store_facts(store: FisherStore) -> dict[str, Any]:
    """What a finished store holds, from its manifest."""
    manifest = store.manifest
    return {
        "kind": manifest["kind"], "finished": True, "examples": len(store),
        "facts": manifest["facts"], "versions": manifest["versions"],
        "shards": manifest["shards"], "bytes": sum(s["bytes"] for s in manifest["shards"]),
    }  # fmt: skip


def _meaning(path: Path, kind: str | None) -> dict[str, Any]:
    """Whether the contents are what the kind says, in one line."""
    from ..core.factorization import Factorization
    from ..core.factorization.result import KIND as DECOMPOSITION
    from ..core.fisher.precision import KIND as PRECISION, PrecisionTree

    if kind == PRECISION:
        return {"contents": repr(PrecisionTree.load(path))}
    if kind == DECOMPOSITION:
        return {"contents": repr(Factorization.load(path))}
    return {}


def show(path: Path, found: Mapping[str, Any], console: Console) -> None:
    """Tables of what there is."""
    from ..core.report import Column, Table

    columns = [Column(name="file", left=True), Column(name="bytes", format=",")]
    rows: list[list[str | int]]
    if "shards" in found:
        if found["finished"]:
            state = f"{found['kind']}s of {found['examples']:,} examples, complete"
        else:
            state = f"{found['kind']}s, not finished; the command that began it resumes it"
        line = f"{path}: {state} ({found['bytes']:,} bytes)"
        rows = [[s["file"], s["bytes"]] for s in found["shards"]]
        facts = found["facts"]
    elif "files" in found:
        line = f"{path}: results of {found['command']!r}, complete and unaltered"
        rows = [[name, facts["bytes"]] for name, facts in found["files"].items()]
        facts = found["settings"]
    else:
        kind, size = found["kind"], found["bytes"]
        state = (
            "a safetensors file of another program; its header is sound"
            if kind is None
            else f"{kind}, complete and unaltered"
        )
        line = f"{path}: {state} ({size:,} bytes)"
        columns = [Column(name=n, left=True) for n in ("array", "dtype", "shape")]
        rows = [
            [name, a["dtype"], " × ".join(map(str, a["shape"])) or "scalar"]
            for name, a in found["arrays"].items()
        ]
        facts = found["facts"]
    console.print(line, markup=False, highlight=False)
    if "contents" in found:
        console.print(found["contents"], markup=False, highlight=False)
    console.print(Table(columns=columns, rows=_shortened(rows)))
    names = [Column(name="fact", left=True), Column(name="value", left=True)]
    console.print(Table(columns=names, rows=[[k, _brief(v)] for k, v in facts.items()]))


def _shortened(rows: list[list[str | int]], most: int = 40) -> list[list[str | int]]:
    """The first and last rows of a long table."""
    if len(rows) <= most:
        return rows
    gap: list[str | int] = [f"... {len(rows) - most} more ...", *([""] * (len(rows[0]) - 1))]
    return [*rows[: most - 2], gap, *rows[-2:]]


def _brief(value: Any) -> str:
    from json import dumps

    if isinstance(value, list) and len(value) > 8:
        return f"{len(value)} entries, the first {dumps(value[0], ensure_ascii=False)[:120]}"
    return value if isinstance(value, str) else dumps(value, ensure_ascii=False)[:200]
