"""Arrays and facts in one safetensors file with checksums; no pickle, no code, no surprises.

The header's metadata hold the format version, the kind of content, the facts as JSON, and SHA-256
of every array and of the header itself, so that one altered byte anywhere is noticed. Any other
safetensors reader can open the files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import CorruptFileError, InvalidInputError
from ..types import NumpyArray
from .atomic import parse_json, replacing
from .facts import JSON, plain
from .header import DTYPES, MAX_AXES, Header, Place, damaged, encode, lay_out, read_header

FORMAT_VERSION = 1

_CODES = {dtype: code for code, dtype in DTYPES.items()}
_NO_DIGEST = "0" * 64
_CHUNK = 1 << 20


def save_arrays(
    path: str | os.PathLike[str],
    arrays: Mapping[str, NumpyArray],
    facts: Mapping[str, JSON] | None = None,
    *,
    kind: str,
) -> None:
    """Write arrays and facts to one file, atomically; the same input gives the same bytes.

    Parameters
    ----------
    path : path
        Written under a temporary name in the same folder, flushed, then renamed.
    arrays : mapping of str to NumPy array
        bool, integers or float16/32/64 of any shape and memory order.
    facts : mapping, optional
        What belongs to the arrays; anything that :func:`~fishertope.core.storage.plain` takes.
    kind : str
        What the file holds ("factorization", "low-rank fishers", ...); :func:`load_arrays` asks
        for it by name.

    Raises
    ------
    InvalidInputError
        For dtypes or facts that cannot be stored.
    WriteFailedError
        If the system refuses the write; what was at ``path`` before stays.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "x.safetensors"
    ...     save_arrays(path, {"x": np.arange(3.0)}, {"unit": "nats"}, kind="example")
    ...     arrays, facts = load_arrays(path, kind="example")
    >>> arrays["x"].tolist(), facts
    ([0.0, 1.0, 2.0], {'unit': 'nats'})
    """
    ready = {name: _storable(name, array) for name, array in arrays.items()}
    places = lay_out({n: (_CODES[a.dtype], a.shape) for n, a in ready.items()})
    metadata = {
        "fishertope_format": str(FORMAT_VERSION),
        "fishertope_kind": kind,
        "facts": json.dumps(plain(facts or {}), allow_nan=False, sort_keys=True),
        "sha256": json.dumps({n: hashlib.sha256(_bytes(ready[n])).hexdigest() for n in places}),
        "header_sha256": _NO_DIGEST,
    }
    digest = hashlib.sha256(encode(places, metadata)).hexdigest()
    header = encode(places, metadata | {"header_sha256": digest})
    with replacing(path) as file:
        file.write(header)
        for name in places:
            file.write(_bytes(ready[name]))


def load_arrays(
    path: str | os.PathLike[str], *, kind: str | None = None, mapped: bool = False
) -> tuple[dict[str, NumpyArray], dict[str, Any]]:
    """Read what :func:`save_arrays` wrote, after checking every byte of it.

    Parameters
    ----------
    path : path
    kind : str, optional
        Refuse a file that holds something else.
    mapped : bool
        Return read-only arrays that stay on the disk until they are used.

    Returns
    -------
    arrays : dict of str to NumPy array
    facts : dict

    Raises
    ------
    CorruptFileError
        If the file is cut short, altered, malformed, or not one of ours. Nothing larger than the
        file itself is allocated on the way to finding out.
    InvalidInputError
        If the file is sound but of another kind.
    FileNotFoundError
        If there is no such file.
    """
    stored = StoredArrays(path, kind=kind)
    with stored.path.open("rb") as file:
        arrays = {key: stored.read(key, file=file, mapped=mapped) for key in stored.places}
    return arrays, dict(stored.facts)


class StoredArrays:
    """A file of :func:`save_arrays`, its header checked, whose arrays are read one by one.

    Parameters
    ----------
    path : path
    kind : str, optional
        Refuse a file that holds something else.

    Raises
    ------
    CorruptFileError, InvalidInputError, FileNotFoundError
        As :func:`load_arrays`, for everything that the header tells.

    Attributes
    ----------
    path : Path
    facts : dict
    places : mapping of str to Place
        Dtype, shape and place of every array.
    """

    def __init__(self, path: str | os.PathLike[str], *, kind: str | None = None) -> None:
        self.path = Path(path)
        self._name = os.fspath(path)
        with self.path.open("rb") as file:
            self._header = read_header(file, self._name)
        self.facts, self._digests = _check_metadata(self._header, self._name, kind)
        self.places: Mapping[str, Place] = self._header.places

    def read(
        self, key: str, *, file: BinaryIO | None = None, mapped: bool = False
    ) -> NumpyArray:  # fmt: skip
        """One array, after checking every byte of it; ``file`` spares opening the file again.

        Raises
        ------
        CorruptFileError
            If its bytes are not those that were written.
        KeyError
            If there is no such array.
        """
        if file is None:
            with self.path.open("rb") as opened:
                return self.read(key, file=opened, mapped=mapped)
        place, name = self.places[key], self._name
        array = _read(file, self._header, place, name, mapped=mapped)
        if hashlib.sha256(_bytes(array)).hexdigest() != self._digests[key]:
            raise damaged(name, f"the bytes of array {key!r} do not match their SHA-256")
        if place.dtype == "BOOL" and np.any(array.view(np.uint8) > 1):
            raise damaged(name, f"array {key!r} holds truth values other than 0 and 1")
        return array


def inspect_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a file holds, from its header alone; no array is read.

    Returns
    -------
    dict
        ``kind``, ``format``, ``facts``, ``arrays`` (dtype and shape by name) and ``bytes``.
        For a sound safetensors file that is not ours ``kind`` is ``None``.

    Raises
    ------
    CorruptFileError
        If the header is malformed or was altered.
    FileNotFoundError
        If there is no such file.
    """
    name = os.fspath(path)
    with Path(path).open("rb") as file:
        header = read_header(file, name)
        size = os.fstat(file.fileno()).st_size
    ours = "fishertope_format" in header.metadata
    facts = _check_metadata(header, name, None)[0] if ours else dict(header.metadata)
    return {
        "kind": header.metadata.get("fishertope_kind"),
        "format": FORMAT_VERSION if ours else None,
        "facts": facts,
        "arrays": {
            key: {"dtype": str(DTYPES[p.dtype]), "shape": list(p.shape)}
            for key, p in header.places.items()
        },
        "bytes": size,
    }


