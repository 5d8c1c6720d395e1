"""Reductions keep inner products, say what they drop, and do not see batches."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fishertope.core.backend import to_numpy
from fishertope.core.errors import InvalidInputError
from fishertope.core.fisher import (
    FactoredProjection,
    RandomProjection,
    ThinSVD,
    TopK,
    draws_of,
    per_example_fishers,
)
from fishertope.core.fisher.reduction import PROJECTIONS
from fishertope.core.model import DenseNetwork
from fishertope.core.testing.tolerances import tolerance

IDENTITY = tolerance("identity").relative


def network(sizes=(4, 40, 5), seed=0):
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=(b, a)) / np.sqrt(a) for a, b in itertools.pairwise(sizes)]
    return DenseNetwork(weights, [rng.normal(size=b) for b in sizes[1:]], "tanh")


def inputs(n=8):
    return np.random.default_rng(1).normal(size=(n, 4))


def as_module(net):
    torch = pytest.importorskip("torch")
    layers = []
    for W, b in zip(net.weights, net.biases, strict=True):
        linear = torch.nn.Linear(W.shape[1], W.shape[0], dtype=torch.float64)
        linear.weight.data, linear.bias.data = torch.tensor(W), torch.tensor(b)
        layers += [linear, torch.nn.Tanh()]
    return torch.nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_blocks_add_up_to_one_matrix_wherever_they_are_cut(kind):
    sketch = RandomProjection(16, kind).sketch(draws_of(3).key)
    p = 9000
    rows = np.random.default_rng(0).normal(size=(3, p))
    whole = np.zeros((3, 16))
    sketch.add(whole, rows, 0)
    parts = np.zeros((3, 16))
    for start, stop in itertools.pairwise([0, 1, 17, 4096, 5000, 8192, 9000]):
        sketch.add(parts, rows[:, start:stop], start)
    np.testing.assert_allclose(parts, whole, atol=1e-10)
    np.testing.assert_allclose(rows[:, :500] @ sketch.matrix(500), _of(sketch, rows[:, :500]))


def _of(sketch, rows):
    out = np.zeros((len(rows), sketch.projection.dim))
    sketch.add(out, rows, 0)
    return out


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_inner_products_are_kept_on_average(kind):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30))
    projection = RandomProjection(20, kind)
    found = []
    for seed in range(400):
        P = projection.sketch(draws_of(seed).key).matrix(30)
        found.append((a @ P) @ (b @ P))
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    assert abs(np.mean(found) - a @ b) <= 4 * error
    # The spread that the choice of d is based on.
    assert np.std(found) <= 2 * np.linalg.norm(a) * np.linalg.norm(b) / np.sqrt(20)


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_gram_entries_are_within_the_bound_for_their_number(kind):
    exact = per_example_fishers(network(), inputs()).rows
    h, d = len(exact), 256
    reduced = per_example_fishers(network(), inputs(), reduce=RandomProjection(d, kind)).rows
    lengths = np.linalg.norm(exact, axis=1)
    error = np.abs(reduced @ reduced.T - exact @ exact.T) / np.outer(lengths, lengths)
    assert error.max() <= 3 * np.sqrt(np.log(h) / d)


@pytest.mark.parametrize("module", [False, True])
@pytest.mark.parametrize("reduce", [RandomProjection(32), (RandomProjection(32), ThinSVD(2))])
def test_batches_change_nothing_and_seeds_repeat(reduce, module):
    model = as_module(network()) if module else network()
    x = inputs()

    def rows(**options):
        fishers = per_example_fishers(model, x, reduce=reduce, **options)
        return to_numpy(fishers.rows), fishers

    whole, fishers = rows(batch_size=8, seed=1)
    grams = np.stack([whole[a:b].T @ whole[a:b] for a, b in itertools.pairwise(fishers.offsets)])
    for size in (1, 3):
        part, other = rows(batch_size=size, seed=1)
        assert np.array_equal(other.offsets, fishers.offsets)
        again = np.stack([part[a:b].T @ part[a:b] for a, b in itertools.pairwise(other.offsets)])
        np.testing.assert_allclose(again, grams, atol=1e-10)
    assert np.array_equal(rows(batch_size=8, seed=1)[0], whole)
    assert not np.allclose(rows(batch_size=8, seed=2)[0], whole)
    assert fishers.sites == ()
    assert fishers.facts["projection"] == "sparse"


def test_modules_and_plain_arrays_are_projected_alike():
    net, x = network(), inputs()
    ours = per_example_fishers(net, x, reduce=RandomProjection(32)).rows
    for engine in ("hooks", "functional"):
        theirs = per_example_fishers(as_module(net), x, reduce=RandomProjection(32), engine=engine)
        np.testing.assert_allclose(to_numpy(theirs.rows), ours, atol=1e-12)


def test_factored_projections_keep_inner_products_on_average():
    net, x = network((4, 6, 3)), inputs(3)
    module = as_module(net)
    exact = per_example_fishers(net, x).rows
    found = []
    for seed in range(200):
        rows = per_example_fishers(module, x, reduce=FactoredProjection(36), seed=seed).rows
        found.append(to_numpy(rows @ rows.T))
    found = np.stack(found)
    error = found.std(0, ddof=1) / np.sqrt(len(found))
    assert np.all(np.abs(found.mean(0) - exact @ exact.T) <= 4.5 * error)
    assert FactoredProjection(36).factors == (6, 6)
    assert FactoredProjection(2048).factors == (32, 64)
    assert FactoredProjection(7).factors == (1, 7)


def test_factored_projection_of_a_sequence_layer_is_the_projected_gradient():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(4, 6, bias=False), torch.nn.Tanh(), torch.nn.Flatten(),
        torch.nn.Linear(18, 3),
    ).double()  # fmt: skip
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    projection = FactoredProjection(12)
    options = {"params": "0.weight", "seed": 2}
    G = per_example_fishers(module, x, **options).rows.reshape(-1, 6, 4)
    key = draws_of(2).key
    Q_o, Q_i = projection.factor(key, 0, 0, 6), projection.factor(key, 0, 1, 4)
    expected = (torch.tensor(Q_o).T @ G @ torch.tensor(Q_i)).reshape(len(G), -1)
    found = per_example_fishers(module, x, reduce=projection, **options).rows
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_factored_projection_needs_the_layers():
    with pytest.raises(InvalidInputError, match=r"RandomProjection\(4\)"):
        per_example_fishers(network(), inputs(), reduce=FactoredProjection(4))
    with pytest.raises(InvalidInputError, match=r"RandomProjection\(4\)"):
        per_example_fishers(
            as_module(network()), inputs(), reduce=FactoredProjection(4), engine="functional"
        )


@settings(max_examples=30, deadline=None)
@given(k=st.integers(1, 60), seed=st.integers(0, 100))
def test_top_entries_are_the_largest_and_the_captured_norm_is_told(k, seed):
    net = network((4, 6, 3), seed)
    dense = per_example_fishers(net, inputs(), kind="diagonal").values
    sparse = per_example_fishers(net, inputs(), kind="diagonal", reduce=TopK(k), batch_size=3)
    values = sparse.values
    k = min(k, dense.shape[1])
    assert values.indices.dtype == np.int64
    assert values.shape == dense.shape
    assert values.nnz == k * len(dense)
    kept = values.toarray()
    assert np.all((kept == 0) | (kept == dense))
    for row, whole in zip(kept, dense, strict=True):
        np.testing.assert_allclose(np.sort(row)[-k:], np.sort(whole)[-k:])
    share = np.linalg.norm(kept, axis=1) / np.linalg.norm(dense, axis=1)
    assert abs(sparse.facts["captured_norm_mean"] - share.mean()) <= 1e-12
    assert abs(sparse.facts["captured_norm_min"] - share.min()) <= 1e-12
    if k == dense.shape[1]:
        assert np.array_equal(kept, dense)


def test_top_entries_of_a_certain_model_are_zero_without_nan():
    entries, columns, share = TopK(2).select(np.zeros((3, 5)))
    assert not entries.any()
    assert columns.tolist() == [[0, 1]] * 3
    assert share.tolist() == [1.0] * 3


def test_thin_svd_keeps_the_leading_part_of_every_fisher():
    full = per_example_fishers(network(), inputs())
    thin = per_example_fishers(network(), inputs(), reduce=ThinSVD(2))
    assert thin.ranks.tolist() == [2] * 8
    np.testing.assert_allclose(thin.norms, full.norms)
    for i in range(8):
        _, s, V = np.linalg.svd(full.block(i), full_matrices=False)
        best = (V[:2].T * s[:2] ** 2) @ V[:2]
        np.testing.assert_allclose(thin.dense(i), best, atol=1e-10)
    same = per_example_fishers(network(), inputs(), reduce=ThinSVD(4))
    np.testing.assert_allclose(same.rows, full.rows)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomProjection(0),
        lambda: RandomProjection(2.5),
        lambda: RandomProjection(4, "dense"),
        lambda: RandomProjection(4, spread=5),
        lambda: FactoredProjection(True),
        lambda: TopK(0),
        lambda: ThinSVD(-1),
    ],
)
def test_options_are_checked(make):
    with pytest.raises(InvalidInputError, match="accepted"):
        make()


@pytest.mark.parametrize(
    ("kind", "reduce"),
    [
        ("diagonal", RandomProjection(4)),
        ("diagonal", ThinSVD(4)),
        ("low_rank", TopK(4)),
        ("low_rank", 4),
        ("low_rank", [RandomProjection(4), RandomProjection(4)]),
        ("diagonal", [TopK(4), TopK(4)]),
    ],
)
def test_reductions_that_do_not_fit_are_named(kind, reduce):
    with pytest.raises(InvalidInputError):
        per_example_fishers(network(), inputs(), kind=kind, reduce=reduce)


@pytest.mark.parametrize("kind", ["factored", *PROJECTIONS])
def test_tables_of_embeddings_are_projected_as_the_rows_they_are(kind):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)

    class Tied(torch.nn.Module):
        """A table that is looked up and multiplied with."""

        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(1100, 4, padding_idx=0)
            self.back = torch.nn.Linear(4, 1100, bias=False)
            self.back.weight = self.table.weight
            self.head = torch.nn.Linear(1100, 3)

        def forward(self, tokens):
            return self.head(torch.tanh(self.back(torch.tanh(self.table(tokens)).mean(1))))

    module = Tied().double()
    tokens = torch.tensor([[1, 5, 5, 0], [1099, 1, 1024, 3], [0, 0, 0, 0]])
    options = {"params": "table.weight", "seed": 2, "engine": "hooks"}
    exact = per_example_fishers(module, tokens, **options).rows
    key = draws_of(2).key
    if kind == "factored":
        projection = FactoredProjection(12)
        Q_o, Q_i = projection.factor(key, 0, 0, 1100), projection.factor(key, 0, 1, 4)
        G = to_numpy(exact).reshape(-1, 1100, 4)
        expected = np.einsum("vo,hvw,wi->hoi", Q_o, G, Q_i).reshape(len(G), -1)
    else:
        projection = RandomProjection(12, kind)
        expected = _of(projection.sketch(key), to_numpy(exact))
    found = per_example_fishers(module, tokens, reduce=projection, **options).rows
    np.testing.assert_allclose(to_numpy(found), expected, rtol=0, atol=1e-11)
