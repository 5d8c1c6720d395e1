"""Reading HDF5 files of others: hard links, plain numbers, no larger than what is stored.

Needs the ``hdf5`` extra. Values are checked before they are used; the HDF5 library itself parses
the file, so files of strangers are best opened in a process of their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BackendUnavailable, CorruptFileError
from ..types import NumpyArray

# A dataset may unpack to so many times what it takes in the file (compression, repetition) ...
MOST_EXPANSION = 64
# ... or to this many bytes, whatever it takes.
SMALL_BYTES = 1 << 20


class Hdf5File:
    """A file that is open for reading."""

    def __init__(self, file: Any, path: str, h5py: Any) -> None:
        self._file, self.path, self._h5py = file, path, h5py

    def has(self, name: str) -> bool:
        """Whether there is an object of that path, through hard links alone."""
        return self._find(name) is not None

    def is_group(self, name: str) -> bool:
        """Whether that path is a group."""
        return isinstance(self._find(name), self._h5py.Group)

    def array(self, name: str, kind: str, shape: tuple[int | None, ...]) -> NumpyArray:
        """A dataset of whole ("i") or real ("f") numbers; integers of any width become int64.

        Parameters
        ----------
        shape : tuple
            ``None`` where any extent is accepted.

        Raises
        ------
        CorruptFileError
            Missing, another type or shape, stored elsewhere, NaN or infinite, or larger than what
            the file holds of it.
        """
        found = self._find(name)
        if not isinstance(found, self._h5py.Dataset):
            raise self.bad(f"there is no dataset {name!r}")
        if found.is_virtual or found.external:
            raise self.bad(f"{name!r} is stored outside of the file")
        fits = found.ndim == len(shape) and all(
            want in (None, got) for got, want in zip(found.shape, shape, strict=True)
        )
        kinds = "iu" if kind == "i" else "f"
        if found.dtype.kind not in kinds or not fits:
            wanted = ", ".join("any" if s is None else str(s) for s in shape)
            raise self.bad(
                f"{name!r} is {found.dtype} of shape {found.shape}; "
                f"{'whole' if kind == 'i' else 'real'} numbers of shape ({wanted}) are taken"
            )
        if found.nbytes > max(SMALL_BYTES, MOST_EXPANSION * found.id.get_storage_size()):
            raise self.bad(
                f"{name!r} claims {found.nbytes} bytes and stores {found.id.get_storage_size()}"
            )
        try:
            values = np.asarray(found[()])
        except (OSError, RuntimeError, ValueError) as error:
            raise self.bad(f"{name!r} cannot be read ({str(error)[:120]})") from None
        if kind == "i":
            if values.dtype == np.uint64 and values.size and values.max() > np.iinfo(np.int64).max:
                raise self.bad(f"{name!r} holds numbers beyond 2^63")
            return np.ascontiguousarray(values.astype(np.int64))
        if not np.isfinite(values).all():
            raise self.bad(f"{name!r} holds NaN or infinite numbers")
        return np.ascontiguousarray(values.astype(values.dtype.newbyteorder("=")))

    def number(self, name: str, attribute: str, *, real: bool = False) -> Any:
        """An attribute that is one number, or an array of length one.

        Raises
        ------
        CorruptFileError
            Missing, or anything else.
        """
        value = self._attribute(name, attribute)
        if value.size != 1 or value.dtype.kind not in ("iuf" if real else "iu"):
            raise self.bad(f"the attribute {attribute!r} of {name!r} is not one number")
        if real:
            if not np.isfinite(value).all():
                raise self.bad(f"the attribute {attribute!r} of {name!r} is not finite")
            return float(value.reshape(-1)[0])
        return int(value.reshape(-1)[0])

    def numbers(self, name: str, attribute: str) -> list[int]:
        """An attribute that is a short list of whole numbers."""
        value = self._attribute(name, attribute)
        if value.ndim != 1 or value.dtype.kind not in "iu" or value.size > 32:
            raise self.bad(f"the attribute {attribute!r} of {name!r} is no list of whole numbers")
        return [int(v) for v in value]

    def bad(self, why: str) -> CorruptFileError:
        """The error for a file that is not what it should be."""
        return CorruptFileError(
            f"{self.path}: {why}. Give a file as npeff_ref writes it (docs/npeff.md)."
        )

    def _attribute(self, name: str, attribute: str) -> NumpyArray:
        found = self._find(name)
        if found is None or attribute not in found.attrs:
            raise self.bad(f"{name!r} has no attribute {attribute!r}")
        try:
            return np.asarray(found.attrs[attribute])
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            raise self.bad(f"the attribute {attribute!r} cannot be read ({error})") from None

    def _find(self, name: str) -> Any:
        at = self._file
        for part in name.split("/"):
            try:
                if not isinstance(at, self._h5py.Group):
                    return None
                link = at.get(part, getlink=True)
                if not isinstance(link, self._h5py.HardLink):
                    return None
                at = at[part]
            except (KeyError, OSError, RuntimeError):
                return None
        return at


@contextmanager
def open_hdf5(path: str | os.PathLike[str]) -> Iterator[Hdf5File]:
    """Open a file for reading.

    Raises
    ------
    BackendUnavailable
        h5py is not installed.
    CorruptFileError
        The file is no HDF5 file, or a damaged one.
    FileNotFoundError
        There is no such file.
    """
    try:
        import h5py  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError:
        raise BackendUnavailable(
            f"{os.fspath(path)} is an HDF5 file, and h5py is not installed: pip install "
            "'fishertope[hdf5]'."
        ) from None
    if not Path(path).is_file():
        raise FileNotFoundError(f"{os.fspath(path)} is no file.")
    try:
        file = h5py.File(path, "r")
    except (OSError, RuntimeError, ValueError) as error:
        raise CorruptFileError(
            f"{os.fspath(path)} cannot be opened as HDF5 ({str(error)[:160]}). Give a complete "
            "file."
        ) from None
    with file:
        yield Hdf5File(file, os.fspath(path), h5py)
