"""Processes that share the examples of a fit, each with the rows of its own examples.

Everything that couples examples is a sum of small matrices: V = WᵀW, (W̃∘B)ᵀA, ⟨W, N⟩. So each
process takes the same steps on its own examples, and only these are added up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace

from ..backend import like, to_numpy
from ..errors import InvalidInputError
from ..fisher.ranks import ProcessGroup
from ..types import Array, FloatArray


@dataclass(frozen=True, slots=True)
class Team:
    """Sums over processes; a team of one returns what it is given.

    Attributes
    ----------
    group : ProcessGroup or None
    """

    group: ProcessGroup | None = None

    @property
    def rank(self) -> int:
        """Number of this process."""
        return 0 if self.group is None else self.group.ranks.rank

    @property
    def world(self) -> int:
        """How many processes there are."""
        return 1 if self.group is None else self.group.ranks.world

    def sum(self, x: Array) -> Array:
        """Σ over processes of arrays of one shape, of the kind given; added in float64."""
        if self.group is None:
            return x
        total = self.group.sum(to_numpy(x).astype(np.float64))
        return array_namespace(x).astype(like(total, x), x.dtype)

    def add(self, value: float) -> float:
        """Σ over processes of a number."""
        return value if self.group is None else float(self.group.sum(np.array([value]))[0])

    def most(self, value: float) -> float:
        """The largest of a number over processes."""
        if self.group is None:
            return value
        return float(max(x[0] for x in self.group.gather(np.array([value]))))

    def gather(self, x: FloatArray) -> FloatArray:
        """Arrays (n_r, ...) of all processes, one after another."""
        return x if self.group is None else np.concatenate(self.group.gather(x))

    def best(self, values: FloatArray) -> tuple[float, int]:
        """The largest entry over all processes, and its place here, or −1 if it is elsewhere."""
        place = int(np.argmax(values)) if len(values) else -1
        own = float(values[place]) if len(values) else -np.inf
        if self.group is None:
            return own, place
        tops = [float(x[0]) for x in self.group.gather(np.array([own]))]
        return max(tops), place if int(np.argmax(tops)) == self.rank else -1

    def agree(self, what: str, values: FloatArray) -> None:
        """Refuse to go on where processes were given different things.

        Raises
        ------
        InvalidInputError
            Naming ``what`` differs.
        """
        if self.group is None:
            return
        told = self.group.gather(values[None])
        if any(not np.array_equal(told[0], other) for other in told):
            raise InvalidInputError(
                f"The processes were given different {what}: {[t[0].tolist() for t in told]}. "
                "Every process must make the same call."
            )


ALONE = Team()


@dataclass(frozen=True, slots=True)
class Share:
    """Which examples and rows are here, of how many.

    Attributes
    ----------
    first, n : int
        Number of the first own example; examples of all processes.
    first_row, h : int
        The same for rows.
    """

    first: int
    n: int
    first_row: int
    h: int


def share_bounds(n: int, team: Team) -> tuple[int, int]:
    """First example and end of this process's contiguous part of n."""
    edges = np.linspace(0, n, team.world + 1).round().astype(np.int64)
    return int(edges[team.rank]), int(edges[team.rank + 1])
