"""Orders in which weights are tried, and on how many examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import BackendUnavailable, InvalidInputError
from ...types import FloatArray
from .spaces import PairGrid, SobolSimplex, Space, softmax

Score = Callable[[FloatArray, int | None], float]
"""Score (to be raised) of weights on the first so many selection examples; None for all."""


@dataclass(frozen=True, slots=True)
class Exhaustive:
    """Every point of a space, on all selection examples.

    Attributes
    ----------
    space : Space, optional
        ``PairGrid()`` for two sources, else ``SobolSimplex()``.
    """

    space: Space | None = None

    def run(self, score: Score, n_sources: int, n_examples: int | None, seed: int) -> None:
        """Try them all."""
        for w in _space(self.space, n_sources).points(n_sources, seed):
            score(w, None)


@dataclass(frozen=True, slots=True)
class SuccessiveHalving:
    """All points on few examples, the best 1/η of them on η times as many, and so on.

    Attributes
    ----------
    space : Space, optional
    eta : int
    first : int
        Examples of the first round.
    """

    space: Space | None = None
    eta: int = 3
    first: int = 64

    def __post_init__(self) -> None:
        if self.eta < 2 or self.first < 1:
            raise InvalidInputError(
                f"eta={self.eta}, first={self.first} were given; eta >= 2, first >= 1."
            )

    def run(self, score: Score, n_sources: int, n_examples: int | None, seed: int) -> None:
        """Rounds until one survivor or all examples are used; the last round uses all."""
        if n_examples is None:
            raise InvalidInputError(
                "Successive halving needs selection data with a length that can be cut: arrays, a "
                "tuple of arrays, or a list."
            )
        alive = list(_space(self.space, n_sources).points(n_sources, seed))
        size = min(self.first, n_examples)
        while size < n_examples and len(alive) > 1:
            scores = np.array([score(w, size) for w in alive])
            keep = max(1, len(alive) // self.eta)
            order = np.argsort(-scores, kind="stable")[:keep]
            alive = [alive[i] for i in np.sort(order)]
            size = min(n_examples, size * self.eta)
        for w in alive:
            score(w, None)


@dataclass(frozen=True, slots=True)
class ExpectedImprovement:
    """Gaussian-process search in log-ratios of the weights, by expected improvement.

    Attributes
    ----------
    n_initial : int
        Scrambled Sobol points at the start.
    n_steps : int
        Points chosen by the model.
    width : float
        Log-ratios to the first weight lie in [−width, width].
    candidates : int
        Random points among which the improvement is maximised.

    Notes
    -----
    Matérn 5/2 kernel with noise, refitted at every step by scikit-learn (an extra).
    """

    n_initial: int = 8
    n_steps: int = 24
    width: float = 5.0
    candidates: int = 2000

    def run(self, score: Score, n_sources: int, n_examples: int | None, seed: int) -> None:
        """Sobol points, then model steps."""
        try:
            from sklearn.exceptions import ConvergenceWarning as Unfinished
            from sklearn.gaussian_process import GaussianProcessRegressor
            from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
        except ImportError as error:
            raise BackendUnavailable(
                "Search by expected improvement needs scikit-learn: pip install "
                "'fishertope[sklearn]', or choose Evolution()."
            ) from error
        import warnings

        from scipy.stats import norm, qmc

        rng = np.random.default_rng(seed)
        d = n_sources - 1
        if d == 0:
            score(np.ones(1), None)
            return
        start = qmc.Sobol(d, scramble=True, rng=rng).random(self.n_initial)
        z = (2 * start - 1) * self.width
        y = np.array([score(w, None) for w in softmax(z)])
        for _ in range(self.n_steps):
            spread = float(y.std()) or 1.0
            kernel = ConstantKernel(1.0) * Matern(self.width / 2, nu=2.5) + WhiteKernel(1e-3)
            model = GaussianProcessRegressor(kernel, random_state=int(rng.integers(2**31)))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Unfinished)
                model.fit(z, (y - y.mean()) / spread)
            near = z[np.argmax(y)] + rng.normal(
                scale=self.width / 10, size=(self.candidates // 4, d)
            )
            pool = np.concatenate(
                [rng.uniform(-self.width, self.width, (self.candidates, d)),
                 np.clip(near, -self.width, self.width)]
            )  # fmt: skip
            mean, sd = model.predict(pool, return_std=True)
            best = (y.max() - y.mean()) / spread
            gain = (mean - best) / np.maximum(sd, 1e-12)
            value = (mean - best) * norm.cdf(gain) + sd * norm.pdf(gain)
            chosen = pool[int(np.argmax(value))]
            z = np.concatenate([z, chosen[None]])
            y = np.append(y, score(softmax(chosen[None])[0], None))


@dataclass(frozen=True, slots=True)
class Evolution:
    """Covariance-matrix evolution in log-ratios of the weights (a plain rank-μ CMA-ES).

    Attributes
    ----------
    generations : int
    population : int, optional
        4 + ⌊3 ln d⌋ by default.
    sigma : float
        First step size, in log-ratios.
    """

    generations: int = 12
    population: int | None = None
    sigma: float = 1.5

    def run(self, score: Score, n_sources: int, n_examples: int | None, seed: int) -> None:
        """One generation after another."""
        d = n_sources - 1
        if d == 0:
            score(np.ones(1), None)
            return
        rng = np.random.default_rng(seed)
        state = _CMA(np.zeros(d), self.sigma, self.population or 4 + int(3 * np.log(max(d, 1))))
        score(np.full(n_sources, 1.0 / n_sources), None)
        for _ in range(self.generations):
            z = state.ask(rng)
            state.tell(z, np.array([score(w, None) for w in softmax(z)]))


@dataclass(slots=True)
class _CMA:
    """Mean, step size and covariance of the search distribution, with the usual constants."""

    mean: FloatArray
    sigma: float
    population: int
    covariance: FloatArray = field(init=False)
    path: FloatArray = field(init=False)
    conjugate: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        d = len(self.mean)
        self.covariance = np.eye(d)
        self.path, self.conjugate = np.zeros(d), np.zeros(d)

    def ask(self, rng: np.random.Generator) -> FloatArray:
        root = np.linalg.cholesky(self.covariance + 1e-12 * np.eye(len(self.mean)))
        draws = rng.normal(size=(self.population, len(self.mean)))
        return np.asarray(self.mean + self.sigma * draws @ root.T)

    def tell(self, z: FloatArray, scores: FloatArray) -> None:
        d, mu = len(self.mean), self.population // 2
        w = np.log(mu + 0.5) - np.log(np.arange(1, mu + 1))
        w = w / w.sum()
        eff = 1 / (w**2).sum()
        c_s = (eff + 2) / (d + eff + 5)
        c_c = 4 / (d + 4)
        c_1 = 2 / ((d + 1.3) ** 2 + eff)
        c_mu = min(1 - c_1, 2 * (eff - 2 + 1 / eff) / ((d + 2) ** 2 + eff))
        damp = 1 + c_s + 2 * max(0.0, np.sqrt((eff - 1) / (d + 1)) - 1)
        steps = (z[np.argsort(-scores, kind="stable")[:mu]] - self.mean) / self.sigma
        move = w @ steps
        self.mean = self.mean + self.sigma * move
        values, vectors = np.linalg.eigh(self.covariance)
        inverse_root = vectors / np.sqrt(np.maximum(values, 1e-20)) @ vectors.T
        self.conjugate = (1 - c_s) * self.conjugate + np.sqrt(c_s * (2 - c_s) * eff) * (
            inverse_root @ move
        )
        self.path = (1 - c_c) * self.path + np.sqrt(c_c * (2 - c_c) * eff) * move
        self.covariance = (
            (1 - c_1 - c_mu) * self.covariance
            + c_1 * np.outer(self.path, self.path)
            + c_mu * (steps.T * w) @ steps
        )
        expected = np.sqrt(d) * (1 - 1 / (4 * d) + 1 / (21 * d**2))
        length = float(np.linalg.norm(self.conjugate))
        self.sigma *= float(np.exp(min(1.0, (c_s / damp) * (length / expected - 1))))


Optimiser = Exhaustive | SuccessiveHalving | ExpectedImprovement | Evolution
_NAMES: dict[str, Any] = {
    "exhaustive": Exhaustive,
    "halving": SuccessiveHalving,
    "gp": ExpectedImprovement,
    "evolution": Evolution,
}


def optimiser_of(given: Optimiser | Space | str) -> Optimiser:
    """An optimiser from itself, from a space (tried exhaustively), or from its name.

    Raises
    ------
    InvalidInputError
        For anything else.
    """
    if isinstance(given, str) and given in _NAMES:
        made: Optimiser = _NAMES[given]()
        return made
    if isinstance(given, tuple(_NAMES.values())):
        return given  # type: ignore[return-value]
    if hasattr(given, "points"):
        return Exhaustive(given)  # type: ignore[arg-type]
    raise InvalidInputError(
        f"search={given!r} was given; accepted: {', '.join(_NAMES)}, an optimiser such as "
        "SuccessiveHalving(), or a space such as PairGrid(51)."
    )


def _space(given: Space | None, n_sources: int) -> Space:
    if given is not None:
        return given
    return PairGrid() if n_sources == 2 else SobolSimplex()
