"""Differences made sparse before they are added: by size, by chance, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from array_api_compat import array_namespace

from ...backend import to_numpy
from ...errors import InvalidInputError
from ...types import Array
from ..draws import SiteDraws
from ..elementwise import consensus, drop, rank_probabilities, trim
from ..statistics import outlier_thresholds, trim_threshold
from .base import BlockMethod, SiteView, Stats, moved

ELECTIONS = (None, "mass", "count")


def _check(density: float, elect: str | None) -> None:
    if not 0 <= density <= 1:
        raise InvalidInputError(f"density={density} was given; a number in [0, 1] is accepted.")
    if elect not in ELECTIONS:
        raise InvalidInputError(f"elect={elect!r} was given; None, 'mass' or 'count' is accepted.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TIES(BlockMethod):
    """Trim, elect a sign, take the disjoint mean (arXiv:2306.01708).

    Each τ_i = θ_i − θ_0 keeps its ``density`` largest entries by size; at every entry the sign of
    Σ λ_i τ_i is elected; the λ-weighted mean of the entries that agree, times s, is added to θ_0.

    Attributes
    ----------
    density : float
        Share of entries that stay, of each tensor.
    scale : float
        s, the paper's λ.
    normalize : bool
        The mean over those that agree; else their sum.
    elect : {"mass", "count", None}
        Sign of the sum, of the number of signs, or no election.
    """

    density: float = 0.2
    scale: float = 1.0
    normalize: bool = True
    elect: str | None = "mass"
    name: ClassVar[str] = "ties"
    reference: ClassVar[str] = "arXiv:2306.01708"
    signed_weights: ClassVar[bool] = True
    uses_base: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self.density, self.elect)

    def statistics(self, view: SiteView) -> Stats:
        """The smallest size that stays, for each source."""
        n = next(iter(view.values()())).shape[0]
        size = view.size
        return {"lower": [trim_threshold(view.magnitudes(i), size, self.density) for i in range(n)]}

    def block(
        self, x: Array, base: Array | None, weights: Sequence[float], stats: Stats,
        draws: SiteDraws, start: int, row: int,
    ) -> Array:  # fmt: skip
        """Trimmed, elected, averaged."""
        some: Any = base
        deltas = trim(x - some[None, :], stats["lower"])
        return consensus(
            deltas, base, weights, elect=self.elect, normalize=self.normalize, scale=self.scale
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Breadcrumbs(BlockMethod):
    """Both tails of every difference are cut off (arXiv:2312.06795).

    Of each tensor's entries the share ``outliers`` of largest size goes, then of the others the
    ``density`` largest stay; their λ-weighted sum, times s, is added to θ_0.

    Attributes
    ----------
    density, outliers : float
    scale : float
    normalize : bool
    elect : {None, "mass", "count"}
        An election of signs as in TIES on top.
    """

    density: float = 0.9
    outliers: float = 0.01
    scale: float = 1.0
    normalize: bool = False
    elect: str | None = None
    name: ClassVar[str] = "breadcrumbs"
    reference: ClassVar[str] = "arXiv:2312.06795"
    signed_weights: ClassVar[bool] = True
    uses_base: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self.density, self.elect)
        if not 0 <= self.outliers < 1:
            raise InvalidInputError(
                f"outliers={self.outliers} was given; a number in [0, 1) is accepted."
            )

    def statistics(self, view: SiteView) -> Stats:
        """Smallest and largest size that stay, for each source."""
        n = next(iter(view.values()())).shape[0]
        found = [
            outlier_thresholds(view.magnitudes(i), view.size, self.density, self.outliers)
            for i in range(n)
        ]
        return {"lower": [f[0] for f in found], "upper": [f[1] for f in found]}

    def block(
        self, x: Array, base: Array | None, weights: Sequence[float], stats: Stats,
        draws: SiteDraws, start: int, row: int,
    ) -> Array:  # fmt: skip
        """What lies between the thresholds, added."""
        some: Any = base
        deltas = trim(x - some[None, :], stats["lower"], stats["upper"])
        return consensus(
            deltas, base, weights, elect=self.elect, normalize=self.normalize, scale=self.scale
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DARE(BlockMethod):
    """Entries of the differences are dropped at random and the others rescaled (arXiv:2311.03099).

    τ_i keeps an entry with probability q = ``density`` and then counts 1/q times, so that its mean
    stays; the λ-weighted sum, times s, is added to θ_0. The draws come from the seed and the
    tensor's name: the same for every backend, block size and shard layout.

    Attributes
    ----------
    density : float
        q = 1 − the paper's drop rate p.
    rescale : bool
    scale : float
    normalize : bool
    elect : {None, "mass", "count"}
        An election of signs as in TIES on top ("dare_ties" of other tools).
    """

    density: float = 0.5
    rescale: bool = True
    scale: float = 1.0
    normalize: bool = False
    elect: str | None = None
    name: ClassVar[str] = "dare"
    reference: ClassVar[str] = "arXiv:2311.03099"
    signed_weights: ClassVar[bool] = True
    uses_base: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self.density, self.elect)

    def block(
        self, x: Array, base: Array | None, weights: Sequence[float], stats: Stats,
        draws: SiteDraws, start: int, row: int,
    ) -> Array:  # fmt: skip
        """Dropped, rescaled, added."""
        some: Any = base
        deltas = x - some[None, :]
        xp = array_namespace(deltas)
        keep = xp.full_like(deltas, self.density)
        deltas = drop(deltas, _uniforms(x, draws, start), keep, rescale=self.rescale)
        return consensus(
            deltas, base, weights, elect=self.elect, normalize=self.normalize, scale=self.scale
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DELLA(BlockMethod):
    """Drops that fall with the size of the entry, then TIES' election (arXiv:2406.11617).

    In each row the keep probability rises linearly with the rank of abs(τ), from density − ε to
    density + ε; kept entries count 1/q times.

    Attributes
    ----------
    density, epsilon : float
        density ± ε must lie in [0, 1].
    rescale : bool
    scale : float
    normalize : bool
    elect : {"mass", "count", None}
    """

    density: float = 0.5
    epsilon: float = 0.1
    rescale: bool = True
    scale: float = 1.0
    normalize: bool = True
    elect: str | None = "mass"
    name: ClassVar[str] = "della"
    reference: ClassVar[str] = "arXiv:2406.11617"
    signed_weights: ClassVar[bool] = True
    uses_base: ClassVar[bool] = True
    unit: ClassVar[str] = "row"

    def __post_init__(self) -> None:
        _check(self.density, self.elect)
        if not 0 <= self.epsilon <= min(self.density, 1 - self.density):
            raise InvalidInputError(
                f"epsilon={self.epsilon} was given with density={self.density}; density ± epsilon "
                "must lie in [0, 1]."
            )

    def block(
        self, x: Array, base: Array | None, weights: Sequence[float], stats: Stats,
        draws: SiteDraws, start: int, row: int,
    ) -> Array:  # fmt: skip
        """Ranked within rows, dropped, rescaled, elected, averaged."""
        some: Any = base
        deltas = x - some[None, :]
        xp = array_namespace(deltas)
        keep = [
            rank_probabilities(to_numpy(deltas[i, :]).reshape(-1, row), self.density, self.epsilon)
            for i in range(int(x.shape[0]))
        ]
        probabilities = xp.stack([moved(k.reshape(-1), x) for k in keep])
        deltas = drop(deltas, _uniforms(x, draws, start), probabilities, rescale=self.rescale)
        return consensus(
            deltas, base, weights, elect=self.elect, normalize=self.normalize, scale=self.scale
        )


def _uniforms(x: Array, draws: SiteDraws, start: int) -> Array:
    n, b = (int(s) for s in x.shape)
    xp = array_namespace(x)
    return xp.stack([moved(draws.uniform(i, start, start + b), x) for i in range(n)])
