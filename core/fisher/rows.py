"""Rows and diagonals of one batch, and how those of all batches come together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from ..backend import BackendChoice, Kernel, enter
from ..errors import InvalidInputError
from ..model import DenseEngine, ModelEngine, Site
from ..types import Array, Device
from .draws import Draws
from .labels import ExactLabels, LabelRoots, LabelRule
from .per_example import DiagonalFishers, LowRankFishers, frobenius_norms
from .reduction import FactoredProjection, RandomProjection, ThinSVD, TopK


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """Rows (h, m) with their counts, or diagonals (n, m), of one batch."""

    values: Array
    counts: Any = None
    norms: Any = None
    kept: Any = None

    @property
    def n(self) -> int:
        """Examples in the batch."""
        if self.counts is not None:
            return len(self.counts)
        return len(self.values[0] if isinstance(self.values, tuple) else self.values)

    @property
    def nbytes(self) -> int:
        """Bytes of the values, as a store keeps them."""
        arrays = self.values if isinstance(self.values, tuple) else (self.values,)
        return sum(int(x.nbytes) for x in arrays)

    def restrict(self, columns: Any) -> Part:
        """Some columns only; norms are those of the selected parameters."""
        values = self.values[:, columns]
        norms = None
        if self.counts is not None:
            norms = frobenius_norms(values, np.concatenate([[0], np.cumsum(self.counts)]))
        return Part(values=values, counts=self.counts, norms=norms, kept=self.kept)

    def reduced(self, svd: ThinSVD | None, top: TopK | None) -> Part:
        """Fewer rows an example, or the largest entries of the diagonals as (entries, columns)."""
        if top is not None:
            return replace(self, values=top.select(self.values))
        if svd is None or self.counts is None:
            return self
        offsets = np.concatenate([[0], np.cumsum(self.counts)])
        xp = array_namespace(self.values)
        blocks = [svd.apply(self.values[int(a) : int(b)][None])[0] for a, b in pairwise(offsets)]
        counts = np.array([int(block.shape[0]) for block in blocks], dtype=np.int64)
        return replace(self, values=xp.concat(blocks, axis=0), counts=counts)


class RowSource:
    """Computes the rows or diagonals of a batch: by kernel where there is one, else by engine.

    Parameters
    ----------
    engine : ModelEngine
    rule : LabelRule
    backend, device
        For the kernels of dense networks.
    projection : RandomProjection or FactoredProjection, optional
    key : int
        Decides the projection.
    """

    def __init__(
        self,
        engine: ModelEngine,
        rule: LabelRule,
        backend: BackendChoice,
        device: Device,
        projection: RandomProjection | FactoredProjection | None = None,
        key: int = 0,
    ) -> None:
        # Any: some engines can do more than the protocol asks for.
        self.engine: Any = engine
        self.rule = rule
        self.backend, self.device = backend, device
        self.projection, self.key = projection, key
        plain = isinstance(rule, ExactLabels) and rule.complete
        by_kernel = isinstance(engine, DenseEngine) and engine.output.name in (
            "categorical",
            "gaussian",
        )
        self.dense = engine if by_kernel and plain and isinstance(engine, DenseEngine) else None

    def low_rank(self, batch: Any, draws: Draws, targets: Array | None) -> Part:
        """Rows of a batch."""
        if self.projection is not None:
            return self._projected(batch, draws, targets)
        if self.dense is not None:
            A = self._kernel(Kernel.DENSE_FISHER_ROWS, batch, reduced=True)
            counts = np.full(int(A.shape[0]), int(A.shape[1]), dtype=np.int64)
            kept = np.ones(len(counts))
        else:
            roots = self._roots(batch, draws, targets)
            A = self.engine.rows(batch, roots.values)
            counts, kept = roots.counts, np.asarray(roots.kept)
        return self._flat(A, counts, kept)

    def _projected(self, batch: Any, draws: Draws, targets: Array | None) -> Part:
        roots = self._roots(batch, draws, targets)
        projection, width = self.projection, 0 if self.projection is None else self.projection.dim
        if hasattr(self.engine, "projected"):
            A = self.engine.projected(batch, roots.values, projection, self.key)
        elif isinstance(projection, RandomProjection):
            rows = self.engine.rows(batch, roots.values)
            xp = array_namespace(rows)
            lead = (int(rows.shape[0]), int(rows.shape[1]))
            A = xp.zeros((lead[0] * lead[1], width), dtype=rows.dtype)
            projection.sketch(self.key).add(A, xp.reshape(rows, (lead[0] * lead[1], -1)), 0)
            A = xp.reshape(A, (*lead, width))
        else:
            raise InvalidInputError(
                "FactoredProjection was given for a model that is no torch.nn.Module; use "
                f"RandomProjection({width})."
            )
        return self._flat(A, roots.counts, np.asarray(roots.kept))

    def _flat(self, A: Array, counts: Any, kept: Any) -> Part:
        flat = A.reshape((-1, A.shape[2]))
        if (counts != A.shape[1]).any():
            live = np.arange(int(A.shape[1]))[None, :] < counts[:, None]
            flat = flat[np.flatnonzero(live.reshape(-1))]
        norms = frobenius_norms(flat, np.concatenate([[0], np.cumsum(counts)]))
        return Part(values=flat, counts=counts, norms=norms, kept=kept)

    def diagonal(self, batch: Any, draws: Draws, targets: Array | None) -> Part:
        """Diagonals of a batch."""
        if self.dense is not None:
            return Part(values=self._kernel(Kernel.DENSE_FISHER_DIAGONAL, batch))
        roots = self._roots(batch, draws, targets)
        if hasattr(self.engine, "diagonal"):
            values = self.engine.diagonal(batch, roots.values)
            return Part(values=values, kept=roots.kept)
        A = self.engine.rows(batch, roots.values)
        xp = array_namespace(A)
        return Part(values=xp.sum(A * A, axis=1), kept=roots.kept)

    def _roots(self, batch: Any, draws: Draws, targets: Array | None) -> LabelRoots:
        z = self.engine.predict(batch)
        return self.rule.roots(self.engine.output, z, draws, targets)

    def _kernel(self, kernel: Kernel, batch: Array, **options: Any) -> Array:
        engine = self.dense
        if engine is None:
            raise InvalidInputError("The dense kernels need a dense network.")
        theta = engine.theta()
        inputs = engine.checked(batch)
        door = enter(theta, inputs, backend=self.backend, device=self.device, kernel=kernel)
        scale = getattr(engine.output, "variance", 1.0)
        values = door.backend[kernel](
            *door.arrays,
            sizes=engine.network.sizes,
            activation=engine.network.activation,
            output=engine.output.name,
            **options,
        )
        if scale != 1.0:
            values = values / (scale if kernel is not Kernel.DENSE_FISHER_ROWS else scale**0.5)
        return door.out(values)


def joined(
    parts: Sequence[Part], sites: tuple[Site, ...], facts: dict[str, Any]
) -> LowRankFishers | DiagonalFishers:
    """The batches one after another."""
    if isinstance(parts[0].values, tuple):
        return _compressed(parts, sites, facts)
    xp = array_namespace(parts[0].values)
    values = parts[0].values if len(parts) == 1 else xp.concat([p.values for p in parts], axis=0)
    if parts[0].kept is not None:
        kept = np.concatenate([p.kept for p in parts])
        facts = {**facts, "kept_mass_mean": float(kept.mean()), "kept_mass_min": float(kept.min())}
    if parts[0].counts is None:
        return DiagonalFishers(values=values, sites=sites, facts=facts)
    counts = np.concatenate([p.counts for p in parts])
    return LowRankFishers(
        rows=values,
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        norms=np.concatenate([p.norms for p in parts]),
        sites=sites,
        facts=facts,
    )


def _compressed(
    parts: Sequence[Part], sites: tuple[Site, ...], facts: dict[str, Any]
) -> DiagonalFishers:
    """The largest entries of each diagonal as compressed rows."""
    from scipy.sparse import csr_array

    entries, columns, share = (np.concatenate([p.values[i] for p in parts]) for i in range(3))
    n, k = entries.shape
    offsets = np.arange(n + 1, dtype=np.int64) * k
    values = csr_array(
        (entries.reshape(-1), columns.reshape(-1), offsets), shape=(n, sites[-1].stop)
    )
    captured = {"captured_norm_mean": float(share.mean()), "captured_norm_min": float(share.min())}
    return DiagonalFishers(values=values, sites=sites, facts={**facts, **captured})
