"""The one interface of the baselines, and the checks that they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from ...backend import to_numpy
from ...errors import InvalidInputError
from ...fisher.per_example import LowRankFishers
from ...types import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Units:
    """What a baseline found: how strongly each example belongs to each unit.

    Attributes
    ----------
    scores : float64 array (n, u)
        The larger, the more; only their order within a unit is compared.
    name : str
        Of the method.
    embed : callable
        New data to scores.
    facts : mapping
        Options, and what the fit ended with.
    """

    scores: FloatArray
    name: str
    embed: Callable[[Any], FloatArray]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_units(self) -> int:
        """U."""
        return int(self.scores.shape[1])

    def transform(self, data: Any) -> FloatArray:
        """Scores of other examples (n', u), with everything that was fitted kept as it is."""
        return self.embed(data)

    def __repr__(self) -> str:
        return f"Units({self.name}, n={len(self.scores)}, units={self.n_units})"


class Baseline(Protocol):
    """A method that gives units."""

    name: ClassVar[str]
    data: ClassVar[str]
    """What it is fitted to: "gradients", "fishers" or "activations"."""

    def fit(self, data: Any, *, seed: int = 0) -> Units:
        """Fit to the data of the training examples."""
        ...


def one_row_each(data: Any, what: str) -> FloatArray:
    """Vectors (n, m) in float64, from an array or from Fishers with one row an example.

    Raises
    ------
    InvalidInputError
        Wrong shape, NaN or infinite entries, several rows an example.
    """
    if isinstance(data, LowRankFishers):
        if (data.ranks != 1).any():
            raise InvalidInputError(
                f"{data} were given as {what}; one row an example is taken. Compute them with "
                "per_example_fishers(model, data, labels=AnswerLabels())."
            )
        data = data.rows
    x = np.asarray(to_numpy(data), dtype=np.float64)
    if x.ndim != 2 or not len(x):
        raise InvalidInputError(
            f"{what} of shape {x.shape} were given; (n, m), one row an example, are taken."
        )
    if not np.isfinite(x).all():
        raise InvalidInputError(f"The {what} hold NaN or infinite entries; drop or fill them.")
    return x


def check_same_columns(x: FloatArray, columns: int, what: str) -> FloatArray:
    """Refuse new data of another width.

    Raises
    ------
    InvalidInputError
        Naming both widths.
    """
    if x.shape[1] != columns:
        raise InvalidInputError(
            f"{what} with {x.shape[1]} columns were given; these units were fitted to {columns}. "
            "Use the same model, parameters and reduction."
        )
    return x


def check_units(n_units: int, n: int | None = None) -> None:
    """Refuse what is not a number of units.

    Raises
    ------
    InvalidInputError
        No whole number ≥ 1, or more than there are examples.
    """
    if not isinstance(n_units, int) or isinstance(n_units, bool) or n_units < 1:
        raise InvalidInputError(f"n_units={n_units!r} was given; a whole number >= 1 is accepted.")
    if n is not None and n_units > n:
        raise InvalidInputError(
            f"n_units={n_units} was given for {n} examples; at most as many as examples."
        )


def unit_rows(x: FloatArray) -> FloatArray:
    """Rows of length one; zero rows stay zero."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.where(norms > 0, norms, 1.0))
