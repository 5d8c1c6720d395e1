"""Estimators of the diagonal, and of its mean over each site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...types import FloatArray
from ..batches import examples_of
from ..structures import Diagonal, Isotropic, Precision
from .plan import BatchSum, Plan, Roots, host, host_sum, numbers_of
from .running import RunningMoments, Traces, means


class DiagonalEstimator:
    """Σ_i diag F(x_i): squares of the gradients of single examples.

    Parameters
    ----------
    plan : Plan
    isotropic : bool
        Keep the mean over each site alone.
    """

    width = 1

    def __init__(self, plan: Plan, *, isotropic: bool) -> None:
        self._plan, self._isotropic = plan, isotropic

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The diagonal of every parameter."""
        return {s.name: s.shape for s in self._plan.parameters}

    def batch(self, inputs: Any, roots: Roots) -> tuple[dict[str, BatchSum], FloatArray]:
        """By the engine's own sums of squares, else from its rows."""
        engine, plan = self._plan.engine, self._plan
        numbers = numbers_of(plan, examples_of(inputs), 1)
        if hasattr(engine, "squares"):
            sums, norms = engine.squares(inputs, roots)
            for name, x in norms.items():
                numbers[:, plan.numbers[name], 0] = host(x)
            return {name: host_sum(x) for name, x in sums.items()}, numbers
        if hasattr(engine, "diagonal_sum"):
            total, traces = (host(x) for x in engine.diagonal_sum(inputs, roots))
        else:
            rows = host(engine.rows(inputs, roots(engine.predict(inputs)))).astype(np.float64)
            values = np.einsum("nkp,nkp->np", rows, rows)
            total = values.sum(0)
            traces = np.stack([values[:, s.start : s.stop].sum(1) for s in engine.sites], axis=1)
        found: dict[str, BatchSum] = {}
        for k, site in enumerate(engine.sites):
            if site.name in plan.numbers:
                found[site.name] = total[site.start : site.stop].reshape(site.shape)
                numbers[:, plan.numbers[site.name], 0] = traces[:, k]
        return found, numbers

    def traces(self, moments: RunningMoments) -> Traces:
        """Mean squared score norms."""
        return means(moments)

    def finish(self, sums: Mapping[str, FloatArray], n: int) -> dict[str, Precision]:
        """One diagonal, or its mean, a parameter."""
        found: dict[str, Precision] = {}
        for name, shape in self.shapes.items():
            f = sums[name]
            f *= 1 / n  # in place: all of them are as large as the model
            if self._isotropic:
                found[name] = Isotropic(float(f.mean()) if f.size else 0.0, shape)
            else:
                found[name] = Diagonal(f)
        return found
