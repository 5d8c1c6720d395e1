"""Which components the data determine, and which pairs they do not tell apart.

Low rank: if the g_k are linearly independent and no two columns of W are proportional, the
factorization is unique up to scale, sign and order. This is Kruskal's condition
k_W + 2k_G ≥ 2r + 2 for the three factors W, G, G with k_G = r and k_W ≥ 2. Proportional columns
of W leave only the span of their g's determined; parallel g's only the sum of the two amounts.
Diagonals: no such guarantee exists, but pairs are ambiguous for the same reasons, and a component
whose example set contains another's can be exchanged with it in part.

Source: Kruskal 1977; the easy case follows from it with two equal factors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..backend import to_numpy
from ..display import Shown
from ..errors import InvalidInputError
from ..types import FloatArray
from .method import DiagonalNPEFF
from .result import Factorization

PROPORTIONAL = "proportional coefficients"
PARALLEL = "parallel components"
EXPLANATIONS = {
    PROPORTIONAL: "active together in a fixed proportion; only the span of the two is determined",
    PARALLEL: "the same direction twice; only the sum of the two coefficients is determined",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ambiguity:
    """Two components that the data do not tell apart, and why.

    Attributes
    ----------
    components : (int, int)
    reason : {"proportional coefficients", "parallel components"}
    cosine : float
        |cos| of the two columns of W, or of the two components.
    """

    components: tuple[int, int]
    reason: str
    cosine: float

    @property
    def explanation(self) -> str:
        """The reason in a sentence."""
        return EXPLANATIONS[self.reason]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Uniqueness(Shown):
    """What can be said about the uniqueness of a factorization.

    Attributes
    ----------
    guaranteed : bool
        Kruskal's easy case holds with room: unique up to scale, sign and order, as far as the fit
        is exact. Always false for diagonals, which have no such guarantee.
    ambiguities : tuple of Ambiguity
        Pairs that are not identifiable, the worst first.
    unused : tuple of int
        Components that no example uses, or that are zero; nothing determines them.
    rank, condition : int, float
        Of the used components with unit norm; a rank below their number means that some are
        combinations of others.
    proportionality : float64 array (r, r)
        |cos| between columns of W.
    parallelism : float64 array (r, r)
        |cos| between components.
    """

    guaranteed: bool
    ambiguities: tuple[Ambiguity, ...]
    unused: tuple[int, ...]
    rank: int
    condition: float
    proportionality: FloatArray
    parallelism: FloatArray

    @property
    def explanation(self) -> str:
        """What holds, or what stands in the way, in words."""
        if self.guaranteed:
            return (
                "The components are linearly independent and no two are used in a fixed "
                "proportion: the factorization is unique up to scale, sign and order."
            )
        parts = [
            f"components {a.components[0]} and {a.components[1]} are {a.explanation} "
            f"(|cos| {a.cosine:.3f})"
            for a in self.ambiguities
        ]
        r = len(self.parallelism) - len(self.unused)
        if self.rank < r:
            parts.append(
                f"the {r} used components span {self.rank} dimensions only, so amounts can be "
                "exchanged among them"
            )
        if self.unused:
            parts.append(f"components {', '.join(map(str, self.unused))} are not used")
        return "Not guaranteed: " + ("; ".join(parts) or "there is no general criterion") + "."

    def __repr__(self) -> str:
        return (
            f"Uniqueness(guaranteed={self.guaranteed}, ambiguous pairs={len(self.ambiguities)}, "
            f"condition={self.condition:.3g})"
        )


def uniqueness(factorization: Factorization, *, limit: float = 0.98) -> Uniqueness:
    """Whether the components are determined by the data, and which pairs are not.

    Parameters
    ----------
    limit : float
        |cos| above which two columns of W count as proportional, or two components as parallel.

    Raises
    ------
    InvalidInputError
        ``limit`` outside (0, 1).

    Examples
    --------
    >>> from fishertope import LowRankFishers, LowRankNPEFF, factorize
    >>> rng = np.random.default_rng(0)
    >>> rows = np.sqrt(rng.random((40, 2, 1))) * np.eye(2, 6)
    >>> uniqueness(factorize(LowRankFishers.from_rows(rows), LowRankNPEFF(2))).guaranteed
    True
    """
    if not 0.0 < limit < 1.0:
        raise InvalidInputError(f"limit={limit!r} was given; a number between 0 and 1 is accepted.")
    W, G = (to_numpy(x) for x in (factorization.coefficients, factorization.components))
    by_use, by_direction = _cosines(W.T), _cosines(G)
    found = []
    for reason, cosines in ((PROPORTIONAL, by_use), (PARALLEL, by_direction)):
        for k, j in zip(*np.nonzero(np.triu(cosines, 1) > limit), strict=True):
            found.append(
                Ambiguity(components=(int(k), int(j)), reason=reason, cosine=float(cosines[k, j]))
            )
    live = (np.diag(by_use) > 0) & (np.diag(by_direction) > 0)
    used = _unit(G)[live]
    sizes = np.linalg.svd(used, compute_uv=False) if len(used) else np.zeros(0)
    rank = int((sizes > 1e-6 * sizes[0]).sum()) if len(sizes) else 0
    sound = rank == len(used) and not found and bool(live.all())
    return Uniqueness(
        guaranteed=sound and not isinstance(factorization.method, DiagonalNPEFF),
        ambiguities=tuple(sorted(found, key=lambda a: -a.cosine)),
        unused=tuple(int(k) for k in np.flatnonzero(~live)),
        rank=rank,
        condition=float(sizes[0] / sizes[-1]) if len(sizes) and sizes[-1] > 0 else np.inf,
        proportionality=by_use,
        parallelism=by_direction,
    )


def ambiguities(factorization: Factorization, *, limit: float = 0.98) -> tuple[Ambiguity, ...]:
    """Pairs of components that are not identifiable, the worst first; see :func:`uniqueness`."""
    return uniqueness(factorization, limit=limit).ambiguities


def _unit(rows: FloatArray) -> FloatArray:
    rows = rows.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0))


def _cosines(rows: FloatArray) -> FloatArray:
    unit = _unit(rows)
    return np.abs(unit @ unit.T)
