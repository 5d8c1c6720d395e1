"""Label rules that draw: unbiased, repeatable, and blind to batches."""

import itertools

import numpy as np
import pytest

from fishertope.core.errors import InvalidInputError
from fishertope.core.fisher import (
    DataLabels,
    ExactLabels,
    LabelRule,
    ProbeLabels,
    SampledLabels,
    draws_of,
    per_example_fishers,
)
from fishertope.core.model import Bernoulli, Categorical, DenseNetwork, Gaussian, engine_for
from fishertope.core.testing.tolerances import tolerance

IDENTITY = tolerance("identity").relative
OUTPUTS = [Categorical(), Bernoulli(), Gaussian(variance=2.0)]
RULES = [SampledLabels(3), ProbeLabels(3)]


def network(seed=0, sizes=(4, 5, 3)):
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=(b, a)) for a, b in itertools.pairwise(sizes)]
    return DenseNetwork(weights, [rng.normal(size=b) for b in sizes[1:]], "tanh")


def inputs(n=10, seed=1):
    return np.random.default_rng(seed).normal(size=(n, 4))


@pytest.mark.parametrize("output", OUTPUTS, ids=lambda o: o.name)
@pytest.mark.parametrize("rule", [SampledLabels(1), ProbeLabels(1)], ids=lambda r: r.name)
def test_the_mean_of_many_draws_is_the_fisher_of_the_output(output, rule):
    z = np.random.default_rng(3).normal(size=(1, 3))
    U = output.fisher_root(z, reduced=False)[0]
    exact = U.T @ U
    n = 10_000
    rows = rule.roots(output, np.repeat(z, n, axis=0), draws_of(5)).values[:, 0]
    products = rows[:, :, None] * rows[:, None, :]
    error = products.std(0, ddof=1) / np.sqrt(n)
    assert np.all(np.abs(products.mean(0) - exact) <= 4 * error + 1e-12)


@pytest.mark.parametrize("make", [SampledLabels, ProbeLabels])
def test_the_standard_error_halves_with_four_times_the_draws(make):
    z = np.repeat(np.random.default_rng(3).normal(size=(1, 3)), 4000, axis=0)

    def spread(draws):
        rows = make(draws).roots(Categorical(), z, draws_of(draws)).values
        return np.einsum("nkc,nkc->n", rows, rows).std()

    assert 1.85 <= spread(2) / spread(8) <= 2.15


@pytest.mark.parametrize("kind", ["low_rank", "diagonal"])
@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_batches_change_nothing_and_seeds_repeat_bitwise(rule, kind):
    def fishers(**options):
        result = per_example_fishers(network(), inputs(), labels=rule, kind=kind, **options)
        return result.rows if kind == "low_rank" else result.values

    whole = fishers(batch_size=10, seed=7)
    for size in (1, 7):
        np.testing.assert_allclose(fishers(batch_size=size, seed=7), whole, atol=1e-12)
    assert np.array_equal(fishers(batch_size=10, seed=7), whole)
    assert not np.allclose(fishers(batch_size=10, seed=8), whole)


def test_draws_belong_to_the_example_and_stay_when_more_are_taken():
    whole = draws_of(3).uniforms(6, 2, 9)
    assert np.array_equal(draws_of(3, first=4).uniforms(2, 2, 9), whole[4:])
    assert np.array_equal(draws_of(3).uniforms(6, 1, 5), whole[:, :1, :5])
    assert len(np.unique(whole)) == whole.size
    assert whole.min() >= 0
    assert whole.max() < 1
    for bad in (-1, 1.5, True, None, "0"):
        with pytest.raises(InvalidInputError, match="whole number"):
            draws_of(bad)


def test_the_draws_of_one_example_are_not_those_of_another_key():
    a = draws_of(0).uniforms(50, 1, 200).ravel()
    b = draws_of(1).uniforms(50, 1, 200).ravel()
    assert abs(np.corrcoef(a, b)[0, 1]) <= 4 / np.sqrt(a.size)


