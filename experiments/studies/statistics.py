"""Intervals over seeds, paired tests, and Holm's correction where several are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...core.errors import InvalidInputError
from ...core.types import FloatArray

Values = Sequence[float] | FloatArray


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its interval.

    Attributes
    ----------
    mean : float
        The estimate (a median where the text says so).
    low, high : float
    n : int
        Independent values behind it.
    """

    mean: float
    low: float
    high: float
    n: int

    def text(self, format: str = ".3f") -> str:
        """``mean [low, high]``.

        Examples
        --------
        >>> Interval(0.5, 0.25, 0.75, 5).text(".2f")
        '0.50 [0.25, 0.75]'
        """
        return f"{self.mean:{format}} [{self.low:{format}}, {self.high:{format}}]"


def t_interval(values: Values, *, level: float = 0.95) -> Interval:
    """Student's interval of the mean of independent values; of one value, the whole line.

    Raises
    ------
    InvalidInputError
        No value, or NaN among them.

    Examples
    --------
    >>> t_interval([1.0, 2.0, 3.0, 4.0, 5.0]).text(".2f")
    '3.00 [1.04, 4.96]'
    """
    from scipy.stats import t

    v = _checked(values, least=1)
    if len(v) == 1:
        return Interval(float(v[0]), -np.inf, np.inf, 1)
    half = float(t.ppf(0.5 + level / 2, len(v) - 1) * v.std(ddof=1) / np.sqrt(len(v)))
    mean = float(v.mean())
    return Interval(mean, mean - half, mean + half, len(v))


def bootstrap_interval(
    values: Values,
    statistic: Callable[[FloatArray], float] = lambda v: float(np.median(v)),
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a statistic (the median) over resampled values.

    Examples
    --------
    >>> bootstrap_interval([3.0, 1.0, 2.0, 5.0, 4.0]).mean
    3.0
    """
    v = _checked(values)
    rng = np.random.default_rng(seed)
    draws = [statistic(v[rng.integers(0, len(v), len(v))]) for _ in range(n_resamples)]
    low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(statistic(v), float(low), float(high), len(v))


def share_interval(hits: int, n: int, *, level: float = 0.95) -> Interval:
    """Wilson's interval of a share of independent trials.

    Examples
    --------
    >>> share_interval(9, 10).text(".2f")
    '0.90 [0.60, 0.98]'
    """
    from scipy.stats import norm

    if n < 1 or not 0 <= hits <= n:
        raise InvalidInputError(f"{hits} of {n} was given; 0 <= hits <= n with n >= 1 is taken.")
    z, p = float(norm.ppf(0.5 + level / 2)), hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)))
    return Interval(p, max(0.0, middle - half), min(1.0, middle + half), n)


def paired_p(differences: Values, *, n_draws: int = 20000, seed: int = 0) -> float:
    """Two-sided p of the mean of paired differences, by flipping their signs.

    Exact over all 2ⁿ flips for n <= 14; otherwise from ``n_draws`` drawn ones. The smallest value
    that n pairs can give is 2^{1-n}.

    Examples
    --------
    >>> paired_p([0.1, 0.2, 0.3, 0.2, 0.1])
    0.0625
    """
    d = _checked(differences)
    if len(d) <= 14:
        bits = (np.arange(2 ** len(d))[:, None] >> np.arange(len(d))) & 1
        means = np.abs((1 - 2 * bits) @ d)
        return float(np.mean(means >= abs(d.sum()) * (1 - 1e-12)))
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(n_draws, len(d)))
    hits = int(np.sum(np.abs(signs @ d) >= abs(d.sum()) * (1 - 1e-12)))
    return (hits + 1) / (n_draws + 1)


def holm(p_values: Values) -> FloatArray:
    """p-values corrected for being several (Holm 1979): controls the family-wise error.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    raised = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    out = np.empty_like(p)
    out[order] = np.minimum(raised, 1.0)
    return out


def _checked(values: Values, least: int = 2) -> FloatArray:
    v = np.asarray(values, dtype=np.float64)
    if v.ndim != 1 or len(v) < least or not np.isfinite(v).all():
        raise InvalidInputError(
            f"Values {v.tolist()} were given; at least {least} finite numbers are needed."
        )
    return v
