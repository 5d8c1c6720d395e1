"""Feasible patterns of any rows, degenerate ones too, by adding one row after another."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..errors import DegenerateDirection
from ..types import Array, FloatArray, NumpyArray
from .feasibility import decide_scaled
from .pattern import check_generators, equilibrate


def tree_patterns(generators: Array) -> Iterator[NumpyArray]:
    """Every feasible pattern int8 (n,), once, depth first; antipodes follow each other.

    A node is a prefix of signs with a witness. For the next row the sign of x_k·w comes for free;
    only the other sign is put to the oracle, so that there is one oracle call an inner node (Rada &
    Černý 2018). Every refusal is a certificate in integers. Memory O(n d).

    Raises
    ------
    DegenerateDirection
        If a prefix is feasible but too thin for a float64 witness.
    """
    x = check_generators(generators)
    scaled, columns = equilibrate(x)
    n = len(x)
    root = np.ones(n, dtype=np.int8)
    stack: list[tuple[int, NumpyArray, FloatArray]] = [
        (1, root, _witness(x, scaled, columns, root[:1]))
    ]
    while stack:
        k, signs, w = stack.pop()
        if k == n:
            yield signs.copy()
            yield -signs
            continue
        children: list[tuple[int, NumpyArray, FloatArray]] = []
        product = float(x[k] / np.abs(x[k]).max() @ (w / np.abs(w).max()))
        known = 0 if abs(product) < 1e-9 else (1 if product > 0 else -1)
        for sign in (1, -1):
            child = signs.copy()
            child[k] = sign
            if sign == known:
                children.append((k + 1, child, w))
                continue
            answer = decide_scaled(scaled[: k + 1], columns, child[: k + 1], x[: k + 1])
            if answer.feasible:
                if answer.witness is None:
                    raise _too_thin(k)
                children.append((k + 1, child, answer.witness))
        stack.extend(reversed(children))


def _witness(
    x: FloatArray, scaled: FloatArray, columns: NumpyArray, signs: NumpyArray
) -> FloatArray:
    answer = decide_scaled(scaled[: len(signs)], columns, signs, x[: len(signs)])
    if answer.witness is None:
        raise _too_thin(len(signs) - 1)
    return answer.witness


def _too_thin(row: int) -> DegenerateDirection:
    return DegenerateDirection(
        f"At row {row} a cone is feasible, but too thin for a float64 direction. Rescale the "
        "columns of the generators."
    )
