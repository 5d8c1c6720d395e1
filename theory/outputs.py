"""Several outputs as scalar networks side by side: output vectors ±e_k."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import InvalidInputError
from ..core.types import Array, FloatArray, Seed
from .greedy import greedy_search
from .program import ReluProblem
from .selection import select_vertices

METHODS = ("select", "greedy")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OutputsNetwork:
    """f(x) = V (Wx)_+ with one ±1 in each column of V.

    Attributes
    ----------
    weights : array (m, d)
    outputs : array (c, m)
    losses : array (c,)
        ½ Σ_i (f_ik − y_ik)².
    certificates : tuple of str
        What was proven for each output.
    """

    weights: FloatArray
    outputs: FloatArray
    losses: FloatArray
    certificates: tuple[str, ...]

    def predict(self, inputs: Array) -> FloatArray:
        """Outputs (n, c) of rows x."""
        x = np.asarray(inputs, dtype=np.float64)
        return np.asarray(np.maximum(x @ self.weights.T, 0) @ self.outputs.T)


def fit_outputs(
    inputs: Array,
    targets: Array,
    *,
    method: str = "select",
    signs: Array = (1, -1),
    seed: Seed = 0,
    **options: Any,
) -> OutputsNetwork:
    """Fit targets (n, c) with units that serve one output each; for squared loss they separate.

    Parameters
    ----------
    inputs, targets : arrays (n, d), (n, c)
    method : {"select", "greedy"}
        "select" fits exactly, with c · 2⌈n/d⌉ units in general position; "greedy" searches with
        units of the given ``signs`` for each output.
    signs : sequence
        For "greedy": output signs of the units of one output.
    **options
        Passed to :func:`select_vertices` or :func:`greedy_search`.
    """
    y = np.asarray(targets, dtype=np.float64)
    if method not in METHODS or y.ndim != 2 or y.shape[1] < 1:
        raise InvalidInputError(
            f"method={method!r} and targets of shape {y.shape} were given; accepted: "
            f"{', '.join(METHODS)} and (n, c) with c >= 1."
        )
    x = np.asarray(inputs, dtype=np.float64)
    rng = np.random.default_rng(seed)
    parts: list[tuple[FloatArray, FloatArray, str]] = []
    for goal in y.T:
        if method == "select":
            vertex = select_vertices(x, goal, seed=rng, **options)
            parts.append((vertex.weights, vertex.signs, "global optimum (zero loss)"))
        else:
            problem = ReluProblem(inputs=x, targets=goal, signs=np.asarray(signs, dtype=float))
            found = greedy_search(problem, seed=rng, **options)
            parts.append((found.weights, problem.signs, found.certificate))
    sizes = [len(s) for _, s, _ in parts]
    outputs = np.zeros((len(parts), sum(sizes)))
    for k, (_, s, _) in enumerate(parts):
        outputs[k, sum(sizes[:k]) : sum(sizes[: k + 1])] = s
    weights = np.concatenate([w for w, _, _ in parts])
    misfit = np.maximum(x @ weights.T, 0) @ outputs.T - y
    return OutputsNetwork(
        weights=weights,
        outputs=outputs,
        losses=0.5 * (misfit**2).sum(axis=0),
        certificates=tuple(c for _, _, c in parts),
    )
