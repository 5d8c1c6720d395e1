"""Fishers on disk: written shard by shard, resumable, read without loading everything."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj

from ..backend import to_numpy
from ..errors import CorruptFileError, InvalidInputError
from ..model.sites import Site, is_shape, sites_of
from ..storage.shards import MANIFEST, ShardWriter, check_count, read_manifest, read_shards
from ..types import NumpyArray
from .per_example import DiagonalFishers, LowRankFishers, is_sparse, sparse_parts
from .ranks import PATIENCE_SECONDS, Ranks, await_ranks, forget_ranks, heartbeat

Fishers = LowRankFishers | DiagonalFishers
Piece = tuple[int, int, Any]
"""First example, end, and the batch in between."""
LOW_RANK, DIAGONAL = "low-rank fishers shard", "diagonal fishers shard"
SHARD_EXAMPLES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class FisherStore:
    """A finished store of per-example Fishers.

    Attributes
    ----------
    path : Path
    manifest : mapping
        Label rule, seed, sites, model hash, versions and the SHA-256 of every shard.

    Examples
    --------
    >>> import tempfile
    >>> fishers = LowRankFishers.from_rows(np.eye(6).reshape(6, 1, 6))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = save_fishers(Path(folder) / "store", fishers, shard_examples=4)
    ...     print(store, [len(block) for block in store.blocks()])
    FisherStore(n=6, shards=2, low-rank fishers shard) [4, 2]
    """

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> FisherStore:
        """Open a finished store; shards are checked when they are read.

        Raises
        ------
        ForeignFolderError, CorruptFileError
            Not a store, unfinished, or a damaged manifest.
        """
        manifest = read_manifest(Path(path))
        if manifest["kind"] not in (LOW_RANK, DIAGONAL):
            raise CorruptFileError(f"{path} holds {manifest['kind']!r}, which are no Fishers.")
        _sites(manifest, path)
        n = manifest["facts"].get("n")
        # Bounded before anything asks for the length: Python's own len() fails beyond 2^63.
        if not isinstance(n, int) or isinstance(n, bool) or not 0 <= n < 2**62:
            raise CorruptFileError(f"{path}: the manifest does not say how many examples it has.")
        return cls(path=Path(path), manifest=manifest)

    def __len__(self) -> int:
        return int(self.manifest["facts"]["n"])

    def __repr__(self) -> str:
        shards = len(self.manifest["shards"])
        return f"FisherStore(n={len(self)}, shards={shards}, {self.manifest['kind']})"

    @property
    def sites(self) -> tuple[Site, ...]:
        """The parameters behind the columns."""
        return _sites(self.manifest, self.path)

    def blocks(self) -> Iterator[Fishers]:
        """The Fishers of one shard after another, memory-mapped.

        Raises
        ------
        CorruptFileError
            Naming the shard that is missing, truncated or altered.
        """
        seen = 0
        first: tuple[int, bool] | None = None
        for arrays, facts in read_shards(self.path, self.manifest):
            block = _from_arrays(arrays, self.manifest["kind"], self.sites, facts, self.path)
            form = (block.n_columns, "width" in arrays)
            first = form if first is None else first
            if form != first:
                raise CorruptFileError(
                    f"{self.path} holds a shard of {form[0]} columns after one of {first[0]}, or "
                    "sparse ones beside dense ones. Compute the store again."
                )
            seen += len(block)
            yield block
        if seen != len(self):
            raise CorruptFileError(
                f"{self.path} holds {seen} examples, but its manifest says {len(self)}. Compute "
                "the store again."
            )

    def load(self) -> Fishers:
        """All Fishers in memory."""
        blocks = list(self.blocks())
        if not blocks:
            raise CorruptFileError(f"{self.path} holds no example. Compute the store again.")
        return concatenated(blocks, self.manifest["facts"])


def save_fishers(
    path: str | os.PathLike[str], fishers: Fishers, *, shard_examples: int = SHARD_EXAMPLES
) -> FisherStore:
    """Write Fishers that are in memory as a store.

    Raises
    ------
    ForeignFolderError, ResultsExistError, WriteFailedError
        See :class:`~fishertope.core.storage.shards.ShardWriter`.
    """
    size = check_count("shard_examples", shard_examples)
    digest = hashlib.sha256()
    arrays, kind = _to_arrays(fishers)
    for name in sorted(arrays):
        digest.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    identity = {"content": digest.hexdigest(), "shard_examples": size, **_site_facts(fishers.sites)}
    writer = ShardWriter(Path(path), identity, kind=kind)
    n = len(fishers)
    count = -(-n // size)
    for number in range(count):
        examples = np.arange(number * size, min(n, (number + 1) * size))
        _write(writer, number, _selected(fishers, examples))
    writer.finish(count, {**fishers.facts, "n": n})
    return FisherStore.open(path)


@dataclass(slots=True, kw_only=True)
class StoreRun:
    """Fills a store with the Fishers of shards of examples, skipping those that are there.

    Attributes
    ----------
    path : path
    identity : mapping
        Everything that the numbers depend on.
    kind : str
        "low_rank" or "diagonal".
    shard_examples : int
        Examples in a shard.
    ranks : Ranks
        This process computes the shards ``rank``, ``rank + world``, ...; whichever process finds
        all of them there writes the manifest.
    patience : float
        Seconds without a sign of life after which another process counts as lost.
    """

    path: str | os.PathLike[str]
    identity: Mapping[str, Any]
    kind: str
    shard_examples: int = SHARD_EXAMPLES
    ranks: Ranks = field(default_factory=Ranks)
    patience: float = PATIENCE_SECONDS

    def fill(
        self,
        pieces: Iterable[Piece],
        compute: Callable[[Iterator[Piece]], Iterable[tuple[int, Any]]],
        join: Callable[[list[Any]], Fishers],
    ) -> FisherStore:
        """Go through (start, stop, batch) pieces that never cross a shard's bound.

        ``compute`` turns the pieces of this process into (stop, part), in their order. Returns
        when the store is finished, by this process or another one.

        Raises
        ------
        RankLostError
            Another process owes shards and shows no sign of life; the same call resumes.
        """
        kind = LOW_RANK if self.kind == "low_rank" else DIAGONAL
        identity = {**self.identity, "shard_examples": self.shard_examples}
        folder, size = Path(self.path), self.shard_examples
        writer = ShardWriter(folder, identity, kind=kind, alone=self.ranks.world == 1)
        n = 0

        def own() -> Iterator[Piece]:
            nonlocal n
            for start, stop, batch in pieces:
                n = stop
                number = start // size
                if self.ranks.takes(number) and not writer.has(number):
                    yield start, stop, batch

        with heartbeat(folder, self.ranks):
            parts: list[Any] = []
            last = 0
            for last, part in compute(own()):
                parts.append(part)
                if last % size == 0:
                    _write(writer, last // size - 1, join(parts))
                    parts = []
            if parts:
                _write(writer, last // size, join(parts))
            if n == 0:
                raise InvalidInputError("The data hold no example; give at least one.")
            count = -(-n // size)
            if writer.missing(count):
                manifest = folder / MANIFEST
                if await_ranks(
                    folder, self.ranks, lambda: writer.missing(count), manifest.is_file,
                    patience=self.patience,
                ):  # fmt: skip
                    return FisherStore.open(folder)
            writer.finish(count, {**self.identity, "n": n})
            forget_ranks(folder, self.ranks.world)
        return FisherStore.open(folder)


def shard_pieces(
    batches: Iterable[Any],
    shard_examples: int,
    cut: Callable[[Any, int, int], Any],
    length: Callable[[Any], int],
) -> Iterator[Piece]:
    """Batches cut where a shard ends: (first example, end, batch)."""
    start = 0
    for batch in batches:
        size, used = length(batch), 0
        while used < size:
            room = shard_examples - start % shard_examples
            stop = min(size, used + room)
            yield start, start + stop - used, cut(batch, used, stop)
            start += stop - used
            used = stop


def data_digest(data: Any) -> str:
    """SHA-256 of arrays, mappings of arrays and pairs of these; "" for data that only stream.

    An iterable may bring its own as the attribute ``data_sha256``.
    """
    own = getattr(data, "data_sha256", None)
    if isinstance(own, str):
        return own
    digest = hashlib.sha256()

    def add(x: Any) -> bool:
        if isinstance(x, Mapping):
            digest.update(repr(sorted(map(str, x))).encode())
            return all(add(x[k]) for k in sorted(x, key=str))
        if isinstance(x, tuple):
            return all(add(v) for v in x)
        if not is_array_api_obj(x):
            return False
        array = np.ascontiguousarray(to_numpy(x))
        digest.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
        return True

    return digest.hexdigest() if add(data) else ""


def concatenated(blocks: list[Fishers], facts: Mapping[str, Any]) -> Fishers:
    """Fishers of one shard after another as one object."""
    first = blocks[0]
    if isinstance(first, LowRankFishers):
        rows = [b for b in blocks if isinstance(b, LowRankFishers)]
        counts = np.concatenate([b.ranks for b in rows])
        return LowRankFishers(
            rows=np.concatenate([b.rows for b in rows]),
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            norms=np.concatenate([b.norms for b in rows]),
            sites=first.sites,
            facts=facts,
        )
    values = [b.values for b in blocks if isinstance(b, DiagonalFishers)]
    if is_sparse(values[0]):
        from scipy.sparse import vstack

        return DiagonalFishers(values=vstack(values, "csr"), sites=first.sites, facts=facts)
    return DiagonalFishers(values=np.concatenate(values), sites=first.sites, facts=facts)


def _selected(fishers: Fishers, examples: NumpyArray) -> Fishers:
    if isinstance(fishers, LowRankFishers):
        return fishers.select(examples)
    values = fishers.values[examples]
    return DiagonalFishers(values=values, sites=fishers.sites, facts=fishers.facts)


def _write(writer: ShardWriter, number: int, fishers: Fishers) -> None:
    arrays, _ = _to_arrays(fishers)
    facts = {**_site_facts(fishers.sites), **fishers.facts, "shard": number}
    writer.write(number, arrays, facts)


def _to_arrays(fishers: Fishers) -> tuple[dict[str, NumpyArray], str]:
    if isinstance(fishers, LowRankFishers):
        rows = to_numpy(fishers.rows)
        return {"rows": rows, "offsets": fishers.offsets, "norms": fishers.norms}, LOW_RANK
    if is_sparse(fishers.values):
        entries, columns, offsets = sparse_parts(fishers.values)
        width = np.array([fishers.values.shape[1]], dtype=np.int64)
        parts = {"entries": entries, "columns": columns, "offsets": offsets, "width": width}
        return parts, DIAGONAL
    return {"values": to_numpy(fishers.values)}, DIAGONAL


def _from_arrays(
    arrays: Mapping[str, NumpyArray], kind: str, sites: tuple[Site, ...], facts: Any, path: Path
) -> Fishers:
    """Fishers of one shard, with every offset and index checked before it is used."""
    names = set(arrays)
    try:
        if kind == LOW_RANK and names == {"rows", "offsets", "norms"}:
            _need(arrays["offsets"], "i8", 1)
            _need(arrays["norms"], "f8", 1)
            _need(arrays["rows"], "f", 2)
            if not np.isfinite(arrays["rows"]).all():
                raise InvalidInputError("rows are not finite")
            return LowRankFishers(sites=sites, facts=facts, **arrays)
        if kind == DIAGONAL and names == {"values"}:
            _need(arrays["values"], "f", 2)
            return DiagonalFishers(values=arrays["values"], sites=sites, facts=facts)
        if kind == DIAGONAL and names == {"entries", "columns", "offsets", "width"}:
            return DiagonalFishers(values=_csr(arrays), sites=sites, facts=facts)
    except InvalidInputError as error:
        raise CorruptFileError(f"{path}: a shard holds no valid Fishers: {error}") from None
    raise CorruptFileError(f"{path}: a shard holds {sorted(names)}, which are no Fishers.")


def _csr(arrays: Mapping[str, NumpyArray]) -> Any:
    from scipy.sparse import csr_array

    entries, columns, offsets = arrays["entries"], arrays["columns"], arrays["offsets"]
    _need(entries, "f", 1)
    for x in (columns, offsets, arrays["width"]):
        _need(x, "i8", 1)
    if len(arrays["width"]) != 1 or len(offsets) < 1:
        raise InvalidInputError("width or offsets are empty")
    width = int(arrays["width"][0])
    sound = (
        len(columns) == len(entries)
        and offsets[0] == 0
        and offsets[-1] == len(entries)
        and bool(np.all(np.diff(offsets) >= 0))
        and bool(np.all((columns >= 0) & (columns < width)))
    )
    if not sound:
        raise InvalidInputError("offsets or columns do not fit the entries")
    return csr_array((entries, columns, offsets), shape=(len(offsets) - 1, width))


def _need(x: NumpyArray, dtype: str, ndim: int) -> None:
    fits = x.dtype.kind == "f" if dtype == "f" else x.dtype == np.dtype(dtype)
    if not fits or x.ndim != ndim:
        raise InvalidInputError(f"an array of dtype {x.dtype} and {x.ndim} axes")


def _site_facts(sites: tuple[Site, ...]) -> dict[str, Any]:
    return {"sites": [{"name": s.name, "shape": list(s.shape)} for s in sites]}


def _sites(manifest: Mapping[str, Any], path: Any) -> tuple[Site, ...]:
    found = manifest["identity"].get("sites", [])
    names = set()
    for site in found if isinstance(found, list) else [{}]:
        site = site if isinstance(site, dict) else {}
        shape = site.get("shape")
        if not is_shape(shape) or not isinstance(site.get("name"), str) or site["name"] in names:
            raise CorruptFileError(f"{path}: the sites in the manifest are malformed.")
        names.add(site["name"])
    return sites_of({s["name"]: tuple(s["shape"]) for s in found})
