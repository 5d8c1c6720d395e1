"""Baselines: planted clusters and dictionaries are found, and new examples score as old ones do."""

import numpy as np
import pytest

from fishertope.core.errors import InvalidInputError
from fishertope.core.factorization.baselines import (
    BASELINES,
    ActivationNMF,
    AnswerLabels,
    FisherKMeans,
    SparseAutoencoder,
    SpectralClustering,
    SphericalKMeans,
    Units,
    activations,
)
from fishertope.core.fisher import DiagonalFishers, LowRankFishers, per_example_fishers
from fishertope.core.model import Bernoulli, Categorical, DenseNetwork, engine_for
from fishertope.core.report import auroc

LABELS = np.repeat(np.arange(4), 30)


def clusters(seed=0, m=12, noise=0.15):
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.normal(size=(m, m)))[0][:4]
    x = centres[LABELS] + noise * rng.normal(size=(len(LABELS), m))
    return x * rng.uniform(0.5, 3.0, size=(len(x), 1))


def data_for(method, x):
    if method.data == "fishers":
        return LowRankFishers.from_rows(x[:, None, :])
    return x


def made(cls, n):
    return cls(n, active=1, steps=250) if cls is SparseAutoencoder else cls(n)


def purity(units):
    """Mean over labels of the best unit's AUROC."""
    truth = LABELS[:, None] == np.arange(4)
    return auroc(units.scores, truth).max(axis=0).mean()


@pytest.mark.parametrize("cls", BASELINES)
def test_planted_groups_have_a_unit_each_and_seeds_decide(cls):
    if cls is SparseAutoencoder:
        pytest.importorskip("torch")
    x = clusters()
    method = made(cls, 4)
    units = method.fit(data_for(method, x), seed=0)
    assert isinstance(units, Units)
    assert units.scores.shape == (len(x), 4)
    assert purity(units) >= 0.98
    shuffled = np.random.default_rng(1).permutation(LABELS)[:, None] == np.arange(4)
    assert auroc(units.scores, shuffled).max(axis=0).mean() < 0.75
    again = method.fit(data_for(method, x), seed=0)
    assert np.array_equal(units.scores, again.scores)


@pytest.mark.parametrize("cls", BASELINES)
def test_new_examples_score_as_the_fitted_ones_do(cls):
    if cls is SparseAutoencoder:
        pytest.importorskip("torch")
    method = made(cls, 4)
    data = data_for(method, clusters())
    units = method.fit(data, seed=2)
    tolerance = 2e-3 if cls is ActivationNMF else 1e-8  # NMF's W is the end of an iteration
    np.testing.assert_allclose(
        units.transform(data), units.scores, atol=tolerance * np.abs(units.scores).max()
    )
    other = units.transform(data_for(method, clusters(seed=0)[::-1].copy()))
    np.testing.assert_allclose(other[::-1], units.transform(data), atol=1e-8)
    with pytest.raises(InvalidInputError, match=r"fitted to|columns"):
        units.transform(data_for(method, np.ones((3, 5))))


def test_scale_of_gradients_plays_no_part():
    x = clusters()
    for cls in (SphericalKMeans, SpectralClustering):
        a = cls(4).fit(x, seed=0).scores
        b = cls(4).fit(x * np.linspace(0.1, 9, len(x))[:, None], seed=0).scores
        np.testing.assert_allclose(a, b, atol=1e-10)


def test_the_kernel_of_fishers_is_their_inner_product():
    rng = np.random.default_rng(0)
    fishers = LowRankFishers.from_rows([rng.normal(size=(k, 6)) for k in (1, 2, 3, 1, 2, 2, 3)])
    units = FisherKMeans(3).fit(fishers, seed=0)
    dense = np.stack([fishers.dense(i).ravel() for i in range(len(fishers))])
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    flat = SphericalKMeans(3).fit(dense, seed=0)
    np.testing.assert_allclose(units.scores, flat.scores, atol=1e-10)
    assert units.facts["mean_cosine"] == pytest.approx(flat.facts["mean_cosine"])


