"""Per-example Fishers as npeff_ref keeps them in HDF5: read, checked, kept without loss, converted.

Kinds: "lrm" (as many columns for every example), "lvrm" (as many as the example has likely
classes), "diagonal". The stored vectors are √p_c ∇log p_c, K entries an example, not normalised;
norms are those of the complete Fishers.

Source: github.com/mmatena/npeff_ref; only the layout of its files is used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..errors import CorruptFileError, InvalidInputError
from ..model.sites import Site
from ..storage.file_contents import FileContents
from ..storage.hdf5 import Hdf5File, open_hdf5
from ..types import IntArray, NumpyArray
from .draws import draws_of
from .per_example import DiagonalFishers, LowRankFishers
from .reduction import RandomProjection

KINDS = ("lrm", "lvrm", "diagonal")
# Rows are made dense up to this size unless the caller says otherwise.
DENSE_BYTES = 2 << 30


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReferenceFishers(FileContents):
    """The contents of one file, unchanged.

    Attributes
    ----------
    kind : {"lrm", "lvrm", "diagonal"}
    arrays : mapping
        ``values`` (n, K) in the file's dtype, ``indices`` (n, K) int64, ``labels`` (n,),
        ``logits`` (n, classes), ``norms`` (n,); for "lrm" ``col_offsets`` (n, C+1), for "lvrm"
        ``ranks`` (n,) and ``col_sizes`` (Σ ranks,).
    n_parameters : int
        p.
    n_classes : int or None
        C; None for diagonals.
    min_prob_class : float or None
        For "lvrm": classes less likely were left out.

    Raises
    ------
    CorruptFileError
        Offsets that decrease or go beyond K, indices beyond p or twice in one vector, negative
        norms, diagonals below zero.
    """

    stored_as: ClassVar[str] = "reference fishers"
    holds: ClassVar[str] = "Fishers of npeff_ref"

    kind: str
    arrays: Mapping[str, NumpyArray]
    n_parameters: int
    n_classes: int | None = None
    min_prob_class: float | None = None

    def __post_init__(self) -> None:
        a = self.arrays
        n, K = a["values"].shape
        if self.kind not in KINDS or not 1 <= self.n_parameters < 2**62 or n < 1:
            raise _unfit(f"kind {self.kind!r}, {self.n_parameters} parameters and {n} examples")
        if (a["norms"] < 0).any():
            raise _unfit("negative norms")
        for name, array in a.items():
            if name not in ("col_sizes",) and len(array) != n:
                raise _unfit(f"{name} of {len(array)} examples beside values of {n}")
        if self.kind == "diagonal":
            if (a["values"] < 0).any():
                raise _unfit("diagonal Fishers with negative entries")
            starts = np.tile([0, K], (n, 1))
        elif self.kind == "lrm":
            starts = a["col_offsets"]
            if self.n_classes is None or starts.shape[1] != self.n_classes + 1:
                raise _unfit(f"column offsets of shape {starts.shape} for {self.n_classes} classes")
        else:
            _check_ranks(a["ranks"], a["col_sizes"], K)
            starts = None
        if starts is not None:
            sound = (starts[:, 0] == 0).all() and (np.diff(starts, axis=1) >= 0).all()
            if not sound or (starts[:, -1] > K).any():
                raise _unfit(f"column offsets that do not rise from 0 to at most {K}")
        row, column, _ = self.entries()
        if len(column) and (column.min() < 0 or column.max() >= self.n_parameters):
            raise _unfit(
                f"parameter indices from {column.min()} to {column.max()} for "
                f"{self.n_parameters} parameters"
            )
        order = np.lexsort((column, row))
        twice = (np.diff(row[order]) == 0) & (np.diff(column[order]) == 0)
        if twice.any():
            raise _unfit("the same parameter twice in one vector")

    def __len__(self) -> int:
        return len(self.arrays["values"])

    def __repr__(self) -> str:
        return f"ReferenceFishers({self.kind}, n={len(self)}, parameters={self.n_parameters})"

    @property
    def ranks(self) -> IntArray:
        """Vectors of each example (n,)."""
        if self.kind == "lvrm":
            return np.asarray(self.arrays["ranks"])
        count = 1 if self.kind == "diagonal" or self.n_classes is None else self.n_classes
        return np.full(len(self), count, dtype=np.int64)

    def entries(self) -> tuple[IntArray, IntArray, NumpyArray]:
        """(vector, parameter, value) of every stored entry; vectors count through all examples."""
        values, indices = self.arrays["values"], self.arrays["indices"]
        n, K = values.shape
        if self.kind == "diagonal":
            return np.repeat(np.arange(n), K), indices.reshape(-1), values.reshape(-1)
        if self.kind == "lrm":
            offsets = self.arrays["col_offsets"]
            sizes = np.diff(offsets, axis=1).reshape(-1)
        else:
            sizes = self.arrays["col_sizes"]
        row = np.repeat(np.arange(len(sizes)), sizes)
        per_example = np.zeros(n, dtype=np.int64)
        if len(sizes):
            sums = np.add.reduceat(sizes, _firsts(self.ranks))
            per_example = np.where(self.ranks > 0, sums, 0)
        used = np.arange(K)[None, :] < per_example[:, None]
        return row, indices[used], values[used]

    def columns(self, *, min_count: int = 1) -> IntArray:
        """Parameters with at least ``min_count`` non-zero entries, counted over vectors."""
        _, column, value = self.entries()
        found, counts = np.unique(column[value != 0], return_counts=True)
        return np.asarray(found[counts >= min_count], dtype=np.int64)

    def fishers(
        self,
        *,
        columns: str | IntArray = "used",
        min_count: int = 1,
        sites: tuple[Site, ...] = (),
        reduce: RandomProjection | None = None,
        seed: int = 0,
        dense_bytes: int = DENSE_BYTES,
    ) -> LowRankFishers | DiagonalFishers:
        """As Fishers of ours; ``norms`` are those of the complete ones.

        Parameters
        ----------
        columns : {"used", "all"} or int array (m,)
            "used": parameters that occur (:meth:`columns`); "all": every parameter, in θ's order;
            or some, as the columns of a decomposition.
        min_count : int
            See :meth:`columns`.
        sites : tuple of Site
            With "all": the parameters behind the columns.
        reduce : RandomProjection, optional
            Project the rows instead of keeping columns.
        seed : int
            Of the projection.
        dense_bytes : int
            Rows may take at most so much; diagonals stay sparse.

        Raises
        ------
        InvalidInputError
            Rows that would be larger, or sites that hold another number of parameters.
        """
        if sites and (columns != "all" if isinstance(columns, str) else True):
            raise InvalidInputError("sites= belongs to columns='all'.")
        if sites and sites[-1].stop != self.n_parameters:
            raise InvalidInputError(
                f"sites with {sites[-1].stop} parameters were given; the file's model has "
                f"{self.n_parameters}."
            )
        row, column, value = self.entries()
        facts: dict[str, Any] = {
            "labels": "exact" if self.kind != "lvrm" else "exact over kept classes",
            "source": "npeff_ref", "n_parameters": self.n_parameters,
        }  # fmt: skip
        if self.kind == "lvrm":
            facts["min_prob"] = self.min_prob_class
        chosen = None
        if not isinstance(columns, str):
            chosen = np.asarray(columns, dtype=np.int64)
        elif columns == "used":
            chosen = self.columns(min_count=min_count)
        elif columns != "all":
            raise InvalidInputError(f"columns={columns!r} was given; 'used' or 'all' is accepted.")
        if reduce is not None and self.kind != "diagonal":
            return self._projected(row, column, value, reduce, seed, facts)
        m = self.n_parameters if chosen is None else len(chosen)
        if chosen is not None:
            kept, place = _places(column, chosen)
            row, column, value = row[kept], place, value[kept]
        if self.kind == "diagonal":
            from scipy.sparse import csr_array

            sparse = csr_array((value, (row, column)), shape=(len(self), m))
            sparse.sort_indices()
            return DiagonalFishers(values=sparse, sites=sites, facts=facts)
        h = int(self.ranks.sum())
        size = h * m * value.dtype.itemsize
        if size > dense_bytes:
            raise InvalidInputError(
                f"{h} rows of {m} columns would take {size:,} bytes; at most {dense_bytes:,} are "
                "taken. Raise min_count=, give reduce=RandomProjection(2048), or dense_bytes=."
            )
        rows = np.zeros((h, m), dtype=value.dtype)
        rows[row, column] = value
        return self._low_rank(rows, sites, facts)

    def _projected(
        self, row: IntArray, column: IntArray, value: NumpyArray, reduce: RandomProjection,
        seed: int, facts: dict[str, Any],
    ) -> LowRankFishers:  # fmt: skip
        """Rows times the projection, one row at a time."""
        h = int(self.ranks.sum())
        sketch = reduce.sketch(draws_of(seed).key)
        out = np.zeros((h, reduce.dim), dtype=value.dtype)
        bounds = np.searchsorted(row, np.arange(h + 1))
        for i in range(h):
            part = slice(int(bounds[i]), int(bounds[i + 1]))
            whole = np.zeros((1, self.n_parameters), dtype=value.dtype)
            whole[0, column[part]] = value[part]
            sketch.add(out[i : i + 1], whole, 0)
        return self._low_rank(out, (), {**facts, **reduce.facts(), "seed": seed})

    def _low_rank(
        self, rows: NumpyArray, sites: tuple[Site, ...], facts: dict[str, Any]
    ) -> LowRankFishers:
        offsets = np.concatenate([[0], np.cumsum(self.ranks)]).astype(np.int64)
        norms = self.arrays["norms"].astype(np.float64)
        return LowRankFishers(rows=rows, offsets=offsets, norms=norms, sites=sites, facts=facts)


def read_reference_fishers(path: str | os.PathLike[str]) -> ReferenceFishers:
    """Read LRM-, LVRM- or D-PEFs from an HDF5 file of npeff_ref.

    Raises
    ------
    BackendUnavailable
        Without the ``hdf5`` extra.
    CorruptFileError
        Anything that the layout does not allow; see :class:`ReferenceFishers`.
    """
    with open_hdf5(path) as file:
        if file.has("data/fisher/values"):
            return _diagonal(file)
        if file.has("data/ranks"):
            return _low_rank(file, "lvrm")
        if file.has("data/col_offsets"):
            return _low_rank(file, "lrm")
        raise file.bad("it holds none of data/fisher/values, data/ranks and data/col_offsets")


def _low_rank(file: Hdf5File, kind: str) -> ReferenceFishers:
    values = file.array("data/values", "f", (None, None))
    n, K = values.shape
    arrays = {
        "values": values,
        "indices": file.array("data/row_indices", "i", (n, K)),
        "labels": file.array("data/labels", "i", (n,)),
        "logits": file.array("data/logits", "f", (n, None)),
        "norms": file.array("data/pef_frobenius_norms", "f", (n,)),
    }
    probability = None
    if kind == "lrm":
        arrays["col_offsets"] = file.array("data/col_offsets", "i", (n, None))
    else:
        arrays["ranks"] = file.array("data/ranks", "i", (n,))
        arrays["col_sizes"] = file.array("data/col_sizes", "i", (None,))
        probability = file.number("data", "min_prob_class", real=True)
    return ReferenceFishers(
        kind=kind, arrays=arrays, n_parameters=file.number("data", "n_parameters"),
        n_classes=file.number("data", "n_classes"), min_prob_class=probability,
    )  # fmt: skip


def _diagonal(file: Hdf5File) -> ReferenceFishers:
    values = file.array("data/fisher/values", "f", (None, None))
    n, K = values.shape
    # The reference's writer and reader spell it differently.
    logits = "data/predicted_logits" if file.has("data/predicted_logits") else "data/logits"
    arrays = {
        "values": values,
        "indices": file.array("data/fisher/indices", "i", (n, K)),
        "labels": file.array("data/labels", "i", (n,)),
        "logits": file.array(logits, "f", (n, None)),
        "norms": file.array("data/dense_fisher_norms", "f", (n,)),
    }
    size = file.number("data/fisher", "dense_fisher_size")
    return ReferenceFishers(kind="diagonal", arrays=arrays, n_parameters=size)


def _check_ranks(ranks: IntArray, sizes: IntArray, K: int) -> None:
    if (ranks < 0).any() or (sizes < 0).any() or (ranks > len(sizes)).any():
        raise _unfit("negative or impossible ranks or column sizes")
    if int(ranks.sum()) != len(sizes):
        raise _unfit(f"{len(sizes)} column sizes for ranks that add up to {int(ranks.sum())}")
    ends = np.concatenate([[0], np.cumsum(sizes)])
    bounds = np.concatenate([[0], np.cumsum(ranks)])
    if (sizes > K).any() or (ends[bounds[1:]] - ends[bounds[:-1]] > K).any():
        raise _unfit(f"an example with more than its {K} entries")


def _firsts(ranks: IntArray) -> IntArray:
    """First vector of each example, within the vectors (examples without any point at the last)."""
    starts = np.concatenate([[0], np.cumsum(ranks)[:-1]])
    return np.asarray(np.minimum(starts, max(int(ranks.sum()) - 1, 0)))


def _places(column: IntArray, chosen: IntArray) -> tuple[NumpyArray, IntArray]:
    """Which entries lie in the chosen columns, and where."""
    order = np.argsort(chosen, kind="stable")
    at = np.searchsorted(chosen[order], column)
    at = np.minimum(at, max(len(chosen) - 1, 0))
    kept = chosen[order][at] == column if len(chosen) else np.zeros(len(column), dtype=bool)
    return kept, order[at[kept]]


def _unfit(what: str) -> CorruptFileError:
    return CorruptFileError(
        f"{what} were given, which no file of npeff_ref has. Restore the file, or write it again."
    )
