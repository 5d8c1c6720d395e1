"""What results say about themselves: plain JSON values, versions, memory."""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeAlias

import numpy as np

from ..errors import InvalidInputError

JSON: TypeAlias = Any
"""None, bool, int, float, str, and lists and string-keyed mappings of these."""

_REPORTED = ("fishertope", "numpy", "scipy", "numba", "torch", "scikit-learn", "cvxpy")
_MODULES = {"scikit-learn": "sklearn", "fishertope": "fishertope"}


def plain(value: Any) -> JSON:
    """``value`` in JSON's types, for files that other programs read.

    NumPy scalars and arrays, tuples, sets, enums, paths and dataclasses become numbers, lists,
    strings and objects. JSON has no infinities: ``nan``, ``inf`` and ``-inf`` become the strings
    ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``.

    Raises
    ------
    InvalidInputError
        For anything else, naming its type.

    Examples
    --------
    >>> plain({"loss": np.float32(0.5), "shape": (2, 3), "worst": float("inf")})
    {'loss': 0.5, 'shape': [2, 3], 'worst': 'Infinity'}
    """
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, np.generic | np.ndarray) and value.dtype.kind in "biufU":
        return plain(value.tolist())
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {_key(k): plain(v) for k, v in value.items()}
    if isinstance(value, Set):
        return sorted((plain(v) for v in value), key=str)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [plain(v) for v in value]
    raise InvalidInputError(
        f"A {type(value).__module__}.{type(value).__qualname__} cannot be written as JSON; give "
        "numbers, strings, lists, mappings, small NumPy arrays or dataclasses of these."
    )


@cache
def _installed(name: str) -> str | None:
    """The version in the metadata of a package; importing and reading them takes 15 ms."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def versions(*, loaded: bool = True) -> dict[str, str]:
    """Versions of Python, of fishertope and of the libraries that are loaded in this process.

    With ``loaded=False`` of those that are installed, whether loaded or not: the same at every
    moment of a process.
    """
    found = {"python": platform.python_version()}
    for name in _REPORTED:
        module = sys.modules.get(_MODULES.get(name, name))
        if not loaded and name != "fishertope":
            said = _installed(name)
        elif module is not None:
            said = getattr(module, "__version__", None) or _installed(name) or "not installed"
        else:
            said = None
        if said is not None:
            found[name] = str(said)
    return found


def peak_memory_mib() -> float | None:
    """Largest resident memory of this process so far, in MiB; ``None`` where it is not told."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _key(key: Any) -> str:
    key = plain(key)
    if not isinstance(key, str | int | float) or isinstance(key, bool):
        raise InvalidInputError(f"{key!r} was given as a key; JSON objects take strings.")
    return str(key)
