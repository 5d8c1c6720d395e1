"""How one tensor is made: from a piece of every source to that piece of the result.

A recipe reads entries ``start:stop`` of the flattened tensor and gives them merged, K times for K
weight vectors. What it gives does not depend on how the tensor is cut.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ...backend import Backend, Kernel, to_backend, to_numpy
from ...backend.info import BackendInfo
from ...errors import InvalidInputError
from ...storage.header import ITEM_BYTES
from ...storage.numbers import decode, encode, finite, stored_dtype
from ...types import Device, FloatArray, NumpyArray
from ..draws import SiteDraws
from .inputs import Input
from .precisions import PrecisionFile


class _Buffers(threading.local):
    """Arrays that each thread uses again for every block: fresh ones cost a page fault each."""

    def __init__(self) -> None:
        self._room: dict[str, NumpyArray] = {}

    def take(self, key: str, n: int, entries: int, dtype: np.dtype[np.generic]) -> NumpyArray:
        """An array (n, entries), contiguous."""
        need = n * entries * dtype.itemsize
        room = self._room.get(key)
        if room is None or room.nbytes < need:
            room = self._room[key] = np.empty(need, dtype=np.uint8)
        return room[:need].view(dtype).reshape(n, entries)


_BUFFERS = _Buffers()
THROUGH = 1 << 17
"""Entries of a piece that goes from file to file: three of them stay in the cache of a core."""


@dataclass(slots=True)
class Counts:
    """What happened to the entries of a block."""

    nonfinite: int = 0
    empty: int = 0

    def add(self, other: Counts) -> None:
        """Add those of another block."""
        self.nonfinite += other.nonfinite
        self.empty += other.empty


class Recipe(Protocol):
    """Merges pieces of one tensor."""

    @property
    def bytes_per_entry(self) -> int:
        """Memory that a block takes for each of its entries."""
        ...

    def run(self, start: int, stop: int, counts: Counts) -> list[NumpyArray]:
        """Entries ``start:stop`` as they are stored, one array for each weight vector."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One tensor of the result and where it comes from.

    Attributes
    ----------
    name : str
    size : int
    sources : tuple of Input
        Those that take part; a base model is the first.
    numbers : tuple of int
        Their numbers in the plan, for messages; −1 for a base.
    code : str
        Dtype of the result.
    nonfinite : {"error", "propagate"}
    """

    name: str
    size: int
    sources: tuple[Input, ...]
    numbers: tuple[int, ...]
    code: str
    nonfinite: str = "error"

    def common(self) -> str | None:
        """The dtype in which every source stores the tensor, if there is one."""
        codes = {s.tensors[self.name].dtype for s in self.sources}
        if len(codes) > 1 or not all(s.stored(self.name) for s in self.sources):
            return None
        return codes.pop()

    def read(self, start: int, stop: int, code: str) -> NumpyArray:
        """(n, stop − start) as stored in ``code`` by all sources; lent until the next call."""
        out = _BUFFERS.take("x", len(self.sources), stop - start, stored_dtype(code))
        for row, source in zip(out, self.sources, strict=True):
            source.read(self.name, start, row)
        return out

    def values(self, start: int, stop: int) -> FloatArray:
        """(n, stop − start) as float64."""
        out = np.empty((len(self.sources), stop - start))
        for row, source in zip(out, self.sources, strict=True):
            row[:] = source.values(self.name, start, stop)
        return out

    def refuse_nonfinite(self, start: int, stop: int) -> None:
        """Name the source whose entries are NaN or infinite, if one has them; else: overflow.

        Raises
        ------
        InvalidInputError
            Always.
        """
        for source, number in zip(self.sources, self.numbers, strict=True):
            bad = np.flatnonzero(~np.isfinite(source.values(self.name, start, stop)))
            if len(bad):
                who = "the base model" if number < 0 else f"source {number}"
                raise InvalidInputError(
                    f"{self.name!r} of {who} ({source.path}) has NaN or infinite entries, the "
                    f"first at {start + int(bad[0])} of {self.size}. Mend the checkpoint, or "
                    "choose nonfinite: skip (the source does not take part in this tensor) or "
                    "nonfinite: propagate."
                )
        raise InvalidInputError(
            f"{self.name!r}: a merged value between entries {start} and {stop} does not fit in "
            f"{self.code}. Write the result in a wider dtype (out_dtype: float32), or use smaller "
            "weights."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """The tensor as one source has it.

    Attributes
    ----------
    source : Input
    name : str
    code : str
        As it is written; floats are rounded to it.
    copies : int
        K.
    """

    source: Input
    name: str
    code: str
    copies: int = 1

    @property
    def bytes_per_entry(self) -> int:
        """Of the entries, and of their conversion if they are converted."""
        return 2 * ITEM_BYTES[self.code] + (0 if self._as_stored else 16)

    @property
    def _as_stored(self) -> bool:
        same = self.source.tensors[self.name].dtype == self.code
        return same and self.source.stored(self.name)

    def run(self, start: int, stop: int, counts: Counts) -> list[NumpyArray]:
        """The entries, unchanged or converted."""
        if self._as_stored:
            out = np.empty(stop - start, dtype=stored_dtype(self.code))
            self.source.read(self.name, start, out)
        else:
            out = encode(self.source.values(self.name, start, stop), self.code)
        return [out] * self.copies


@dataclass(frozen=True, slots=True)
class Kernels:
    """A backend, and how arrays get there and back."""

    backend: Backend
    device: Device = None
    _direct: dict[Kernel, Callable[..., Any]] = field(default_factory=dict, compare=False)

    def from_files(self, kernel: Kernel) -> Callable[..., bool] | None:
        """The kernel from file to file, if the backend has one."""
        return getattr(self.backend.raw(kernel), "from_files", None)

    @property
    def _info(self) -> BackendInfo:
        return self.backend.info

    def takes(self, code: str) -> bool:
        """Whether the kernels take arrays as they are stored in ``code``."""
        return code in ("F32", "F64") or self._info.half_bits

    def call(
        self, kernel: Kernel, *arrays: NumpyArray, out: NumpyArray | None = None
    ) -> tuple[NumpyArray, ...]:
        """The raw kernel on NumPy arrays; it may write into ``out``."""
        direct = self._direct.get(kernel)
        if direct is not None:
            return tuple(direct(*arrays, out=out) if self._info.half_bits else direct(*arrays))
        run = self.backend.raw(kernel)
        if self._info.takes(arrays[0]):
            self._direct[kernel] = run
            return tuple(run(*arrays))
        moved = (to_backend(a, self.backend, device=self.device) for a in arrays)
        return tuple(to_numpy(r) for r in run(*moved))


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """Σ_i w_ki x_i, through the kernel ``merge_linear``.

    Attributes
    ----------
    site : Site
    weights : float64 array (k, n)
    totals : float64 array (k,)
        S_k.
    kernels : Kernels
    """

    site: Site
    weights: FloatArray
    totals: FloatArray
    kernels: Kernels
    _code: str | None = field(init=False)

    def __post_init__(self) -> None:
        fits = self.site.common() == self.site.code and self.kernels.takes(self.site.code)
        object.__setattr__(self, "_code", self.site.code if fits else None)

    @property
    def bytes_per_entry(self) -> int:
        """Of the sources, the results and what lies between."""
        n, k = len(self.site.sources), len(self.weights)
        if self._code is not None:
            return (n + 2 * k) * ITEM_BYTES[self._code]
        return 8 * (2 * n + 2 * k + 2)

    def run(self, start: int, stop: int, counts: Counts) -> list[NumpyArray]:
        """The weighted sums."""
        code = self._code
        x = self.site.values(start, stop) if code is None else self.site.read(start, stop, code)
        out = _BUFFERS.take("out", len(self.weights), stop - start, x.dtype)
        merged, bad = self.kernels.call(Kernel.MERGE_LINEAR, x, self.weights, self.totals, out=out)
        return _finished(self.site, merged, code, int(bad.sum()), start, stop, counts)

    @property
    def goes_through(self) -> bool:
        """Whether :meth:`through` may do."""
        pair = len(self.site.sources) == 2 and len(self.weights) == 1
        found = self.kernels.from_files(Kernel.MERGE_LINEAR)
        return self._code == "BF16" and pair and found is not None

    def through(self, start: int, stop: int, descriptor: int, offset: int) -> bool:
        """A block from file to file, small pieces at a time; false where :meth:`run` must look.

        Python between the pieces would throw them, and itself, out of the processor's cache.
        """
        run = self.kernels.from_files(Kernel.MERGE_LINEAR)
        if run is None:
            return False
        places = [s.place(self.site.name, start) for s in self.site.sources]
        room = _BUFFERS.take("through", 3, THROUGH, np.dtype(np.uint16))
        files = (*places, (descriptor, offset))
        return bool(run(files, self.weights, self.totals, room, stop - start))


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagonal:
    """Σ_i q_i x_i / Σ_i q_i at each entry, through the kernel ``merge_diagonal``.

    Attributes
    ----------
    site : Site
    precisions : tuple of PrecisionFile or None
        One a source; ``None`` or c I: only the ridge counts.
    weights, ridges : float64 arrays (k, n)
    floors : float64 array (n,)
    fallback : float64 array (k, n), or None
        Weights of the mean where no source has a precision; ``None``: an error.
    kernels : Kernels
    """

    site: Site
    precisions: tuple[PrecisionFile | None, ...]
    weights: FloatArray
    ridges: FloatArray
    floors: FloatArray
    fallback: FloatArray | None
    kernels: Kernels
    _codes: tuple[str | None, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_codes", self._find_codes())

    @property
    def bytes_per_entry(self) -> int:
        """Of sources, precisions, results and what lies between."""
        n, k = len(self.site.sources), len(self.weights)
        code, common = self._codes
        wide = 8 if code is None else ITEM_BYTES[code]
        return (n + 2 * k) * wide + n * ITEM_BYTES[common] + (16 * n if code is None else 0)

    def _find_codes(self) -> tuple[str | None, str]:
        """Dtype of the sources as they are read (``None``: float64), and of the precisions."""
        found = set()
        for p in self.precisions:
            tensor = None if p is None else p.tensor(self.site.name)
            if tensor is not None:
                found.add(tensor.dtype)
        common = found.pop() if len(found) == 1 else "F64"
        code = self.site.common()
        fits = code == self.site.code and code is not None and self.kernels.takes(code)
        if self.kernels.backend.info.half_bits:
            return (code if fits else None), common
        same = fits and code == common
        return (code if same else None), ("F64" if not same else common)

    def _read_precisions(self, start: int, stop: int, code: str) -> NumpyArray:
        out = _BUFFERS.take("f", len(self.precisions), stop - start, stored_dtype(code))
        for row, p in zip(out, self.precisions, strict=True):
            tensor = None if p is None else p.tensor(self.site.name)
            if p is None or tensor is None:
                row[:] = 0
                continue
            if tensor.dtype == code:
                p.read(self.site.name, start, row)
            else:
                stored = np.empty(stop - start, dtype=stored_dtype(tensor.dtype))
                p.read(self.site.name, start, stored)
                row[:] = decode(stored, tensor.dtype)
        return out

    def run(self, start: int, stop: int, counts: Counts) -> list[NumpyArray]:
        """The precision-weighted means."""
        code, common = self._codes
        x = self.site.values(start, stop) if code is None else self.site.read(start, stop, code)
        f = self._read_precisions(start, stop, common)
        out = _BUFFERS.take("out", len(self.weights), stop - start, x.dtype)
        merged, bad, empty, negative = self.kernels.call(
            Kernel.MERGE_DIAGONAL, x, f, self.weights, self.ridges, self.floors, out=out
        )
        if int(negative.sum()) or int(bad.sum()):
            self._refuse_precisions(f, common, start)
        if int(empty.sum()):
            merged = self._filled(merged, x, f, code, common, counts)
        return _finished(self.site, merged, code, int(bad.sum()), start, stop, counts)

    @property
    def goes_through(self) -> bool:
        """Whether :meth:`through` may do."""
        pair = len(self.site.sources) == 2 and len(self.weights) == 1
        whole = all(p is not None and p.tensor(self.site.name) for p in self.precisions)
        found = self.kernels.from_files(Kernel.MERGE_DIAGONAL)
        return pair and whole and self._codes == ("BF16", "F32") and found is not None

    def through(self, start: int, stop: int, descriptor: int, offset: int) -> bool:
        """As :meth:`Linear.through`."""
        run = self.kernels.from_files(Kernel.MERGE_DIAGONAL)
        if run is None:
            return False
        places = [s.place(self.site.name, start) for s in self.site.sources]
        places += [p.place(self.site.name, start) for p in self.precisions if p is not None]
        room = _BUFFERS.take("through", 7, THROUGH // 2, np.dtype(np.uint16))
        numbers = (self.weights, self.ridges, self.floors)
        return bool(run((*places, (descriptor, offset)), *numbers, room, stop - start))

    def _filled(
        self, merged: NumpyArray, x: NumpyArray, f: NumpyArray, code: str | None, common: str,
        counts: Counts,
    ) -> NumpyArray:  # fmt: skip
        """With the weighted mean where no source has a precision."""
        lifted = np.maximum(decode(f, common), self.floors[:, None])
        if self.fallback is None:
            q = self.weights[0][:, None] * lifted + self.ridges[0][:, None]
            raise InvalidInputError(
                f"{self.site.name!r}: no source has a precision at "
                f"{np.count_nonzero(q.sum(axis=0) == 0)} entries of a block. Give an anchor or a "
                "floor, or fallback: mean (the weighted mean there)."
            )
        means = self.kernels.call(Kernel.MERGE_LINEAR, x, self.fallback, np.ones(len(merged)))[0]
        out = merged.copy()
        for k in range(len(out)):
            none = (self.weights[k][:, None] * lifted + self.ridges[k][:, None]).sum(axis=0) == 0
            out[k][none] = means[k][none]
            counts.empty += int(np.count_nonzero(none))
        return out

    def _refuse_precisions(self, f: NumpyArray, code: str, start: int) -> None:
        for i, (row, p) in enumerate(zip(f, self.precisions, strict=True)):
            bad = np.flatnonzero(~finite(row, code) | (decode(row, code) < 0))
            if len(bad) and p is not None:
                value = decode(row[bad[:1]], code)[0]
                raise InvalidInputError(
                    f"{p.path}: the precision of {self.site.name!r} for source "
                    f"{self.site.numbers[i]} is {value} at entry {start + int(bad[0])}; finite "
                    "numbers >= 0 are accepted. Estimate it again."
                )


class BlockFunction(Protocol):
    """What :class:`Blocks` calls; :class:`~fishertope.core.merging.methods.base.BlockMethod`."""

    def block(
        self, x: Any, base: Any, weights: Sequence[float], stats: Any, draws: SiteDraws,
        start: int, row: int,
    ) -> Any:  # fmt: skip
        """Entries ``start:start + b`` of the merged tensor."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """A method that works on blocks of float64, after statistics of the whole tensor.

    Attributes
    ----------
    site : Site
        Its first source is the base, if ``based``.
    method : BlockFunction
    based : bool
    weights : float64 array (k, n)
        Of the sources without the base.
    statistics : callable
        Gives the statistics of the tensor; called once.
    draws : SiteDraws
    row : int
        Length of the last axis.
    device_of : Kernels
        Where the arithmetic runs.
    """

    site: Site
    method: BlockFunction
    based: bool
    weights: FloatArray
    statistics: Callable[[], Any]
    draws: SiteDraws
    row: int
    kernels: Kernels
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def bytes_per_entry(self) -> int:
        """Some temporaries of float64 for each source."""
        return 8 * (8 * len(self.site.sources) + 6) + 4 * len(self.weights)

    def measure(self) -> None:
        """Make the statistics."""
        self.found["statistics"] = self.statistics()

    def run(self, start: int, stop: int, counts: Counts) -> list[NumpyArray]:
        """The method's block, for each weight vector."""
        values = self.site.values(start, stop)
        if not np.isfinite(values).all():
            if self.site.nonfinite == "error":
                self.site.refuse_nonfinite(start, stop)
            counts.nonfinite += int(np.count_nonzero(~np.isfinite(values)))
        backend = self.kernels.backend
        move = not backend.info.takes(values)
        x = to_backend(values, backend, device=self.kernels.device) if move else values
        base, rest = (x[0], x[1:]) if self.based else (None, x)
        out = []
        for w in self.weights:
            merged = self.method.block(
                rest, base, w.tolist(), self.found["statistics"], self.draws, start, self.row
            )
            merged = np.asarray(to_numpy(merged) if move else merged, dtype=np.float64)
            stored = encode(merged, self.site.code)
            if self.site.nonfinite == "error" and not finite(stored, self.site.code).all():
                self.site.refuse_nonfinite(start, stop)
            out.append(stored)
        return out


def _finished(
    site: Site, merged: NumpyArray, code: str | None, bad: int, start: int, stop: int,
    counts: Counts,
) -> list[NumpyArray]:  # fmt: skip
    """Rounded to the dtype of the result; what is not finite is refused or counted."""
    rows = list(merged) if code is not None else [encode(row, site.code) for row in merged]
    if code is None or bad:
        bad = sum(int(np.count_nonzero(~finite(row, site.code))) for row in rows)
    if bad:
        if site.nonfinite == "error":
            site.refuse_nonfinite(start, stop)
        counts.nonfinite += bad
    return rows
