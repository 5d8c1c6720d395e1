"""Gram sites in panels of rows: the inputs' factors stay, the rows of W come and go.

W (Σ λ_i A_i + ρI) = Σ λ_i W_i A_i is solved as in :mod:`fishertope.core.merging.solvers.rows`, a
panel at a time, so that memory is (n + 2K) factors (i, i) and, for every worker, (n + K) panels.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import fsum, prod
from typing import cast

import numpy as np

from ...errors import InvalidInputError
from ...fisher.structures import Gram, Isotropic, Precision
from ...fisher.structures.storing import Outline
from ...storage.header import ITEM_BYTES
from ...storage.numbers import encode, stored_dtype
from ...types import FloatArray, NumpyArray
from ..combine import combine, converted
from ..entries import weighted_mean
from ..inputs import check_anchor
from ..problem import ridge_of
from ..solution import SiteReport
from ..solvers.dense import Factorised, factorised
from ..solvers.rows import panel_rows, panels, right_of_rows, solved_rows
from ..solving import check_psd, gram_reason, undetermined, warn_of
from .inputs import Input
from .precisions import PrecisionFile
from .structured import Group

Rows = tuple[int, int]


def takes_rows(key: str, precisions: Sequence[PrecisionFile], weights: FloatArray) -> bool:
    """Whether every weight vector's sum at a site is a Gram matrix of its inputs."""
    layouts = {p.layout(key) for p in precisions}
    layout = layouts.pop()
    if layouts or layout.weight != key or len(layout.shape) != 2 or 0 in layout.shape:
        return False
    outlines = [p.outline(key) for p in precisions]
    return all(
        _is_gram([t for o, w in zip(outlines, row, strict=True) if w for t in _terms(o, float(w))])
        for row in weights
    )


def _terms(outline: Outline, factor: float) -> Iterator[tuple[float, str]]:
    """Coefficients and kinds of what a precision is the sum of."""
    factor *= outline.factor
    if outline.kind not in ("scaled", "sum"):
        yield factor, outline.kind
        return
    for part in outline.parts:
        yield from _terms(part, factor)


def _is_gram(terms: Sequence[tuple[float, str]]) -> bool:
    kinds = {kind for factor, kind in terms if factor}
    return (
        kinds <= {"gram", "isotropic"}
        and "gram" in kinds
        and all(factor >= 0 for factor, _ in terms)
    )


@dataclass(eq=False)
class _System:
    """One weight vector at a site."""

    numbers: list[int]
    weights: list[float]
    parts: list[Precision]
    total: Gram
    lock: threading.Lock = field(default_factory=threading.Lock)
    ready: Factorised | None = None
    # Squares of ‖A d − r‖ and of ‖r‖ of every panel.
    rests: dict[int, tuple[float, float]] = field(default_factory=dict)

    def factor(self, group: RowGroup) -> Factorised:
        """Of the sum; made when the first right side that is not 0 asks for it."""
        with self.lock:
            if self.ready is None:
                ready = factorised(self.total.input_factor)
                check_psd(group.key, ready.negative)
                if ready.null and group.fallback == "error" and group.base is None:
                    count = ready.null * self.total.shape[0]
                    raise InvalidInputError(undetermined(group.key, count))
                self.ready = ready
            return self.ready

    def report(self, group: RowGroup) -> SiteReport:
        rest, right = (fsum(r[k] for r in self.rests.values()) ** 0.5 for k in (0, 1))
        ready, total = self.ready, self.total
        return SiteReport(
            name=group.key, parameters=group.layout.parameters, size=prod(total.shape),
            action="merge", solver="none" if ready is None else ready.how,
            why="the right side is 0, so θ = c" if ready is None else gram_reason(total),
            residual=rest / right if right > 0 else rest,
            condition=1.0 if ready is None else ready.condition,
            fallback=0 if ready is None else ready.null * total.shape[0],
        )  # fmt: skip