def _check_metadata(
    header: Header, name: str, kind: str | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Facts and the arrays' digests, once the header has proved unaltered."""
    metadata = header.metadata
    if "fishertope_format" not in metadata:
        raise CorruptFileError(
            f"{name} is a safetensors file that fishertope did not write, or its header was "
            "altered; a file written by fishertope is taken. Give the right path, or restore it."
        )
    digest = metadata.get("header_sha256", "")
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise damaged(name, "the header has no valid SHA-256 of itself")
    blank = header.raw.replace(digest.encode(), _NO_DIGEST.encode())
    if hashlib.sha256(blank).hexdigest() != digest:
        raise damaged(name, "the header does not match its SHA-256")
    if metadata["fishertope_format"] != str(FORMAT_VERSION):
        raise CorruptFileError(
            f"{name} has the format version {metadata['fishertope_format']!r}; this fishertope "
            f"reads version {FORMAT_VERSION}. Upgrade fishertope, or write the file again."
        )
    facts = _json_entry(metadata, "facts", name)
    digests = _json_entry(metadata, "sha256", name)
    if not isinstance(facts, dict) or not isinstance(digests, dict):
        raise damaged(name, "its facts or checksums are not JSON objects")
    if set(digests) != set(header.places):
        raise damaged(name, "the checksums are not those of its arrays")
    found = metadata.get("fishertope_kind", "")
    if kind is not None and found != kind:
        raise InvalidInputError(
            f"{name} holds {found!r}; {kind!r} is taken here. Give a file of that kind "
            "(`fishertope inspect FILE` tells what a file holds)."
        )
    return facts, digests


def _json_entry(metadata: Mapping[str, str], key: str, name: str) -> Any:
    # Lone surrogates pass here and are refused as bad UTF-8 there.
    data = metadata.get(key, "").encode("utf-8", "surrogatepass")
    return parse_json(data, f"{name}: its entry {key!r}")


def _read(file: BinaryIO, header: Header, place: Place, name: str, *, mapped: bool) -> NumpyArray:
    dtype, start = DTYPES[place.dtype], header.data_start + place.start
    if mapped and place.stop > place.start:
        # mmap raises ValueError if the file has shrunk since its header was checked.
        try:
            return np.memmap(file, dtype=dtype, mode="r", offset=start, shape=place.shape)
        except ValueError as error:
            raise damaged(name, f"it changed while it was read ({error})") from None
    array = np.empty(place.shape, dtype=dtype)
    file.seek(start)
    view, done = _bytes(array), 0
    while done < len(view):
        got = file.readinto(view[done : done + _CHUNK])  # type: ignore[attr-defined]
        if not got:
            raise damaged(name, "it ended while it was read")
        done += got
    return array


def _storable(name: str, array: Any) -> NumpyArray:
    if not isinstance(array, np.ndarray):
        raise InvalidInputError(
            f"{name!r}: a {type(array).__name__} was given; NumPy arrays are stored. Use "
            "fishertope.to_numpy(x) first."
        )
    if name == "__metadata__":
        raise InvalidInputError("An array cannot be called '__metadata__'; choose another name.")
    dtype = array.dtype.newbyteorder("<")
    if dtype not in _CODES or array.ndim > MAX_AXES:
        raise InvalidInputError(
            f"{name!r}: dtype {array.dtype} with {array.ndim} axes was given; stored are "
            f"{', '.join(str(d) for d in DTYPES.values())} with at most {MAX_AXES} axes."
        )
    # ascontiguousarray would turn a scalar array into one of shape (1,).
    return np.asarray(array, dtype=dtype, order="C")


def _bytes(array: NumpyArray) -> memoryview:
    """The array's bytes without a copy (arrays here are C-contiguous)."""
    return array.reshape(-1).view(np.uint8).data
