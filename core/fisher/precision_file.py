"""A precision tree in a file: checked as a whole from its header, read site by site."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import CorruptFileError, InvalidInputError
from ..storage.arrays import StoredArrays
from ..storage.header import DTYPES
from .structures import Precision, SiteLayout
from .structures.storing import Outline, layout_of, outlined, rebuilt

KIND = "precision tree"

_BROKEN = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredPrecisions:
    """What a file of :meth:`PrecisionTree.save` holds, with nothing of its arrays in memory.

    Attributes
    ----------
    arrays : StoredArrays
    sites : mapping of str to Outline
        In the order of the tree.
    layouts : mapping of str to SiteLayout
        Of every site.
    n_examples : int
    trace_errors : mapping of str to float
    facts : mapping
    """

    arrays: StoredArrays
    sites: Mapping[str, Outline]
    layouts: Mapping[str, SiteLayout]
    n_examples: int
    trace_errors: Mapping[str, float]
    facts: Mapping[str, Any]
    _told: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> StoredPrecisions:
        """Check all that header and facts tell.

        Every array belongs to one site and is of its field's type, every parameter belongs to one
        site, layouts have the shapes of precisions.

        Raises
        ------
        CorruptFileError
            If the file is cut short, its header altered, or not a precision tree of ours.
        InvalidInputError
            If it holds something else.
        """
        arrays = StoredArrays(path, kind=KIND)
        own = arrays.facts
        try:
            used: set[str] = set()
            held = {k: (DTYPES[p.dtype], p.shape) for k, p in arrays.places.items()}
            sites = {name: outlined(own["sites"][name], held, used) for name in own["order"]}
            if len(sites) != len(own["sites"]) or used != set(held):
                raise InvalidInputError("sites or arrays are left over")
            n = own["n_examples"]
            if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n < 2**62:
                raise InvalidInputError("the number of examples is no whole number >= 1")
            errors = {k: np.nan if e is None else float(e) for k, e in own["trace_errors"].items()}
            if set(errors) != set(sites):
                raise InvalidInputError("standard errors of other sites than these")
            given = {name: layout_of(found) for name, found in own["layouts"].items()}
            return cls(
                arrays=arrays, sites=sites, n_examples=n, trace_errors=errors,
                layouts=complete_layouts({k: o.shape for k, o in sites.items()}, given),
                facts=dict(own["facts"]), _told=own["sites"],
            )  # fmt: skip
        except _BROKEN as exc:
            raise CorruptFileError(
                f"{os.fspath(path)}: the contents are not a precision tree of ours ({exc}). Write "
                "the file again with PrecisionTree.save."
            ) from exc

    def site(self, name: str) -> Precision:
        """The precision of one site; only its arrays are read, and every byte of them checked.

        Raises
        ------
        CorruptFileError
            Naming the site: bytes that were altered or cut off since, numbers that are not finite,
            or matrices that are no precision's (not symmetric, a negative diagonal).
        KeyError
            If there is no such site.
        """
        told = self._told[name]
        try:
            return rebuilt(told, self.arrays.read)
        except (*_BROKEN, OSError) as exc:
            raise CorruptFileError(
                f"{self.arrays.path}: the precision of {name!r} is not one that a precision tree "
                f"of ours holds ({exc}). Write the file again with PrecisionTree.save."
            ) from exc

    def bytes(self, name: str) -> int:
        """Bytes that the arrays of a site take in the file."""
        places = (self.arrays.places[key] for key in self.sites[name].arrays)
        return sum(p.stop - p.start for p in places)


def complete_layouts(
    shapes: Mapping[str, tuple[int, ...]], layouts: Mapping[str, SiteLayout]
) -> dict[str, SiteLayout]:
    """A layout for every site: those given, and the parameter of its name for the others.

    Raises
    ------
    InvalidInputError
        No site, layouts of other sites or with other shapes, one parameter in two sites.
    """
    if not shapes:
        raise InvalidInputError("A precision tree without sites was given; one is needed.")
    unknown = sorted(set(layouts) - set(shapes))
    if unknown:
        raise InvalidInputError(
            f"Layouts of sites without precision were given: {', '.join(unknown)}."
        )
    owner: dict[str, str] = {}
    complete: dict[str, SiteLayout] = {}
    for name, shape in shapes.items():
        layout = layouts.get(name) or SiteLayout(weight=name, weight_shape=shape)
        if layout.shape != shape:
            raise InvalidInputError(
                f"{name!r} has a precision of shape {shape}, but its parameters make up "
                f"{layout.shape}."
            )
        for parameter in layout.parameters:
            if parameter in owner:
                raise InvalidInputError(
                    f"{parameter!r} belongs to the sites {owner[parameter]!r} and {name!r}; "
                    "one is accepted."
                )
            owner[parameter] = name
        complete[name] = layout
    return complete
