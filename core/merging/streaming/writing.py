"""Output files that are written in pieces by several threads, hashed in order, and resumed.

A journal keeps 16 bytes for every block: whether it is written, and its counts. A block's record is
set only when its bytes are where a killed process (or, with ``fsync``, a power cut) cannot take
them away.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...storage.atomic import explain_write
from ...types import NumpyArray
from .layout import Shard
from .recipes import Counts

JOURNAL = ".journal"
_RECORD = np.dtype([("done", "<u4"), ("nonfinite", "<u4"), ("empty", "<u4"), ("spare", "<u4")])
_AHEAD = 256 << 20
"""Bytes that may be written before they are flushed to the disk."""
_LITTLE, _SECONDS = 16 << 20, 0.2
"""What a killed process may have to write again, where nothing is flushed: bytes, or time."""
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of bytes of one output file that one block writes."""

    file: int
    offset: int
    bytes: int


class OutputFile:
    """One file of the result, of its final size from the beginning.

    Parameters
    ----------
    path : Path
    shard : Shard
    resume : bool
        Keep what an earlier run wrote.
    hashed : bool
    """

    def __init__(self, path: Path, shard: Shard, *, resume: bool, hashed: bool) -> None:
        self.path, self.shard = path, shard
        with explain_write(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | (0 if resume else os.O_TRUNC)
            self.fd = os.open(path, flags, 0o666)
            os.ftruncate(self.fd, shard.bytes)
            write_at(self.fd, memoryview(shard.header), 0)
        self.digest = hashlib.sha256(shard.header) if hashed else None
        self.hashed = len(shard.header)
        self._lock = threading.Lock()
        self._ready: dict[int, int] = {}

    def write(self, data: NumpyArray, offset: int) -> None:
        """Write the bytes of an array."""
        with explain_write(self.path):
            write_at(self.fd, _bytes(data), offset)

    def announce(self, offset: int, length: int, data: NumpyArray | None = None) -> None:
        """Say that a range is written; hash whatever now follows what is hashed.

        One thread at a time hashes; the others go on with their work. Bytes that were written out
        of order are read back from the system's cache when it is their turn.
        """
        if self.digest is None or not length:
            return
        self._ready[offset] = length
        while self.hashed in self._ready and self._lock.acquire(blocking=False):
            try:
                while (length := self._ready.pop(self.hashed, 0)) > 0:
                    if data is not None and self.hashed == offset:
                        self.digest.update(_bytes(data))
                    else:
                        self._hash_back(self.digest, length)
                    self.hashed += length
            finally:
                self._lock.release()

    def facts(self) -> dict[str, Any]:
        """Bytes and SHA-256 of the finished file."""
        if self.digest is None:
            return {"bytes": self.shard.bytes, "sha256": None}
        if self.hashed != self.shard.bytes:
            raise AssertionError(f"{self.path}: {self.hashed} bytes hashed of {self.shard.bytes}")
        return {"bytes": self.shard.bytes, "sha256": self.digest.hexdigest()}

    def flush(self) -> None:
        """Put the bytes on the disk."""
        with explain_write(self.path):
            getattr(os, "fdatasync", os.fsync)(self.fd)

    def close(self) -> None:
        """Close it."""
        with suppress(OSError):
            os.close(self.fd)

    def _hash_back(self, digest: Any, length: int) -> None:
        at, end = self.hashed, self.hashed + length
        while at < end:
            part = os.pread(self.fd, min(_CHUNK, end - at), at)
            if not part:
                raise OSError(f"{self.path} ended while it was read back")
            digest.update(part)
            at += len(part)


class Journal:
    """Which blocks are done.

    Parameters
    ----------
    path : Path
    blocks : int
    identity : bytes
        32 bytes that tell how the work is cut; a journal of another cutting is not resumed.
    resume : bool
    """

    def __init__(self, path: Path, blocks: int, identity: bytes, *, resume: bool) -> None:
        self.path = path
        size = len(identity) + blocks * _RECORD.itemsize
        self._start = len(identity)
        with explain_write(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            found = os.pread(self._fd, size + 1, 0) if resume else b""
            self.resumed = len(found) == size and found[: self._start] == identity
            if not self.resumed:
                os.ftruncate(self._fd, 0)
                os.ftruncate(self._fd, size)
                write_at(self._fd, memoryview(identity), 0)
                found = identity + bytes(size - self._start)
        self.records = np.frombuffer(found, dtype=_RECORD, offset=self._start).copy()

    def done(self, block: int) -> bool:
        """Whether a block is written."""
        return bool(self.records[block]["done"] == 1)

    def record(self, blocks: Sequence[tuple[int, Counts]]) -> None:
        """Set the records of blocks whose bytes are safe."""
        with explain_write(self.path):
            for number, counts in blocks:
                most = 2**32 - 1
                row = (1, min(counts.nonfinite, most), min(counts.empty, most), 0)
                self.records[number] = row
                place = self._start + number * _RECORD.itemsize
                write_at(self._fd, memoryview(self.records[number].tobytes()), place)

    def counts(self, blocks: Sequence[int]) -> Counts:
        """Of some blocks together."""
        rows = self.records[list(blocks)]
        return Counts(int(rows["nonfinite"].sum()), int(rows["empty"].sum()))

    def close(self, *, remove: bool = False) -> None:
        """Close it, and remove it when the work is finished."""
        with suppress(OSError):
            os.close(self._fd)
        if remove:
            self.path.unlink(missing_ok=True)


class Safekeeping:
    """Sets journal records: every few blocks, with ``fsync`` after the files were flushed."""

    def __init__(self, files: Sequence[OutputFile], journal: Journal, *, fsync: bool) -> None:
        self._files, self._journal, self._fsync = files, journal, fsync
        self._waiting: list[tuple[int, Counts]] = []
        self._bytes, self._since = 0, time.monotonic()
        self._lock = threading.Lock()

    def add(self, block: int, counts: Counts, length: int) -> None:
        """A block was written."""
        with self._lock:
            self._waiting.append((block, counts))
            self._bytes += length
            late = not self._fsync and time.monotonic() - self._since > _SECONDS
            if self._bytes < (_AHEAD if self._fsync else _LITTLE) and not late:
                return
            self._since = time.monotonic()
            ready, self._waiting, self._bytes = self._waiting, [], 0
        self._settle(ready)

    def finish(self) -> None:
        """Everything was written."""
        self._settle(self._waiting)
        self._waiting = []

    def _settle(self, ready: Sequence[tuple[int, Counts]]) -> None:
        if self._fsync:
            for file in self._files:
                file.flush()
        self._journal.record(ready)


def _bytes(data: NumpyArray) -> memoryview:
    if not data.flags.c_contiguous:
        data = np.ascontiguousarray(data)
    return data.reshape(-1).view(np.uint8).data


def write_at(fd: int, data: memoryview, offset: int) -> None:
    """All of ``data`` at ``offset``."""
    while len(data):
        done = os.pwrite(fd, data[: 1 << 30], offset)
        data, offset = data[done:], offset + done


def block_identity(facts: Mapping[str, Any]) -> bytes:
    """32 bytes for how work is cut."""
    import json

    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()
