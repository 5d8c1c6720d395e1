"""Which neighbours of a vertex are better, read off the multipliers.

Ours: at the optimum w of a vertex, turn the sign of a tight pair (j, i). In general position the
other multipliers stay and μ_ji becomes v_j r_i − μ_ji. So the gain g_ji = μ_ji − v_j r_i is
positive exactly if the neighbour's optimum is smaller; if no gain is positive and no unit is dead,
w is a local minimum of the non-convex loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..core.types import FloatArray, NumpyArray
from .program import ReluProblem, ReluSolution

_TIGHT = 1e-9
_DEAD = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Flips:
    """Gains at a solution.

    Attributes
    ----------
    gains : array (m, n)
        g_ji at tight pairs of units that are not dead, −∞ elsewhere.
    tight : array (m, n) of bool
    dead : array (m,) of bool
        Units with w_j = 0: there the rule does not apply.
    """

    gains: FloatArray
    tight: NumpyArray
    dead: NumpyArray


def flip_gains(problem: ReluProblem, solution: ReluSolution) -> Flips:
    """The gain of every tight pair of units that are not dead; O(nmd)."""
    w, x = solution.weights, problem.inputs
    sizes = np.linalg.norm(w, axis=1)
    unit = float(np.linalg.norm(problem.targets)) / float(np.linalg.norm(x, axis=1).max())
    dead = sizes <= _DEAD * max(float(sizes.max()), unit, 1e-300)
    relative = np.abs(w @ x.T) / np.linalg.norm(x, axis=1) / np.where(dead, 1.0, sizes)[:, None]
    tight = (relative <= _TIGHT) & ~dead[:, None]
    gains = solution.multipliers - problem.signs[:, None] * solution.residual
    return Flips(gains=np.where(tight, gains, -np.inf), tight=tight, dead=dead)
