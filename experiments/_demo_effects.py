"""What happens to the answers when the network is moved along a component."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.backend import to_numpy
from ..core.factorization import Factorization, PerturbationReport, perturb, perturbation_report
from ..core.model import engine_for
from ..core.types import FloatArray, NumpyArray
from ._demo_study import N_TOP

SHARES_OF_THETA = (0.002, 0.005, 0.01, 0.02, 0.05)
"""Sizes of the moves, as shares of ‖θ‖."""

SHOWN = 3
"""Which of them the tables show: 2 % of ‖θ‖."""

N_OTHERS, N_DIRECTIONS = 100, 10
"""Random other images, and random directions, that every component is compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """Changed answers among a component's top images.

    Attributes
    ----------
    sign : int
        +1 for θ + εg, −1 for θ − εg.
    changed : tuple of (before, after, count)
        The most frequent first.
    """

    sign: int
    changed: tuple[tuple[int, int, int], ...]

    @property
    def total(self) -> int:
        """How many answers changed."""
        return sum(count for _, _, count in self.changed)

    @property
    def largest(self) -> int:
        """How many changed in the most frequent way."""
        return self.changed[0][2] if self.changed else 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Effects:
    """Moves of s sizes along r components.

    Attributes
    ----------
    sizes : array (s,)
        ε, the length of the moves.
    reports : tuple of PerturbationReport
        One a size.
    moves : tuple of (Moves, Moves)
        For each component, + and −, at the size that the tables show.
    """

    sizes: FloatArray
    reports: tuple[PerturbationReport, ...]
    moves: tuple[tuple[Moves, Moves], ...]

    @property
    def top(self) -> FloatArray:
        """Mean KL in nats on a component's top images, for its more selective sign (s, r)."""
        return np.stack([_of_better_sign(r)[0] for r in self.reports])

    @property
    def others(self) -> FloatArray:
        """The same on random other images (s, r)."""
        return np.stack([_of_better_sign(r)[1] for r in self.reports])

    @property
    def random(self) -> FloatArray:
        """Mean KL on a component's top images along random directions (s, r)."""
        return np.stack([r.random_top.mean(axis=1) for r in self.reports])

    @property
    def ratios(self) -> FloatArray:
        """KL-ratio of each component at the size that the tables show (r,)."""
        return self.reports[SHOWN].kl_ratio

    @property
    def random_ratios(self) -> FloatArray:
        """How many times the effect of random directions on the same images (r,)."""
        return np.asarray(self.top[SHOWN] / np.maximum(self.random[SHOWN], np.finfo(float).tiny))

    @property
    def centroid_ratios(self) -> FloatArray:
        """KL-ratio of the mean gradient of a component's top images, at the same size (r,)."""
        return self.reports[SHOWN].centroid_ratio

    @property
    def prediction_error(self) -> float:
        """Median relative error of (ε²/2)‖A_ig‖² against the mean of ±, at the smallest size."""
        small = self.reports[0]
        measured = small.kl_top.mean(axis=1)
        error = np.abs(small.predicted_top - measured)
        return float(np.median(error / np.maximum(measured, np.finfo(float).tiny)))


def measure_effects(
    network: Any,
    inputs: FloatArray,
    factorization: Factorization,
    seed: int,
    advance: Callable[[int, int], None],
) -> Effects:
    """Move the network along ± each component, and along random directions, and look."""
    length = float(np.linalg.norm(to_numpy(engine_for(network).theta())))
    sizes = np.array(SHARES_OF_THETA) * length
    reports = []
    for done, size in enumerate(sizes):
        report = perturbation_report(
            network,
            factorization,
            inputs,
            magnitude=float(size),
            n_top=N_TOP,
            n_baseline=N_OTHERS,
            n_random=N_DIRECTIONS,
            seed=seed,  # the same others and directions at every size
        )
        reports.append(report)
        advance(done + 1, len(sizes))
    moves = [
        (
            _moves(network, inputs, factorization, k, +1, float(sizes[SHOWN])),
            _moves(network, inputs, factorization, k, -1, float(sizes[SHOWN])),
        )
        for k in range(factorization.n_components)
    ]
    return Effects(sizes=sizes, reports=tuple(reports), moves=tuple(moves))


def _of_better_sign(report: PerturbationReport) -> tuple[NumpyArray, NumpyArray]:
    ratio = report.kl_top / np.maximum(report.kl_baseline, np.finfo(float).tiny)
    rows, better = np.arange(len(ratio)), ratio.argmax(axis=1)
    return report.kl_top[rows, better], report.kl_baseline[rows, better]


def _moves(
    network: Any,
    inputs: FloatArray,
    factorization: Factorization,
    component: int,
    sign: int,
    size: float,
) -> Moves:
    own = inputs[factorization.top_examples(N_TOP)[component]]
    before = to_numpy(engine_for(network).predict(own)).argmax(axis=1)
    with perturb(network, factorization, component, magnitude=size, sign=sign) as moved:
        after = to_numpy(moved.predict(own)).argmax(axis=1)
    pairs = zip(before.tolist(), after.tolist(), strict=True)
    counts = Counter((a, b) for a, b in pairs if a != b)
    changed = tuple((a, b, count) for (a, b), count in counts.most_common())
    return Moves(sign=sign, changed=changed)
