"""Numbers as checkpoints store them: from bytes to floats and back, with one rounding.

Bfloat16 has no NumPy dtype; its bits are kept in uint16.
"""

from __future__ import annotations

import numpy as np

from ..errors import InvalidInputError
from ..types import FloatArray, NumpyArray
from .header import DTYPES, ITEM_BYTES

FLOATS = ("F64", "F32", "F16", "BF16")
"""Dtype codes that are merged."""

_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def float_code(name: str) -> str:
    """The code of a dtype by its name in NumPy or torch, or by itself.

    Raises
    ------
    InvalidInputError
        For anything but the four floats.

    Examples
    --------
    >>> float_code("bfloat16"), float_code("F32")
    ('BF16', 'F32')
    """
    code = _NAMES.get(str(name).removeprefix("torch."), str(name))
    if code not in FLOATS:
        raise InvalidInputError(f"The dtype {name!r} was given; {', '.join(_NAMES)} are accepted.")
    return code


def stored_dtype(code: str) -> np.dtype[np.generic]:
    """The NumPy dtype in which entries of a code are kept: uint16 for the bits of bfloat16."""
    if code in DTYPES:
        return np.dtype(DTYPES[code])
    return np.dtype({1: "u1", 2: "<u2", 8: "<u8"}[ITEM_BYTES[code]])


def decode(stored: NumpyArray, code: str, out: FloatArray | None = None) -> FloatArray:
    """Entries of a float code as float64, exactly.

    Examples
    --------
    >>> decode(np.array([0x3FC0], dtype=np.uint16), "BF16")
    array([1.5])
    """
    if code == "BF16":
        stored = (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if out is None:
        return np.asarray(stored.astype(np.float64))
    out[...] = stored
    return out


def encode(values: FloatArray, code: str) -> NumpyArray:
    """Float64 as a float code, rounded once to nearest, ties to even; too large gives infinity.

    Examples
    --------
    >>> hex(encode(np.array([1.5]), "BF16")[0])
    '0x3fc0'
    """
    if code == "BF16":
        return bfloat16_bits(values)
    with np.errstate(over="ignore"):
        return values.astype(DTYPES[code])


def bfloat16_bits(x: FloatArray) -> NumpyArray:
    """Float64 rounded once to bfloat16, as bits.

    Rounding to float32 on the way would round some ties twice; so it is rounded to odd there:
    towards zero, with the last bit set where anything was cut off.
    """
    x = np.asarray(x, dtype=np.float64)
    with np.errstate(over="ignore"):
        near = x.astype(np.float32)
    bits = near.view(np.uint32)
    wide = near.astype(np.float64)
    bits = bits - (np.abs(wide) > np.abs(x)).astype(np.uint32)
    bits |= (wide != x).astype(np.uint32)
    with np.errstate(over="ignore"):
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> 16
    return np.where(np.isnan(x), np.uint32(0x7FC0), rounded).astype(np.uint16)


def finite(stored: NumpyArray, code: str) -> NumpyArray:
    """Where entries of a float code are finite."""
    if code == "BF16":
        return np.asarray((stored & np.uint16(0x7F80)) != np.uint16(0x7F80))
    return np.isfinite(stored)
