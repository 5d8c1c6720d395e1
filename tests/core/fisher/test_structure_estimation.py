"""Structures of dense networks: definitions, identities of merging.md §7, workers, stopping."""

import numpy as np
import pytest

from fishertope.core.errors import InvalidInputError
from fishertope.core.fisher import (
    EKFAC,
    Diagonal,
    ExactLabels,
    Gram,
    Kronecker,
    PrecisionTree,
    SampledLabels,
    estimate_precision,
    per_example_fishers,
)
from fishertope.core.fisher.estimators.rows import nystrom
from fishertope.core.fisher.estimators.running import RunningMoments, products
from fishertope.core.model import DenseNetwork
from fishertope.core.testing.tolerances import deviation, tolerance

from .test_precision import inputs, network

IDENTITY = tolerance("identity").relative
STRUCTURES = ("block", "gram", "kronecker", "ekfac", "lowrank+diagonal")


def close(found, expected):
    assert deviation(found, expected) <= IDENTITY


def rows_by_site(net, x, tree):
    """Gradients (n, k, o, i+1) of every layer from the rows of the whole network."""
    rows = per_example_fishers(net, x)
    flat = rows.rows.reshape(len(x), -1, rows.rows.shape[1])
    named, start = {}, 0
    for number, (W, b) in enumerate(zip(net.weights, net.biases, strict=True)):
        for name, part in (("weight", W), ("bias", b)):
            cut = flat[:, :, start : start + part.size]
            named[f"layers.{number}.{name}"] = cut.reshape(*flat.shape[:2], *part.shape)
            start += part.size
    return {site: layout.join(named) for site, layout in tree.layouts.items()}


def test_structures_of_a_dense_network_equal_their_definitions():
    net, x = network(), inputs()
    trees = {s: estimate_precision(net, x, structure=s, batch_size=4, rank=25) for s in STRUCTURES}
    hidden = np.maximum(x @ net.weights[0].T + net.biases[0], 0)
    features = [np.c_[x, np.ones(len(x))], np.c_[hidden, np.ones(len(x))]]
    for number, (site, rows) in enumerate(rows_by_site(net, x, trees["block"]).items()):
        flat = rows.reshape(*rows.shape[:2], -1)
        P = np.einsum("nkp,nkq->pq", flat, flat) / len(x)
        A = features[number].T @ features[number] / len(x)
        # G = δ aᵀ with a constant last input: the last column of the gradients is δ.
        B = np.einsum("nko,nkp->op", rows[..., -1], rows[..., -1]) / len(x)
        close(trees["block"][site].to_dense(), P)
        close(trees["gram"][site].to_dense(), np.kron(np.eye(len(B)), A))
        close(trees["kronecker"][site].to_dense(), np.kron(B, A))
        assert deviation(trees["lowrank+diagonal"][site].to_dense(), P) <= 1e-8
        ekfac = trees["ekfac"][site]
        assert isinstance(ekfac, EKFAC)
        K = np.kron(ekfac.output_basis, ekfac.input_basis)
        close(ekfac.scales.ravel(), np.diag(K.T @ P @ K))
        # Standard errors: those of means, and the delta method for products of means.
        traces = (flat**2).sum((1, 2))
        for name in ("block", "ekfac", "lowrank+diagonal"):
            error = traces.std(ddof=1) / len(x) ** 0.5
            assert np.isclose(trees[name].trace_errors[site], error, rtol=1e-8)
        a, b = (features[number] ** 2).sum(1), (rows[..., -1] ** 2).sum((1, 2))
        influence = b.mean() * a + a.mean() * b
        error = influence.std(ddof=1) / len(x) ** 0.5
        assert np.isclose(trees["kronecker"].trace_errors[site], error, rtol=1e-8)


def test_merging_check_23_the_exact_diagonal_is_the_brute_force_double_loop():
    net, x = network(), inputs()
    z = np.maximum(x @ net.weights[0].T + net.biases[0], 0) @ net.weights[1].T + net.biases[1]
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    expected = np.zeros((6, 4))
    for i in range(len(x)):
        live = (x[i] @ net.weights[0].T + net.biases[0]) > 0
        for c in range(3):
            delta = ((np.arange(3) == c) - p[i]) @ net.weights[1] * live
            expected += p[i, c] * np.outer(delta, x[i]) ** 2 / len(x)
    for structure in ("diagonal", "block", "ekfac"):
        tree = estimate_precision(net, x, structure=structure)
        if structure == "ekfac":
            assert np.isclose(tree["layers.0.weight"].trace(), tree["layers.0.weight"].scales.sum())
            continue
        close(tree.diagonal()["layers.0.weight"], expected)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("rule", [ExactLabels(), SampledLabels(3)])
