"""Sites whose rows can be solved apart: P_i = I_o ⊗ A_i, so that D (Σ λ_i A_i + ρI) = R.

Rows are taken in panels whose size follows from the shape of the site alone, and products run on
one thread of BLAS, whose last bits depend on the number of rows and of threads. So a site has the
same bits whether all of it lies in memory or its panels come one by one from a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from ...backend import current_threads
from ...backend.threads import serial_blas
from ...fisher.structures.coordinatewise import Isotropic
from ...fisher.structures.factored import Gram
from ...fisher.structures.protocol import Precision
from ...fisher.structures.wrappers import Scaled, Sum
from ...types import Array, FloatArray
from .dense import Factorised

PANEL = 1 << 18
"""Entries of a panel, where that is at least :data:`LEAST_ROWS` rows."""
LEAST_ROWS = 256


def panel_rows(shape: tuple[int, ...]) -> int:
    """Rows of a panel of a site (o, i): whole registers of BLAS's kernels, at most o."""
    o, i = shape
    return max(1, min(o, max(LEAST_ROWS, PANEL // max(1, i) // 8 * 8)))


def panels(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """``start, stop`` of the rows of every panel."""
    step = panel_rows(shape)
    return [(a, min(shape[0], a + step)) for a in range(0, shape[0], step)]


def by_rows(precisions: Iterable[Precision]) -> bool:
    """Whether a sum of these takes rows apart, and one of them is a Gram precision."""
    kinds = {kind for p in precisions for kind in _kinds(p)}
    return Gram in kinds and kinds <= {Gram, Isotropic}


def _kinds(p: Precision) -> set[type[Any]]:
    if isinstance(p, Scaled):
        return _kinds(p.part)
    if isinstance(p, Sum):
        return {kind for q in p.parts for kind in _kinds(q)}
    return {type(p)}


def apply_to_rows(p: Precision, d: Array) -> Array:
    """P D for some rows D (r, i) of the site."""
    if isinstance(p, Gram):
        return d @ p.input_factor
    if isinstance(p, Isotropic):
        return p.scale * d
    if isinstance(p, Scaled):
        return p.factor * apply_to_rows(p.part, d)
    if isinstance(p, Sum):
        total = apply_to_rows(p.parts[0], d)
        for part in p.parts[1:]:
            total = total + apply_to_rows(part, d)
        return total
    raise TypeError(f"a {type(p).__name__} couples rows")


def right_of_rows(
    weights: Sequence[float], precisions: Sequence[Precision], x: FloatArray, center: FloatArray
) -> FloatArray:
    """Σ λ_i P_i (θ_i − c) for rows θ (n, r, i) and c (r, i)."""
    out: FloatArray | None = None
    for w, p, theta in zip(weights, precisions, x, strict=True):
        # In C order whatever the layout was: BLAS's bits depend on that too.
        part = w * apply_to_rows(p, np.ascontiguousarray(theta - center))
        out = part if out is None else out + part
    assert out is not None
    return out


def solved_rows(ready: Factorised, right: FloatArray) -> FloatArray:
    """D (r, i) with D A = R (r, i)."""
    found: FloatArray = ready.solve(np.ascontiguousarray(right).T)
    return found.T


@contextmanager
def one_thread() -> Iterator[None]:
    """BLAS on one thread, SciPy's too, which must be there to be told so."""
    import scipy.linalg as _  # noqa: F401

    with serial_blas():
        yield


def in_panels(shape: tuple[int, ...], make: Callable[[int, int], FloatArray]) -> FloatArray:
    """The array (o, i) whose rows ``make(start, stop)`` gives panel by panel, on all threads."""
    out = np.empty(shape)

    def one(rows: tuple[int, int]) -> None:
        out[slice(*rows)] = make(*rows)

    todo = panels(shape)
    workers = min(len(todo), current_threads())
    with one_thread():
        if workers < 2:
            for rows in todo:
                one(rows)
        else:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(one, todo))
    return out
