"""Mixing rates of several tasks.

Source: Raffel et al., arXiv 1910.10683, section 3.5.2.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fishertope.core.errors import InvalidInputError


def mixing_rates(
    sizes: Mapping[str, float],
    *,
    cap: float | None = None,
    temperature: float = 1.0,
    scale: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """``r_m`` proportional to ``min(scale_m * e_m, cap) ** (1 / temperature)``; they sum to 1.

    Parameters
    ----------
    sizes
        Number of examples ``e_m`` of each task.
    cap
        Artificial limit ``K``; ``None`` is infinite.
    temperature
        1 is proportional mixing, infinity is equal mixing.
    scale
        Factors of single tasks, 1/2 for instance where a task occurs twice.

    Raises
    ------
    InvalidInputError
        No tasks, a size, cap, factor or temperature that is not positive, or an unknown task.
    """
    factors = dict(scale or {})
    unknown = sorted(set(factors) - set(sizes))
    values = [*sizes.values(), *factors.values(), temperature, 1.0 if cap is None else cap]
    if not sizes or unknown or not all(v > 0 for v in values):
        raise InvalidInputError(
            f"sizes={dict(sizes)}, cap={cap}, temperature={temperature}, scale={factors}; give at "
            f"least one task and positive numbers (factors of unknown tasks: {unknown})"
        )
    limit = np.inf if cap is None else cap
    raw = {
        name: min(size * factors.get(name, 1.0), limit) ** (1.0 / temperature)
        for name, size in sizes.items()
    }
    total = sum(raw.values())
    return {name: value / total for name, value in raw.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """Tasks and sub-mixtures with their rates; the rates need not sum to 1."""

    tasks: Mapping[str, float] = field(default_factory=dict)
    parts: tuple[tuple["Mixture", float], ...] = ()

    def __post_init__(self) -> None:
        rates = [*self.tasks.values(), *(rate for _, rate in self.parts)]
        if not rates or not all(rate > 0 for rate in rates):
            raise InvalidInputError(f"rates {rates}; give at least one, all of them positive")

    def rates(self) -> dict[str, float]:
        """Rate of each task, added over all ways in which it is reached; they sum to 1."""
        total = sum(self.tasks.values()) + sum(rate for _, rate in self.parts)
        out = {name: rate / total for name, rate in self.tasks.items()}
        for part, rate in self.parts:
            for name, inside in part.rates().items():
                out[name] = out.get(name, 0.0) + inside * rate / total
        return out

    def without(self, task: str) -> dict[str, float]:
        """Rates that leave one task out, renormalised."""
        rates = self.rates()
        if task not in rates or len(rates) == 1:
            raise InvalidInputError(f"task {task!r} of {sorted(rates)} cannot be left out")
        rest = 1.0 - rates.pop(task)
        return {name: rate / rest for name, rate in rates.items()}


def draw_tasks(rates: Mapping[str, float], count: int, rng: np.random.Generator) -> list[str]:
    """The task of each of ``count`` examples, drawn independently by the rates."""
    names = list(rates)
    weights = np.array([rates[name] for name in names])
    chosen = rng.choice(len(names), count, p=weights / weights.sum())
    return [names[i] for i in chosen]
