"""Means entry by entry through the kernels of a backend, as streaming takes them too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from ..backend import BackendChoice, Kernel, select_backend
from ..types import Array


def weighted_mean(x: Array, weights: Sequence[float], backend: BackendChoice = "auto") -> Array:
    """Σ w_i x_i for weights that add up to 1, of sources x (n, *s); see ``Kernel.MERGE_LINEAR``."""
    xp = array_namespace(x)
    shape = tuple(x.shape[1:])
    flat = xp.reshape(x, (int(x.shape[0]), -1))
    kernel = select_backend(flat, backend=backend, kernel=Kernel.MERGE_LINEAR).raw(
        Kernel.MERGE_LINEAR
    )
    w, one = _numbers(x, [list(weights)]), _numbers(x, [1.0])
    with np.errstate(invalid="ignore"):
        out = kernel(flat, w, one)[0][0, ...]
    r = int(np.argmax(np.abs(np.asarray(weights))))
    # Where nothing moved the entry keeps its bits, the sign of zero among them.
    return xp.reshape(xp.where(out == flat[r, :], flat[r, :], out), shape)


def precision_mean(
    x: Array, precisions: Array, weights: Sequence[float], backend: BackendChoice = "auto"
) -> tuple[Array, Array]:
    """Σ w_i f_i x_i / Σ w_i f_i and Σ w_i f_i for x, f (n, p); see ``Kernel.MERGE_DIAGONAL``."""
    xp = array_namespace(x)
    n = int(x.shape[0])
    total = xp.zeros_like(x[0, :])
    best, base = xp.full_like(total, -1.0), x[0, :]
    for i, w in enumerate(weights):
        p = float(w) * precisions[i, :]
        base = xp.where(p > best, x[i, :], base)
        best = xp.where(p > best, p, best)
        total = total + p
    kernel = select_backend(x, backend=backend, kernel=Kernel.MERGE_DIAGONAL).raw(
        Kernel.MERGE_DIAGONAL
    )
    w, nothing = _numbers(x, [list(weights)]), [0.0] * n
    out = kernel(x, precisions, w, _numbers(x, [nothing]), _numbers(x, nothing))[0][0, ...]
    return xp.where(out == base, base, out), total


def _numbers(x: Array, values: Any) -> Array:
    xp = array_namespace(x)
    return xp.asarray(values, dtype=xp.float64, device=getattr(x, "device", None))
