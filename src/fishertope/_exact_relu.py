"""Shallow ReLU networks for scikit-learn, fitted exactly where that can be certified."""

from __future__ import annotations

from math import comb
from typing import Any, NamedTuple, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from .core.errors import FishertopeError, InvalidInputError
from .core.types import FloatArray, NumpyArray
from .core.zonotope import n_vertices
from .theory import (
    Certificate,
    ReluProblem,
    brute_force,
    certify,
    greedy_search,
    regularised_optimum,
    select_vertices,
    with_bias,
)

METHODS = ("auto", "select", "greedy", "exact")
# Numbers of sign flips times the cube of the number of weights: some seconds a step above it.
_EDGES_WORK = 2e8
_CELLS = 20_000


class _Fit(NamedTuple):
    """One network: weights, outputs, the method used, what it proved, and a dual point if any."""

    weights: FloatArray
    outputs: FloatArray
    method: str
    proven: str
    dual: FloatArray | None = None


class _ExactReLU(BaseEstimator):  # type: ignore[misc]
    """What regressor and classifier share: scaling, choice of the method, proofs."""

    def __init__(
        self,
        n_units: int | None = 4,
        *,
        method: str = "auto",
        loss: str = "squared",
        penalty: float = 0.0,
        n_starts: int = 4,
        max_patterns: int = 100_000,
        n_jobs: int = 1,
        backend: str = "auto",
        random_state: Any = None,
    ) -> None:
        self.n_units = n_units
        self.method = method
        self.loss = loss
        self.penalty = penalty
        self.n_starts = n_starts
        self.max_patterns = max_patterns
        self.n_jobs = n_jobs
        self.backend = backend
        self.random_state = random_state

    def _prepare(self, X: Any) -> FloatArray:
        if self.method not in METHODS:
            raise InvalidInputError(
                f"method={self.method!r} was given; accepted: {', '.join(METHODS)}."
            )
        if self.n_units is not None and self.n_units < 1:
            raise InvalidInputError(
                f"n_units={self.n_units} was given; a number >= 1, or None, is accepted."
            )
        if not self.penalty >= 0:
            raise InvalidInputError(f"penalty={self.penalty} was given; >= 0 is accepted.")
        self._shift = X.mean(axis=0)
        spread = X.std(axis=0)
        size = np.abs(X).max(axis=0)
        self._used = np.flatnonzero(spread > 1e-12 * np.where(size > 0, size, 1.0))
        self._spread = np.where(spread > 0, spread, 1.0)
        return self._rows(X)

    def _rows(self, X: FloatArray) -> FloatArray:
        scaled = (X - self._shift) / self._spread
        return with_bias(scaled[:, self._used])

    def _fit_one(self, x: FloatArray, y: FloatArray) -> _Fit:
        """The network for targets y."""
        method = self._choose(x)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        try:
            return self._fit_by(method, x, y, seed)
        except FishertopeError:
            # Equal rows with different targets, or rows that are dependent but for rounding.
            if self.method != "auto" or method == "greedy":
                raise
            return self._fit_by("greedy", x, y, seed)

    def _fit_by(self, method: str, x: FloatArray, y: FloatArray, seed: int) -> _Fit:
        if method == "select":
            vertex = select_vertices(x, y, seed=seed)
            return _Fit(vertex.weights, vertex.signs, method, "global optimum (zero loss)")
        if method == "exact" and self.penalty > 0:
            found = regularised_optimum(
                x,
                y,
                self.penalty,
                loss=self.loss,
                max_patterns=self.max_patterns,
                backend=self.backend,
            )
            return _Fit(found.weights, found.outputs, method, found.certificate, found.dual)
        units = self.n_units or 4
        signs = np.where(np.arange(units) % 2 == 0, 1.0, -1.0)
        problem = ReluProblem(inputs=x, targets=y, signs=signs)
        if method == "exact":
            whole = brute_force(problem, backend=self.backend, max_cells=_CELLS * 100)
            words = f"global optimum: all {whole.n_cells} cells were solved or bounded"
            return _Fit(whole.solution.weights, signs, method, words)
        n, d, m = problem.sizes
        edges = self.loss == "squared" and float(m * n) * float(m * d) ** 3 <= _EDGES_WORK
        decay = self.penalty if self.loss != "squared" else 0.0
        best = greedy_search(
            problem,
            neighbourhood="edges" if edges else "tight",
            loss=self.loss,
            penalty=decay,
            n_starts=self.n_starts,
            n_jobs=self.n_jobs,
            backend=self.backend,
            seed=seed,
        )
        return _Fit(best.weights, signs, method, best.certificate)

    def _choose(self, x: FloatArray) -> str:
        """The method: what can be certified first."""
        if self.method != "auto":
            return self.method
        n, d = x.shape
        patterns = n_vertices(n, d)
        if self.penalty > 0:
            return "exact" if patterns <= self.max_patterns else "greedy"
        if self.loss != "squared":
            return "greedy"
        needed = 2 * -(-n // d)
        if self.n_units is None or self.n_units >= needed:
            return "select"
        plus, minus = -(-self.n_units // 2), self.n_units // 2
        cells = comb(patterns + plus - 1, plus) * comb(patterns + minus - 1, minus)
        return "exact" if patterns <= 4096 and cells <= _CELLS else "greedy"

    def _certified(self, x: FloatArray, y: FloatArray, fit: _Fit) -> Certificate:
        # The vertex programs of the squared loss have no decay.
        lam = self.penalty if fit.method == "exact" or self.loss != "squared" else 0.0
        return certify(
            (fit.weights, fit.outputs),
            x,
            y,
            loss=self.loss,
            penalty=lam,
            dual=fit.dual,
            max_cones=self.max_patterns * 4,
        )

    def _validated(self, X: Any) -> FloatArray:
        check_is_fitted(self)
        return self._rows(validate_data(self, X, reset=False, dtype=np.float64))


class ExactReLURegressor(RegressorMixin, _ExactReLU):  # type: ignore[misc]
    """f(x) = Σ_j a_j (w_j·x + b_j)_+ by exact methods, with what was proven.

    Parameters
    ----------
    n_units : int or None
        Units, half of them with negative outputs. ``None``: as many as an exact fit needs.
    method : {"auto", "select", "greedy", "exact"}
        "auto": with a penalty the global optimum over any number of units, if there are at most
        ``max_patterns`` activation patterns; without one, the selected vertex (zero loss) if
        ``n_units`` allows it, the global optimum by exhaustion if that is small, else the greedy
        search over vertices.
    loss : {"squared"}
    penalty : float
        λ of (λ/2) Σ (‖w_j‖² + b_j² + a_j²), on standardised columns.
    n_starts, n_jobs : int
        Starts of the greedy search, and processes that share them.
    max_patterns : int
    backend : str
    random_state : int, RandomState or None

    Attributes
    ----------
    weights_ : array (m, d)
        Hidden weights and, last, biases, for standardised columns.
    outputs_ : array (m,)
    method_ : str
        The method used.
    proven_ : str
        What it proved, in words.
    certificate_ : Certificate
        What ``fishertope.theory.certify`` proves of the network, by code that no solver uses.

    References
    ----------
    Matena & Raffel 2022, arXiv:2210.00176; Pilanci & Ergen 2020 (with a penalty).

    Examples
    --------
    >>> import numpy as np
    >>> X = np.linspace(-1, 1, 9)[:, None]
    >>> model = ExactReLURegressor(n_units=2, random_state=0).fit(X, np.abs(X[:, 0]))
    >>> round(float(model.predict([[0.5]])[0]), 6)
    0.5
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to rows X (n, d) and targets y (n,).

        Raises
        ------
        InvalidInputError
            Options out of range; with method="select", equal rows with different targets.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        if self.loss != "squared":
            raise InvalidInputError(f"loss={self.loss!r} was given; 'squared' is accepted here.")
        x, y = self._prepare(X), np.asarray(y, dtype=np.float64)
        fit = self._fit_one(x, y)
        self.weights_, self.outputs_, self.method_, self.proven_, _ = fit
        self.certificate_ = self._certified(x, y, fit)
        return self

    def predict(self, X: Any) -> FloatArray:
        """Outputs f of every row (n,)."""
        x = self._validated(X)
        return np.asarray(np.maximum(x @ self.weights_.T, 0) @ self.outputs_)


class ExactReLUClassifier(ClassifierMixin, _ExactReLU):  # type: ignore[misc]
    """The sign of f(x) = Σ_j a_j (w_j·x + b_j)_+; one network a class for more than two.

    Parameters
    ----------
    n_units, method, penalty, n_starts, n_jobs, max_patterns, backend, random_state
        As for :class:`ExactReLURegressor`, for each network.
    loss : {"squared", "logistic", "hinge"}
        Of f against ±1. The logistic loss needs ``penalty`` > 0.

    Attributes
    ----------
    classes_ : array
    weights_, outputs_ : tuples of arrays
        One a network: (m, d) and (m,).
    method_, proven_ : tuples of str
    certificate_ : tuple of Certificate
        One a network.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.linspace(-1, 1, 8)[:, None]
    >>> y = np.where(np.abs(X[:, 0]) > 0.5, "far", "near")
    >>> model = ExactReLUClassifier(n_units=4, random_state=0).fit(X, y)
    >>> model.score(X, y)
    1.0
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to rows X (n, d) and labels y (n,).

        Raises
        ------
        InvalidInputError
            Options out of range, a single class, the logistic loss without a penalty.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InvalidInputError(
                f"Labels of one class ({self.classes_[0]!r}) were given; the classifier needs "
                "at least 2 classes."
            )
        if self.loss not in ("squared", "logistic", "hinge"):
            raise InvalidInputError(
                f"loss={self.loss!r} was given; accepted: squared, logistic, hinge."
            )
        x = self._prepare(X)
        wanted = [1] if len(self.classes_) == 2 else range(len(self.classes_))
        fits, proofs = [], []
        for k in wanted:
            goal = np.where(codes == k, 1.0, -1.0)
            fits.append(self._fit_one(x, goal))
            proofs.append(self._certified(x, goal, fits[-1]))
        self.weights_ = tuple(f.weights for f in fits)
        self.outputs_ = tuple(f.outputs for f in fits)
        self.method_ = tuple(f.method for f in fits)
        self.proven_ = tuple(f.proven for f in fits)
        self.certificate_ = tuple(proofs)
        return self

    def decision_function(self, X: Any) -> FloatArray:
        """Outputs f of every row: (n,) for two classes, else (n, classes)."""
        x = self._validated(X)
        every = [
            np.maximum(x @ w.T, 0) @ a for w, a in zip(self.weights_, self.outputs_, strict=True)
        ]
        return np.asarray(every[0] if len(every) == 1 else np.column_stack(every))

    def predict(self, X: Any) -> NumpyArray:
        """The class of every row."""
        f = self.decision_function(X)
        codes = (f > 0).astype(int) if f.ndim == 1 else f.argmax(axis=1)
        return np.asarray(self.classes_[codes])
