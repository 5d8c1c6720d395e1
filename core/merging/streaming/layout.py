"""Where every tensor of a result will lie, known before a byte is written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from ...errors import InvalidInputError
from ...storage.header import ITEM_BYTES, Place, encode
from .checkpoint import INDEX_SUFFIX, Checkpoint

SINGLE = "model.safetensors"
_NUMBERED = re.compile(r"-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tensor of the result."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its bytes."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One file of the result.

    Attributes
    ----------
    name : str
    header : bytes
    offsets : mapping of str to int
        Of the first byte of each tensor in the file, in their order.
    bytes : int
        Of the whole file.
    """

    name: str
    header: bytes
    offsets: Mapping[str, int]
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """All files of the result.

    Attributes
    ----------
    shards : tuple of Shard
    index_name : str or None
        Of the index, if there is one.
    index : mapping or None
        Its contents.
    """

    shards: tuple[Shard, ...]
    index_name: str | None
    index: Mapping[str, object] | None

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(s.bytes for s in self.shards)


def lay_out(target: Checkpoint, entries: Sequence[Entry], shard_bytes: int | None = None) -> Layout:
    """Files like those of ``target``, or of at most ``shard_bytes`` each.

    A tensor larger than ``shard_bytes`` gets a file of its own.

    Raises
    ------
    InvalidInputError
        No tensor at all, or ``shard_bytes`` below 1.
    """
    if not entries:
        raise InvalidInputError(
            "Every tensor is skipped by the site rules, so nothing would be written. Keep one."
        )
    if shard_bytes is not None and shard_bytes < 1:
        raise InvalidInputError(f"Shards of {shard_bytes} bytes were asked for; give a size > 0.")
    groups = _like(target, entries) if shard_bytes is None else _cut(entries, shard_bytes)
    indexed = len(groups) > 1 or (shard_bytes is None and target.index_name is not None)
    metadata = [_metadata(target, entries_) for _, entries_ in groups]
    shards = tuple(
        _shard(name, part, about) for (name, part), about in zip(groups, metadata, strict=True)
    )
    if not indexed:
        return Layout(shards=shards, index_name=None, index=None)
    kept = dict(target.index or {})
    kept["total_size"] = sum(e.bytes for e in entries)
    where = {e.name: name for name, part in groups for e in part}
    index = {"metadata": kept, "weight_map": dict(sorted(where.items()))}
    name = target.index_name if shard_bytes is None and target.index_name else None
    return Layout(shards=shards, index_name=name or f"model{INDEX_SUFFIX}", index=index)


def _like(target: Checkpoint, entries: Sequence[Entry]) -> list[tuple[str, list[Entry]]]:
    """The files of the target; tensors that it lacks go into its last file."""
    groups: dict[int, list[Entry]] = {}
    last = len(target.shards) - 1
    for entry in entries:
        place = target.tensors.get(entry.name)
        groups.setdefault(last if place is None else place.shard, []).append(entry)
    # Inside a file in the order of the target's bytes, new tensors at the end.
    for part in groups.values():
        part.sort(
            key=lambda e: (
                target.tensors[e.name].offset if e.name in target.tensors else float("inf")
            )
        )
    single = len(target.shards) == 1 and target.index_name is None
    names = {n: SINGLE if single else target.shards[n].name for n in groups}
    return [(names[n], groups[n]) for n in sorted(groups)]


def _cut(entries: Sequence[Entry], most: int) -> list[tuple[str, list[Entry]]]:
    groups: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if groups[-1] and size + entry.bytes > most:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += entry.bytes
    if len(groups) == 1:
        return [(SINGLE, groups[0])]
    count = len(groups)
    return [(f"model-{i + 1:05d}-of-{count:05d}.safetensors", g) for i, g in enumerate(groups)]


def _metadata(target: Checkpoint, entries: Sequence[Entry]) -> dict[str, str]:
    """What the target's file says; readers of PyTorch checkpoints want a format."""
    for entry in entries:
        place = target.tensors.get(entry.name)
        if place is not None:
            return {"format": "pt", **target.metadata[place.shard]}
    return {"format": "pt"}


def _shard(name: str, entries: Sequence[Entry], metadata: Mapping[str, str]) -> Shard:
    places: dict[str, Place] = {}
    end = 0
    for entry in entries:
        stop = end + entry.bytes
        places[entry.name] = Place(dtype=entry.dtype, shape=entry.shape, start=end, stop=stop)
        end = stop
    header = encode(places, metadata)
    offsets = {n: len(header) + p.start for n, p in places.items()}
    return Shard(name=name, header=header, offsets=offsets, bytes=len(header) + end)
