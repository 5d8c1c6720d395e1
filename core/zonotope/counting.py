"""Numbers of vertices and edges in general position."""

from __future__ import annotations

from math import comb

from ..errors import InvalidInputError


def n_vertices(n: int, d: int) -> int:
    """V(n, d) = 2 Σ_{k<d} C(n−1, k), for n ≥ 1 rows in general position in R^d.

    Cover 1965; Zaslavsky 1975. For other data the number is strictly smaller.

    Examples
    --------
    >>> n_vertices(9, 3), n_vertices(3, 4)
    (74, 8)
    """
    _check(n, d)
    return 2 * sum(comb(n - 1, k) for k in range(d))


def n_edges(n: int, d: int) -> int:
    """The number of pairs of vertices whose patterns differ in one sign: n V(n−1, d−1).

    Every row is the direction of V(n−1, d−1) edges. In R^1 all signs turn at once: none for n > 1.
    """
    _check(n, d)
    if n == 1:
        return 1
    return n * n_vertices(n - 1, d - 1) if d > 1 else 0


def _check(n: int, d: int) -> None:
    if n < 1 or d < 1:
        raise InvalidInputError(f"n={n}, d={d} were given; n >= 1 and d >= 1 are accepted.")


def level_sizes(n: int, d: int) -> list[int]:
    """C(n−1, d−1−k) for k = 0..d−1: cells of each level of the sweep, one half of the vertices."""
    _check(n, d)
    return [comb(n - 1, d - 1 - k) for k in range(d)]
