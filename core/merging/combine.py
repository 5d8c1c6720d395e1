"""Σ_k c_k P_k in the simplest structure that holds it exactly."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
from array_api_compat import array_namespace, device, is_array_api_obj

from ..backend import like as like_library
from ..fisher.structures.coordinatewise import Diagonal, Isotropic
from ..fisher.structures.factored import EKFAC, Gram, Kronecker
from ..fisher.structures.joint import DenseBlock, LowRankDiagonal
from ..fisher.structures.protocol import Precision
from ..fisher.structures.wrappers import Implicit, Scaled, Sum
from ..types import Array

Terms = Sequence[tuple[float, Precision]]


def combine(terms: Terms, shape: tuple[int, ...]) -> Precision:
    """Σ_k c_k P_k, for c_k of either sign where all are diagonal.

    ============================================  =================
    terms with c ≠ 0                              result
    ============================================  =================
    none                                          Isotropic(0)
    isotropic                                     isotropic
    isotropic, diagonal                           diagonal
    gram, isotropic                               gram
    one Kronecker or EKFAC alone, or + isotropic  Kronecker, EKFAC
    low-rank + diagonal, diagonal, isotropic      low-rank + diagonal
    dense with any of diagonal, isotropic, dense  dense
    else                                          sum
    ============================================  =================

    A negative sum of diagonals comes back as ``Scaled(…, -1)`` parts in a ``Sum``.
    """
    terms = [(c, p) for c, p in _flattened(terms) if c != 0.0]
    if not terms:
        return Isotropic(0.0, shape)
    kinds = {type(p) for _, p in terms}
    if kinds <= {Isotropic, Diagonal}:
        return _coordinatewise(terms, shape)
    if all(c > 0 for c, _ in terms):
        found = _structured(terms, kinds, shape)
        if found is not None:
            return found
    parts = [p.scaled(c) for c, p in terms]
    return parts[0] if len(parts) == 1 else Sum(parts)


def _flattened(terms: Terms) -> list[tuple[float, Precision]]:
    out: list[tuple[float, Precision]] = []
    for c, p in terms:
        if isinstance(p, Sum):
            out += _flattened([(c, q) for q in p.parts])
        elif isinstance(p, Scaled):
            out += _flattened([(c * p.factor, p.part)])
        else:
            out.append((c, p))
    return out


def diagonal_of(terms: Terms, shape: tuple[int, ...]) -> float | Array:
    """Σ c_k diag P_k of isotropic and diagonal terms: a number while all are isotropic."""
    total: float | Array = 0.0
    for c, p in terms:
        total = total + (c * p.scale if isinstance(p, Isotropic) else c * cast(Diagonal, p).values)
    return total


def _coordinatewise(terms: Terms, shape: tuple[int, ...]) -> Precision:
    total = diagonal_of(terms, shape)
    if isinstance(total, float):
        return Isotropic(total, shape) if total >= 0 else Scaled(Isotropic(-total, shape), -1.0)
    xp = array_namespace(total)
    if not bool(xp.any(total < 0)):
        return Diagonal(total)
    up = Diagonal(xp.where(total > 0, total, 0.0 * total))
    down = Diagonal(xp.where(total < 0, -total, 0.0 * total))
    return Sum([up, Scaled(down, -1.0)])


def _structured(terms: Terms, kinds: set[type[Any]], shape: tuple[int, ...]) -> Precision | None:
    rest = [(c, p) for c, p in terms if not isinstance(p, (Isotropic, Diagonal))]
    simple = [(c, p) for c, p in terms if isinstance(p, (Isotropic, Diagonal))]
    number = sum(c * p.scale for c, p in simple if isinstance(p, Isotropic))
    if kinds <= {Gram, Isotropic}:
        grams = [(c, cast(Gram, p)) for c, p in rest]
        A = _added(c * p.input_factor for c, p in grams)
        return Gram(_plus(A, number), grams[0][1].outputs)
    if len(rest) == 1 and kinds <= {Kronecker, EKFAC, Isotropic}:
        one = rest[0][1].scaled(rest[0][0])
        return one.damped(number) if number else one
    if kinds <= {LowRankDiagonal, Isotropic, Diagonal}:
        lows = [(c, cast(LowRankDiagonal, p)) for c, p in rest]
        xp = array_namespace(lows[0][1].values)
        rows = xp.concat([p.rows * c**0.5 for c, p in lows], axis=0)
        return LowRankDiagonal(
            _added(c * p.values for c, p in lows) + diagonal_of(simple, shape), rows
        )
    if kinds <= {DenseBlock, Isotropic, Diagonal}:
        M = _added(c * cast(DenseBlock, p).matrix for c, p in rest)
        extra: Any = diagonal_of(simple, shape)
        if not isinstance(extra, float):
            M = M + array_namespace(M).eye(int(M.shape[0])) * extra.reshape(-1)[None, :]
            extra = 0.0
        return DenseBlock(_plus(M, extra), shape)
    return None


def _added(arrays: Iterable[Array]) -> Array:
    """The sum in order; of a generator never more than two arrays are there at once."""
    total: Array = None
    for x in arrays:
        total = x if total is None else total + x
    return total


def _plus(matrix: Array, number: float) -> Array:
    if not number:
        return matrix
    xp = array_namespace(matrix)
    eye = xp.eye(int(matrix.shape[0]), dtype=matrix.dtype, device=device(matrix))
    return matrix + number * eye


def converted(precision: Precision, like: Array) -> Precision:
    """The same precision in float64, in the library and on the device of ``like``."""
    if isinstance(precision, (Isotropic, Implicit)):
        return precision
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(cast(Any, precision)):
        value = getattr(precision, field.name)
        if field.name == "part":
            changes[field.name] = converted(value, like)
        elif field.name == "parts":
            changes[field.name] = tuple(converted(p, like) for p in value)
        elif is_array_api_obj(value):
            moved = like_library(value, like)
            xp = array_namespace(moved)
            boolean = str(moved.dtype).endswith("bool")
            changes[field.name] = moved if boolean else xp.astype(moved, xp.float64, copy=False)
    if all(getattr(precision, k) is v for k, v in changes.items()):
        return precision
    return cast(Precision, dataclasses.replace(cast(Any, precision), **changes))


def arrays_in(precision: Any) -> list[np.ndarray[Any, Any]]:
    """Every array that a precision stores, as NumPy, for digests."""
    from ..backend import to_numpy

    if isinstance(precision, Isotropic):
        return [np.array(precision.scale)]
    out: list[np.ndarray[Any, Any]] = []
    for field in dataclasses.fields(precision):
        value = getattr(precision, field.name)
        if field.name == "part":
            out += arrays_in(value)
        elif field.name == "parts":
            out += [a for p in value for a in arrays_in(p)]
        elif is_array_api_obj(value):
            out.append(to_numpy(value))
        elif isinstance(value, (int, float)):
            out.append(np.array(float(value)))
    return out