def test_merging_check_24_the_batch_size_changes_nothing(structure, rule):
    options = {"structure": structure, "labels": rule, "seed": 4, "rank": 3}
    whole = estimate_precision(network(), inputs(), batch_size=11, **options)
    for size in (1, 7):
        part = estimate_precision(network(), inputs(), batch_size=size, **options)
        for name, one in whole.items():
            close(part[name].to_dense(), one.to_dense())
            assert np.isclose(part.trace_errors[name], whole.trace_errors[name], rtol=1e-9)


def test_merging_check_26_binary_classification():
    net, x = network(sizes=(4, 2)), inputs(5)
    z = x @ net.weights[0].T + net.biases[0]
    p = 1 / (1 + np.exp(z[:, 1] - z[:, 0]))
    rows = np.c_[x, np.ones(5)]
    # ∇(z₀ − z₁) is (a, −a) over the two rows of [W|b].
    step = np.einsum("o,ni->noi", [1.0, -1.0], rows).reshape(5, -1)
    expected = np.einsum("n,np,nq->pq", p * (1 - p), step, step) / 5
    block = estimate_precision(net, x, structure="block")
    close(block["layers.0.weight"].to_dense(), expected)


def test_merging_check_27_traces_are_mean_squared_score_norms():
    net, x = network(), inputs()
    norm = (per_example_fishers(net, x).rows ** 2).sum() / len(x)
    for structure in ("diagonal", "isotropic", "block", "ekfac", "lowrank+diagonal"):
        tree = estimate_precision(net, x, structure=structure, rank=2)
        assert np.isclose(tree.trace(), norm, rtol=IDENTITY, atol=0)


@pytest.mark.parametrize("structure", ["diagonal", *STRUCTURES])
def test_merging_check_28_shifts_dead_units_and_certain_outputs(structure):
    net, x = network(), inputs()
    before = estimate_precision(net, x, structure=structure)
    net.biases[1][:] += 3.0
    after = estimate_precision(net, x, structure=structure)
    for name, one in before.items():
        assert deviation(after[name].to_dense(), one.to_dense()) <= 1e-8
    if structure == "gram":
        return
    net.biases[0][2] = -1e6
    tree = estimate_precision(net, x, structure=structure)
    assert np.all(tree.diagonal()["layers.0.weight"][2] == 0)
    assert tree.diagonal()["layers.0.bias"][2] == 0
    net.biases[1][0] = 1e9
    tree = estimate_precision(net, x, structure=structure)
    assert tree.trace() == 0
    assert all(np.all(d == 0) for d in tree.diagonal().values())


def test_merging_check_30_kfac_is_exact_for_one_layer_and_one_example():
    net, x = network(sizes=(4, 3)), inputs(1)
    block = estimate_precision(net, x, structure="block")["layers.0.weight"]
    for structure in ("kronecker", "ekfac"):
        for sharing in ("expand", "reduce"):
            tree = estimate_precision(net, x, structure=structure, sharing=sharing)
            close(tree["layers.0.weight"].to_dense(), block.to_dense())
    gram = estimate_precision(net, inputs(), structure="gram")["layers.0.weight"]
    X = inputs()
    close(gram.input_factor[:4, :4], X.T @ X / len(X))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_b2_workers_change_nothing(structure):
    x = np.random.default_rng(1).normal(size=(40, 4))
    options = {"seed": 2, "labels": SampledLabels(2), "batch_size": 9, "structure": structure}
    one = estimate_precision(network(), x, **options)
    two = estimate_precision(network(), x, n_jobs=2, **options)
    for name in one:
        assert np.array_equal(one[name].to_dense(), two[name].to_dense())
    assert one.trace_errors == two.trace_errors


@pytest.mark.parametrize("structure", STRUCTURES)
def test_stopping_when_the_trace_is_known_well_enough(structure):
    x = inputs(400)
    options = {"structure": structure, "batch_size": 10}
    tree = estimate_precision(network(), x, relative_error=0.15, **options)
    assert 32 <= tree.n_examples < 400
    same = estimate_precision(network(), x[: tree.n_examples], **options)
    for name in tree:
        close(tree[name].to_dense(), same[name].to_dense())