@dataclass(eq=False, kw_only=True)
class RowGroup(Group):
    """A site (o, i) for which :func:`takes_rows` holds.

    Panels have :func:`~fishertope.core.merging.solvers.rows.panel_rows` rows whatever the blocks
    are; a block of W that is cut at their multiples computes each panel once, and leaves the
    bias's column behind. Where outputs are the last axis of W (Conv1D), panels are columns of the
    stored tensor, and the merged tensor stays in memory, in its own dtype, until it is written.
    """

    _systems: list[_System] = field(default_factory=list)
    _bias: list[NumpyArray] = field(default_factory=list)
    _whole: list[NumpyArray] = field(default_factory=list)
    _known: set[int] = field(default_factory=set)
    _claimed: int = 0
    _solved: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _error: BaseException | None = None

    @property
    def bytes(self) -> int:
        """Factors of sources, sums and Cholesky factors, what making one takes, and kept results.

        As float64: A_i of n sources; for each of K weight vectors the sum and its factor; six
        arrays more while one is read, checked and factorised.
        """
        o, i = self.layout.shape
        outlines = [p.outline(self.key) for p in self.precisions]
        n = sum(kind == "gram" for found in outlines for _, kind in _terms(found, 1.0))
        kept = o * self._item * (self.layout.bias is not None)
        if self._transposed:
            kept += o * i * self._item
        return 8 * i * i * (n + 2 * len(self.weights) + 6) + kept * len(self.weights)

    @property
    def _item(self) -> int:
        return ITEM_BYTES[self.sites[self.layout.weight].code]

    @property
    def _transposed(self) -> bool:
        return self.layout.outputs == "last"

    def block_bytes(self, name: str) -> int:
        """Panels of every source, the centre, the results, and seven on the way."""
        rows = panel_rows(self.layout.shape)
        return 8 * rows * self.layout.shape[1] * (len(self.sources) + len(self.weights) + 8)

    def unit(self, name: str) -> int:
        """Entries of a panel of W, where they lie together."""
        if name != self.layout.weight or self._transposed:
            return 1
        return panel_rows(self.layout.shape) * (self.sites[name].size // self.layout.shape[0])

    def _load(self) -> None:
        shape, like = self.layout.shape, np.empty(0)
        parts = [converted(p.site(self.key), like) for p in self.precisions]
        if self.damping.mode == "factored":
            parts = [p.damped(self.damping.rho, "factored") for p in parts]
        for row in self.weights:
            numbers = [j for j, w in enumerate(row) if w]
            lam, own = [float(row[j]) for j in numbers], [parts[j] for j in numbers]
            terms = list(zip(lam, own, strict=True))
            if self.base is not None:
                terms.append((1.0, Isotropic(self.anchor, shape)))
            if ridge := ridge_of(self.damping, lam, own):
                terms.append((ridge, Isotropic(1.0, shape)))
            total = cast(Gram, combine(terms, shape))
            self._systems.append(_System(numbers, lam, own, total))
        code = self.sites[self.layout.weight].code
        if self.layout.bias is not None:
            kept = stored_dtype(self.sites[self.layout.bias].code)
            self._bias = [np.empty(shape[0], dtype=kept) for _ in self.weights]
        if self._transposed:
            size = self.sites[self.layout.weight].size
            inner = size // shape[0]
            self._whole = [np.empty((inner, shape[0]), stored_dtype(code)) for _ in self.weights]

    def _drop(self) -> None:
        self._systems, self._bias, self._whole = [], [], []
        self._known.clear()
        self._claimed = self._solved = 0

    def _finish(self) -> None:
        for system in self._systems:
            report = system.report(self)
            self.reports.append(report)
            warn_of(report)

    def _block(self, name: str, start: int, stop: int) -> list[NumpyArray]:
        if name == self.layout.bias:
            for a, b in self._covering(start, stop):
                if a not in self._known:
                    self._panel(a, b)
            return [row[start:stop].copy() for row in self._bias]
        if self._transposed:
            self._all_panels()
            return [row.reshape(-1)[start:stop].copy() for row in self._whole]
        width = self.sites[name].size // self.layout.shape[0]
        code = self.sites[name].code
        out = [np.empty(stop - start, dtype=stored_dtype(code)) for _ in self.weights]
        for a, b in self._covering(start // width, -(-stop // width)):
            first, last = max(start, a * width), min(stop, b * width)
            for row, values in zip(out, self._panel(a, b), strict=True):
                flat = values.reshape(-1)[first - a * width : last - a * width]
                row[first - start : last - start] = flat
        return out

    def _covering(self, start: int, stop: int) -> list[Rows]:
        return [(a, b) for a, b in panels(self.layout.shape) if a < stop and b > start]

    def _all_panels(self) -> None:
        """Every panel once, by all workers that ask for the tensor."""
        todo = panels(self.layout.shape)
        while True:
            with self._changed:
                if self._claimed >= len(todo):
                    break
                a, b = todo[self._claimed]
                self._claimed += 1
            try:
                for row, values in zip(self._whole, self._panel(a, b), strict=True):
                    row[:, a:b] = values.T
            except BaseException as error:
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                raise
            with self._changed:
                self._solved += 1
                self._changed.notify_all()
        with self._changed:
            self._changed.wait_for(lambda: self._solved >= len(todo) or self._error is not None)
            if self._error is not None:
                raise self._error

    def _panel(self, a: int, b: int) -> list[NumpyArray]:
        """W's rows ``a:b`` for each weight vector in its dtype; the bias's entries are kept."""
        x = self._sources(a, b)
        anchor = None
        if self.base is not None:
            anchor = self._read(self.base, a, b, np.empty(x.shape[1:]))
            check_anchor(self.key, anchor, self.nonfinite)
        out = []
        with self.residence.sharing():
            for k, system in enumerate(self._systems):
                theta = self._merged(system, x, anchor, a)
                if self.layout.bias is not None:
                    code = self.sites[self.layout.bias].code
                    self._bias[k][a:b] = encode(np.ascontiguousarray(theta[:, -1]), code)
                    theta = np.ascontiguousarray(theta[:, :-1])
                flat = encode(theta.reshape(-1), self.sites[self.layout.weight].code)
                out.append(flat.reshape(theta.shape))
        self._known.add(a)
        return out

    def _merged(
        self, system: _System, x: FloatArray, anchor: FloatArray | None, start: int
    ) -> FloatArray:  # fmt: skip
        whole = sum(system.weights)
        own = x if len(system.numbers) == len(x) else x[system.numbers]
        center = anchor
        if center is None:
            center = np.asarray(weighted_mean(own, [w / whole for w in system.weights]))
        right = right_of_rows(system.weights, system.parts, own, center)
        if not np.any(right != 0):
            return center
        d = solved_rows(system.factor(self), right)
        theta = np.where(d == 0, center, center + d)
        rest = d @ system.total.input_factor
        rest -= right
        system.rests[start] = float(np.sum(rest * rest)), float(np.sum(right * right))
        return theta

    def _sources(self, a: int, b: int) -> FloatArray:
        """Rows (n, b − a, i) of all sources, refused where they are not finite."""
        x = np.empty((len(self.sources), b - a, self.layout.shape[1]))
        for row, source in zip(x, self.sources, strict=True):
            self._read(source, a, b, row)
        if self.nonfinite != "propagate" and not np.isfinite(x).all():
            width = 1 if self._transposed else x.shape[2] - (self.layout.bias is not None)
            for name, site in self.sites.items():
                step = width if name == self.layout.weight else 1
                whole = name == self.layout.weight and self._transposed
                first, last = (0, site.size) if whole else (a * step, b * step)
                if not np.isfinite(site.values(first, last)).all():
                    site.refuse_nonfinite(first, last)
        return x

    def _read(self, source: Input, a: int, b: int, out: FloatArray) -> FloatArray:
        """Rows ``a:b`` of the site's matrix of one source."""
        weight, (o, i) = self.layout.weight, self.layout.shape
        width = i - (self.layout.bias is not None)
        if self._transposed:
            for j in range(width):
                out[:, j] = source.values(weight, j * o + a, j * o + b)
        else:
            out[:, :width] = source.values(weight, a * width, b * width).reshape(b - a, width)
        if self.layout.bias is not None:
            out[:, width] = source.values(self.layout.bias, a, b)
        return out
