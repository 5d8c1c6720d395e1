"""Lifting: components over projected columns become components over all parameters."""

from importlib import import_module

import numpy as np
import pytest

from fishertope.core.errors import InvalidInputError
from fishertope.core.factorization import DiagonalNPEFF, LowRankNPEFF, factorize, matched_cosines
from fishertope.core.fisher import (
    ExactLabels,
    FactoredProjection,
    RandomProjection,
    SampledLabels,
    ThinSVD,
    per_example_fishers,
    save_fishers,
)
from fishertope.core.model import DenseNetwork

QUIET = {"on_failure": "return"}


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    net = DenseNetwork(
        [rng.normal(size=(24, 12)) / 4, rng.normal(size=(4, 24)) / 3], [np.zeros(24), np.zeros(4)]
    )
    x = rng.normal(size=(150, 12)) + 2 * rng.normal(size=(5, 12))[rng.integers(5, size=150)]
    full = per_example_fishers(net, x)
    return net, x, full, factorize(full, LowRankNPEFF(6, tol=1e-8, max_steps=400), seed=1, **QUIET)


def test_check_16_lift_is_the_identity_at_a_stationary_point(case):
    net, x, full, found = case
    for lifted in (found.lift(full), found.lift(net, x)):
        distance = np.linalg.norm(lifted.components - found.components)
        assert distance <= 1e-6 * np.linalg.norm(found.components)
        np.testing.assert_allclose(lifted.coefficients, found.coefficients, rtol=1e-5)
        assert lifted.sites == full.sites


def test_check_16_lifted_components_lie_in_the_row_space(case):
    net, x, full, _ = case
    few = full.select(range(40))
    small = factorize(few, LowRankNPEFF(3, compress="gram"), **QUIET)
    lifted = small.lift(net, x[:40])
    left = np.linalg.lstsq(few.rows.T, lifted.components.T, rcond=None)[0]
    np.testing.assert_allclose(left.T @ few.rows, lifted.components, atol=1e-8)


@pytest.mark.parametrize("dim", [128, 512])
def test_lift_after_a_projection_is_near_the_full_optimum(case, dim):
    net, x, full, _ = case
    projected = per_example_fishers(net, x, reduce=RandomProjection(dim), seed=3)
    small = factorize(projected, LowRankNPEFF(6, tol=1e-6), seed=1, **QUIET)
    ways = [
        small.lift(net, x),
        small.lift(net, x, batch_size=7),
        small.lift(full),
        small.lift(full, fitted=projected),
        small.lift(net, x, fitted=projected),
    ]
    for other in ways[1:]:
        np.testing.assert_allclose(other.components, ways[0].components, atol=1e-9)
    # How good the lifted components are, over all parameters: their loss with the best W.
    start = small.coefficients, ways[0].components
    best = factorize(full, LowRankNPEFF(6, tol=1e-6), init=start, **QUIET)
    lifted_loss = ways[0].expand(full, 0).loss
    assert lifted_loss <= (1.06 if dim == 128 else 1.02) * best.loss
    assert matched_cosines(ways[0].components, best.components)[0].min() >= 0.9


def test_lift_from_a_store_and_with_other_label_rules(case, tmp_path):
    net, x, full, _ = case
    for labels in (SampledLabels(3), ExactLabels(top=2)):
        rows = per_example_fishers(net, x, labels=labels, seed=5)
        projected = per_example_fishers(
            net, x, labels=labels, seed=5, reduce=[RandomProjection(96), ThinSVD(2)]
        )
        small = factorize(projected, LowRankNPEFF(4), **QUIET)
        store = save_fishers(tmp_path / labels.name, rows, shard_examples=40)
        a, b = small.lift(store), small.lift(net, x, labels=labels)
        np.testing.assert_allclose(a.components, b.components, atol=1e-9)
        assert a.components.shape == (4, full.n_columns)


