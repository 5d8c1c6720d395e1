"""Methods by the names that users write."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...errors import InvalidInputError
from .averaging import Isotropic, ModelStock, Slerp, TaskArithmetic, UniformSoup, WiSEFT
from .base import Method
from .fisher import OTA, DFMerge, Fisher, GradientMatching, Quadratic
from .gram import WUDI, MaTS, RegMean, RegMeanPlusPlus
from .sparse import DARE, DELLA, TIES, Breadcrumbs

METHODS: dict[str, type[Any]] = {
    m.name: m
    for m in (
        Quadratic, Isotropic, Fisher, RegMean, RegMeanPlusPlus, MaTS, GradientMatching, DFMerge,
        OTA, WUDI, UniformSoup, WiSEFT, TaskArithmetic, ModelStock, TIES, DARE, DELLA, Breadcrumbs,
        Slerp,
    )
}  # fmt: skip
"""Class of every named method."""


def method_of(given: str | Method, options: dict[str, Any]) -> Method:
    """A method from its name and options, or the object itself.

    Raises
    ------
    InvalidInputError
        Another name, options that the method does not have, or options beside an object.

    Examples
    --------
    >>> method_of("ties", {"density": 0.5})
    TIES(density=0.5, scale=1.0, normalize=True, elect='mass')
    """
    if isinstance(given, str):
        if given not in METHODS:
            raise InvalidInputError(
                f"method={given!r} was given; accepted: {', '.join(METHODS)}, or an object such as "
                "TIES(density=0.2)."
            )
        cls = METHODS[given]
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise InvalidInputError(
                f"method={given!r} was given the options {', '.join(unknown)}; it takes "
                f"{', '.join(known) or 'none'}."
            )
        made: Method = cls(**options)
        return made
    if isinstance(given, type) or not isinstance(given, Method):
        raise InvalidInputError(
            f"method={given!r} was given; a name ({', '.join(METHODS)}) or an options object."
        )
    if options:
        raise InvalidInputError(
            f"The options {', '.join(sorted(options))} were given beside a method object; set them "
            "in the object."
        )
    return given
