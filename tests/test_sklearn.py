"""The scikit-learn face."""

import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")
from sklearn.exceptions import SkipTestWarning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler
from sklearn.utils.estimator_checks import check_estimator

from fishertope.core.errors import ConvergenceWarning, InvalidInputError
from fishertope.sklearn import NPEFF


@pytest.mark.parametrize("kind", ["diagonal", "rank_one"])
def test_scikit_learns_own_checks_pass(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        report = check_estimator(NPEFF(kind=kind, random_state=0), on_fail=None)
    failed = {r["check_name"]: r["exception"] for r in report if r["status"] == "failed"}
    assert not failed
    assert sum(r["status"] == "passed" for r in report) >= 35


def test_in_a_pipeline_and_sparse():
    from scipy.sparse import csr_array

    X = np.random.default_rng(0).random((30, 8))
    X[X < 0.5] = 0
    model = make_pipeline(MaxAbsScaler(), NPEFF(3, random_state=1))
    W = model.fit_transform(X)
    assert W.shape == (30, 3)
    assert (W >= 0).all()
    np.testing.assert_allclose(model.fit_transform(csr_array(X)), W, atol=1e-6)
    back = model[-1].inverse_transform(W)
    assert back.shape == X.shape


def test_bad_kinds_and_negative_diagonals_are_named():
    X = np.random.default_rng(0).normal(size=(10, 4))
    with pytest.raises(InvalidInputError, match="diagonal, rank_one"):
        NPEFF(kind="dense").fit(np.abs(X))
    with pytest.raises(InvalidInputError, match="Negative values"):
        NPEFF().fit(X)
    with pytest.raises(InvalidInputError, match="inverse_transform"):
        NPEFF(kind="rank_one").fit(X).inverse_transform(np.ones((2, 2)))
