"""Sites whose precision is no diagonal: solved whole, in memory, and handed out in pieces."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from ...fisher.precision import PrecisionTree
from ...storage.numbers import encode, finite
from ...types import FloatArray, NumpyArray
from ..anchors import Anchor, Damping
from ..problem import MergeProblem
from ..solution import SiteReport
from ..solving import solve
from .inputs import Input
from .precisions import PrecisionFile
from .recipes import Counts, Site


@dataclass(eq=False, kw_only=True)
class Group:
    """The tensors of one site of the precisions (W, or W and b), solved together.

    Attributes
    ----------
    key : str
        The site's name in the precisions.
    shapes : mapping of str to tuple
        Of its tensors.
    sources : tuple of Input
    precisions : tuple of PrecisionFile
    weights : float64 array (k, n)
    base : Input or None
    anchor : float
        ρ of the anchor at the base.
    damping : Damping
    fallback, nonfinite : str
    """

    key: str
    shapes: Mapping[str, tuple[int, ...]]
    sources: Sequence[Input]
    precisions: Sequence[PrecisionFile]
    weights: FloatArray
    base: Input | None
    anchor: float
    damping: Damping
    fallback: str
    nonfinite: str
    reports: list[SiteReport] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _solved: list[Mapping[str, Any]] | None = None
    _left: int = 0

    @property
    def bytes(self) -> int:
        """Memory of the solution: sources, results, and about as much again on the way."""
        entries = sum(prod(s) for s in self.shapes.values())
        factors = sum(
            t.bytes
            for p in self.precisions
            for n, t in p.store.tensors.items()
            if n.startswith(self.key + "/")
        )
        return 8 * entries * (2 * len(self.sources) + len(self.weights) + 4) + 3 * factors

    def values(self, name: str, start: int, stop: int) -> list[FloatArray]:
        """Entries of the merged tensor, for each weight vector; solved at the first call."""
        with self._lock:
            if self._solved is None:
                self._solved = [self._solve(w) for w in self.weights]
                self._left = sum(prod(s) for s in self.shapes.values())
            found = [np.asarray(s[name]).reshape(-1)[start:stop].copy() for s in self._solved]
            self._left -= stop - start
            if self._left <= 0:
                self._solved = None
            return found

    def _solve(self, weights: FloatArray) -> Mapping[str, Any]:
        arrays = [self._read(s) for s in self.sources]
        trees = []
        for p in self.precisions:
            tree = p.tree
            trees.append(
                PrecisionTree(
                    sites={self.key: tree[self.key]},
                    n_examples=tree.n_examples,
                    trace_errors={self.key: tree.trace_errors[self.key]},
                    layouts={self.key: tree.layouts[self.key]},
                )
            )
        anchor = None
        if self.base is not None:
            anchor = Anchor(self._read(self.base), self.anchor)
        found = solve(
            MergeProblem(
                sources=arrays,
                precisions=trees,
                weights=weights.tolist(),
                anchor=anchor,
                damping=self.damping,
                fallback=self.fallback,
                nonfinite=self.nonfinite,
            )
        )
        self.reports.extend(found.sites)
        return found.params

    def _read(self, source: Input) -> dict[str, FloatArray]:
        return {
            name: source.values(name, 0, prod(shape)).reshape(shape)
            for name, shape in self.shapes.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """One tensor of a :class:`Group`."""

    site: Site
    group: Group

    @property
    def bytes_per_entry(self) -> int:
        """Of a block's results; the group itself is counted once."""
        return 24 * len(self.group.weights)

    def run(self, start: int, stop: int, counts: Counts) -> list[NumpyArray]:
        """Entries ``start:stop`` of the merged tensor."""
        out = []
        for values in self.group.values(self.site.name, start, stop):
            row = encode(values, self.site.code)
            bad = int(np.count_nonzero(~finite(row, self.site.code)))
            if bad and self.site.nonfinite == "error":
                self.site.refuse_nonfinite(start, stop)
            counts.nonfinite += bad
            out.append(row)
        return out