def test_some_parameters_only():
    net, x = network(), inputs()
    whole = estimate_precision(net, x, structure="kronecker")
    weights = estimate_precision(net, x, structure="kronecker", params="*.weight")
    for name, one in weights.items():
        close(one.input_factor, whole[name].input_factor[:-1, :-1])
        assert weights.layouts[name].bias is None
    mixed = estimate_precision(
        net, x, structure="kronecker", params=["layers.0.*", "layers.1.bias"]
    )
    assert isinstance(mixed["layers.1.bias"], Diagonal)
    diagonal = estimate_precision(net, x)["layers.1.bias"]
    close(mixed["layers.1.bias"].values, diagonal.values)
    with pytest.raises(InvalidInputError, match="structure='kronecker'"):
        estimate_precision(net, x, structure="kronecker", params="*.bias")
    block = estimate_precision(net, x, structure="block", params="*.bias")
    close(np.diag(block["layers.1.bias"].matrix), diagonal.values)


def test_trees_of_every_structure_are_kept(tmp_path):
    for structure in STRUCTURES:
        tree = estimate_precision(network(), inputs(), structure=structure, damping=0.1)
        tree.save(tmp_path / "p.safetensors")
        back = PrecisionTree.load(tmp_path / "p.safetensors")
        assert (back.facts, back.layouts) == (tree.facts, tree.layouts)
        assert back.facts["damping"] == 0.1
        bare = estimate_precision(network(), inputs(), structure=structure)
        for name in tree:
            assert np.array_equal(back[name].to_dense(), tree[name].to_dense())
            ridge = 0.1 * bare[name].trace() / bare[name].size * np.eye(bare[name].size)
            close(tree[name].to_dense(), bare[name].to_dense() + ridge)
        page = tree._repr_html_()
        assert "layers.0.weight" in page


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"structure": "dense"}, "lowrank\\+diagonal"),
        ({"sharing": "both"}, "expand, reduce"),
        ({"rank": 0}, "rank"),
        ({"damping": -1.0}, "damping"),
        ({"structure": "lowrank+diagonal", "rank": 10**9}, "n"),
    ],
)
def test_bad_input_is_named(options, words):
    if options.get("rank") == 10**9:
        options["rank"] = 2000
        wide = DenseNetwork([np.zeros((300, 1000))], [np.zeros(300)])
        with pytest.raises(InvalidInputError, match="GiB"):
            estimate_precision(wide, np.zeros((2, 1000)), **options)
        return
    with pytest.raises(InvalidInputError, match=words):
        estimate_precision(network(), inputs(), **options)


def test_gram_takes_no_labels_and_regression_takes_all_structures():
    from fishertope.core.model import Gaussian

    x = inputs()
    one = estimate_precision(network(), x, structure="gram", labels=SampledLabels(1), seed=1)
    two = estimate_precision(network(), x, structure="gram", seed=2)
    assert isinstance(one["layers.0.weight"], Gram)
    assert np.array_equal(one["layers.0.weight"].input_factor, two["layers.0.weight"].input_factor)
    # Linear regression: F = I_o ⊗ XᵀX / (N σ²), so that K-FAC and the block are the Gram.
    net = network(sizes=(4, 3))
    gram = estimate_precision(net, x, structure="gram")["layers.0.weight"].to_dense()
    for structure in ("block", "kronecker", "ekfac"):
        tree = estimate_precision(net, x, structure=structure, output=Gaussian(variance=0.5))
        close(tree["layers.0.weight"].to_dense(), 2 * gram)
    assert isinstance(
        estimate_precision(net, x, structure="kronecker")["layers.0.weight"], Kronecker
    )


def test_running_moments_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 6)) + 1e6
    moments = RunningMoments(6)
    for part in np.split(x, [1, 1, 8, 30]):
        moments.add(part)
    off = x - x.mean(0)
    assert moments.n == 50
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.scatter, off.T @ off, rtol=1e-7, atol=1e-7)
    other = RunningMoments(6)
    other.add_packed(moments.packed())
    np.testing.assert_array_equal(other.scatter, moments.scatter)
    # The delta method against its own definition by finite differences.
    small = RunningMoments(6)
    small.add(rng.uniform(1, 2, size=(40, 6)))
    traces = products(small)
    for k in range(6):
        moved = RunningMoments(6)
        moved.n, moved.mean = small.n, small.mean + 1e-6 * (np.arange(6) == k)
        slope = (products(moved).values - traces.values) / 1e-6
        assert np.isclose(slope[k // 3], traces.slopes[k // 3, k % 3], rtol=1e-4)


def test_the_nystrom_approximation_keeps_what_the_sketch_holds():
    rng = np.random.default_rng(0)
    left = rng.normal(size=(30, 4))
    P = left @ left.T
    test = rng.normal(size=(30, 9))
    rows = nystrom(P @ test, test, 4)
    close(rows.T @ rows, P)
    assert nystrom(np.zeros((30, 9)), test, 4).shape == (0, 30)
