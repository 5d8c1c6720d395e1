"""Estimators of the diagonal, and of its mean over each site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...types import FloatArray, NumpyArray
from ..structures import Diagonal, Isotropic, Precision
from .plan import Plan, Roots, host
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
        """The diagonal of all parameters."""
        return {"diagonal": (self._plan.parameters[-1].stop,)}

    def batch(self, inputs: Any, roots: Roots) -> tuple[dict[str, NumpyArray], FloatArray]:
        """By the engine's own sums of squares, else from its rows."""
        engine, plan = self._plan.engine, self._plan
        if hasattr(engine, "diagonal_sum"):
            sums, norms = engine.diagonal_sum(inputs, roots)
            total, traces = host(sums), host(norms).astype(np.float64)
            if plan.columns is not None:
                chosen = {s.name for s in plan.parameters}
                kept = [k for k, s in enumerate(engine.sites) if s.name in chosen]
                total, traces = total[plan.columns], traces[:, kept]
            return {"diagonal": total}, traces[:, :, None]
        rows = host(engine.rows(inputs, roots(engine.predict(inputs)))).astype(np.float64)
        values = np.einsum("nkp,nkp->np", rows, rows)
        if plan.columns is not None:
            values = values[:, plan.columns]
        traces = np.stack([values[:, s.start : s.stop].sum(1) for s in plan.parameters], axis=1)
        return {"diagonal": values.sum(0)}, traces[:, :, None]

    def traces(self, moments: RunningMoments) -> Traces:
        """Mean squared score norms."""
        return means(moments)

    def finish(self, sums: Mapping[str, FloatArray], n: int) -> dict[str, Precision]:
        """One diagonal, or its mean, a parameter."""
        found: dict[str, Precision] = {}
        for site in self._plan.parameters:
            f = sums["diagonal"][site.start : site.stop].reshape(site.shape) / n
            if self._isotropic:
                found[site.name] = Isotropic(float(f.mean()) if f.size else 0.0, site.shape)
            else:
                found[site.name] = Diagonal(f)
        return found
