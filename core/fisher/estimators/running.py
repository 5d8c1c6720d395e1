"""Mean and scatter of per-example numbers, batch by batch, and standard errors from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...types import FloatArray


class RunningMoments:
    """Mean (d,) and scatter Σ (x − mean)(x − mean)ᵀ (d, d) of rows that come in batches.

    Batches are merged by their own means (Chan, Golub and LeVeque 1983), so that neither their
    sizes nor a large mean cost digits.
    """

    def __init__(self, d: int) -> None:
        self.n = 0
        self.mean: FloatArray = np.zeros(d)
        self.scatter: FloatArray = np.zeros((d, d))

    def add(self, rows: FloatArray) -> None:
        """Rows (n, d) more."""
        if len(rows):
            mean = rows.mean(0)
            off = rows - mean
            self._merge(len(rows), mean, off.T @ off)

    def packed(self) -> FloatArray:
        """All of it as one row, for :meth:`add_packed` elsewhere."""
        return np.concatenate([[float(self.n)], self.mean, self.scatter.ravel()])

    def add_packed(self, row: FloatArray) -> None:
        """What another one packed."""
        d = len(self.mean)
        self._merge(int(row[0]), row[1 : 1 + d], row[1 + d :].reshape(d, d))

    def _merge(self, n: int, mean: FloatArray, scatter: FloatArray) -> None:
        if not n:
            return
        total = self.n + n
        gap = mean - self.mean
        self.scatter = self.scatter + scatter + np.outer(gap, gap) * (self.n * n / total)
        self.mean = self.mean + gap * (n / total)
        self.n = total


@dataclass(frozen=True, slots=True, eq=False)
class Traces:
    """Traces of the sites as functions of the means of per-example numbers.

    Attributes
    ----------
    values : array (sites,)
    slopes : array (sites, q)
        Derivatives of each value by the q means of its site.
    """

    values: FloatArray
    slopes: FloatArray

    def errors(self, moments: RunningMoments) -> FloatArray:
        """Standard error of each value to first order; exact for means, NaN for one example."""
        sites, q = self.slopes.shape
        if moments.n < 2:
            return np.full(sites, np.nan)
        blocks = moments.scatter.reshape(sites, q, sites, q)
        own = np.einsum("saSb,sS->sab", blocks, np.eye(sites)) if q > 1 else None
        if own is None:
            variance = np.diagonal(moments.scatter) * self.slopes[:, 0] ** 2
        else:
            variance = np.einsum("sa,sab,sb->s", self.slopes, own, self.slopes)
        return np.sqrt(np.maximum(variance, 0) / (moments.n - 1) / moments.n)

    def relative_error(self, moments: RunningMoments) -> float:
        """Standard error of the sum of all values over that sum."""
        whole = float(self.values.sum())
        if moments.n < 2:
            return float("nan")
        slope = self.slopes.ravel()
        variance = float(slope @ moments.scatter @ slope)
        error = (max(variance, 0.0) / (moments.n - 1) / moments.n) ** 0.5
        return error / whole if whole > 0 else 0.0


def means(moments: RunningMoments) -> Traces:
    """Traces that are means of one number an example."""
    return Traces(moments.mean, np.ones((len(moments.mean), 1)))


def products(moments: RunningMoments) -> Traces:
    """Traces b̄ ā / t̄ of three numbers an example: products of two means, the second one a ratio."""
    b, a, t = moments.mean.reshape(-1, 3).T
    inverse = 1.0 / np.where(t > 0, t, 1.0)
    slopes = np.stack([a * inverse, b * inverse, -b * a * inverse**2], axis=1)
    return Traces(b * a * inverse, slopes)
