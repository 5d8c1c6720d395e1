"""A merged model, and what supports it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..display import Shown
from ..types import Array, FloatArray
from .sources import model_like


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteReport:
    """How one tensor, or a layer's [W|b], came about.

    Attributes
    ----------
    name : str
    parameters : tuple of str
        The tensors.
    size : int
        Entries.
    action : str
        "merge", "average", "take:K", "skip" or "tie".
    solver : str
        What solved it: a solver's name, or that of a formula.
    why : str
        Why this action or solver.
    residual : float
        ‖A d − r‖/‖r‖ of the normal equations; NaN where there are none.
    condition : float
        Estimated condition of the solved system; NaN where there is none.
    steps : int
        Iterations.
    converged : bool
    fallback : int
        Coordinates or directions that no precision determines.
    skipped : int
        Sources left out because they are not finite here.
    """

    name: str
    parameters: tuple[str, ...]
    size: int
    action: str
    solver: str = ""
    why: str = ""
    residual: float = float("nan")
    condition: float = float("nan")
    steps: int = 0
    converged: bool = True
    fallback: int = 0
    skipped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MergeSolution(Shown):
    """The result of a merge.

    Attributes
    ----------
    params : dict of str to array
        θ*: library, dtype and device of source 0's tensors (for "take", of the source taken from).
    method : str
    weights : float64 array (n,)
        λ as they were used.
    sites : tuple of SiteReport
    precision : mapping of str to Precision, or None
        Σ λ_i P_i + w R + ρ I: the precision of the merged model, with which it can be merged on.
    objective : float
        Q(θ*); NaN for methods that are no quadratic.
    facts : mapping
        Options, backend, threads, counts.
    template : object
        Source 0.
    """

    params: dict[str, Array]
    method: str
    weights: FloatArray
    sites: tuple[SiteReport, ...]
    precision: Mapping[str, Any] | None = None
    objective: float = float("nan")
    facts: Mapping[str, Any] = field(default_factory=dict)
    template: Any = None

    @property
    def residual(self) -> float:
        """The largest relative residual of any site; 0 where no equations were solved."""
        found = [s.residual for s in self.sites if np.isfinite(s.residual)]
        return max(found, default=0.0)

    @property
    def condition(self) -> float:
        """The largest condition of any site; 1 where no equations were solved."""
        return max((s.condition for s in self.sites if not np.isnan(s.condition)), default=1.0)

    @property
    def converged(self) -> bool:
        """Whether every site's solver did."""
        return all(s.converged for s in self.sites)

    @property
    def fallback(self) -> int:
        """Coordinates or directions that no precision determined."""
        return sum(s.fallback for s in self.sites)

    @property
    def n_parameters(self) -> int:
        """Entries of the sites that were merged or averaged."""
        return sum(s.size for s in self.sites if s.action in ("merge", "average"))

    def model(self) -> Any:
        """A copy of source 0 with the merged tensors; what was skipped keeps source 0's values.

        Mappings give a dict, modules a deep copy, scikit-learn models a copy.
        """
        return model_like(self.template, self.params)

    def report(self) -> dict[str, Any]:
        """Everything but the arrays, as plain values for JSON (NaN as None)."""
        sites = [{k: _plain(v) for k, v in asdict(s).items()} for s in self.sites]
        return {
            "method": self.method,
            "weights": self.weights.tolist(),
            "objective": _plain(self.objective),
            "residual": self.residual,
            "condition": _plain(self.condition),
            "converged": self.converged,
            "fallback": self.fallback,
            "parameters": self.n_parameters,
            "facts": dict(self.facts),
            "sites": sites,
        }

    def __repr__(self) -> str:
        done = [s for s in self.sites if s.action == "merge"]
        solvers = sorted({s.solver for s in done if s.solver})
        return (
            f"MergeSolution({self.method}, sources={len(self.weights)}, sites={len(done)}, "
            f"parameters={self.n_parameters}, solver={'+'.join(solvers) or 'none'}, "
            f"residual={self.residual:.1e}, fallback={self.fallback})"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return list(value) if isinstance(value, tuple) else value
