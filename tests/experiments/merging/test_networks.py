"""The small networks behind the merging studies."""

import numpy as np
import pytest

from fishertope.core.model import engine_for
from fishertope.experiments.merging.cost import TOTALS
from fishertope.experiments.merging.frontier import _volume, corrupted
from fishertope.experiments.merging.networks import (
    _gradients,
    _parameters,
    accuracy,
    digits,
    fresh,
    halves,
    log_loss,
    log_probabilities,
    train,
    with_head,
)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_gradients_are_those_of_the_engine(activation):
    net = fresh(0, (64, 7, 5, 10), activation)
    rng = np.random.default_rng(0)
    X, y = rng.uniform(size=(20, 64)), rng.integers(10, size=20)
    own = np.concatenate([g.ravel() for g in _gradients(_parameters(net), activation, X, y)])
    p = np.exp(log_probabilities(net, X))
    p[np.arange(20), y] -= 1.0
    theirs = engine_for(net).vjp(X, p / 20)
    np.testing.assert_allclose(own, theirs, rtol=1e-10, atol=1e-14)


def test_training_learns_and_repeats():
    splits = digits(0)
    sizes = [len(part[1]) for part in (splits.train, splits.select, splits.report)]
    assert sizes == [1000, 300, 497]
    rows = np.concatenate([part[0] for part in (splits.train, splits.select, splits.report)])
    assert len(rows) == 1797
    one, two = (train(fresh(1), splits.train, steps=150, seed=1) for _ in range(2))
    assert accuracy(one, splits.report) > 0.85
    assert log_loss(one, splits.report) == log_loss(two, splits.report)
    low, high = halves(splits.train)
    assert set(low[1]) == set(range(5))
    assert set(high[1]) == set(range(5, 10))
    pulled = train(fresh(1), splits.train, steps=150, seed=1, pull=1.0)
    far, near = (np.linalg.norm(n.weights[0] - fresh(1).weights[0]) for n in (one, pulled))
    assert near < far


def test_corruptions_keep_the_range_and_change_every_image():
    X = digits(0).train[0][:200]
    bad = corrupted(X, np.random.default_rng(0))
    assert bad.min() >= 0
    assert bad.max() <= 1
    assert (np.abs(bad - X).sum(1) > 0).mean() > 0.98


def test_the_dominated_area_and_the_heads():
    assert np.isclose(_volume([0.9, 0.8], [0.6, 0.7]), 0.4 * 0.1 + 0.3 * 0.1)
    assert _volume([0.9], [0.4]) == 0.0
    net = with_head(fresh(0), fresh(1, (64, 20, 20, 2)))
    assert net.sizes == (64, 20, 20, 2)
    assert all(count >= 1 for parts in TOTALS.values() for _, count in parts)
