"""Expansion: frozen components keep every bit, new ones explain what is left."""

import numpy as np
import pytest

from fishertope.core.backend import available_backends
from fishertope.core.errors import InvalidInputError
from fishertope.core.factorization import (
    DiagonalNPEFF,
    LowRankNPEFF,
    expand,
    factorize,
    matched_cosines,
)
from fishertope.core.factorization.streamed import StreamedProblem
from fishertope.core.fisher import DiagonalFishers, FisherStore, LowRankFishers, save_fishers

from .planted import dense_loss, planted


@pytest.fixture(scope="module")
def case():
    fishers, W, G = planted(0, n=160, m=100, r=6)
    old = np.flatnonzero((W[:, 4:] == 0).all(axis=1))
    first = factorize(fishers.select(old), LowRankNPEFF(4, tol=1e-6), on_failure="return")
    assert matched_cosines(G[:4], first.components)[0].min() >= 0.99
    return fishers, G, first


def test_check_20_new_components_are_the_missing_ones_and_the_old_keep_every_bit(case):
    fishers, G, first = case
    wider = expand(first, fishers, 2)
    assert np.array_equal(wider.components[:4], first.components)
    assert matched_cosines(G[4:], wider.components[4:])[0].min() >= 0.99
    assert wider.relative_loss <= 1e-3
    dense = dense_loss(fishers.normalized(), wider.coefficients, wider.components)
    assert abs(wider.loss - dense) <= 1e-9 * wider.total
    assert wider.facts["frozen"] == 4


def test_check_20_no_new_component_is_a_coefficient_fit(case):
    fishers, _, first = case
    same = first.expand(fishers, 0)
    assert np.array_equal(same.components, first.components)
    np.testing.assert_allclose(same.coefficients, first.transform(fishers), atol=1e-6)


@pytest.mark.parametrize("subspace", [True, False])
def test_check_20_the_loss_falls_from_the_coefficient_fit_on(case, subspace):
    fishers, _, first = case
    start = first.replace(method=LowRankNPEFF(4, subspace=subspace, n_starts=1, max_steps=20))
    wider = expand(start, fishers, 1)
    assert (np.diff(wider.history.loss) <= 1e-12 * wider.total).all()
    assert wider.loss <= expand(first, fishers, 0).loss


@pytest.mark.parametrize("backend", available_backends())
def test_every_backend_expands_alike(case, backend):
    fishers, _, first = case
    a, b = (expand(first, fishers, 2, backend=name) for name in ("reference", backend))
    assert abs(a.loss - b.loss) <= 1e-6 * a.total
    assert matched_cosines(a.components, b.components)[0].min() >= 0.999


def test_more_new_components_than_examples(case):
    fishers, _, first = case
    wider = expand(first, fishers.select([0, 1]), 5, max_steps=5)
    assert wider.components.shape == (9, 100)
    assert np.isfinite(wider.components).all()


def test_bad_requests_are_named(case):
    fishers, _, first = case
    with pytest.raises(InvalidInputError, match="n_new=-1"):
        expand(first, fishers, -1)
    with pytest.raises(InvalidInputError, match="7 columns"):
        expand(first, LowRankFishers.from_rows(np.ones((2, 1, 7))), 1)
    diagonal = factorize(
        DiagonalFishers(values=np.random.default_rng(0).random((9, 5))), DiagonalNPEFF(2),
        on_failure="return",
    )  # fmt: skip
    with pytest.raises(InvalidInputError, match="LowRankFishers"):
        expand(diagonal, fishers, 1)


@pytest.mark.parametrize("n_new", [0, 2])
def test_rows_of_a_store_stay_on_the_disk(case, n_new, tmp_path, monkeypatch):
    fishers, _, first = case
    store = save_fishers(tmp_path / "s", fishers, shard_examples=50)
    expected = expand(first, fishers, n_new)
    monkeypatch.setattr(FisherStore, "load", None)
    monkeypatch.setattr(StreamedProblem, "loaded", None)
    found = first.expand(store, n_new)
    assert np.array_equal(found.components[:4], first.components)
    assert abs(found.loss - expected.loss) <= 1e-9 * found.total
    np.testing.assert_allclose(found.coefficients, expected.coefficients, atol=1e-5)
    np.testing.assert_allclose(found.norms, expected.norms)


def test_a_small_store_is_loaded_and_a_store_of_diagonals_refused(case, tmp_path):
    _, _, first = case
    small = planted(1, n=30, m=100, r=6)[0]
    found = expand(first, save_fishers(tmp_path / "s", small, shard_examples=20), 1)
    assert abs(found.loss - expand(first, small, 1).loss) <= 1e-9 * found.total
    diagonal = save_fishers(tmp_path / "d", DiagonalFishers(values=np.ones((3, 100))))
    with pytest.raises(InvalidInputError, match="diagonals"):
        expand(first, diagonal, 1)
