"""Precisions of a model's parameters, site by site, as they are estimated, kept and merged."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..display import Shown
from ..errors import CorruptFileError, InvalidInputError
from ..model.sites import is_shape
from ..storage.arrays import load_arrays, save_arrays
from ..types import FloatArray

KIND = "precision tree"


@dataclass(frozen=True, slots=True, eq=False)
class Diagonal:
    """P = diag f of one site.

    Attributes
    ----------
    values : float64 array, the site's shape
        f ≥ 0.

    Raises
    ------
    InvalidInputError
        NaN, infinite or negative entries.
    """

    values: FloatArray
    structure: ClassVar[str] = "diagonal"

    def __post_init__(self) -> None:
        bad = ~np.isfinite(self.values) | (self.values < 0)
        if bad.any():
            where = tuple(int(i) for i in np.argwhere(bad)[0])
            raise InvalidInputError(
                f"A diagonal precision with {int(bad.sum())} entries that are negative or not "
                f"finite was given, the first {self.values[where]} at {where}; entries >= 0 are "
                "accepted. Check the model for NaN on this data."
            )

    @property
    def trace(self) -> float:
        """Σ f."""
        return float(self.values.sum())

    def apply(self, d: FloatArray) -> FloatArray:
        """P d for d of the site's shape."""
        return np.asarray(self.values * d)


@dataclass(frozen=True, slots=True, eq=False)
class Isotropic:
    """P = c I on one site of ``shape``.

    Attributes
    ----------
    scale : float
        c ≥ 0.
    shape : tuple of int

    Raises
    ------
    InvalidInputError
        NaN, infinite or negative c.
    """

    scale: float
    shape: tuple[int, ...]
    structure: ClassVar[str] = "isotropic"

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale) and self.scale >= 0):
            raise InvalidInputError(
                f"An isotropic precision of {self.scale} was given; a finite number >= 0 is "
                "accepted. Check the model for NaN on this data."
            )

    @property
    def trace(self) -> float:
        """C times the number of parameters."""
        return self.scale * float(np.prod(self.shape))

    def apply(self, d: FloatArray) -> FloatArray:
        """P d for d of the site's shape."""
        return np.asarray(self.scale * d)


Precision = Diagonal | Isotropic
STRUCTURES = (Diagonal.structure, Isotropic.structure)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrecisionTree(Shown, Mapping[str, Precision]):
    """The precision of each site of a model, a mean over examples, with what it was made from.

    Attributes
    ----------
    sites : mapping of str to Diagonal or Isotropic
        By parameter name; block diagonal over sites.
    n_examples : int
        Examples in the mean.
    trace_errors : mapping of str to float
        Standard error of each site's trace, from its spread over examples; NaN for one example.
    facts : mapping
        Label rule, engine, model hash, seed, and so on, in plain values.

    Raises
    ------
    InvalidInputError
        No site, or errors of other sites than these.
    """

    sites: Mapping[str, Precision]
    n_examples: int
    trace_errors: Mapping[str, float]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.sites:
            raise InvalidInputError("A precision tree without sites was given; one is needed.")
        if set(self.sites) != set(self.trace_errors):
            odd = sorted(set(self.sites) ^ set(self.trace_errors))
            raise InvalidInputError(
                f"Precisions and standard errors of different sites were given ({', '.join(odd)} "
                "on one side only); give both for every site."
            )

    def __getitem__(self, name: str) -> Precision:
        return self.sites[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    @property
    def structure(self) -> str:
        """Structure of the sites, or "mixed"."""
        found = {p.structure for p in self.sites.values()}
        return found.pop() if len(found) == 1 else "mixed"

    @property
    def trace(self) -> float:
        """Σ over sites; for the exact diagonal the mean squared score norm."""
        return float(sum(p.trace for p in self.sites.values()))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, atomically; the same tree gives the same bytes.

        Raises
        ------
        WriteFailedError
            If the system refuses the write; what was at ``path`` before stays.
        """
        arrays = {
            name: p.values if isinstance(p, Diagonal) else np.array(p.scale)
            for name, p in self.sites.items()
        }
        shapes = {n: list(p.shape) for n, p in self.sites.items() if isinstance(p, Isotropic)}
        errors = {n: None if np.isnan(e) else e for n, e in self.trace_errors.items()}
        own = {
            "order": list(self.sites), "isotropic": shapes, "n_examples": self.n_examples,
            "trace_errors": errors, "facts": dict(self.facts),
        }  # fmt: skip
        save_arrays(path, arrays, own, kind=KIND)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PrecisionTree:
        """Read what :meth:`save` wrote.

        Raises
        ------
        CorruptFileError
            If the file is cut short, altered, or not a precision tree of ours.
        InvalidInputError
            If it holds something else.
        """
        arrays, own = load_arrays(path, kind=KIND)
        try:
            sites: dict[str, Precision] = {}
            for name in own["order"]:
                shape, values = own["isotropic"].get(name), arrays[name]
                if values.dtype.kind != "f":
                    raise InvalidInputError(f"{name!r} holds {values.dtype} numbers")
                if shape is None:
                    sites[name] = Diagonal(np.asarray(values, dtype=np.float64))
                elif values.ndim == 0 and is_shape(shape):
                    sites[name] = Isotropic(float(values), tuple(shape))
                else:
                    raise InvalidInputError(f"{name!r} has no single number or no shape")
            n = own["n_examples"]
            if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n < 2**62:
                raise InvalidInputError("the number of examples is no whole number >= 1")
            errors = own["trace_errors"]
            return cls(
                sites=sites,
                n_examples=n,
                trace_errors={n: np.nan if e is None else float(e) for n, e in errors.items()},
                facts=dict(own["facts"]),
            )
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as exc:
            raise CorruptFileError(
                f"{os.fspath(path)}: the contents are not a precision tree of ours ({exc}). Write "
                "the file again with PrecisionTree.save."
            ) from exc

    def __repr__(self) -> str:
        return (
            f"PrecisionTree({self.structure}, sites={len(self)}, n={self.n_examples}, "
            f"trace={self.trace:.4g})"
        )
