"""The orthogonality penalty λ‖GGᵀ − sI‖²_F, s = 2/r, of the paper's code.

Along G + tD it is an exact quartic, as the loss is, so line searches stay exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..types import Array, FloatArray


@dataclass(frozen=True, slots=True)
class Penalty:
    """λ‖S − sI‖²_F of the Gram S = GGᵀ.

    Attributes
    ----------
    weight, target : float
        λ ≥ 0 and s. The loss of a result never contains the penalty; the steps of its history do.
    """

    weight: float = 0.0
    target: float = 1.0

    def value(self, S: Array) -> float:
        """λ‖S − sI‖²_F."""
        if not self.weight:
            return 0.0
        rest = self.rest(S)
        return float((rest * rest).sum()) * self.weight

    def rest(self, S: Array) -> Array:
        """S − sI."""
        rest = S + 0.0
        for k in range(int(S.shape[0])):
            rest[k, k] -= self.target
        return rest

    def pull(self, S: Array) -> Array:
        """λ(S − sI): a quarter of the gradient is this times G."""
        return self.weight * self.rest(S)

    def line(self, S: Array, P: Array, R: Array) -> FloatArray:
        """Coefficients of the quartic along D, for P = GDᵀ and R = DDᵀ."""
        if not self.weight:
            return np.zeros(5)
        Q, rest = P + P.T, self.rest(S)
        terms = [
            (rest * rest).sum(),
            2.0 * (rest * Q).sum(),
            (Q * Q).sum() + 2.0 * (rest * R).sum(),
            2.0 * (Q * R).sum(),
            (R * R).sum(),
        ]
        return np.array([self.weight * float(t) for t in terms])
