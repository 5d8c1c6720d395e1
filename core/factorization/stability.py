"""Which components can be trusted: stability under resampling, and pairs that are ambiguous.

If the g_k are linearly independent and no two columns of W are proportional, the factorization is
unique up to scale, sign and order (uniqueness of partially symmetric CP decompositions, from
Kruskal's condition k_W + 2k_G ≥ 2r + 2). Proportional columns of W make the span of their g's
unidentifiable; dependent g's leave the amounts ambiguous. Stability is the empirical side: a
component that comes back from other seeds on other subsets of the examples belongs to the data.
Seeds alone would flatter, because good starts are found from the data and are much the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..backend import to_numpy
from ..errors import InvalidInputError
from ..fisher.per_example import DiagonalFishers, LowRankFishers
from ..types import FloatArray, IntArray
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
    n = len(fishers)
    cosines = []
    for seed in seeds:
        rng = np.random.default_rng([seed, n])
        subset = np.sort(rng.choice(n, size=max(1, round(share * n)), replace=False))
        part = factorize(fishers.select(subset), method, seed=seed, **options)
        cosines.append(matched_cosines(whole.components, part.components)[0])
    return Stability(
        whole=whole,
        cosines=np.array(cosines),
        seeds=np.array(seeds, dtype=np.int64),
        share=share,
    )


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Ambiguity:
    """Two components that the data do not tell apart, and why."""

    components: tuple[int, int]
    reason: str
    cosine: float


def ambiguities(factorization: Factorization, *, limit: float = 0.98) -> tuple[Ambiguity, ...]:
    """Pairs of components that are not identifiable, the worst first.

    Parameters
    ----------
    limit : float
        |cos| above which two columns of W count as proportional, or two g's as dependent.

    Returns
    -------
    tuple of Ambiguity
        Reason "proportional coefficients": only the span of the two g's is determined. Reason
        "parallel components": only the sum of the two coefficients is.
    """
    found: list[Ambiguity] = []
    sides = (
        ("proportional coefficients", to_numpy(factorization.coefficients).T),
        ("parallel components", to_numpy(factorization.components)),
    )
    for reason, vectors in sides:
        unit = vectors.astype(np.float64)
        norms = np.linalg.norm(unit, axis=1, keepdims=True)
        unit = np.divide(unit, norms, out=np.zeros_like(unit), where=norms > 0)
        cosines = np.abs(np.triu(unit @ unit.T, 1))
        for k, j in zip(*np.nonzero(cosines > limit), strict=True):
            found.append(
                Ambiguity(components=(int(k), int(j)), reason=reason, cosine=float(cosines[k, j]))
            )
    return tuple(sorted(found, key=lambda a: -a.cosine))
