"""Decompositions as npeff_ref keeps them in HDF5: read, checked, kept without loss, converted.

Source: github.com/mmatena/npeff_ref; only the layout of its files is used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..errors import CorruptFileError, InvalidInputError
from ..fisher.reference_files import (
    ReferenceFishers,
    read_reference_fishers,
)
from ..model.sites import Site
from ..status import Status
from ..storage.file_contents import FileContents
from ..storage.hdf5 import Hdf5File, open_hdf5
from ..types import FloatArray, IntArray, NumpyArray
from .history import History
from .method import DiagonalNPEFF, LowRankNPEFF
from .result import Factorization, gauge_fixed

DENSE_BYTES = 2 << 30


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReferenceDecomposition(FileContents):
    """The contents of one file, unchanged.

    Attributes
    ----------
    kind : {"lrm", "diagonal"}
    arrays : mapping
        ``coefficients`` W (n, r), ``columns`` (m,) int64: parameter of each column; and
        ``components`` (r, m), or for sparse H ``values``, ``row_offsets`` (r+1,),
        ``column_indices``. Losses of "lrm": ``losses.G_only``, ``losses.joint``.
    n_parameters : int
        p.
    n_classes, log_loss_frequency : int or None

    Raises
    ------
    CorruptFileError
        Shapes that do not fit, columns beyond p or twice, offsets that decrease, negative W or H.
    """

    stored_as: ClassVar[str] = "reference decomposition"
    holds: ClassVar[str] = "decomposition of npeff_ref"

    kind: str
    arrays: Mapping[str, NumpyArray]
    n_parameters: int
    n_classes: int | None = None
    log_loss_frequency: int | None = None

    def __post_init__(self) -> None:
        a = self.arrays
        W, columns = a["coefficients"], a["columns"]
        r, m = W.shape[1], len(columns)
        if self.kind not in ("lrm", "diagonal") or not 1 <= self.n_parameters < 2**62 or r < 1:
            raise _unfit(f"kind {self.kind!r}, {r} components, {self.n_parameters} parameters")
        if (W < 0).any():
            raise _unfit("negative coefficients")
        if m and (columns.min() < 0 or columns.max() >= self.n_parameters):
            raise _unfit(f"columns from {columns.min()} to {columns.max()} of {self.n_parameters}")
        if len(np.unique(columns)) != m:
            raise _unfit("the same column twice")
        if self.sparse:
            offsets, places = a["row_offsets"], a["column_indices"]
            sound = (
                len(offsets) == r + 1
                and offsets[0] == 0
                and (np.diff(offsets) >= 0).all()
                and offsets[-1] == len(a["values"]) == len(places)
                and (not len(places) or (places.min() >= 0 and places.max() < m))
            )
            if not sound:
                raise _unfit("row offsets or columns of a sparse H that do not fit")
            entries = a["values"]
        else:
            entries = a["components"]
            if entries.shape != (r, m):
                raise _unfit(f"components of shape {entries.shape} for {r} of {m} columns")
        if self.kind == "diagonal" and (entries < 0).any():
            raise _unfit("diagonal components with negative entries")

    @property
    def sparse(self) -> bool:
        """Whether H is kept in compressed rows."""
        return "components" not in self.arrays

    def __repr__(self) -> str:
        n, r = self.arrays["coefficients"].shape
        return f"ReferenceDecomposition({self.kind}, n={n}, r={r}, m={len(self.arrays['columns'])})"

    def components(self) -> FloatArray:
        """G or H (r, m), dense."""
        if not self.sparse:
            return np.asarray(self.arrays["components"])
        a = self.arrays
        r = len(a["row_offsets"]) - 1
        _check_size(r, len(a["columns"]))
        out = np.zeros((r, len(a["columns"])), dtype=a["values"].dtype)
        row = np.repeat(np.arange(r), np.diff(a["row_offsets"]))
        out[row, a["column_indices"]] = a["values"]
        return out

    def factorization(self, sites: tuple[Site, ...] = ()) -> Factorization:
        """As a factorization of ours: unit-norm components, ordered by their sums.

        Parameters
        ----------
        sites : tuple of Site, optional
            The model's parameters in the reference's order. With them the components are over all
            p parameters, so that a model can be moved along them; without them the columns stay.

        Returns
        -------
        Factorization
            The file knows neither the Fishers' norms nor a loss that counts T once (the logged
            ones are off by a constant): ``norms`` are ones, ``loss`` is NaN, ``total`` is n, the
            bound for normalised Fishers. Logged losses are in ``history``.

        Raises
        ------
        InvalidInputError
            Sites with another number of parameters, or more than 2 GiB of components.
        """
        G = self.components()
        columns = self.arrays["columns"]
        if sites:
            if sites[-1].stop != self.n_parameters:
                raise InvalidInputError(
                    f"sites with {sites[-1].stop} parameters were given; the file's model has "
                    f"{self.n_parameters}."
                )
            _check_size(len(G), self.n_parameters)
            full = np.zeros((len(G), self.n_parameters), dtype=G.dtype)
            full[:, columns] = G
            G = full
        diagonal = self.kind == "diagonal"
        W, G = gauge_fixed(self.arrays["coefficients"], G, power=1 if diagonal else 2)
        r = len(G)
        method: Any = DiagonalNPEFF(r, solver="mu") if diagonal else LowRankNPEFF(r, solver="mu-gd")
        nan = float("nan")
        return Factorization(
            coefficients=W, components=G, norms=np.ones(len(W)), sites=sites, method=method,
            status=Status.MAX_STEPS, loss=nan, total=float(len(W)), residual=nan, kkt=nan,
            history=self._history(), products=nan, backend="npeff_ref", seed=None,
            facts={"source": "npeff_ref", "n_parameters": self.n_parameters},
        )  # fmt: skip

    def _history(self) -> History:
        parts = [self.arrays[k] for k in ("losses.G_only", "losses.joint") if k in self.arrays]
        loss = np.concatenate(parts).astype(np.float64) if parts else np.zeros(0)
        phase = np.repeat(np.arange(len(parts)), [len(p) for p in parts]).astype(np.int64)
        nothing = np.full(len(loss), np.nan)
        return History(
            loss=loss, residual=nothing, products=nothing, seconds=nothing, phase=phase,
            phases=("G only", "joint")[: len(parts)],
        )  # fmt: skip


def read_reference(path: str | os.PathLike[str]) -> ReferenceFishers | ReferenceDecomposition:
    """Read any of the five kinds of HDF5 files of npeff_ref.

    LRM-PEFs, LVRM-PEFs, D-PEFs (either spelling of the logits), LRM decompositions, D
    decompositions (dense or sparse H).

    Raises
    ------
    BackendUnavailable
        Without the ``hdf5`` extra.
    CorruptFileError
        Anything that the layout does not allow: offsets that decrease or go beyond the entries,
        indices beyond the parameters, NaN, negative norms, datasets outside of the file or larger
        than what is stored.
    FileNotFoundError
        There is no such file.
    """
    with open_hdf5(Path(path)) as file:
        if file.has("data/W") and file.has("data/G"):
            return _low_rank(file)
        if file.has("data/W") and file.has("data/H"):
            return _diagonal(file)
    return read_reference_fishers(path)


def _low_rank(file: Hdf5File) -> ReferenceDecomposition:
    W = file.array("data/W", "f", (None, None))
    G = file.array("data/G", "f", (W.shape[1], None))
    arrays = {
        "coefficients": W, "components": G,
        "columns": file.array("data/new_to_old_col_indices", "i", (G.shape[1],)),
    }  # fmt: skip
    for name in ("G_only", "joint"):
        if file.has(f"losses/{name}"):
            arrays[f"losses.{name}"] = file.array(f"losses/{name}", "f", (None,))
    frequency = file.number("losses", "log_loss_frequency") if file.has("losses") else None
    return ReferenceDecomposition(
        kind="lrm", arrays=arrays, n_parameters=file.number("data", "n_parameters"),
        n_classes=file.number("data", "n_classes"), log_loss_frequency=frequency,
    )  # fmt: skip


def _diagonal(file: Hdf5File) -> ReferenceDecomposition:
    W = file.array("data/W", "f", (None, None))
    columns: IntArray = file.array("data/reduce_kept_indices", "i", (None,))
    arrays: dict[str, NumpyArray] = {"coefficients": W, "columns": columns}
    if file.is_group("data/H"):
        shape = file.numbers("data/H", "shape")
        if shape != [W.shape[1], len(columns)]:
            raise file.bad(f"the sparse H has shape {shape}, not {[W.shape[1], len(columns)]}")
        arrays["values"] = file.array("data/H/values", "f", (None,))
        arrays["row_offsets"] = file.array("data/H/row_indices", "i", (W.shape[1] + 1,))
        arrays["column_indices"] = file.array("data/H/column_indices", "i", (None,))
    else:
        arrays["components"] = file.array("data/H", "f", (W.shape[1], len(columns)))
    size = file.number("data/reduce_kept_indices", "full_dense_size")
    return ReferenceDecomposition(kind="diagonal", arrays=arrays, n_parameters=size)


def _check_size(r: int, m: int) -> None:
    if 4 * r * m > DENSE_BYTES:
        raise InvalidInputError(
            f"{r} components of {m} columns would take more than {DENSE_BYTES:,} bytes. Leave "
            "sites= out, or use the arrays as they are."
        )


def _unfit(what: str) -> CorruptFileError:
    return CorruptFileError(
        f"{what} were given, which no file of npeff_ref has. Restore the file, or write it again."
    )