def test_lift_of_chosen_parameters(case):
    net, x, _, _ = case
    rows = per_example_fishers(net, x, params="layers.1.*")
    found = factorize(rows, LowRankNPEFF(4, tol=1e-7), **QUIET)
    lifted = found.lift(net, x, params="layers.1.*")
    assert [s.name for s in lifted.sites] == ["layers.1.weight", "layers.1.bias"]
    np.testing.assert_allclose(lifted.components, found.components, atol=1e-4)


def test_lift_through_a_torch_module():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    net = net.double()
    x = torch.randn(80, 6, dtype=torch.float64)
    full = per_example_fishers(net, x)
    for projection in (RandomProjection(256), FactoredProjection(256)):
        rows = per_example_fishers(net, x, reduce=projection, seed=2)
        small = factorize(rows, LowRankNPEFF(4), **QUIET)
        a = small.lift(net, x)
        b = small.lift(full, fitted=rows)
        assert torch.allclose(a.components, b.components, atol=1e-9)
        assert a.component(0)["0.weight"].shape == (16, 6)


def test_bad_requests_are_named(case):
    net, x, full, found = case
    projected = per_example_fishers(net, x, reduce=RandomProjection(64), seed=3)
    small = factorize(projected, LowRankNPEFF(3), **QUIET)
    other = DenseNetwork([np.zeros((4, 12))], [np.zeros(4)])
    for call, words in [
        (lambda: found.lift(net), "without data"),
        (lambda: found.lift(full, x), "Fishers and data"),
        (lambda: found.lift(other, x), "no projection is known"),
        (lambda: found.lift(net, x[:90]), "150 examples"),
        (lambda: found.lift(full.select(range(9))), "150 examples"),
        (lambda: small.lift(net, x, labels=SampledLabels(2)), "these components come from"),
        (lambda: small.lift(net, x, reduce=RandomProjection(32)), "these components come from"),
        (lambda: small.lift(net, x, callback=lambda info: True), "nothing is returned"),
    ]:
        with pytest.raises(InvalidInputError, match=words):
            call()
    unseeded = per_example_fishers(
        net, x, reduce=RandomProjection(64), seed=np.random.default_rng(0)
    )
    unknown = factorize(unseeded, LowRankNPEFF(3), **QUIET)
    with pytest.raises(InvalidInputError, match="not recorded"):
        unknown.lift(net, x)
    diagonal = per_example_fishers(net, x, kind="diagonal")
    with pytest.raises(InvalidInputError, match="LowRankNPEFF"):
        factorize(diagonal, DiagonalNPEFF(2), **QUIET).lift(net, x)


@pytest.mark.parametrize("r", [2, 9])
def test_lift_of_a_modules_chosen_parameters_from_their_store(tmp_path, r, monkeypatch):
    """Few components go by backward passes, many by rows, a few examples at a time."""
    torch = pytest.importorskip("torch")
    module = import_module("fishertope.core.factorization.lift")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
        x = torch.randn(40, 4, dtype=torch.float64)
    model = model.double()
    params, projection = ["2.*"], RandomProjection(64, "gaussian")
    store = per_example_fishers(model, x, params=params, reduce=projection, store=tmp_path / "s")
    found = factorize(store, LowRankNPEFF(r, tol=1e-3, n_starts=1), on_failure="return")
    monkeypatch.setattr(module, "ROW_BYTES", 1000)
    lifted = found.lift(model, x, params=params, fitted=store, batch_size=7)
    expected = found.lift(per_example_fishers(model, x, params=params), fitted=store)
    np.testing.assert_allclose(lifted.components, expected.components, atol=1e-10)
    assert [s.name for s in lifted.sites] == ["2.weight", "2.bias"]
    with torch.no_grad():
        model[2].bias += 1.0
    with pytest.raises(InvalidInputError, match="other parameters"):
        found.lift(model, x, params=params, fitted=store)
