"""Sums of differences from a base, made sparse by size, chance or rank, with settings per source.

One class for task arithmetic, TIES, DARE, Breadcrumbs and DELLA, with the parameters that
mergekit's files give them: density, weight and so on for each source, L1 rescaling, a factor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from ...backend import like as like_library, to_numpy
from ...errors import InvalidInputError
from ...types import Array, FloatArray
from ..draws import SiteDraws
from ..elementwise import consensus, rank_probabilities
from ..site_view import SiteView, needed
from ..statistics import CHUNK, kth_largest, trim_threshold

Mask = Callable[[int, int], FloatArray]
"""Entries ``start:stop`` of a mask of zeros and ones."""

_SMALL = 1e-7  # norms below it are not rescaled


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskVectors:
    """θ_0 + s Σ_i w_i m_i κ_i δ_i (/ Σ_i w_i m_i), δ_i the kept entries of θ_i − θ_0.

    Attributes
    ----------
    select : {None, "magnitude", "outliers", "random", "ranked"}
        Which entries are kept: all; the largest; those between the tails; drawn at random; drawn
        with chances that rise with the rank in the row.
    density, gamma, epsilon : sequence of floats, one a source
        Share kept; share of largest entries that "outliers" cuts off; half the range of chances.
    elect : bool
        m_i: entries that agree with the sign of the weighted sum; else all.
    normalize : bool
        Divide by the weights that count.
    rescale : bool
        κ_i = ‖θ_i − θ_0‖_1 / ‖δ_i‖_1 over the tensor; else 1.
    scale : float
        s.
    masks : sequence of Mask or None
        Kept entries in place of random ones.
    """

    select: str | None
    density: Sequence[float]
    gamma: Sequence[float]
    epsilon: Sequence[float]
    elect: bool
    normalize: bool
    rescale: bool
    scale: float
    masks: Sequence[Mask | None]

    def check(self, name: str) -> None:
        """Refuse shares that make no sense for a tensor.

        Raises
        ------
        InvalidInputError
            Naming it.
        """
        for density, gamma, epsilon in zip(self.density, self.gamma, self.epsilon, strict=True):
            if self.select is not None and not 0 <= density <= 1:
                raise InvalidInputError(f"{name!r}: density {density}; 0 to 1 is accepted.")
            if self.select == "outliers" and not 0 <= gamma < 1:
                raise InvalidInputError(f"{name!r}: gamma {gamma}; 0 to below 1 is accepted.")
            inside = density - epsilon > 0 and density + epsilon < 1
            if self.select == "ranked" and 0 < density < 1 and not inside:
                raise InvalidInputError(
                    f"{name!r}: density {density} and epsilon {epsilon}; density ± epsilon must "
                    "lie between 0 and 1."
                )

    def statistics(self, view: SiteView, draws: SiteDraws, row: int) -> dict[str, Any]:
        """Thresholds and scales of every source on this tensor."""
        n = len(self.density)
        bounds = [self._bounds(view, i) for i in range(n)]
        found: dict[str, Any] = {"bounds": bounds, "scales": [1.0] * n}
        if self.rescale and self.select is not None:
            found["scales"] = self._scales(view, found, draws, row)
        return found

    def block(
        self, x: Array, base: Array | None, weights: Sequence[float], stats: Any,
        draws: SiteDraws, start: int, row: int,
    ) -> Array:  # fmt: skip
        """Kept, rescaled, elected, added."""
        xp = array_namespace(x)
        some: Any = base
        deltas = xp.stack(
            [
                self._kept(x[i] - some, i, stats, draws, start, row) * stats["scales"][i]
                for i in range(int(x.shape[0]))
            ]
        )
        return consensus(
            deltas, base, weights, elect="mass" if self.elect else None,
            normalize=self.normalize, scale=self.scale,
        )  # fmt: skip

    def _bounds(self, view: SiteView, i: int) -> tuple[float, float]:
        """Smallest and largest size that is kept."""
        density, everything, nothing = self.density[i], (0.0, np.inf), (np.inf, -np.inf)
        if self.select not in ("magnitude", "outliers") or density >= 1:
            return everything
        if self.select == "magnitude":
            if density <= 0:
                return nothing
            return trim_threshold(view.magnitudes(i), view.size, density), np.inf
        kept, top = int(density * view.size), int(self.gamma[i] * view.size)
        below = max(0, view.size - kept - top)
        if not kept:
            return nothing
        lower = kth_largest(view.magnitudes(i), view.size - below)
        above = view.size - below - kept
        return lower, kth_largest(view.magnitudes(i), above + 1) if above else np.inf

    def _kept(
        self, delta: Array, i: int, stats: Any, draws: SiteDraws, start: int, row: int
    ) -> Array:
        """δ_i: the entries of a difference that are kept, 0 elsewhere."""
        if self.select is None or (self.density[i] >= 1 and self.masks[i] is None):
            return delta
        xp = array_namespace(delta)
        stop = start + int(delta.shape[0])
        if self.select in ("magnitude", "outliers"):
            lower, upper = stats["bounds"][i]
            size = xp.abs(delta)
            keep = (size >= lower) & (size <= upper)
        elif (mask := self.masks[i]) is not None:
            keep = like_library(mask(start, stop), delta) != 0
        else:
            chance: FloatArray | float = self.density[i]
            if self.select == "ranked" and chance > 0:
                sizes = to_numpy(delta).reshape(-1, row)
                chance = rank_probabilities(sizes, self.density[i], self.epsilon[i]).reshape(-1)
            keep = like_library((draws.uniform(i, start, stop) < chance) * 1.0, delta) != 0
        return xp.where(keep, delta, xp.zeros_like(delta))

    def _scales(self, view: SiteView, stats: Any, draws: SiteDraws, row: int) -> list[float]:
        n = len(self.density)
        before: list[list[float]] = [[] for _ in range(n)]
        after: list[list[float]] = [[] for _ in range(n)]
        for start, x, base in _pieces(view, row if self.select == "ranked" else 1):
            for i in range(n):
                delta = x[i] - base
                before[i].append(float(np.abs(delta).sum()))
                kept = self._kept(delta, i, stats, draws, start, row)
                after[i].append(float(np.abs(kept).sum()))
        pairs = [(fsum(b), fsum(a)) for b, a in zip(before, after, strict=True)]
        return [b / a if min(a, b) >= _SMALL else 1.0 for b, a in pairs]


def _pieces(view: SiteView, row: int) -> Any:
    """The tensor in pieces of whole rows: (start, x, base); always cut in the same way."""
    held: list[tuple[FloatArray, FloatArray]] = []
    start = waiting = 0
    step = max(row, CHUNK // row * row)
    for x, base in view.read():
        held.append((x, needed(base)))
        waiting += x.shape[1]
        while waiting >= step or (waiting and start + waiting == view.size):
            both = np.concatenate([np.concatenate([x, b[None]]) for x, b in held], axis=1)
            piece, rest = both[:, :step], both[:, step:]
            yield start, piece[:-1], piece[-1]
            start += piece.shape[1]
            waiting = rest.shape[1]
            held = [(rest[:-1], rest[-1])] if waiting else []
