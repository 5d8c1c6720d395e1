"""Exact ReLU networks as scikit-learn estimators."""

import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")
from sklearn.datasets import load_diabetes, load_iris
from sklearn.exceptions import SkipTestWarning
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from fishertope.core.errors import ConvergenceWarning, InvalidInputError
from fishertope.sklearn import ExactReLUClassifier, ExactReLURegressor


@pytest.mark.parametrize("kind", [ExactReLURegressor, ExactReLUClassifier])
def test_scikit_learns_own_checks_pass(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        report = check_estimator(kind(2, n_starts=1, random_state=0), on_fail=None)
    failed = {r["check_name"]: r["exception"] for r in report if r["status"] == "failed"}
    assert not failed
    assert sum(r["status"] == "passed" for r in report) >= 45


def test_auto_selects_searches_and_enumerates():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 1)), rng.normal(size=12)
    selected = ExactReLURegressor(12, random_state=0).fit(x, y)
    assert selected.method_ == "select"
    assert np.abs(selected.predict(x) - y).max() < 1e-8
    assert selected.certificate_.global_optimum
    counted = ExactReLURegressor(2, random_state=0).fit(x, y)
    assert counted.method_ == "exact"
    searched = ExactReLURegressor(2, method="greedy", n_starts=40, random_state=0).fit(x, y)
    losses = [0.5 * ((m.predict(x) - y) ** 2).sum() for m in (counted, searched)]
    assert losses[0] <= losses[1] + 1e-9
    assert counted.certificate_.objective == pytest.approx(losses[0], abs=1e-10)
    decayed = ExactReLURegressor(penalty=0.1, random_state=0).fit(x, y)
    assert decayed.method_ == "exact"
    assert decayed.certificate_.global_optimum
    assert "any width" in decayed.proven_


def test_equal_rows_with_different_targets_are_searched_or_refused():
    x, y = np.array([[0.0], [0.0], [1.0], [2.0]]), np.array([0.0, 1.0, 2.0, 0.0])
    assert ExactReLURegressor(8, random_state=0).fit(x, y).method_ == "greedy"
    with pytest.raises(InvalidInputError, match=r"Rows \[0, 1\]"):
        ExactReLURegressor(8, method="select").fit(x, y)
    with pytest.raises(InvalidInputError, match="accepted"):
        ExactReLURegressor(method="adam").fit(x, y)


def test_on_real_data():
    raw = load_diabetes()
    model = make_pipeline(StandardScaler(), ExactReLURegressor(3, n_starts=3, random_state=0))
    scores = cross_val_score(model, raw.data[:150, [2, 3, 8]], raw.target[:150], cv=3)
    assert scores.mean() > 0.1  # a linear model reaches 0.3 to 0.4
    flowers = load_iris()
    classifier = ExactReLUClassifier(4, random_state=0).fit(flowers.data[:, 2:], flowers.target)
    assert classifier.score(flowers.data[:, 2:], flowers.target) > 0.95
    assert len(classifier.certificate_) == 3
    assert classifier.decision_function(flowers.data[:, 2:]).shape == (150, 3)


@pytest.mark.parametrize("loss", ["logistic", "hinge"])
def test_certified_classifiers(loss):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(14, 2))
    y = np.where((x**2).sum(axis=1) > 1.5, "out", "in")
    model = ExactReLUClassifier(loss=loss, penalty=0.05, random_state=0).fit(x, y)
    assert model.method_ == ("exact",)
    assert model.certificate_[0].global_optimum
    assert model.score(x, y) == 1.0
