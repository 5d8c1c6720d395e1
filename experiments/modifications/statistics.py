"""Comparing many variants, few seeds each, with one baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...core.errors import InvalidInputError
from ...core.types import FloatArray
from ..studies import Interval
from ..studies.statistics import Values

MANY = 1e6
"""Degrees of freedom that stand for infinitely many."""


@dataclass(frozen=True, slots=True)
class Prior:
    """What all variants together say about the variance over seeds of any one.

    Attributes
    ----------
    variance : float
    dof : float
        How many degrees of freedom of a variant's own that is worth.
    """

    variance: float
    dof: float

    def shrunk(self, values: Values) -> tuple[float, float]:
        """Variance of a variant's values drawn towards the common one, and its freedom.

        (d₀ s₀² + d s²)/(d₀ + d) with d₀ + d degrees of freedom; of one value, the common one.
        """
        v = np.asarray(values, dtype=np.float64)
        d = len(v) - 1
        own = float(v.var(ddof=1)) if d else 0.0
        return (self.dof * self.variance + d * own) / (self.dof + d), self.dof + d


def common_prior(samples: Sequence[Values]) -> Prior:
    """Empirical Bayes over the variances of all samples (Smyth 2004, section 6.2).

    With e = log s² − ψ(d/2) + log(d/2): the spread of e beyond that of sampling, ψ′(d/2), gives d₀,
    and its mean gives s₀². Variances as equal as sampling lets them be give d₀ = ∞.

    Raises
    ------
    InvalidInputError
        If no sample has two values.

    References
    ----------
    Smyth, Linear models and empirical Bayes methods for assessing differential expression,
    Stat. Appl. Genet. Mol. Biol. 3 (2004).
    """
    from scipy.special import digamma, polygamma

    some = [np.asarray(s, dtype=np.float64) for s in samples if len(s) > 1]
    if not some:
        raise InvalidInputError("No variant has two seeds; two are needed for any interval.")
    variances = np.array([s.var(ddof=1) for s in some])
    d = np.array([len(s) - 1 for s in some], dtype=np.float64)
    pooled = float(variances @ d / d.sum())
    if len(some) < 3 or not (variances > 0).all():
        return Prior(pooled, float(d.sum()))
    e = np.log(variances) - digamma(d / 2) + np.log(d / 2)
    excess = float(e.var(ddof=1) - polygamma(1, d / 2).mean())
    if excess <= 0:
        return Prior(pooled, MANY)
    half = _trigamma_inverse(excess)
    variance = float(np.exp(e.mean() + digamma(half) - np.log(half)))
    return Prior(variance, 2 * half)


def _trigamma_inverse(y: float) -> float:
    """The x with ψ′(x) = y > 0, by bisection of a falling function on a log scale."""
    from scipy.special import polygamma

    low, high = 1e-8, MANY
    for _ in range(200):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if polygamma(1, middle) > y else (low, middle)
    return float(np.sqrt(low * high))


@dataclass(frozen=True, slots=True)
class Comparison:
    """A difference of two means.

    Attributes
    ----------
    interval : Interval
        At 95 %; the whole line where nothing is known of the variance.
    p : float
        Two-sided.
    dof : float
    """

    interval: Interval
    p: float
    dof: float


def compare(a: Values, b: Values, prior: Prior | None = None) -> Comparison:
    """Mean of ``a`` minus mean of ``b``, by Welch's test.

    With a prior each variance is :meth:`Prior.shrunk`, without one it is the sample's own.

    Examples
    --------
    >>> round(compare([1.0, 1.2, 1.1], [1.5, 1.6, 1.4]).p, 4)
    0.008
    """
    from scipy.stats import t

    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    mean, n = float(x.mean() - y.mean()), min(len(x), len(y))
    if prior is None and n < 2:
        return Comparison(Interval(mean, -np.inf, np.inf, n), 1.0, 0.0)
    parts = [
        (prior.shrunk(v) if prior else (float(v.var(ddof=1)), len(v) - 1.0), len(v)) for v in (x, y)
    ]
    terms = [variance / size for (variance, _), size in parts]
    error = float(np.sqrt(sum(terms)))
    if error == 0.0:
        return Comparison(Interval(mean, mean, mean, n), float(mean == 0.0), MANY)
    dof = sum(terms) ** 2 / sum(
        term**2 / d for term, ((_, d), _) in zip(terms, parts, strict=True)
    )  # fmt: skip
    half = float(t.ppf(0.975, dof)) * error
    p = float(2 * t.sf(abs(mean) / error, dof))
    return Comparison(Interval(mean, mean - half, mean + half, n), p, float(dof))


def power(effect: float, error: float, dof: float, *, alpha: float = 0.05) -> float:
    """Chance that a two-sided t test with that standard error finds a true effect.

    Examples
    --------
    >>> round(power(0.0, 1.0, 10.0), 3), power(10.0, 1.0, 10.0) > 0.99
    (0.05, True)
    """
    from scipy.stats import nct, t

    if error <= 0 or dof < 1:
        return float("nan")
    edge, shift = float(t.ppf(1 - alpha / 2, dof)), abs(effect) / error
    return float(nct.sf(edge, dof, shift) + nct.cdf(-edge, dof, shift))


def detectable(error: float, dof: float, *, alpha: float = 0.05, chance: float = 0.8) -> float:
    """The smallest effect that is found with that chance."""
    low, high = 0.0, 1e3 * error
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, error, dof, alpha=alpha) < chance else (
            low, middle
        )  # fmt: skip
    return high


def rank_correlation(
    x: Values, y: Values, *, n_resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Spearman's ρ, with a percentile interval over resampled pairs.

    Raises
    ------
    InvalidInputError
        Fewer than four pairs.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(a) != len(b) or len(a) < 4:
        raise InvalidInputError(f"{len(a)} and {len(b)} values were given; 4 pairs are needed.")
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(a), (n_resamples, len(a)))
    low, high = np.nanquantile(_spearman(a[draws], b[draws]), [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(_spearman(a[None], b[None])[0]), float(low), float(high), len(a))


def _spearman(a: FloatArray, b: FloatArray) -> FloatArray:
    """Of each row; NaN where one side is constant."""
    from scipy.stats import rankdata

    u, v = (rankdata(x, axis=1) - (x.shape[1] + 1) / 2 for x in (a, b))
    size = np.sqrt(np.square(u).sum(1) * np.square(v).sum(1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((u * v).sum(1) / size)


def over_seeds(
    values: Mapping[str, Mapping[int, float]], weights: Mapping[str, float]
) -> FloatArray:
    """Σ_v w_v · value of v, for each seed that all the named variants have."""
    seeds = set.intersection(*(set(values.get(name, {})) for name in weights))
    return np.array([sum(w * values[v][s] for v, w in weights.items()) for s in sorted(seeds)])