@pytest.mark.parametrize("output", OUTPUTS, ids=lambda o: o.name)
def test_the_empirical_fisher_takes_the_labels_of_the_data(output):
    net, x = network(), inputs()
    rng = np.random.default_rng(0)
    y = {
        "categorical": rng.integers(0, 3, size=10),
        "bernoulli": rng.integers(0, 2, size=(10, 3)),
        "gaussian": rng.normal(size=(10, 3)),
    }[output.name]
    fishers = per_example_fishers(net, (x, y), labels=DataLabels(), output=output, batch_size=3)
    engine = engine_for(net, output=output)
    score = output.score(engine.predict(x), y)
    np.testing.assert_allclose(fishers.rows, engine.rows(x, score[:, None, :])[:, 0], atol=IDENTITY)
    assert "empirical Fisher" in fishers.facts["labels"]
    assert fishers.ranks.tolist() == [1] * 10


def test_labels_of_the_data_play_no_part_in_the_other_rules():
    x = inputs()
    y = np.zeros(10, dtype=np.int64)
    for rule in (ExactLabels(), *RULES):
        with_y = per_example_fishers(network(), (x, y), labels=rule).rows
        assert np.array_equal(with_y, per_example_fishers(network(), x, labels=rule).rows)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (inputs(), "hold no labels"),
        ((inputs(), np.full(10, 3)), "classes 0 to 2"),
        ((inputs(), np.full(10, -1)), "classes 0 to 2"),
        ((inputs(), np.zeros(10)), "integer"),
        ((inputs(), np.zeros((10, 1), dtype=int)), "integer"),
        ((inputs(), np.zeros(9, dtype=int)), "same examples"),
        ([(inputs(), np.zeros(9, dtype=int))], "9 labels"),
        ([(inputs(), np.zeros(10, dtype=int), 0)], "3 things"),
    ],
)
def test_wrong_labels_are_named(data, words):
    with pytest.raises(InvalidInputError, match=words):
        per_example_fishers(network(), data, labels=DataLabels())


@pytest.mark.parametrize("n", [0, -1, 1.5, True, None])
@pytest.mark.parametrize("make", [SampledLabels, ProbeLabels])
def test_numbers_of_draws_are_whole(make, n):
    with pytest.raises(InvalidInputError, match="whole number"):
        make(n)


def test_a_whole_vocabulary_is_refused_with_its_cost():
    z = np.zeros((2, 5000))
    with pytest.raises(InvalidInputError, match="9998 for this batch of 2") as caught:
        ExactLabels().roots(Categorical(), z, draws_of(0))
    assert "ProbeLabels" in str(caught.value)
    for rule in RULES:
        assert isinstance(rule, LabelRule)
        assert rule.roots(Categorical(), z, draws_of(0)).values.shape == (2, 3, 5000)


@pytest.mark.parametrize("output", OUTPUTS, ids=lambda o: o.name)
def test_samples_have_the_right_frequencies(output):
    n = 20_000
    z = np.repeat(np.array([[0.3, -1.0, 1.2]]), n, axis=0)
    u = draws_of(1).uniforms(n, 1, output.n_uniforms(3))[:, 0]
    y = output.sample(z, u)
    if output.name == "categorical":
        expected = np.exp(output.log_probs(z))[0]
        counts = np.bincount(y, minlength=3) / n
        assert np.all(np.abs(counts - expected) <= 4 * np.sqrt(expected * (1 - expected) / n))
    elif output.name == "bernoulli":
        expected = 1 / (1 + np.exp(-z[0]))
        assert np.all(np.abs(y.mean(0) - expected) <= 4 * np.sqrt(0.25 / n))
    else:
        assert np.all(np.abs(y.mean(0) - z[0]) <= 4 * np.sqrt(2.0 / n))
        assert np.all(np.abs(y.var(0) - 2.0) <= 4 * 2.0 * np.sqrt(2 / n))


def test_torch_draws_as_numpy_does():
    torch = pytest.importorskip("torch")
    z = np.random.default_rng(0).normal(size=(20, 4))
    for output in OUTPUTS:
        for rule in RULES:
            ours = rule.roots(output, z, draws_of(2)).values
            theirs = rule.roots(output, torch.tensor(z), draws_of(2)).values
            np.testing.assert_allclose(theirs.numpy(), ours, atol=1e-12)
