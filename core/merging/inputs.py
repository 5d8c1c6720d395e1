"""Checks of what a merge is given: weights, finiteness, a canonical order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from ..errors import InvalidInputError
from ..types import Array, FloatArray
from .combine import arrays_in
from .sources import Source, flat_float


def check_weights(weights: Sequence[float] | None, n: int, *, signed: bool = False) -> FloatArray:
    """λ (n,) as float64; 1/n each where none were given.

    Raises
    ------
    InvalidInputError
        Another number of weights, NaN, infinite or (unless ``signed``) negative ones, all zero.
    """
    if weights is None:
        return np.full(n, 1.0 / n)
    try:
        w = np.asarray(weights, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidInputError(f"weights={weights!r} were given; {n} numbers are taken.") from None
    if w.shape != (n,):
        raise InvalidInputError(
            f"weights of shape {w.shape} were given; one for each of the {n} sources is taken."
        )
    if not np.isfinite(w).all():
        raise InvalidInputError(f"weights={w.tolist()} were given; finite numbers are taken.")
    if not signed and (w < 0).any():
        raise InvalidInputError(
            f"weights={w.tolist()} were given; numbers >= 0 are taken. To subtract a model use "
            "method='task_arithmetic' with a base."
        )
    if not w.any():
        raise InvalidInputError("All weights are 0; at least one must differ from 0.")
    return w


def count_nonfinite(x: Array) -> int:
    """Entries that are NaN or infinite."""
    xp = array_namespace(x)
    return int(xp.sum(xp.astype(~xp.isfinite(x), xp.int64)))


def finite_sources(
    name: str, arrays: Mapping[int, Array], policy: str
) -> tuple[tuple[int, ...], int]:
    """Sources that take part in a group, and how many were left out.

    Raises
    ------
    InvalidInputError
        Under the policy "error", naming the tensor and the source.
    """
    if policy == "propagate":
        return tuple(arrays), 0
    bad = {i: n for i, x in arrays.items() if (n := count_nonfinite(x))}
    if bad and policy == "error":
        i, n = next(iter(bad.items()))
        raise InvalidInputError(
            f"{name!r} of source {i} has {n} NaN or infinite entries. Mend the checkpoint, or "
            "choose nonfinite='skip' (the source does not take part in this tensor) or "
            "'propagate'."
        )
    return tuple(i for i in arrays if i not in bad), len(bad)


def check_anchor(name: str, x: Array, policy: str) -> None:
    """Refuse an anchor that is not finite, unless it is to be computed with.

    Raises
    ------
    InvalidInputError
        Naming the tensor.
    """
    if policy != "propagate" and (n := count_nonfinite(x)):
        raise InvalidInputError(
            f"{name!r} of the anchor has {n} NaN or infinite entries. Mend the checkpoint, or "
            "choose nonfinite='propagate'."
        )


def digest_order(
    sources: Sequence[Source],
    weights: Any,
    precisions: Sequence[Mapping[str, Any]] | None,
) -> tuple[int, ...]:
    """Sources sorted by weight and by a digest of their tensors and precisions."""
    keys: list[tuple[float, bytes, int]] = []
    for i, source in enumerate(sources):
        h = sha256()
        for name in sorted(source.arrays):
            h.update(name.encode())
            if source.floating(name):
                h.update(np.ascontiguousarray(flat_float(source.arrays[name])).tobytes())
        if precisions is not None:
            for name in sorted(precisions[i]):
                h.update(name.encode())
                for part in arrays_in(precisions[i][name]):
                    h.update(np.ascontiguousarray(part).tobytes())
        keys.append((-float(weights[i]), h.digest(), i))
    return tuple(i for _, _, i in sorted(keys))
