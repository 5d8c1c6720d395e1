"""Sets of weight vectors on the simplex to try."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np

from ...errors import InvalidInputError
from ...types import FloatArray


def _count(name: str, value: int, least: int = 1) -> None:
    if isinstance(value, bool) or value < least:
        raise InvalidInputError(f"{name}={value} was given; a whole number >= {least} is accepted.")


@dataclass(frozen=True, slots=True)
class PairGrid:
    """λ = (1 − t, t) for two models, t evenly over [0, 1].

    Attributes
    ----------
    n_points : int
        51 in the paper's code.
    corners : bool
        Whether t = 0 and t = 1 (each model alone) are among them.

    Examples
    --------
    >>> PairGrid(3).points(2, 0)[:, 1].tolist()
    [0.0, 0.5, 1.0]
    >>> PairGrid(3, corners=False).points(2, 0)[:, 1].tolist()
    [0.25, 0.5, 0.75]
    """

    n_points: int = 51
    corners: bool = True

    def __post_init__(self) -> None:
        _count("n_points", self.n_points, 2 if self.corners else 1)

    def points(self, n_sources: int, seed: int) -> FloatArray:
        """Weights (n_points, 2)."""
        if n_sources != 2:
            raise InvalidInputError(
                f"A pair grid was asked for with {n_sources} sources; use SimplexLattice, "
                "SobolSimplex or Dirichlet."
            )
        t = np.linspace(0, 1, self.n_points if self.corners else self.n_points + 2)
        t = t if self.corners else t[1:-1]
        return np.stack([1.0 - t, t], axis=1)


@dataclass(frozen=True, slots=True)
class SimplexLattice:
    """All λ whose entries are multiples of 1/m: C(m + n − 1, n − 1) of them, corners included.

    Attributes
    ----------
    m : int
    limit : int
        Most points.
    """

    m: int = 10
    limit: int = 100_000

    def __post_init__(self) -> None:
        _count("m", self.m)

    def points(self, n_sources: int, seed: int) -> FloatArray:
        """Weights (points, n_sources)."""
        size = comb(self.m + n_sources - 1, n_sources - 1)
        if size > self.limit:
            raise InvalidInputError(
                f"A lattice of {size} weights was asked for; limit={self.limit}. Lower m, or use "
                "SobolSimplex."
            )
        bars = combinations(range(self.m + n_sources - 1), n_sources - 1)
        rows = []
        for bar in bars:
            edges = np.array([-1, *bar, self.m + n_sources - 1])
            rows.append(np.diff(edges) - 1)
        return np.array(rows, dtype=np.float64) / self.m


@dataclass(frozen=True, slots=True)
class Dirichlet:
    """λ drawn from Dirichlet(α, …, α); α = 1 is uniform on the simplex, as in the paper's code.

    Attributes
    ----------
    n_points : int
    alpha : float
    """

    n_points: int = 50
    alpha: float = 1.0

    def __post_init__(self) -> None:
        _count("n_points", self.n_points)
        if not self.alpha > 0:
            raise InvalidInputError(f"alpha={self.alpha} was given; a number > 0 is accepted.")

    def points(self, n_sources: int, seed: int) -> FloatArray:
        """Weights (n_points, n_sources)."""
        rng = np.random.default_rng(seed)
        return rng.dirichlet(np.full(n_sources, self.alpha), size=self.n_points)


@dataclass(frozen=True, slots=True)
class SobolSimplex:
    """Scrambled Sobol points, spread evenly over the simplex: the gaps of sorted coordinates.

    Attributes
    ----------
    n_points : int
        Powers of 2 are balanced best.
    """

    n_points: int = 64

    def __post_init__(self) -> None:
        _count("n_points", self.n_points)

    def points(self, n_sources: int, seed: int) -> FloatArray:
        """Weights (n_points, n_sources)."""
        from scipy.stats import qmc

        if n_sources == 1:
            return np.ones((self.n_points, 1))
        power = max(0, int(np.ceil(np.log2(self.n_points))))
        sampler = qmc.Sobol(n_sources - 1, scramble=True, rng=np.random.default_rng(seed))
        cut = np.sort(sampler.random_base2(power)[: self.n_points], axis=1)
        edges = np.concatenate([np.zeros((len(cut), 1)), cut, np.ones((len(cut), 1))], axis=1)
        return np.diff(edges, axis=1)


@dataclass(frozen=True, slots=True)
class LogRatios:
    """λ_i ∝ exp(z_i), with z_1 = 0 and the others evenly or at random in [−width, width].

    Steps in the ratio of two weights: where one model's Fisher is a hundred times the other's, an
    even grid of λ hardly moves, and this one does.

    Attributes
    ----------
    n_points : int
    width : float
        In natural logarithms.
    """

    n_points: int = 31
    width: float = 7.0

    def __post_init__(self) -> None:
        _count("n_points", self.n_points)

    def points(self, n_sources: int, seed: int) -> FloatArray:
        """Weights (n_points, n_sources)."""
        if n_sources == 2:
            z = np.linspace(-self.width, self.width, self.n_points)[:, None]
        else:
            rng = np.random.default_rng(seed)
            z = rng.uniform(-self.width, self.width, (self.n_points, n_sources - 1))
        return softmax(z)


def softmax(z: FloatArray) -> FloatArray:
    """Weights (k, n) of log-ratios (k, n − 1) to the first."""
    full = np.concatenate([np.zeros((len(z), 1)), z], axis=1)
    full = np.exp(full - full.max(axis=1, keepdims=True))
    return np.asarray(full / full.sum(axis=1, keepdims=True))


Space = PairGrid | SimplexLattice | Dirichlet | SobolSimplex | LogRatios
