"""Which backends there are: three of ours, and any that an installed package declares.

A package adds one with an entry point in the group ``fishertope.backends`` whose value is a
:class:`~fishertope.core.backend.BackendInfo`::

    [project.entry-points."fishertope.backends"]
    mine = "my_package:INFO"
"""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib import import_module
from importlib.machinery import PathFinder

from ..errors import BackendNotFound, FishertopeError
from .info import Backend, BackendInfo

ENTRY_POINT_GROUP = "fishertope.backends"

_BUILT_IN = (
    "fishertope.backends.reference:INFO",
    "fishertope.backends.numba_cpu:INFO",
    "fishertope.backends.torch_gpu:INFO",
)


def registered_backends() -> dict[str, BackendInfo]:
    """Every known backend by name, installed or not; no backend is imported.

    Raises
    ------
    FishertopeError
        If two backends claim one name, or an entry point is not a ``BackendInfo``.
    """
    found: dict[str, BackendInfo] = {}
    declared = [(target, target) for target in _BUILT_IN]
    declared += [(f"entry point {name!r}", value) for name, value in _plugins(tuple(sys.path))]
    for origin, target in declared:
        module, _, attribute = target.partition(":")
        info = getattr(import_module(module), attribute)
        if not isinstance(info, BackendInfo):
            raise FishertopeError(
                f"{origin} gives a {type(info).__name__}; a fishertope.core.backend.BackendInfo "
                f"is expected. Correct the entry point in the group {ENTRY_POINT_GROUP!r}."
            )
        if info.name in found:
            raise FishertopeError(
                f"{origin} registers the backend name {info.name!r}, which is taken. "
                "Give the plug-in's BackendInfo another name."
            )
        found[info.name] = info
    return found


def available_backends() -> tuple[str, ...]:
    """Names of the backends whose packages are installed, the preferred first.

    Examples
    --------
    >>> "reference" in available_backends()
    True
    """
    infos = [i for i in registered_backends().values() if i.installed]
    return tuple(i.name for i in sorted(infos, key=lambda i: (-i.priority, i.name)))


def get_backend(name: str) -> Backend:
    """Load the backend called ``name``.

    Raises
    ------
    BackendNotFound
        If no backend has that name; the message lists those that exist.
    BackendUnavailable
        If a package that it needs is missing; the message names the pip command.

    Examples
    --------
    >>> get_backend("reference").name
    'reference'
    """
    infos = registered_backends()
    if name not in infos:
        raise BackendNotFound(
            f"There is no backend {name!r}. Registered: {', '.join(sorted(infos))} "
            f'(installed: {", ".join(available_backends())}). Use one of these, or "auto".'
        )
    return _load(infos[name])


@cache
def _load(info: BackendInfo) -> Backend:
    return info.load()


@cache
def _plugins(path: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Declared entry points; read from the metadata on ``path`` (sys.path) once, not every call."""
    if not _may_declare(path):
        return ()
    from importlib.metadata import entry_points

    # A set: the metadata of an editable install can be on the path twice.
    return tuple(sorted({(e.name, e.value) for e in entry_points(group=ENTRY_POINT_GROUP)}))


def _may_declare(path: tuple[str, ...]) -> bool:
    """Whether any metadata can declare a backend: a look at files, ten times faster than parsing.

    It is sure of folders only; for anything else that packages are imported from it says yes.
    """
    if any(hasattr(f, "find_distributions") and f is not PathFinder for f in sys.meta_path):
        return True
    for place in path:
        try:
            entries = list(os.scandir(place or "."))
        except NotADirectoryError:
            return True
        except OSError:
            continue
        for entry in entries:
            name = entry.name.lower()
            if name.endswith(".egg"):
                return True
            if name.endswith((".dist-info", ".egg-info")):
                try:
                    with open(os.path.join(entry.path, "entry_points.txt"), "rb") as file:
                        if ENTRY_POINT_GROUP.encode() in file.read():
                            return True
                except OSError:
                    continue
    return False
