"""Stability over seeds and the report of what cannot be told apart."""

import numpy as np
import pytest

from fishertope.core.errors import InvalidInputError
from fishertope.core.factorization import (
    DiagonalNPEFF,
    LowRankNPEFF,
    ambiguities,
    choose_n_components,
    factorize,
    stability,
    uniqueness,
)
from fishertope.core.fisher import DiagonalFishers, LowRankFishers

from .planted import planted

QUIET = {"on_failure": "return"}


def test_check_22_well_posed_data_are_stable_and_unambiguous():
    fishers, _, _ = planted(0, n=150, m=40, r=5)
    result = stability(fishers, LowRankNPEFF(5, tol=1e-6), seeds=(0, 1), **QUIET)
    assert result.score >= 0.99
    assert result.cosines.shape == (2, 5)
    assert result.whole.n_examples == 150
    assert ambiguities(result.whole) == ()


def test_check_21_workers_change_nothing():
    fishers, _, _ = planted(6, n=40, m=20, r=3, noise=0.2)
    method = LowRankNPEFF(3, max_steps=2, n_starts=1)
    alone = stability(fishers, method, seeds=(0, 1), **QUIET)
    shared = stability(fishers, method, seeds=(0, 1), n_jobs=2, **QUIET)
    assert np.array_equal(alone.cosines, shared.cosines)


def test_the_uniqueness_report_says_what_holds_and_what_does_not():
    fishers, _, _ = planted(0, n=150, m=40, r=5)
    found = factorize(fishers, LowRankNPEFF(5, tol=1e-6), **QUIET)
    report = uniqueness(found)
    assert report.guaranteed
    assert report.rank == 5
    assert "unique up to scale" in report.explanation
    W = found.coefficients.copy()
    W[:, 3] = 2.0 * W[:, 1]
    W[:, 4] = 0.0
    G = found.components.copy()
    G[2] = -G[0]
    worse = uniqueness(found.replace(coefficients=W, components=G))
    assert not worse.guaranteed
    assert {a.components: a.reason for a in worse.ambiguities} == {
        (1, 3): "proportional coefficients",
        (0, 2): "parallel components",
    }
    assert worse.unused == (4,)
    assert worse.rank == 3
    assert worse.condition > 1e6
    for words in ("only the span", "only the sum", "span 3 dimensions", "4 are not used"):
        assert words in worse.explanation
    # Dependent without any parallel pair.
    G = found.components.copy()
    G[4] = (G[0] + G[1]) / np.linalg.norm(G[0] + G[1])
    mixed = uniqueness(found.replace(components=G))
    assert not mixed.ambiguities
    assert not mixed.guaranteed
    assert mixed.rank == 4
    with pytest.raises(InvalidInputError, match="between 0 and 1"):
        uniqueness(found, limit=1.0)


def test_check_22_proportional_coefficients_are_flagged():
    rng = np.random.default_rng(1)
    G = np.linalg.qr(rng.normal(size=(20, 4)))[0].T
    W = rng.uniform(0.1, 1, (100, 4))
    W[:, 3] = 0.7 * W[:, 2]  # always together, in a fixed proportion
    blocks = [np.sqrt(W[i])[:, None] * G for i in range(100)]
    result = stability(
        LowRankFishers.from_rows(blocks), LowRankNPEFF(4, tol=1e-7), seeds=(0, 1), **QUIET
    )
    found = ambiguities(result.whole)
    assert len(found) == 1
    assert found[0].reason == "proportional coefficients"
    pair = result.whole.components[list(found[0].components)]
    inside = np.linalg.norm(pair @ G[2:].T, axis=1)
    np.testing.assert_allclose(inside, 1.0, atol=1e-3)  # the span is found, the pair is not


def test_parallel_components_are_flagged():
    fishers, _, _ = planted(2, r=3)
    best = stability(fishers, LowRankNPEFF(3), seeds=(0,), **QUIET).whole
    G = best.components.copy()
    G[1] = G[0]
    twin = ambiguities(best.replace(components=G))
    assert [(a.components, a.reason) for a in twin] == [((0, 1), "parallel components")]


def test_the_number_of_components_is_where_stability_ends():
    fishers, _, _ = planted(3, n=200, m=40, r=4, noise=0.3)
    chosen, results = choose_n_components(
        fishers, LowRankNPEFF(1), [2, 4, 12], seeds=(0, 1), threshold=0.97, **QUIET
    )
    assert chosen == 4
    assert set(results) == {2, 4, 12}
    assert results[4].score > results[12].score


def test_diagonals_start_at_random_so_that_seeds_differ():
    rng = np.random.default_rng(4)
    X = rng.random((60, 3)) @ (rng.random((3, 30)) * (rng.random((3, 30)) < 0.3))
    result = stability(DiagonalFishers(values=X), DiagonalNPEFF(3), seeds=(0, 1), **QUIET)
    assert result.whole.method.start == "random"
    assert 0.9 <= result.score <= 1.0


@pytest.mark.parametrize("options", [{"seeds": ()}, {"seeds": (1, 1)}, {"share": 0.0}])
def test_bad_requests_are_named(options):
    fishers, _, _ = planted(5)
    with pytest.raises(InvalidInputError, match=r"needed|accepted"):
        stability(fishers, LowRankNPEFF(2), **options)
    with pytest.raises(InvalidInputError, match="No candidate"):
        choose_n_components(fishers, LowRankNPEFF(2), [])
