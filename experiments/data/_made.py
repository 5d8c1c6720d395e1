"""Folders that are made from fetched data once, and kept in the cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...core.errors import CorruptFileError
from ...core.storage import OutputFolder, verify_folder
from ._sources import cache_folder


def cached(
    name: str, key: str, fill: Callable[[OutputFolder], Mapping[str, Any]], *, command: str
) -> Path:
    """The folder ``models/name`` of the cache, filled if it is not there or was damaged.

    Several processes may ask at once: one fills, the others wait for it.

    Parameters
    ----------
    name : str
    key : str
        Content key; a folder of the same name with another one is an error of ours.
    fill : callable
        Writes files into the output folder and returns the results to be recorded.
    command : str
        Recorded as what made it.
    """
    place = cache_folder() / "models" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    with _turn(place.with_name(f".{name}.lock")):
        if place.exists():
            try:
                if verify_folder(place)["settings"] == {"key": key}:
                    return place
            except CorruptFileError:
                pass  # made again below
        with OutputFolder(
            place, command=command, settings={"key": key}, overwrite=True, resume=False
        ) as out:
            out.finish(fill(out), seed=None, backend="torch")
    return place


@contextmanager
def _turn(lock: Path) -> Iterator[None]:
    """One process at a time; the system lets go of it when the process ends."""
    if os.name != "posix":
        yield
        return
    import fcntl

    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
