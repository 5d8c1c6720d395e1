"""Estimators that need the gradients of single examples: dense blocks, low rank plus diagonal.

Tables of embeddings get their diagonal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ...errors import InvalidInputError
from ...model import unflatten
from ...types import Array, FloatArray
from ..batches import cut_examples, examples_of
from ..structures import DenseBlock, Diagonal, LowRankDiagonal, Precision
from .plan import BatchSum, Plan, Roots, host, host_sum, numbers_of
from .running import RunningMoments, Traces, means

ROW_BYTES = 64 << 20
"""Gradients of single examples take at most this many bytes at a time (but for one example's)."""

BLOCK_LIMIT = 8192
"""Largest site of a dense block: 512 MiB of float64."""

SKETCH_BYTES = 4 << 30
OVERSAMPLING = 10


class _RowSums:
    """What both have in common: rows of the sites in bounded pieces, tables apart."""

    width = 1

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._rows_engine, self._table_engine = plan.engine, None
        if plan.tables:
            kept = [s.name for s in plan.parameters if s.name not in plan.tables]
            self._rows_engine = plan.engine.restricted(kept) if kept else None
            self._table_engine = plan.engine.restricted(plan.tables)

    def _batch_rows(
        self, inputs: Any, roots: Roots, numbers: FloatArray, sums: dict[str, Any]
    ) -> Iterator[tuple[str, Array]]:
        """(site, rows (m, d)) for all sites, piece by piece."""
        plan, engine = self._plan, self._rows_engine
        U = roots(plan.engine.predict(inputs))
        if self._table_engine is not None:
            squares, norms = table_squares(self._table_engine, inputs, U)
            for name, x in squares.items():
                sums[f"{name}/diagonal"] = host_sum(x)
                numbers[:, plan.numbers[name], 0] = host(norms[name])
        if engine is None:
            return
        n, k = int(U.shape[0]), int(U.shape[1])
        row = max(1, k * engine.sites[-1].stop * 8)
        step = max(1, ROW_BYTES // row)
        for start in range(0, n, step):
            stop = min(start + step, n)
            part = cut_examples(inputs, start, stop)
            named = unflatten(engine.rows(part, U[start:stop]), engine.sites)
            for name, layout in plan.layouts.items():
                if name in plan.tables:
                    continue
                joined = layout.join(named).reshape(stop - start, k, -1)
                numbers[start:stop, plan.numbers[name], 0] = host((joined**2).sum((1, 2)))
                yield name, joined.reshape((stop - start) * k, -1)

    def traces(self, moments: RunningMoments) -> Traces:
        """Mean squared score norms."""
        return means(moments)

    def _tables(self, sums: Mapping[str, FloatArray], n: int) -> dict[str, Precision]:
        tables = self._plan.chosen(self._plan.tables)
        return {name: Diagonal(sums[f"{name}/diagonal"] / n) for name in tables}

    def _table_shapes(self) -> dict[str, tuple[int, ...]]:
        tables = self._plan.chosen(self._plan.tables)
        return {f"{name}/diagonal": layout.shape for name, layout in tables.items()}

    def _others(self) -> dict[str, tuple[int, ...]]:
        layouts = self._plan.layouts
        return {name: x.shape for name, x in layouts.items() if name not in self._plan.tables}


def table_squares(engine: Any, inputs: Any, U: Array) -> tuple[dict[str, Any], dict[str, Array]]:
    """Σ of squares by parameter, and by parameter and example."""
    if hasattr(engine, "squares"):
        found: tuple[dict[str, Any], dict[str, Array]] = engine.squares(inputs, U)
        return found
    total, norms = engine.diagonal_sum(inputs, U)
    return unflatten(total, engine.sites), {s.name: norms[:, k] for k, s in enumerate(engine.sites)}


class BlockEstimator(_RowSums):
    """Σ_i g gᵀ of every site."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        for name, shape in self._others().items():
            d = int(np.prod(shape))
            if d > BLOCK_LIMIT:
                raise InvalidInputError(
                    f"structure='block' was given, and {name!r} has {d} parameters: a matrix of "
                    f"{8 * d * d / 2**30:.1f} GiB. Blocks of at most {BLOCK_LIMIT} parameters are "
                    "made; choose smaller ones with params=, or 'kronecker', 'ekfac' or "
                    "'lowrank+diagonal'."
                )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """A square matrix a site."""
        sizes = {name: int(np.prod(shape)) for name, shape in self._others().items()}
        return {f"{name}/block": (d, d) for name, d in sizes.items()} | self._table_shapes()

    def batch(self, inputs: Any, roots: Roots) -> tuple[dict[str, BatchSum], FloatArray]:
        """RᵀR of the rows R of each site."""
        numbers = numbers_of(self._plan, examples_of(inputs), 1)
        sums: dict[str, Any] = {}
        for name, rows in self._batch_rows(inputs, roots, numbers, sums):
            key, product = f"{name}/block", host(rows.T @ rows)
            sums[key] = sums[key] + product if key in sums else product
        return sums, numbers

    def finish(self, sums: Mapping[str, FloatArray], n: int) -> dict[str, Precision]:
        """One matrix a site."""
        found = self._tables(sums, n)
        for name, shape in self._others().items():
            P = sums[f"{name}/block"] / n
            found[name] = DenseBlock((P + P.T) / 2, shape)
        return self._plan.in_order(found)


class LowRankEstimator(_RowSums):
    """A sketch P Ω of every site with a fixed Gaussian Ω, and its diagonal.

    From the sketch follows the Nyström approximation P Ω (Ωᵀ P Ω)⁺ Ωᵀ P ⪯ P, of which the r leading
    directions are kept; what they leave of the diagonal becomes f ≥ 0, so that the trace is exact.
    The sketch is a sum over examples: neither batches nor processes change it. Sites of rank ≤ r
    come out exactly. Source: Tropp, Yurtsever, Udell and Cevher, arXiv:1706.05736.
    """

    def __init__(self, plan: Plan, rank: int, key: int) -> None:
        super().__init__(plan)
        self._rank, self._key = rank, key
        self._sizes = {name: int(np.prod(shape)) for name, shape in self._others().items()}
        need = 16 * sum(d * self._columns(d) for d in self._sizes.values())
        if need > SKETCH_BYTES:
            raise InvalidInputError(
                f"structure='lowrank+diagonal' with rank={rank} was given: sketches of "
                f"{need / 2**30:.1f} GiB; at most {SKETCH_BYTES >> 30} GiB are made. Choose a "
                "smaller rank, or fewer parameters with params=."
            )
        self._tests: dict[str, FloatArray] = {}

    def _columns(self, d: int) -> int:
        return min(d, 2 * self._rank + OVERSAMPLING)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """A sketch and a diagonal a site."""
        found = self._table_shapes()
        for name, d in self._sizes.items():
            found |= {f"{name}/sketch": (d, self._columns(d)), f"{name}/squares": (d,)}
        return found

    def batch(self, inputs: Any, roots: Roots) -> tuple[dict[str, BatchSum], FloatArray]:
        """Rᵀ(R Ω) of the rows R of each site, in float64."""
        numbers = numbers_of(self._plan, examples_of(inputs), 1)
        sums: dict[str, Any] = {}
        for name, found in self._batch_rows(inputs, roots, numbers, sums):
            rows = host(found).astype(np.float64)
            for key, x in (
                (f"{name}/sketch", rows.T @ (rows @ self._test(name))),
                (f"{name}/squares", np.einsum("mp,mp->p", rows, rows)),
            ):
                sums[key] = sums[key] + x if key in sums else x
        return sums, numbers

    def finish(self, sums: Mapping[str, FloatArray], n: int) -> dict[str, Precision]:
        """Leading directions and what they leave of the diagonal."""
        found = self._tables(sums, n)
        for name, shape in self._others().items():
            squares = sums[f"{name}/squares"] / n
            directions = nystrom(sums[f"{name}/sketch"] / n, self._test(name), self._rank)
            directions[:, squares == 0] = 0.0
            values = np.maximum(squares - (directions**2).sum(0), 0.0).reshape(shape)
            found[name] = LowRankDiagonal(values, directions.reshape(len(directions), *shape))
        return self._plan.in_order(found)

    def _test(self, name: str) -> FloatArray:
        """Ω (d, l) of a site."""
        if name not in self._tests:
            # The highest bit keeps these streams apart from those of the labels' draws.
            counter = 1 << 255 | self._plan.numbers[name] << 128
            stream = np.random.Generator(np.random.Philox(key=self._key, counter=counter))
            d = self._sizes[name]
            self._tests[name] = stream.standard_normal((d, self._columns(d)))
        return self._tests[name]


def nystrom(sketch: FloatArray, test: FloatArray, rank: int) -> FloatArray:
    """Rows u_k (≤ rank, d) with Σ u_k u_kᵀ the leading part of the Nyström approximation.

    Parameters
    ----------
    sketch : array (d, l)
        P Ω of a positive semidefinite P.
    test : array (d, l)
        Ω.
    rank : int
    """
    core = test.T @ sketch
    values, vectors = np.linalg.eigh((core + core.T) / 2)
    # Directions below this are roundings of the larger ones.
    kept = values > 1e-12 * max(float(values[-1]), 0.0)
    if not kept.any():
        return np.zeros((0, len(sketch)))
    root = (sketch @ vectors[:, kept]) / np.sqrt(values[kept])
    left, singular, _ = np.linalg.svd(root, full_matrices=False)
    return np.ascontiguousarray((left[:, :rank] * singular[:rank]).T)
