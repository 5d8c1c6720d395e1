"""Exact per-example Fishers against their definition."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fishertope.core.backend import available_backends, to_numpy
from fishertope.core.errors import InvalidInputError
from fishertope.core.fisher import (
    DiagonalFishers,
    ExactLabels,
    LowRankFishers,
    per_example_fishers,
)
from fishertope.core.model import (
    Bernoulli,
    Categorical,
    DenseNetwork,
    Gaussian,
    engine_for,
    sites_of,
)
from fishertope.core.status import StepInfo
from fishertope.core.testing.tolerances import tolerance

IDENTITY = tolerance("identity").relative
DIAGONAL = tolerance("diagonal_identity").relative


def network(seed=0, sizes=(4, 6, 5, 3), activation="tanh"):
    rng = np.random.default_rng(seed)
    pairs = list(itertools.pairwise(sizes))
    return DenseNetwork(
        [rng.normal(size=(b, a)) / np.sqrt(a) for a, b in pairs],
        [0.3 * rng.normal(size=b) for _, b in pairs],
        activation,
    )


def inputs(seed=1, n=8, d=4):
    return np.random.default_rng(seed).normal(size=(n, d))


def brute_force(engine, x):
    """Σ_c p_c ∇log p_c ∇log p_cᵀ with one reverse pass a class."""
    z = engine.predict(x[None])
    p = np.exp(Categorical().log_probs(z))[0]
    F = 0.0
    for c in range(len(p)):
        g = engine.vjp(x[None], (np.eye(len(p))[c] - p)[None])
        F = F + p[c] * np.outer(g, g)
    return F


@pytest.mark.parametrize("activation", ["relu", "tanh", "identity"])
@pytest.mark.parametrize("backend", available_backends())
def test_rows_equal_brute_force_over_classes(backend, activation):
    net, x = network(activation=activation), inputs()
    fishers = per_example_fishers(net, x, backend=backend)
    engine = engine_for(net)
    assert isinstance(fishers.rows, np.ndarray)
    assert (fishers.ranks == 2).all()
    for i in range(len(x)):
        F = brute_force(engine, x[i])
        assert np.abs(fishers.dense(i) - F).max() <= IDENTITY * np.abs(F).max()
        assert abs(fishers.norms[i] - np.linalg.norm(F)) <= IDENTITY * np.linalg.norm(F)
        assert np.linalg.matrix_rank(fishers.dense(i), tol=1e-10) <= 2


def test_gradients_in_the_rows_equal_finite_differences():
    net, x = network(), inputs(n=3)
    engine = engine_for(net)
    fishers = per_example_fishers(net, x, labels=ExactLabels(top=3))
    p = np.exp(Categorical().log_probs(engine.predict(x)))
    order = np.argsort(-p, axis=1)
    h, size = 1e-5, engine.n_parameters
    for j in range(0, size, 5):
        step = np.eye(size)[j] * h
        with engine.patch(step):
            up = Categorical().log_probs(engine.predict(x))
        with engine.patch(-step):
            down = Categorical().log_probs(engine.predict(x))
        slope = (up - down) / (2 * h)
        for i in range(3):
            expected = np.sqrt(p[i, order[i]]) * slope[i, order[i]]
            np.testing.assert_allclose(fishers.block(i)[:, j], expected, atol=1e-6)


def test_class_rows_cancel_and_the_reduced_rows_are_the_same_matrix():
    net, x = network(), inputs()
    engine = engine_for(net)
    z = engine.predict(x)
    p = np.exp(Categorical().log_probs(z))
    full = engine.rows(x, Categorical().fisher_root(z, reduced=False))
    cancelled = np.einsum("nc,ncp->np", np.sqrt(p), full)
    assert np.abs(cancelled).max() <= IDENTITY
    reduced = engine.rows(x, Categorical().fisher_root(z, reduced=True))
    np.testing.assert_allclose(
        np.einsum("ncp,ncq->npq", full, full), np.einsum("ncp,ncq->npq", reduced, reduced),
        atol=IDENTITY,
    )  # fmt: skip
    traces = per_example_fishers(net, x).traces()
    np.testing.assert_allclose(traces, (full**2).sum((1, 2)), rtol=IDENTITY)


@pytest.mark.parametrize("output", [Categorical(), Gaussian(2.5), Bernoulli()])
def test_diagonals_are_the_diagonals(output):
    net, x = network(), inputs()
    rows = per_example_fishers(net, x, output=output)
    diagonal = per_example_fishers(net, x, output=output, kind="diagonal")
    assert isinstance(diagonal, DiagonalFishers)
    for i in range(len(x)):
        expected = np.diag(rows.dense(i))
        assert np.abs(diagonal.values[i] - expected).max() <= DIAGONAL * expected.max()
    np.testing.assert_allclose(diagonal.traces(), rows.traces(), rtol=DIAGONAL)


@pytest.mark.parametrize("output", [Categorical(), Gaussian(2.5), Bernoulli()])
def test_kl_is_half_the_fisher_quadratic_form(output):
    net, x = network(), inputs()
    engine = engine_for(net, output=output)
    fishers = per_example_fishers(engine, x)
    delta = np.random.default_rng(3).normal(size=engine.n_parameters)
    form = np.array([0.5 * np.sum((fishers.block(i) @ delta) ** 2) for i in range(len(x))])
    before = engine.predict(x)
    errors = []
    for epsilon in (4e-3, 2e-3, 1e-3):
        with engine.patch(epsilon * delta):
            kl = output.kl(before, engine.predict(x))
        errors.append(np.abs(kl / epsilon**2 - form).max())
    assert errors[-1] <= 0.05 * form.max()
    for larger, smaller in itertools.pairwise(errors):
        assert 1.7 <= larger / smaller <= 2.3


@pytest.mark.parametrize("kind", ["low_rank", "diagonal"])
def test_the_batch_size_changes_nothing(kind):
    net, x = network(), inputs(n=11)
    whole, *others = [
        per_example_fishers(net, x, kind=kind, batch_size=size) for size in (11, 1, 4, None)
    ]
    for other in others:
        a, b = (f.rows if kind == "low_rank" else f.values for f in (whole, other))
        np.testing.assert_allclose(a, b, atol=1e-14, rtol=1e-12)


def test_permuting_classes_leaves_the_fisher():
    net, x = network(), inputs()
    order = np.array([2, 0, 1])
    turned = DenseNetwork(
        [*net.weights[:-1], net.weights[-1][order]], [*net.biases[:-1], net.biases[-1][order]],
        net.activation,
    )  # fmt: skip
    sites = engine_for(net).sites
    head = sites[-2].start
    a, b = per_example_fishers(net, x), per_example_fishers(turned, x)
    for i in range(len(x)):
        np.testing.assert_allclose(
            a.dense(i)[:head, :head], b.dense(i)[:head, :head], atol=IDENTITY
        )


@pytest.mark.parametrize("kind", ["low_rank", "diagonal"])
def test_reordering_hidden_units_reorders_the_columns(kind):
    net, x = network(), inputs()
    order = np.array([4, 0, 5, 2, 1, 3])
    (W1, W2, W3), (b1, *others) = net.weights, net.biases
    turned = DenseNetwork([W1[order], W2[:, order], W3], [b1[order], *others], net.activation)
    place = np.arange(engine_for(net).n_parameters)
    theta = dict(zip([s.name for s in engine_for(net).sites], _split(place, net), strict=True))
    theta["layers.0.weight"] = theta["layers.0.weight"][order]
    theta["layers.0.bias"] = theta["layers.0.bias"][order]
    theta["layers.1.weight"] = theta["layers.1.weight"][:, order]
    columns = np.concatenate([part.reshape(-1) for part in theta.values()])
    a, b = (per_example_fishers(m, x, kind=kind) for m in (net, turned))
    if kind == "diagonal":
        np.testing.assert_allclose(b.values, a.values[:, columns], atol=1e-13)
        return
    for i in range(len(x)):
        expected = a.dense(i)[np.ix_(columns, columns)]
        np.testing.assert_allclose(b.dense(i), expected, atol=IDENTITY)


def _split(place, net):
    return [place[s.start : s.stop].reshape(s.shape) for s in engine_for(net).sites]


def test_a_torch_module_gives_the_same_fishers():
    torch = pytest.importorskip("torch")
    net, x = network(sizes=(4, 6, 3)), inputs()
    first, second = torch.nn.Linear(4, 6).double(), torch.nn.Linear(6, 3).double()
    with torch.no_grad():
        for linear, W, b in zip((first, second), net.weights, net.biases, strict=True):
            linear.weight.copy_(torch.tensor(W))
            linear.bias.copy_(torch.tensor(b))
    module = torch.nn.Sequential(first, torch.nn.Tanh(), second)
    ours, theirs = per_example_fishers(net, x), per_example_fishers(module, torch.tensor(x))
    np.testing.assert_allclose(to_numpy(theirs.rows), ours.rows, atol=1e-12)
    assert [s.name for s in theirs.sites] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    loader = torch.utils.data.DataLoader(torch.tensor(x), batch_size=3)
    np.testing.assert_allclose(
        to_numpy(per_example_fishers(module, loader).rows), ours.rows, atol=1e-12
    )


def test_parameters_by_name():
    net, x = network(), inputs()
    whole = per_example_fishers(net, x)
    part = per_example_fishers(net, x, params=["layers.1.*", "layers.2.bias"])
    assert [s.name for s in part.sites] == ["layers.1.weight", "layers.1.bias", "layers.2.bias"]
    by = {s.name: s for s in whole.sites}
    columns = np.concatenate([np.arange(by[s.name].start, by[s.name].stop) for s in part.sites])
    assert np.array_equal(part.rows, whole.rows[:, columns])
    np.testing.assert_allclose(
        part.norms, [np.linalg.norm(part.dense(i)) for i in range(len(x))], rtol=1e-12
    )
    same = per_example_fishers(net, x, params=lambda name: "1" in name)
    assert len(same.sites) == 2
    with pytest.raises(InvalidInputError, match=r"layers\.0\.weight"):
        per_example_fishers(net, x, params="head.*")


@settings(max_examples=30, deadline=None)
@given(top=st.integers(1, 3), min_prob=st.floats(0, 0.9), seed=st.integers(0, 1000))
def test_kept_classes_and_their_mass(top, min_prob, seed):
    net, x = network(seed), inputs(seed)
    fishers = per_example_fishers(net, x, labels=ExactLabels(top=top, min_prob=min_prob))
    p = -np.sort(-np.exp(Categorical().log_probs(engine_for(net).predict(x))), axis=1)
    keep = (p >= min_prob) & (np.arange(3) < top)
    keep[:, 0] = True
    if top < 3 or min_prob > 0:
        assert np.array_equal(fishers.ranks, keep.sum(1))
        mass = (p * keep).sum(1)
        assert abs(fishers.facts["kept_mass_mean"] - mass.mean()) <= 1e-12
        assert abs(fishers.facts["kept_mass_min"] - mass.min()) <= 1e-12


def test_progress_is_told_and_can_stop():
    seen = []

    def after_two(info):
        assert isinstance(info, StepInfo)
        seen.append(info.step)
        return len(seen) == 2

    fishers = per_example_fishers(network(), inputs(n=10), batch_size=3, callback=after_two)
    assert seen == [3, 6]
    assert len(fishers) == 6


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        (inputs(d=5), {}, r"\(n, 4\)"),
        (np.zeros((0, 4)), {}, "no example"),
        (np.full((2, 4), np.nan), {}, "NaN"),
        ("file.csv", {}, "array of inputs"),
        (inputs(), {"kind": "dense"}, "accepted: low_rank, diagonal"),
        (inputs(), {"batch_size": -1}, "batch_size"),
        (inputs(), {"batch_size": 0}, "batch_size"),
        (inputs(), {"batch_size": 2.5}, "batch_size"),
        (inputs(), {"labels": "exact"}, "label rule"),
        (inputs(), {"labels": ExactLabels}, "label rule"),
        (inputs(), {"params": 3}, "name or glob pattern"),
        (inputs(), {"params": [3]}, "name or glob pattern"),
        (inputs(), {"labels": ExactLabels(top=1), "output": Gaussian()}, "categorical outputs"),
    ],
)
def test_bad_input_is_named(data, options, words):
    with pytest.raises(InvalidInputError, match=words):
        per_example_fishers(network(), data, **options)


@pytest.mark.parametrize(
    "options", [{"top": 0}, {"top": 1.5}, {"min_prob": 1.0}, {"min_prob": -0.1}]
)
def test_bad_label_rules_are_named(options):
    with pytest.raises(InvalidInputError, match="accepted"):
        ExactLabels(**options)


class TestContainers:
    def test_blocks_selection_and_normalisation(self):
        rng = np.random.default_rng(0)
        blocks = [rng.normal(size=(k, 6)) for k in (2, 0, 3, 1)]
        fishers = LowRankFishers.from_rows(blocks)
        assert fishers.ranks.tolist() == [2, 0, 3, 1]
        chosen = fishers.select([3, 0])
        assert np.array_equal(chosen.rows, np.concatenate([blocks[3], blocks[0]]))
        unit = fishers.normalized()
        norms = [np.linalg.norm(unit.dense(i)) for i in range(4)]
        np.testing.assert_allclose(norms, [1, 0, 1, 1], atol=1e-12)
        assert len(fishers.select([])) == 0

    def test_torch_rows_stay_torch(self):
        torch = pytest.importorskip("torch")
        fishers = LowRankFishers.from_rows(torch.randn(3, 2, 5)).normalized()
        assert isinstance(fishers.rows, torch.Tensor)
        assert fishers.rows.dtype == torch.float32
        assert len(fishers.select([1, 2])) == 2

    @pytest.mark.parametrize(
        "broken",
        [
            {"rows": np.ones(3)},
            {"offsets": np.array([0, 2, 1, 4])},
            {"offsets": np.array([0, 2, 5])},
            {"norms": np.array([1.0, -1.0])},
            {"norms": np.array([1.0, np.nan])},
            {"norms": np.ones(3)},
            {"sites": sites_of({"w": (7,)})},
        ],
    )
    def test_what_does_not_fit_is_refused(self, broken):
        whole = {
            "rows": np.ones((4, 3)), "offsets": np.array([0, 2, 4]), "norms": np.ones(2),
        }  # fmt: skip
        with pytest.raises(InvalidInputError):
            LowRankFishers(**(whole | broken))

    @pytest.mark.parametrize("ragged", [False, True])
    def test_norms_of_torch_rows_are_those_of_the_matrices(self, ragged, monkeypatch):
        torch = pytest.importorskip("torch")
        monkeypatch.setattr("fishertope.core.fisher.per_example.CHUNK_BYTES", 8 * 3 * 7 * 2)
        blocks = [torch.randn(3 + ragged * (i % 2), 7) for i in range(5)]
        norms = LowRankFishers.from_rows(blocks).norms
        expected = [np.linalg.norm(b.double().numpy().T @ b.double().numpy()) for b in blocks]
        np.testing.assert_allclose(norms, expected, rtol=1e-13)

    def test_diagonals_and_sites_of_different_sizes_are_refused(self):
        with pytest.raises(InvalidInputError, match="7 parameters"):
            DiagonalFishers(values=np.ones((2, 3)), sites=sites_of({"w": (7,)}))

    @pytest.mark.parametrize(
        "values", [np.ones(3), np.array([[1.0, -1e-9]]), np.array([[1.0, np.inf]])]
    )
    def test_diagonals_that_are_none_are_refused(self, values):
        with pytest.raises(InvalidInputError):
            DiagonalFishers(values=values)

    def test_blocks_of_different_widths_are_refused(self):
        with pytest.raises(InvalidInputError, match=r"\[3, 4\] columns"):
            LowRankFishers.from_rows([np.ones((1, 3)), np.ones((1, 4))])
        with pytest.raises(InvalidInputError, match="at least one"):
            LowRankFishers.from_rows([])
