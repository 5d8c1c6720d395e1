"""Structures as named arrays and plain values, and back, distrusting every one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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


def rebuilt(found: Any, arrays: Mapping[str, NumpyArray], used: set[str], depth: int = 0) -> Any:
    """The precision that :func:`described` told of; names of its arrays are added to ``used``.

    Raises
    ------
    InvalidInputError, LookupError, TypeError
        For anything that it did not tell.
    """
    cls = _KINDS[found["kind"]]
    if set(found) != {"kind", *_FIELDS[cls]} or depth > MAX_DEPTH:
        raise InvalidInputError(f"a {found['kind']} precision with other fields than its own")
    values: list[Any] = []
    for field in _FIELDS[cls]:
        value = found[field]
        if field == "parts":
            if not isinstance(value, list) or len(value) > MAX_PARTS:
                raise InvalidInputError("the parts of a sum are no short list")
            values.append([rebuilt(v, arrays, used, depth + 1) for v in value])
        elif field == "part":
            values.append(rebuilt(value, arrays, used, depth + 1))
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
            if value in used:
                raise InvalidInputError(f"the array {value!r} belongs to two precisions")
            array = arrays[value]
            wanted = np.bool_ if field == "mask" else np.floating
            if not np.issubdtype(array.dtype, wanted):
                raise InvalidInputError(f"{value!r} holds {array.dtype} numbers")
            used.add(value)
            values.append(array)
    return cls(*values)


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
