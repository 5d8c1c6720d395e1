"""Structures as named arrays and plain values, and back, distrusting every one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from ...backend import to_numpy
from ...errors import InvalidInputError
from ...model import SiteLayout
from ...model.sites import is_shape
from ...types import NumpyArray
from .coordinatewise import Diagonal, Isotropic
from .factored import EKFAC, Gram, Kronecker
from .joint import DenseBlock, LowRankDiagonal
from .protocol import Precision
from .wrappers import Implicit, Masked, Scaled, Sum

MAX_DEPTH = 4
"""Wrappers within wrappers that a file may hold."""

MAX_PARTS = 64

ArrayFacts = tuple[np.dtype[Any], tuple[int, ...]]
"""Dtype and shape of an array in a file."""

# Fields that are arrays, and fields that are plain values, in the order of the constructor.
_FIELDS: dict[type, tuple[str, ...]] = {
    Isotropic: ("scale", "shape"),
    Diagonal: ("values",),
    Gram: ("input_factor", "outputs"),
    Kronecker: ("output_factor", "input_factor", "sharing"),
    EKFAC: ("output_basis", "input_basis", "scales", "sharing"),
    DenseBlock: ("matrix", "shape"),
    LowRankDiagonal: ("values", "rows"),
    Scaled: ("part", "factor"),
    Sum: ("parts",),
    Masked: ("part", "mask"),
}
_KINDS: dict[str, type] = {str(cls.kind): cls for cls in _FIELDS}  # type: ignore[attr-defined]


def described(precision: Precision, name: str, arrays: dict[str, NumpyArray]) -> dict[str, Any]:
    """Plain values of a precision; its arrays are added to ``arrays`` under names of this site.

    Raises
    ------
    InvalidInputError
        For an :class:`Implicit` precision, a structure of another package, or names that collide.
    """
    fields = _FIELDS.get(type(precision))
    if fields is None:
        advice = (
            "It is known by its products alone; use to_dense or diagonal first."
            if isinstance(precision, Implicit)
            else f"Stored are: {', '.join(_KINDS)}."
        )
        raise InvalidInputError(
            f"The {type(precision).__name__} precision of {name!r} cannot be written. {advice}"
        )
    out: dict[str, Any] = {"kind": precision.kind}
    for field in fields:
        value = getattr(precision, field)
        if field == "parts":
            out[field] = [described(p, f"{name}/{k}", arrays) for k, p in enumerate(value)]
        elif field == "part":
            out[field] = described(value, f"{name}/part", arrays)
        elif field == "shape":
            out[field] = list(value)
        elif isinstance(value, int | float | str):
            out[field] = value
        else:
            key = f"{name}/{field}"
            if key in arrays:
                raise InvalidInputError(f"Two arrays would be called {key!r}; rename a site.")
            arrays[key] = to_numpy(value)
            out[field] = key
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """What :func:`described` told of a precision, checked as far as it goes without its arrays.

    Attributes
    ----------
    kind : str
    shape : tuple of int
        Of the displacements.
    arrays : tuple of str
        Names of all arrays, those of parts among them.
    parts : tuple of Outline
        Of a wrapper.
    factor : float
        Of a scaled precision; else 1.
    """

    kind: str
    shape: tuple[int, ...]
    arrays: tuple[str, ...]
    parts: tuple[Outline, ...] = ()
    factor: float = 1.0


def outlined(found: Any, arrays: Mapping[str, ArrayFacts], used: set[str]) -> Outline:
    """The outline of a precision in a file that holds ``arrays``; their names go to ``used``.

    Raises
    ------
    InvalidInputError, LookupError, TypeError
        For anything that :func:`described` did not tell, an array of another type than its
        field's, or one that belongs to something else.
    """

    def facts(field: str, key: Any) -> tuple[str, tuple[int, ...]]:
        if key in used:
            raise InvalidInputError(f"the array {key!r} belongs to two precisions")
        dtype, shape = arrays[key]
        if not np.issubdtype(dtype, np.bool_ if field == "mask" else np.floating):
            raise InvalidInputError(f"{key!r} holds {dtype} numbers")
        used.add(key)
        return key, shape

    return cast(Outline, _walked(found, facts, _outline))


def rebuilt(found: Any, read: Callable[[str], NumpyArray]) -> Precision:
    """The precision that :func:`described` told of and :func:`outlined` found sound.

    Raises
    ------
    InvalidInputError, LookupError, TypeError
        For anything that it did not tell, and for arrays that are no such precision's.
    """
    return cast(Precision, _walked(found, lambda _, key: read(key), lambda cls, v: cls(*v)))


def _walked(
    found: Any, array: Callable[[str, Any], Any], make: Callable[[Any, list[Any]], Any],
    depth: int = 0,
) -> Any:  # fmt: skip
    """``make(class, fields)`` of plain values, with ``array(field, name)`` for every array."""
    cls = _KINDS[found["kind"]]
    if set(found) != {"kind", *_FIELDS[cls]} or depth > MAX_DEPTH:
        raise InvalidInputError(f"a {found['kind']} precision with other fields than its own")
    values: list[Any] = []
    for field in _FIELDS[cls]:
        value = found[field]
        if field == "parts":
            if not isinstance(value, list) or len(value) > MAX_PARTS:
                raise InvalidInputError("the parts of a sum are no short list")
            values.append([_walked(v, array, make, depth + 1) for v in value])
        elif field == "part":
            values.append(_walked(value, array, make, depth + 1))
        elif field == "shape":
            values.append(_extents(value))
        elif field == "outputs":
            values.append(_extents([value])[0])
        elif field in ("scale", "factor"):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InvalidInputError(f"{field} is no number")
            values.append(float(value))
        elif field == "sharing":
            if not isinstance(value, str):
                raise InvalidInputError("sharing is no word")
            values.append(value)
        else:
            values.append(array(field, value))
    return make(cls, values)


def _outline(cls: type[Any], values: list[Any]) -> Outline:
    """From the values of a class's fields, arrays as (name, shape)."""
    given = dict(zip(_FIELDS[cls], values, strict=True))
    parts = tuple(
        given["parts"] if "parts" in given else [given[f] for f in ("part",) if f in given]
    )
    own = tuple(v for v in values if isinstance(v, tuple) and v and isinstance(v[0], str))
    shapes = {f: v[1] for f, v in given.items() if v in own}
    if cls is Isotropic or cls is DenseBlock:
        shape = given["shape"]
    elif cls is Gram:
        shape = (given["outputs"], *shapes["input_factor"][:1])
    elif cls is Kronecker:
        shape = (*shapes["output_factor"][:1], *shapes["input_factor"][:1])
    elif cls is EKFAC:
        shape = (*shapes["output_basis"][:1], *shapes["input_basis"][:1])
    elif parts:
        shape = parts[0].shape
    elif cls is Sum:
        raise InvalidInputError("a sum of no precisions")
    else:
        shape = shapes["values"]
    return Outline(
        kind=cls.kind, shape=shape, parts=parts, factor=given.get("factor", 1.0),
        arrays=(*(name for name, _ in own), *(name for p in parts for name in p.arrays)),
    )  # fmt: skip


def layout_facts(layout: SiteLayout) -> dict[str, Any]:
    """A layout as plain values."""
    return {
        "weight": layout.weight, "weight_shape": list(layout.weight_shape), "bias": layout.bias,
        "outputs": layout.outputs,
    }  # fmt: skip


def layout_of(found: Any) -> SiteLayout:
    """The layout that :func:`layout_facts` told of.

    Raises
    ------
    InvalidInputError, LookupError, TypeError
        For anything that it did not tell.
    """
    if set(found) != {"weight", "weight_shape", "bias", "outputs"}:
        raise InvalidInputError("a layout with other fields than its own")
    for field in ("weight", "bias", "outputs"):
        if not (isinstance(found[field], str) or (field != "weight" and found[field] is None)):
            raise InvalidInputError(f"the layout's {field} is no name")
    return SiteLayout(
        weight=found["weight"], weight_shape=_extents(found["weight_shape"]),
        bias=found["bias"], outputs=found["outputs"],
    )  # fmt: skip


def _extents(value: Any) -> tuple[int, ...]:
    if not is_shape(value):
        raise InvalidInputError("a shape is no list of extents")
    return tuple(value)