def test_diagonal_fishers_cluster_too():
    values = np.abs(clusters(noise=0.02))
    units = FisherKMeans(4).fit(DiagonalFishers(values=values), seed=0)
    assert purity(units) >= 0.98
    assert units.transform(DiagonalFishers(values=values[:5])).shape == (5, 4)


@pytest.mark.parametrize("output", [Categorical(), Bernoulli()])
def test_answer_rows_are_gradients_of_the_likeliest_answer(output):
    rng = np.random.default_rng(0)
    net = DenseNetwork([rng.normal(size=(3, 4))], [rng.normal(size=3)])
    x = rng.normal(size=(6, 4))
    engine = engine_for(net, output=output)
    fishers = per_example_fishers(engine, x, labels=AnswerLabels())
    answer = output.mode(engine.predict(x))
    h = 1e-6
    for j in range(engine.n_parameters):
        step = h * np.eye(engine.n_parameters)[j]
        with engine.patch(step):
            plus = output.log_prob(engine.predict(x), answer)
        with engine.patch(-step):
            minus = output.log_prob(engine.predict(x), answer)
        np.testing.assert_allclose(fishers.rows[:, j], (plus - minus) / (2 * h), atol=1e-7)


def test_activations_of_dense_networks_and_modules():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    net = DenseNetwork([rng.normal(size=(5, 4)), rng.normal(size=(3, 5))], [np.ones(5), np.ones(3)])
    x = rng.normal(size=(7, 4))
    np.testing.assert_allclose(
        activations(net, x), np.maximum(x @ net.weights[0].T + net.biases[0], 0)
    )
    np.testing.assert_allclose(
        activations(net, x, layer="0", batch_size=2), activations(net, x), atol=1e-14
    )
    with pytest.raises(InvalidInputError, match="hidden layers 0"):
        activations(net, x, layer="3")

    class Tokens(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(9, 6)
            self.head = torch.nn.Linear(6, 2)

        def forward(self, input_ids, attention_mask):
            return self.head(self.embedding(input_ids)[:, 0])

    model = Tokens()
    batch = {
        "input_ids": torch.randint(9, (4, 5)),
        "attention_mask": torch.tensor(
            [[1, 1, 1, 0, 0], [1] * 5, [1, 0, 0, 0, 0], [1, 1, 0, 0, 0]]
        ),
    }
    E = model.embedding(batch["input_ids"]).detach().numpy()
    for position, expected in (
        ("first", E[:, 0]),
        ("last", E[np.arange(4), [2, 4, 0, 1]]),
        ("mean", np.stack([E[i, :k].mean(0) for i, k in enumerate((3, 5, 1, 2))])),
    ):
        found = activations(model, batch, layer="embedding", position=position, batch_size=3)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    for layer, words in (("embeding", "embedding"), (None, "layer= was not given")):
        with pytest.raises(InvalidInputError, match=words):
            activations(model, batch, layer=layer)


def test_an_autoencoder_recovers_a_sparse_dictionary():
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    D = rng.normal(size=(10, 24))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    code = rng.uniform(0.5, 1.5, size=(600, 10)) * (rng.random((600, 10)) < 0.15)
    units = SparseAutoencoder(16, active=3, steps=700).fit(code @ D, seed=0)
    assert units.facts["unexplained"] < 0.1
    assert auroc(units.scores, code > 0).max(axis=0).mean() > 0.95


@pytest.mark.parametrize(
    ("make", "data", "words"),
    [
        (lambda: SphericalKMeans(0), np.ones((3, 2)), "n_units=0"),
        (lambda: SphericalKMeans(9), np.ones((3, 2)), "for 3 examples"),
        (lambda: SphericalKMeans(2), np.full((3, 2), np.nan), "NaN"),
        (lambda: SphericalKMeans(1), np.ones(3), "shape"),
        (lambda: FisherKMeans(1), np.ones((3, 2)), "LowRankFishers or"),
        (lambda: SparseAutoencoder(2, active=3), np.ones((3, 2)), "active=3"),
        (
            lambda: SpectralClustering(1),
            LowRankFishers.from_rows(np.ones((2, 2, 3))),
            "one row an example",
        ),
    ],
)
def test_bad_baselines_are_named(make, data, words):
    with pytest.raises(InvalidInputError, match=words):
        make().fit(data)
