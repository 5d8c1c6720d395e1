"""Sites: the named parameters of a model and where each lies in the flat vector θ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from ..errors import InvalidInputError
from ..types import Array


@dataclass(frozen=True, slots=True)
class Site:
    """One named parameter tensor and its slice ``start:stop`` of the flat θ (row-major).

    Examples
    --------
    >>> sites_of({"weight": (2, 3), "bias": (2,)})[1]
    Site(name='bias', shape=(2,), start=6, stop=8)
    """

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int


def sites_of(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Site, ...]:
    """Sites for parameters laid one after another in the given order."""
    sites: list[Site] = []
    start = 0
    for name, shape in shapes.items():
        stop = start + prod(shape)
        sites.append(Site(name, tuple(int(s) for s in shape), start, stop))
        start = stop
    return tuple(sites)


def is_shape(value: object) -> bool:
    """Whether a value from an untrusted file is a list of extents."""
    return isinstance(value, list) and all(
        isinstance(s, int) and not isinstance(s, bool) and 0 <= s < 2**40 for s in value
    )


def unflatten(theta: Array, sites: Iterable[Site]) -> dict[str, Array]:
    """Views of a flat vector (..., p) by site name, each (..., *shape).

    Raises
    ------
    InvalidInputError
        If the last axis is not as long as the sites say.
    """
    sites = tuple(sites)
    total = sites[-1].stop if sites else 0
    if theta.shape[-1] != total:
        raise InvalidInputError(
            f"A vector of {theta.shape[-1]} parameters was given; these sites hold {total}. "
            "Give one that was made for the same model and the same parameter selection."
        )
    lead = tuple(theta.shape[:-1])
    return {s.name: theta[..., s.start : s.stop].reshape(lead + s.shape) for s in sites}
