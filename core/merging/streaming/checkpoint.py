"""Checkpoints on disk: safetensors files, one or many, known by their headers alone.

Nothing of a checkpoint is believed before it is checked, and opening one reads headers only.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CorruptFileError, InvalidInputError
from ...storage.atomic import read_json
from ...storage.header import ITEM_BYTES, Header, damaged, read_header
from ...types import NumpyArray

INDEX_SUFFIX = ".safetensors.index.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """Where a tensor lies.

    Attributes
    ----------
    name : str
    shard : int
        Number of its file.
    dtype : str
        Code of the format ("BF16").
    shape : tuple of int
    offset : int
        Of its first byte in the file.
    """

    name: str
    shard: int
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Entries."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes."""
        return self.size * ITEM_BYTES[self.dtype]


class Checkpoint:
    """Tensors of one checkpoint by name, read by position from any number of threads.

    Parameters
    ----------
    path : path
        A ``.safetensors`` file; or a folder with one, with shards and their index, or with shards
        alone whose names do not repeat.

    Raises
    ------
    InvalidInputError
        No such path, or no safetensors in it.
    CorruptFileError
        Headers that lie, an index that names files outside the folder, missing or repeated tensors.

    Attributes
    ----------
    shards : tuple of Path
    tensors : dict of str to Tensor
        In the order of the files, and inside a file in that of its header.
    metadata : tuple of mappings
        Of each shard.
    index : mapping or None
        The ``metadata`` entry of the index, where there is one.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._opened: dict[int, int] = {}
        self._lock = threading.Lock()
        self.index: Mapping[str, Any] | None = None
        self.index_name: str | None = None
        self.shards, listed = self._find()
        headers = [_header(shard) for shard in self.shards]
        self.metadata = tuple(h.metadata for h in headers)
        self._digests = [hashlib.sha256(h.raw).hexdigest() for h in headers]
        self.tensors: dict[str, Tensor] = {}
        for number, header in enumerate(headers):
            self._add(number, header, listed)
        self._check_listed(listed)
        self.unlisted = sum(len(h.places) for h in headers) - len(self.tensors)

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.bytes for t in self.tensors.values())

    def fingerprint(self) -> list[list[Any]]:
        """Name, size, time of change and header's SHA-256 of every file: cheap to look at."""
        found = []
        for shard, digest in zip(self.shards, self._digests, strict=True):
            facts = shard.stat()
            found.append([shard.name, facts.st_size, facts.st_mtime_ns, digest])
        return found

    def read(self, name: str, start: int, out: NumpyArray) -> None:
        """Fill ``out`` with the bytes of the entries from ``start`` of the flattened tensor.

        Raises
        ------
        CorruptFileError
            The file ends too early: it was changed after it was opened.
        """
        tensor = self.tensors[name]
        view = out.reshape(-1).view(np.uint8).data
        fd, place = self.place(name, start)
        while len(view):
            got = os.preadv(fd, [view[: 1 << 30]], place)
            if not got:
                raise damaged(str(self.shards[tensor.shard]), "it ended while it was read")
            view, place = view[got:], place + got

    def place(self, name: str, start: int) -> tuple[int, int]:
        """The descriptor of a tensor's file, and the byte at which an entry lies."""
        tensor = self.tensors[name]
        place = tensor.offset + start * ITEM_BYTES[tensor.dtype]
        return self._descriptor(tensor.shard), place

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            for fd in self._opened.values():
                os.close(fd)
            self._opened.clear()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _descriptor(self, shard: int) -> int:
        fd = self._opened.get(shard)
        if fd is None:
            with self._lock:
                fd = self._opened.get(shard)
                if fd is None:
                    fd = os.open(self.shards[shard], os.O_RDONLY)
                    if hasattr(os, "posix_fadvise"):
                        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
                    self._opened[shard] = fd
        return fd

    def _find(self) -> tuple[tuple[Path, ...], dict[str, str] | None]:
        """Files, and where an index says that each tensor is."""
        path = self.path
        if path.is_file():
            if path.suffix != ".safetensors":
                raise InvalidInputError(
                    f"{path} was given; a .safetensors file or a checkpoint folder is accepted. "
                    "Pickled checkpoints (.bin, .pt, .ckpt) could run code; save the model with "
                    "model.save_pretrained(folder, safe_serialization=True)."
                )
            return (path,), None
        if not path.is_dir():
            raise InvalidInputError(
                f"{path} does not exist; a .safetensors file or a checkpoint folder is accepted. "
                "(Models are not fetched from the network: download the folder first.)"
            )
        indices = sorted(p for p in path.iterdir() if p.name.endswith(INDEX_SUFFIX))
        if len(indices) > 1:
            raise InvalidInputError(
                f"{path} has {len(indices)} indices ({indices[0].name}, {indices[1].name}, ...); "
                "one is accepted. Give the path of one of the files, or move the others away."
            )
        if indices:
            return self._from_index(indices[0])
        files = tuple(sorted(p for p in path.iterdir() if p.suffix == ".safetensors"))
        if not files:
            pickled = [p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".pth")]
            why = f"; {pickled[0]} is a pickle, which could run code" if pickled else ""
            raise InvalidInputError(
                f"{path} holds no *.safetensors{why}. Save the model with "
                "model.save_pretrained(folder, safe_serialization=True)."
            )
        return files, None

    def _from_index(self, place: Path) -> tuple[tuple[Path, ...], dict[str, str]]:
        found = read_json(place)
        listed = found.get("weight_map") if isinstance(found, dict) else None
        sound = isinstance(listed, dict) and all(isinstance(v, str) for v in listed.values())
        if not sound or not listed:
            raise damaged(str(place), "it has no weight_map from tensors to files")
        about = found.get("metadata", {})
        self.index, self.index_name = about if isinstance(about, dict) else {}, place.name
        names = sorted(set(listed.values()))
        for name in names:
            if not _plain_name(name):
                raise CorruptFileError(
                    f"{place} names the file {name!r}; names of .safetensors files inside the "
                    "folder are accepted. The index was tampered with or damaged; restore it."
                )
            if not (place.parent / name).is_file():
                raise CorruptFileError(
                    f"{place} names the file {name!r}, which is missing. Download it again."
                )
        return tuple(place.parent / n for n in names), dict(listed)

    def _add(self, number: int, header: Header, listed: dict[str, str] | None) -> None:
        shard = self.shards[number]
        for name, place in header.places.items():
            if listed is not None and listed.get(name) != shard.name:
                continue
            if name in self.tensors:
                raise CorruptFileError(
                    f"{self.path} holds the tensor {name!r} twice, in "
                    f"{self.shards[self.tensors[name].shard].name} and in {shard.name}. Give the "
                    "path of the file that is meant, or move the other one away."
                )
            self.tensors[name] = Tensor(
                name=name, shard=number, dtype=place.dtype, shape=place.shape,
                offset=header.data_start + place.start,
            )  # fmt: skip

    def _check_listed(self, listed: dict[str, str] | None) -> None:
        missing = sorted(set(listed or ()) - set(self.tensors))
        if missing:
            raise CorruptFileError(
                f"{self.path}: the index names {len(missing)} tensors that its files lack, the "
                f"first {missing[0]!r} in {(listed or {})[missing[0]]}. Download it again."
            )
        if not self.tensors:
            raise InvalidInputError(f"{self.path} holds no tensor; nothing can be merged.")


def _header(path: Path) -> Header:
    with path.open("rb") as file:
        return read_header(file, str(path), foreign=True)


def _plain_name(name: str) -> bool:
    inside = "/" not in name and "\\" not in name and "\0" not in name
    return inside and name.endswith(".safetensors") and not name.startswith(".")
