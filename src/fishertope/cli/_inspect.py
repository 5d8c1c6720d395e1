"""``fishertope inspect``: what a file or a folder holds, and whether it is sound."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._console import JsonOption, print_json, stdout

if TYPE_CHECKING:
    from rich.console import Console

    from ..core.fisher import FisherStore, PrecisionTree


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            help="A Fisher store, a .safetensors file (a precision, a decomposition), a results "
            "folder, a checkpoint or adapter folder, or a merge plan (.yaml).",
            exists=True,
            show_default=False,
        ),
    ],
    json: JsonOption = False,
) -> None:
    """Show what a store, file, folder or plan holds, after checking what can be checked."""
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

    if path.suffix.lower() in (".yaml", ".yml"):
        return _plan_facts(path)
    if checkpoint_of(path):
        return _checkpoint_facts(path)
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


def checkpoint_of(path: Path) -> bool:
    """Whether a path is a model's checkpoint: weights of another program, or in a folder."""
    from ..core.merging.streaming.adapter import is_adapter

    if path.is_file() and path.suffix == ".safetensors":
        from ..core.storage.header import read_header

        with path.open("rb") as file:
            header = read_header(file, str(path), foreign=True)
        return "fishertope_format" not in header.metadata
    if not path.is_dir() or (path / "manifest.json").is_file():
        return False
    if is_adapter(path):
        return True
    files = sorted(path.glob("*.safetensors"))
    return bool(files) and not files[0].name.startswith("shard-")


def _checkpoint_facts(path: Path) -> dict[str, Any]:
    """From the headers of all its files."""
    from ..core.merging.streaming import Checkpoint
    from ..core.merging.streaming.adapter import CONFIG, is_adapter
    from ..core.storage import read_json

    with Checkpoint(path) as found:
        tensors = found.tensors.values()
        dtypes = sorted({t.dtype for t in tensors})
        facts: dict[str, Any] = {
            "tensors": len(tensors), "parameters": sum(t.size for t in tensors),
            "dtypes": {d: sum(t.dtype == d for t in tensors) for d in dtypes},
            "files": [s.name for s in found.shards], "metadata": dict(found.metadata[0]),
        }  # fmt: skip
        if found.unlisted:
            facts["tensors that the index leaves out"] = found.unlisted
        if is_adapter(path):
            config = read_json(path / CONFIG)
            keys = ("peft_type", "r", "lora_alpha", "use_rslora", "base_model_name_or_path")
            facts["adapter"] = {k: config.get(k) for k in keys} if isinstance(config, dict) else {}
        return {
            "kind": "checkpoint", "format": None, "facts": facts, "bytes": found.bytes,
            "arrays": {t.name: {"dtype": t.dtype, "shape": list(t.shape)} for t in tensors},
        }  # fmt: skip


def _plan_facts(path: Path) -> dict[str, Any]:
    """A plan, as it was understood."""
    from ..core.merging.plans import load_plan, plan_text

    plan = load_plan(path)
    return {"kind": "merge plan", "plan": plan.to_dict(), "contents": plan_text(plan).strip()}


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
        return _precision_facts(PrecisionTree.load(path))
    if kind == DECOMPOSITION:
        return {"contents": repr(Factorization.load(path))}
    return {}


def _precision_facts(tree: PrecisionTree) -> dict[str, Any]:
    """The tree in one line, and what is known of each site; NaN errors are ``None``."""
    errors = {n: None if e != e else e for n, e in tree.trace_errors.items()}
    sites = [
        {"site": name, "structure": p.kind, "shape": list(p.shape), "trace": p.trace(),
         "standard_error": errors[name], "parameters": list(tree.layouts[name].parameters)}
        for name, p in tree.items()
    ]  # fmt: skip
    return {"contents": repr(tree), "sites": sites}


def show(path: Path, found: Mapping[str, Any], console: Console) -> None:
    """Tables of what there is."""
    from ..core.report import Column, Table

    if found.get("kind") == "merge plan":
        console.print(f"{path}: a merge plan, in order", markup=False, highlight=False)
        console.print(found["contents"], markup=False, highlight=False)
        return
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
            else "a checkpoint; its headers are sound"
            if kind == "checkpoint"
            else f"{kind}, complete and unaltered"
        )
        line = f"{path}: {state} ({size:,} bytes)"
        columns = [Column(name=n, left=True) for n in ("array", "dtype", "shape")]
        rows = [
            [name, a["dtype"], " × ".join(map(str, a["shape"])) or "scalar"]
            for name, a in found["arrays"].items()
        ]
        facts = found["facts"]
    if "sites" in found:
        heads = ("site", "structure", "shape", "trace", "± standard error")
        columns = [Column(name=n, left=n in heads[:3]) for n in heads]
        rows = []
        for site in found["sites"]:
            shape = " × ".join(map(str, site["shape"])) or "scalar"
            error = "" if site["standard_error"] is None else f"{site['standard_error']:.2g}"
            rows.append([site["site"], site["structure"], shape, f"{site['trace']:.4g}", error])
        facts = {"examples": facts["n_examples"], **facts["facts"]}
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
