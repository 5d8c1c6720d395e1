"""The result object: gauge, shares, files."""

import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fishertope.core.errors import CorruptFileError, InvalidInputError
from fishertope.core.factorization import (
    Factorization,
    LowRankNPEFF,
    factorize,
    matched_cosines,
)
from fishertope.core.factorization.result import gauge_fixed
from fishertope.core.fisher import LowRankFishers
from fishertope.core.model import sites_of

from .planted import planted


@pytest.fixture(scope="module")
def result():
    fishers, _, _ = planted(0, n=40, m=12, r=3)
    sited = LowRankFishers.from_rows(
        [fishers.block(i) for i in range(40)],
        sites=sites_of({"weight": (2, 5), "bias": (2,)}),
        facts={"labels": "exact"},
    )
    return factorize(sited, LowRankNPEFF(3), seed=5, on_failure="return")


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_check_15_gauge_fixing_keeps_the_fit_and_is_unique(seed):
    rng = np.random.default_rng(seed)
    W, G = rng.uniform(0, 1, (6, 3)), rng.normal(size=(3, 4))
    fixed_W, fixed_G = gauge_fixed(W, G)
    before = np.einsum("ik,ka,kb->iab", W, G, G)
    after = np.einsum("ik,ka,kb->iab", fixed_W, fixed_G, fixed_G)
    np.testing.assert_allclose(before, after, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(fixed_G, axis=1), 1.0)
    assert (np.diff(fixed_W.sum(axis=0)) <= 1e-12).all()
    scale = rng.uniform(0.5, 2, 3) * rng.choice([-1, 1], 3)
    order = rng.permutation(3)
    again = gauge_fixed((W / scale**2)[:, order], (G * scale[:, None])[order])
    np.testing.assert_allclose(again[0], fixed_W, rtol=1e-9)
    np.testing.assert_allclose(again[1], fixed_G, rtol=1e-9)


def test_gauge_fixing_of_a_zero_component_gives_zero_not_nan():
    W, G = gauge_fixed(np.ones((4, 2)), np.array([[0.0, 0.0], [0.0, -2.0]]))
    assert np.array_equal(W, np.array([[4.0, 0.0]] * 4))
    assert np.array_equal(G, np.array([[0.0, 1.0], [0.0, 0.0]]))


def test_shares_and_top_examples(result):
    assert abs(result.shares.sum() - 1) <= 1e-12
    assert (np.diff(result.shares) <= 1e-12).all()
    top = result.top_examples(4)
    assert top.shape == (3, 4)
    for k in range(3):
        column = result.coefficients[:, k]
        assert column[top[k, 0]] == column.max()
        assert column[top[k]].min() >= np.sort(column)[-4]
    assert result.top_examples(1000).shape == (3, 40)
    with pytest.raises(InvalidInputError, match=">= 1"):
        result.top_examples(0)


def test_components_by_parameter_name(result):
    parts = result.component(1)
    assert parts["weight"].shape == (2, 5)
    flat = np.concatenate([parts["weight"].ravel(), parts["bias"]])
    assert np.array_equal(flat, result.components[1])
    with pytest.raises(InvalidInputError, match="0 to 2"):
        result.component(3)


def test_round_trip_through_a_file(result, tmp_path):
    path = tmp_path / "npeff.safetensors"
    result.save(path)
    back = Factorization.load(path)
    for name in ("coefficients", "components", "norms"):
        assert np.array_equal(getattr(back, name), getattr(result, name))
    for name in ("method", "status", "loss", "total", "sites", "seed", "backend", "residual"):
        assert getattr(back, name) == getattr(result, name)
    assert np.array_equal(back.history.loss, result.history.loss)
    assert back.history.phases == result.history.phases
    assert back.facts["fishers"]["labels"] == "exact"
    assert [p.name for p in tmp_path.iterdir()] == ["npeff.safetensors"]


def test_saving_twice_gives_the_same_bytes(result, tmp_path):
    result.save(tmp_path / "a")
    result.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_truncation_is_detected(result, tmp_path):
    path = tmp_path / "npeff.safetensors"
    result.save(path)
    whole = path.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptFileError, match=r"npeff\.safetensors"):
            Factorization.load(path)


def test_flipped_bytes_are_detected(result, tmp_path):
    path = tmp_path / "npeff.safetensors"
    result.save(path)
    whole = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(whole), 60):
        altered = whole.copy()
        altered[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(altered))
        with pytest.raises(CorruptFileError):
            Factorization.load(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    from fishertope.core.storage.arrays import save_arrays

    save_arrays(tmp_path / "x", {"a": np.zeros(3)}, {}, kind="something-else")
    with pytest.raises(InvalidInputError, match="something-else"):
        Factorization.load(tmp_path / "x")


def test_a_file_whose_facts_do_not_fit_is_refused(result, tmp_path):
    from fishertope.core.storage.arrays import load_arrays, save_arrays

    path = tmp_path / "npeff"
    result.save(path)
    arrays, facts = load_arrays(path, kind="factorization")
    facts = json.loads(json.dumps(facts))
    facts["method"]["n_components"] = -3
    save_arrays(path, arrays, facts, kind="factorization")
    with pytest.raises(CorruptFileError, match="n_components"):
        Factorization.load(path)


def test_matched_cosines():
    rng = np.random.default_rng(0)
    G = rng.normal(size=(4, 9))
    order = rng.permutation(4)
    cosines, matching = matched_cosines(G, -2 * G[order])
    np.testing.assert_allclose(cosines, 1.0)
    assert np.array_equal(order[matching], np.arange(4))
    with pytest.raises(InvalidInputError, match="smaller set first"):
        matched_cosines(G, G[:2])


def test_transform_refuses_other_columns(result):
    other = LowRankFishers.from_rows(np.ones((2, 1, 5)))
    with pytest.raises(InvalidInputError, match="5 columns"):
        result.transform(other)


@pytest.mark.parametrize("total", [0, -1.0, "NaN", "Infinity", False])
def test_a_file_without_a_positive_total_is_refused(result, tmp_path, total):
    result.replace(total=total).save(tmp_path / "f.safetensors")
    with pytest.raises(CorruptFileError, match="total"):
        Factorization.load(tmp_path / "f.safetensors")
