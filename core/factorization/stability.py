"""Which components can be trusted: stability under resampling.

A component that comes back from other seeds on other subsets of the examples belongs to the data.
Seeds alone would flatter, because good starts are found from the data and are much the same. What
can be said without another fit is in ``uniqueness``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import InvalidInputError
from ..fisher.per_example import DiagonalFishers, LowRankFishers
from ..fisher.ranks import in_order
from ..types import Array, FloatArray, IntArray
from .compare import matched_cosines
from .factorize import factorize
from .method import DiagonalNPEFF, LowRankNPEFF
from .result import Factorization


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stability:
    """How closely the components come back from other seeds on subsets of the examples.

    Attributes
    ----------
    whole : Factorization
        The run on all examples.
    cosines : float64 array (s, r)
        |cos| of each component of ``whole`` to its match in the run on each subset.
    seeds : int64 array (s,)
    share : float
        Size of the subsets.
    """

    whole: Factorization
    cosines: FloatArray
    seeds: IntArray
    share: float

    @property
    def scores(self) -> FloatArray:
        """Mean matched |cos| of each component of ``whole`` (r,)."""
        return np.asarray(self.cosines.mean(axis=0))

    @property
    def score(self) -> float:
        """Mean over components."""
        return float(self.cosines.mean())

    def __repr__(self) -> str:
        return f"Stability(r={self.whole.n_components}, seeds={len(self.seeds)}, {self.score:.3f})"


def stability(
    fishers: LowRankFishers | DiagonalFishers,
    method: LowRankNPEFF | DiagonalNPEFF,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    share: float = 0.7,
    n_jobs: int | None = None,
    **options: Any,
) -> Stability:
    """Factorize all examples, then random subsets of them, and match the components.

    Parameters
    ----------
    seeds : sequence of int
        One for each subset (its draw and its starts); all different. The run on all examples
        takes the first.
    share : float
        Part of the examples in each subset, in (0, 1].
    n_jobs : int, optional
        Workers of joblib that share the subsets; they change nothing but the time.
    **options
        Passed to :func:`factorize`.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise InvalidInputError(
            f"seeds={tuple(seeds)} were given; at least one, and all different, are needed."
        )
    if not 0.0 < share <= 1.0:
        raise InvalidInputError(f"share={share!r} was given; a number in (0, 1] is accepted.")
    if isinstance(method, DiagonalNPEFF) and method.start == "nndsvd":
        # The leading singular pairs are the same for every seed.
        method = replace(method, start="random")
    whole = factorize(fishers, method, seed=seeds[0], **options)
    parts = ((fishers, method, seed, share, options) for seed in seeds)
    found = in_order(_of_subset, parts, n_jobs)
    return Stability(
        whole=whole,
        cosines=np.array([matched_cosines(whole.components, G)[0] for G in found]),
        seeds=np.array(seeds, dtype=np.int64),
        share=share,
    )


def _of_subset(
    fishers: LowRankFishers | DiagonalFishers,
    method: LowRankNPEFF | DiagonalNPEFF,
    seed: int,
    share: float,
    options: dict[str, Any],
) -> Array:
    """Components of a random subset of the examples."""
    n = len(fishers)
    rng = np.random.default_rng([seed, n])
    subset = np.sort(rng.choice(n, size=max(1, round(share * n)), replace=False))
    return factorize(fishers.select(subset), method, seed=seed, **options).components


def choose_n_components(
    fishers: LowRankFishers | DiagonalFishers,
    method: LowRankNPEFF | DiagonalNPEFF,
    candidates: Sequence[int],
    *,
    threshold: float = 0.9,
    seeds: Sequence[int] = (0, 1, 2),
    **options: Any,
) -> tuple[int, dict[int, Stability]]:
    """The largest number of components whose stability score reaches ``threshold``.

    Returns
    -------
    chosen : int
        The most stable candidate when none reaches the threshold.
    results : dict of int to Stability
        For every candidate, so that the curve can be looked at.
    """
    if not candidates:
        raise InvalidInputError("No candidate was given; give at least one number of components.")
    results = {
        r: stability(fishers, replace(method, n_components=r), seeds=seeds, **options)
        for r in sorted(set(candidates))
    }
    stable = [r for r, result in results.items() if result.score >= threshold]
    return (max(stable) if stable else max(results, key=lambda r: results[r].score)), results
