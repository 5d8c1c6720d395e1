"""Estimators for scikit-learn pipelines (extra ``sklearn``)."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from ._exact_relu import (
    ExactReLUClassifier as ExactReLUClassifier,
    ExactReLURegressor as ExactReLURegressor,
)
from .core.backend import thread_limit
from .core.errors import InvalidInputError
from .core.factorization import DiagonalNPEFF, Factorization, LowRankNPEFF, factorize
from .core.fisher import DiagonalFishers, LowRankFishers
from .core.types import FloatArray, NumpyArray

KINDS = ("diagonal", "rank_one")


class NPEFF(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Non-negative per-example Fisher factorization as a transformer.

    kind="diagonal": rows of X ≥ 0 are diagonal Fishers f_i, and f_i/‖f_i‖₂ ≈ Σ_k W_ik h_k with
    W, H ≥ 0. kind="rank_one": rows of X are scores x_i, one a Fisher F_i = x_ix_iᵀ, and
    F_i/‖F_i‖_F ≈ Σ_k W_ik g_kg_kᵀ with W ≥ 0.

    Parameters
    ----------
    n_components : int
        r.
    kind : {"diagonal", "rank_one"}
    normalize : bool
        Divide each Fisher by its norm.
    max_iter : int
        Steps of the diagonal solver, refinements of the other.
    tol : float or None
        The solver's own tolerance when ``None``.
    backend : str
        See :func:`fishertope.select_backend`.
    n_jobs : int or None
        Threads; ``None`` leaves them as they are.
    random_state : int, RandomState or None

    Attributes
    ----------
    components_ : array (r, n_features)
        H ≥ 0, or G with unit-norm rows.
    factorization_ : Factorization
        Everything that was found; the coefficients of the training rows among it.
    reconstruction_err_ : float
        √L.
    n_iter_ : int
        Steps taken.

    References
    ----------
    Matena & Raffel 2023, arXiv:2310.04649.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).random((20, 6))
    >>> NPEFF(n_components=2, random_state=0).fit_transform(X).shape
    (20, 2)
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        kind: str = "diagonal",
        normalize: bool = True,
        max_iter: int = 500,
        tol: float | None = None,
        backend: str = "auto",
        n_jobs: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.kind = kind
        self.normalize = normalize
        self.max_iter = max_iter
        self.tol = tol
        self.backend = backend
        self.n_jobs = n_jobs
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Find the components of the rows of X (n, n_features); ``y`` is ignored.

        Raises
        ------
        InvalidInputError
            Options out of range, negative entries for diagonals, nothing but zeros.
        """
        if self.kind not in KINDS:
            raise InvalidInputError(f"kind={self.kind!r} was given; accepted: {', '.join(KINDS)}.")
        X = self._validated(X, reset=True)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        chosen: dict[str, Any] = {"normalize": self.normalize, "max_steps": self.max_iter}
        if self.tol is not None:
            chosen["tol"] = self.tol
        make = DiagonalNPEFF if self.kind == "diagonal" else LowRankNPEFF
        method = make(self.n_components, **chosen)
        with thread_limit(self.n_jobs):
            found = factorize(self._fishers(X), method, seed=seed, backend=self.backend)
        self.factorization_: Factorization = found
        self.components_: NumpyArray = found.components
        self.reconstruction_err_ = float(max(found.loss, 0.0) ** 0.5)
        self.n_iter_ = len(found.history)
        self._n_features_out = found.n_components
        return self

    def transform(self, X: Any) -> FloatArray:
        """Coefficients W ≥ 0 (n, r) of the rows of X for the fitted components, exactly."""
        check_is_fitted(self)
        X = self._validated(X, reset=False)
        with thread_limit(self.n_jobs):
            return np.asarray(self.factorization_.transform(self._fishers(X), backend=self.backend))

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> FloatArray:
        """``fit(X).transform(X)``."""
        return self.fit(X, y).transform(X)

    def inverse_transform(self, X: Any) -> FloatArray:
        """WH (n, n_features): normalised diagonals from coefficients (kind="diagonal")."""
        check_is_fitted(self)
        if self.kind != "diagonal":
            raise InvalidInputError(
                "A sum of rank-one Fishers is a matrix for each row, not a row; "
                "inverse_transform is for kind='diagonal'."
            )
        return np.asarray(X @ self.components_)

    def _validated(self, X: Any, *, reset: bool) -> Any:
        sparse = "csr" if self.kind == "diagonal" else False
        return validate_data(
            self, X, reset=reset, accept_sparse=sparse, dtype=[np.float64, np.float32], order="C"
        )

    def _fishers(self, X: Any) -> LowRankFishers | DiagonalFishers:
        if self.kind == "diagonal":
            entries = X if isinstance(X, np.ndarray) else X.data
            if entries.size and entries.min() < 0:
                raise InvalidInputError(
                    "Negative values in data passed to NPEFF: diagonal Fishers are >= 0. Use "
                    "kind='rank_one' for scores."
                )
            return DiagonalFishers(values=X)
        return LowRankFishers.from_rows(X[:, None, :])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = self.kind == "diagonal"
        tags.input_tags.positive_only = self.kind == "diagonal"
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
