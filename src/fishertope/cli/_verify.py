"""``fishertope verify``: whether what is on the disk is what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ._console import JsonOption, QuietOption, print_json, stdout


def verify(
    path: Annotated[
        Path,
        typer.Argument(
            help="A merged checkpoint or another results folder, a store, a checkpoint, or a "
            ".safetensors file.",
            exists=True,
            show_default=False,
        ),
    ],
    finite: Annotated[
        bool, typer.Option("--finite", help="Read all weights and look for NaN and infinities.")
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check every file against the manifest, and every header; exit code 1 if one is wrong.

    Example: fishertope verify merged
    """
    found = verified(path, finite=finite)
    if json:
        print_json(found)
    elif not quiet:
        console = stdout()
        for line in found["checked"]:
            console.print(f"{path}: {line}", markup=False, highlight=False)


def verified(path: Path, *, finite: bool) -> dict[str, Any]:
    """What was checked, in words.

    Raises
    ------
    FishertopeError
        Naming what is missing, altered or not finite.
    """
    from ..core.merging.streaming import Checkpoint
    from ..core.storage import verify_folder
    from ._inspect import checkpoint_of, facts_of

    checked: list[str] = []
    if path.is_dir() and (path / "manifest.json").is_file() and not _is_store(path):
        manifest = verify_folder(path)
        files = manifest["files"]
        hashed = sum(f["sha256"] is not None for f in files.values())
        checked.append(
            f"{len(files)} files of {manifest['command']!r} are complete; {hashed} agree with "
            f"their SHA-256" + ("" if hashed == len(files) else ", of the others the size")
        )
        folders = sorted({(path / n).parent for n in files if n.endswith(".safetensors")})
    elif checkpoint_of(path):
        folders = [path]
    else:
        facts_of(path)
        return {"path": str(path), "checked": ["complete and unaltered"]}
    for folder in folders:
        with Checkpoint(folder) as checkpoint:
            checked.append(_checkpoint_line(checkpoint, finite=finite))
    return {"path": str(path), "checked": checked}


def _checkpoint_line(checkpoint: Any, *, finite: bool) -> str:
    line = f"{len(checkpoint.tensors)} tensors in {len(checkpoint.shards)} files, headers sound"
    if not finite:
        return line
    from ..core.errors import InvalidInputError
    from ..core.merging.streaming.inputs import Input
    from ..core.merging.streaming.views import is_finite

    source = Input(checkpoint)
    floats = [n for n in source.tensors if source.floating(n)]
    bad = [n for n in floats if not is_finite(source, n)]
    if bad:
        raise InvalidInputError(
            f"{checkpoint.path}: {len(bad)} tensors hold NaN or infinite entries: "
            f"{', '.join(bad[:4])}{', ...' if len(bad) > 4 else ''}. Merge again with "
            "nonfinite: error to find their source."
        )
    return f"{line}, {len(floats)} tensors of floats finite"


def _is_store(path: Path) -> bool:
    from ..core.storage.shards import is_store

    return is_store(path)
