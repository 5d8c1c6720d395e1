"""Sites whose precision is no diagonal: what is held of them in memory, and for how long."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from ...fisher.precision import PrecisionTree
from ...fisher.structures import SiteLayout
from ...storage.numbers import encode, finite
from ...types import FloatArray, NumpyArray
from ..anchors import Anchor, Damping
from ..problem import MergeProblem
from ..solution import SiteReport
from ..solving import solve
from .inputs import Input
from .precisions import PrecisionFile
from .recipes import Counts, Site
from .residence import Residence


@dataclass(eq=False, kw_only=True)
class Group:
    """The tensors of one site of the precisions (W, or W and b), merged together.

    Attributes
    ----------
    key : str
        The site's name in the precisions.
    layout : SiteLayout
        Of the first source's.
    sites : mapping of str to Site
        Its tensors.
    sources : tuple of Input
    precisions : tuple of PrecisionFile
    weights : float64 array (k, n)
    base : Input or None
    anchor : float
        ρ of the anchor at the base.
    damping : Damping
    fallback, nonfinite : str
    residence : Residence
    reports : list of SiteReport
        One for each weight vector, when all is done.
    """

    key: str
    layout: SiteLayout
    sites: Mapping[str, Site]
    sources: Sequence[Input]
    precisions: Sequence[PrecisionFile]
    weights: FloatArray
    base: Input | None
    anchor: float
    damping: Damping
    fallback: str
    nonfinite: str
    residence: Residence
    reports: list[SiteReport] = field(default_factory=list)
    _lock: Any = field(default_factory=threading.RLock)
    _left: int | None = None
    _inside: bool = False

    @property
    def entries(self) -> int:
        """Of all tensors."""
        return sum(s.size for s in self.sites.values())

    @property
    def bytes(self) -> int:
        """Memory of the site while it is there, apart from that of single blocks."""
        raise NotImplementedError

    def block_bytes(self, name: str) -> int:
        """Memory that a worker takes for any block of a tensor, however small."""
        return 0

    def unit(self, name: str) -> int:
        """Blocks are best cut at multiples of so many entries."""
        return 1

    def expect(self, start: int, stop: int) -> None:
        """Say that a block will be asked for: the site leaves after the last of them."""
        self._left = (self._left or 0) + stop - start

    def block(self, name: str, start: int, stop: int) -> list[NumpyArray]:
        """Entries ``start:stop`` of a merged tensor in its dtype, for each weight vector."""
        try:
            with self._lock:
                if self._left is None:
                    self._left = self.entries
                if not self._inside:
                    self.residence.enter(self.bytes)
                    self._inside = True
                    self._load()
            found = self._block(name, start, stop)
            with self._lock:
                self._left -= stop - start
                if self._left <= 0:
                    self._finish()
                    self._drop()
                    self._inside = False
                    self.residence.leave(self.bytes)
            return found
        except BaseException as error:
            self.residence.fail(error)
            raise

    def _load(self) -> None:
        raise NotImplementedError

    def _block(self, name: str, start: int, stop: int) -> list[NumpyArray]:
        raise NotImplementedError

    def _finish(self) -> None:
        """Everything was asked for."""

    def _drop(self) -> None:
        """Let all arrays go."""
        raise NotImplementedError


@dataclass(eq=False, kw_only=True)
class WholeGroup(Group):
    """A site that :func:`~fishertope.core.merging.solve` takes whole, all sources as float64."""

    _solved: list[Mapping[str, Any]] | None = None

    @property
    def bytes(self) -> int:
        """Sources twice, results, precisions, and about as much again on the way."""
        stored = [p.entries(self.key) for p in self.precisions]
        # Of float64: all of them, and copies, sums and factors of the largest.
        factors = 8 * sum(e for e, _ in stored) + 40 * max(e for e, _ in stored)
        return 8 * self.entries * (2 * len(self.sources) + len(self.weights) + 4) + factors

    def _load(self) -> None:
        arrays = [self._read(s) for s in self.sources]
        trees = [
            PrecisionTree(
                sites={self.key: p.site(self.key)}, n_examples=1,
                trace_errors={self.key: p.trace_error(self.key)},
                layouts={self.key: p.layout(self.key)},
            )
            for p in self.precisions
        ]  # fmt: skip
        anchor = None if self.base is None else Anchor(self._read(self.base), self.anchor)
        self._solved = []
        with self.residence.alone():
            for weights in self.weights:
                problem = MergeProblem(
                    sources=arrays, precisions=trees, weights=weights.tolist(), anchor=anchor,
                    damping=self.damping, fallback=self.fallback, nonfinite=self.nonfinite,
                )  # fmt: skip
                found = solve(problem)
                self.reports.extend(found.sites)
                self._solved.append(found.params)

    def _block(self, name: str, start: int, stop: int) -> list[NumpyArray]:
        assert self._solved is not None
        code = self.sites[name].code
        return [encode(np.asarray(s[name]).reshape(-1)[start:stop], code) for s in self._solved]

    def _drop(self) -> None:
        self._solved = None

    def _read(self, source: Input) -> dict[str, FloatArray]:
        shapes = {name: source.shape(name) for name in self.sites}
        return {n: source.values(n, 0, prod(s)).reshape(s) for n, s in shapes.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """One tensor of a :class:`Group`."""

    site: Site
    group: Group

    @property
    def bytes_per_entry(self) -> int:
        """Of a block's results; the group itself is counted once."""
        return 24 * len(self.group.weights)

    def expect(self, start: int, stop: int) -> None:
        """As :meth:`Group.expect`."""
        self.group.expect(start, stop)

    def run(self, start: int, stop: int, counts: Counts) -> list[NumpyArray]:
        """Entries ``start:stop`` of the merged tensor."""
        quiet = self.group.nonfinite == "propagate"
        with np.errstate(invalid="ignore") if quiet else nullcontext():
            out = self.group.block(self.site.name, start, stop)
        for row in out:
            bad = int(np.count_nonzero(~finite(row, self.site.code)))
            if bad and self.site.nonfinite == "error":
                self.site.refuse_nonfinite(start, stop)
            counts.nonfinite += bad
        return out
