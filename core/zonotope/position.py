"""General position, checked exhaustively or by sampling, and honest about which."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, islice
from math import comb

import numpy as np

from ..types import Array, NumpyArray, Seed
from .exact import integer_rows, rank
from .pattern import check_generators, equilibrate

_BLOCK = 4096
# Relative size of a minor below which it is recomputed in integers.
_SUSPICIOUS = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneralPosition:
    """What :func:`general_position` found.

    Attributes
    ----------
    holds : bool or None
        ``True`` only after every minor was looked at; ``False`` with a dependent subset, proven in
        integers; ``None`` if a sample of minors showed nothing wrong, which is no proof.
    dependent : tuple of int
        Rows that are linearly dependent, if any were found.
    n_checked, n_minors : int
        Minors looked at, and how many there are.
    """

    holds: bool | None
    dependent: tuple[int, ...]
    n_checked: int
    n_minors: int

    @property
    def exhaustive(self) -> bool:
        """Whether every minor was looked at."""
        return self.n_checked == self.n_minors

    @property
    def message(self) -> str:
        """One sentence for people."""
        if self.holds is False:
            return f"Rows {list(self.dependent)} are linearly dependent (proven in integers)."
        if self.holds:
            return f"Every {self.n_minors} minors are non-zero: the rows are in general position."
        return (
            f"{self.n_checked} of {self.n_minors} minors were looked at and are non-zero; "
            "that is evidence, not proof."
        )


def general_position(
    generators: Array, *, max_minors: int = 2_000_000, n_samples: int = 10_000, seed: Seed = 0
) -> GeneralPosition:
    """Whether every min(n, d) rows are linearly independent.

    All C(n, d) minors are computed in float64 if there are at most ``max_minors``; otherwise
    ``n_samples`` random ones. Minors that float64 does not clearly separate from zero are
    recomputed in integers, so a verdict never rests on a tolerance.

    Returns
    -------
    GeneralPosition

    Raises
    ------
    InvalidInputError
        As for every function on generators.
    """
    x = check_generators(generators)
    n, d = x.shape
    size = min(n, d)
    total = comb(n, size)
    scaled, _ = equilibrate(x)
    unit = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    exact = integer_rows(scaled)
    whole = total <= max_minors
    checked = 0
    for block in _subsets(n, size) if whole else _samples(n, size, n_samples, seed):
        checked += len(block)
        gaps = np.linalg.svd(unit[block], compute_uv=False)[:, -1]
        for subset in block[gaps < _SUSPICIOUS]:
            if rank([exact[i] for i in subset]) < size:
                rows = tuple(int(i) for i in subset)
                return GeneralPosition(
                    holds=False, dependent=rows, n_checked=checked, n_minors=total
                )
    return GeneralPosition(
        holds=True if whole else None, dependent=(), n_checked=checked, n_minors=total
    )


def _subsets(n: int, size: int) -> Iterator[NumpyArray]:
    every = combinations(range(n), size)
    while block := list(islice(every, _BLOCK)):
        yield np.array(block, dtype=np.int64)


def _samples(n: int, size: int, count: int, seed: Seed) -> Iterator[NumpyArray]:
    rng = np.random.default_rng(seed)
    for start in range(0, count, _BLOCK):
        rows = min(_BLOCK, count - start)
        yield np.array([np.sort(rng.choice(n, size, replace=False)) for _ in range(rows)])
