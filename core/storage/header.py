"""The safetensors layout: built byte for byte the same each time, and distrusted when read.

A file is: 8 bytes, the header's length N as a little-endian integer; N bytes of JSON that give
each array's dtype, shape and place; the arrays' bytes, one after another without a hole.
Reference: the safetensors format, https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

import numpy as np

from ..errors import CorruptFileError
from .atomic import parse_json

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit; a longer header is refused before it is read."""

MAX_AXES = 32

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("bool"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}

ITEM_BYTES: dict[str, int] = {
    **{code: dtype.itemsize for code, dtype in DTYPES.items()},
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "C64": 8,
}
"""Bytes of an entry of every dtype of the format, those without a NumPy dtype too."""

_ADVICE = "Restore it from a copy or compute it again."


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one array lies: dtype code, shape, and ``start:stop`` in the data part."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A validated header.

    Attributes
    ----------
    places : mapping of name to Place
    metadata : mapping of str to str
    data_start : int
        Position of the first data byte in the file.
    raw : bytes
        The first ``data_start`` bytes of the file.
    """

    places: Mapping[str, Place]
    metadata: Mapping[str, str]
    data_start: int
    raw: bytes


def lay_out(shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, Place]:
    """Places for arrays ``name -> (dtype code, shape)``: wide types first, so all are aligned."""
    places: dict[str, Place] = {}
    start = 0
    for name in sorted(shapes, key=lambda n: (-DTYPES[shapes[n][0]].itemsize, n)):
        code, shape = shapes[name]
        stop = start + prod(shape) * DTYPES[code].itemsize
        places[name] = Place(dtype=code, shape=shape, start=start, stop=stop)
        start = stop
    return places


def encode(places: Mapping[str, Place], metadata: Mapping[str, str]) -> bytes:
    """Length and header, padded with spaces so that the data begin at a multiple of 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    for name, place in places.items():
        entries[name] = {
            "dtype": place.dtype,
            "shape": list(place.shape),
            "data_offsets": [place.start, place.stop],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def read_header(file: BinaryIO, name: str, *, foreign: bool = False) -> Header:
    """Read and check the header; nothing is believed that the file's size does not bear out.

    Parameters
    ----------
    file : binary file, at its beginning
    name : str
        What to call the file in messages.
    foreign : bool
        Take the dtypes of :data:`ITEM_BYTES` that NumPy lacks too: for files that other programs
        wrote, whose bytes are not read as NumPy arrays.

    Raises
    ------
    CorruptFileError
        Header longer than the file; not JSON; duplicate names; unknown dtypes; shapes that do not
        fit their bytes; arrays that overlap, leave holes or run past the end; bytes left over.
    """
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    if len(prefix) < 8:
        raise damaged(name, f"it has {size} bytes, fewer than the 8 of a header's length")
    length = struct.unpack("<Q", prefix)[0]
    if length > min(size - 8, MAX_HEADER_BYTES):
        raise damaged(
            name,
            f"its first 8 bytes promise a header of {length} bytes, but the file has "
            f"{size - 8} more bytes (and a header at most {MAX_HEADER_BYTES})",
        )
    text = file.read(length)
    if len(text) < length:
        raise damaged(name, f"the header ends after {len(text)} of {length} bytes")
    entries = parse_json(text, f"{name}: the header")
    if not isinstance(entries, dict):
        raise damaged(name, "the header is not a JSON object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise damaged(name, "the header's __metadata__ does not map strings to strings")
    known = ITEM_BYTES if foreign else {code: ITEM_BYTES[code] for code in DTYPES}
    places = {key: _place(name, key, entry, known) for key, entry in entries.items()}
    end = 0
    for key, place in sorted(places.items(), key=lambda item: (item[1].start, item[1].stop)):
        if place.start != end:
            what = "overlaps the one before" if place.start < end else "leaves a hole before it"
            raise damaged(name, f"array {key!r} {what} (starts at {place.start}, expected {end})")
        end = place.stop
    if 8 + length + end != size:
        raise damaged(
            name,
            f"it has {size} bytes, but its header describes {8 + length + end}; it was cut short "
            "or something was appended",
        )
    return Header(places=places, metadata=metadata, data_start=8 + length, raw=prefix + text)


def damaged(name: str, what: str) -> CorruptFileError:
    """The error for a defect, naming the file, the defect and the way out."""
    return CorruptFileError(f"{name} is damaged: {what}. {_ADVICE}")


def _place(name: str, key: str, entry: Any, known: Mapping[str, int]) -> Place:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise damaged(name, f"the entry of array {key!r} is not dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in known:
        raise damaged(
            name, f"array {key!r} has the dtype {_short(code)}; known are {', '.join(known)}"
        )
    # NumPy refuses extents whose product overflows even where one of them is zero.
    if (
        not _counts(shape)
        or len(shape) > MAX_AXES
        or prod(max(s, 1) for s in shape) * known[code] >= 2**63
    ):
        raise damaged(name, f"array {key!r} has the shape {_short(shape)}")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise damaged(name, f"array {key!r} has the offsets {_short(offsets)}")
    expected = prod(shape) * known[code]
    if offsets[1] - offsets[0] != expected:
        raise damaged(
            name,
            f"array {key!r} of shape {_short(shape)} and dtype {code} needs {expected} bytes, but "
            f"its offsets hold {offsets[1] - offsets[0]}",
        )
    return Place(dtype=code, shape=tuple(shape), start=offsets[0], stop=offsets[1])


def _counts(values: Any) -> bool:
    # 2**63: the largest extent that an array can have; also keeps products printable.
    return isinstance(values, list) and all(
        isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**63 for v in values
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
