"""Permutation of hidden units, of their precisions, and the test of agreement."""

from itertools import permutations

import numpy as np
import pytest
from scipy.stats import kstest

from fishertope.core.errors import InvalidInputError
from fishertope.core.fisher import estimate_precision
from fishertope.core.fisher.structures import DenseBlock, Diagonal, Gram, Kronecker
from fishertope.core.merging import Anchor, MergeProblem, agreement_test, align, merge
from fishertope.core.model import DenseNetwork

from .families import spd


def network(seed, sizes=(4, 6, 5, 3)):
    rng = np.random.default_rng(seed)
    pairs = list(zip(sizes[1:], sizes[:-1], strict=True))
    return DenseNetwork(
        [rng.normal(size=p) for p in pairs], [rng.normal(size=p[0]) for p in pairs], "tanh"
    )


def shuffled(net, seed):
    rng = np.random.default_rng(seed)
    W, b = [np.array(w) for w in net.weights], [np.array(v) for v in net.biases]
    for k in range(len(W) - 1):
        order = rng.permutation(len(b[k]))
        W[k], b[k], W[k + 1] = W[k][order], b[k][order], W[k + 1][:, order]
    return DenseNetwork(W, b, net.activation)


def outputs(net, x):
    for k, (W, b) in enumerate(zip(net.weights, net.biases, strict=True)):
        x = x @ W.T + b
        x = np.tanh(x) if k < len(net.weights) - 1 else x
    return x


@pytest.mark.parametrize("seed", range(5))
def test_a_shuffled_network_is_put_back(seed):
    net = network(seed)
    other = shuffled(net, seed + 100)
    found = align(other, net)
    assert found.after == 0.0 < found.before
    for a, b in zip(found.model().weights, net.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_function_does_not_change_and_the_distance_falls():
    a, b = network(0), network(1)
    found = align(b, a)
    x = np.random.default_rng(2).normal(size=(20, 4))
    np.testing.assert_allclose(outputs(found.model(), x), outputs(b, x), rtol=1e-12)
    assert found.after < found.before
    again = align(found.model(), a)
    assert all((o == np.arange(len(o))).all() for o in again.orders)


def test_one_layer_is_the_best_of_all_permutations():
    a, b = network(3, (4, 5, 2)), network(4, (4, 5, 2))
    weights = {"layers.0.weight": np.random.default_rng(0).uniform(0.1, 3, (5, 4))}
    for w in (None, weights):
        found = align(b, a, weights=w)

        def cost(order, w=w):
            order = list(order)
            s = 1.0 if w is None else w["layers.0.weight"]
            return (
                (s * (a.weights[0] - b.weights[0][order]) ** 2).sum()
                + ((a.biases[0] - b.biases[0][order]) ** 2).sum()
                + ((a.weights[1] - b.weights[1][:, order]) ** 2).sum()
            )

        best = min(permutations(range(5)), key=cost)
        assert np.isclose(found.after, cost(best), rtol=1e-12)


def test_precisions_go_along():
    net = network(0)
    x = np.random.default_rng(1).normal(size=(40, 4))
    other = shuffled(net, 7)
    found = align(other, net)
    moved = found.precision(estimate_precision(other, x))
    direct = estimate_precision(net, x)
    for name, p in direct.items():
        np.testing.assert_allclose(moved[name].values, p.values, rtol=1e-10, atol=1e-14)
    merged = merge([net, found.model()], [direct, moved], method="fisher")
    for k, W in enumerate(net.weights):
        np.testing.assert_array_equal(merged.params[f"layers.{k}.weight"], W)
    # A plain mapping with a Kronecker precision of one matrix.
    rng = np.random.default_rng(3)
    tree = {"layers.1.weight": Kronecker(spd(rng, 5), spd(rng, 6))}
    turned = found.precision(tree)["layers.1.weight"]
    rows, columns = found.orders[1], found.orders[0]
    d = rng.normal(size=(5, 6))
    np.testing.assert_allclose(
        turned.apply(d[rows][:, columns]), tree["layers.1.weight"].apply(d)[rows][:, columns],
        rtol=1e-12,
    )  # fmt: skip


def test_units_that_do_not_fit_are_refused():
    with pytest.raises(InvalidInputError, match="no axis 1"):
        align(network(0), network(1), [[("layers.0.bias", 1)]])
    with pytest.raises(InvalidInputError, match="lengths"):
        align(network(0), network(1), [[("layers.0.weight", 0), ("layers.1.weight", 0)]])
    with pytest.raises(InvalidInputError, match="fewer than two matrices"):
        align({"w": np.ones((2, 2))}, {"w": np.ones((2, 2))})
    one = {"a": np.ones((2, 2)), "b": np.ones((2, 3))}
    with pytest.raises(InvalidInputError, match="do not chain"):
        align(one, one)


def test_agreement_of_regressions_is_chi_squared():
    rng = np.random.default_rng(0)
    p_values = []
    for _ in range(300):
        models, trees = [], []
        for _ in range(3):
            X = rng.normal(size=(30, 4))
            y = X @ np.arange(4.0) + 0.7 * rng.normal(size=30)
            models.append({"w": np.linalg.lstsq(X, y, rcond=None)[0]})
            trees.append({"w": DenseBlock(X.T @ X / 0.49, (4,))})
        problem = MergeProblem(sources=models, precisions=trees, weights=[1.0] * 3)
        found = agreement_test(problem)
        assert found.dof == 8
        p_values.append(found.p_value)
    assert kstest(p_values, "uniform").pvalue > 1e-3
    models[0]["w"] = models[0]["w"] + 1.0
    apart = agreement_test(MergeProblem(sources=models, precisions=trees, weights=[1.0] * 3))
    assert apart.p_value < 1e-6
    assert apart.by_site["w"][0] == apart.statistic


def test_agreement_counts_ranks():
    rng = np.random.default_rng(1)
    models = [{"w": rng.normal(size=(4, 3)), "b": rng.normal(size=4)} for _ in range(2)]
    x = rng.normal(size=(2, 3))
    f = np.array([1.0, 0.0, 1.0, 1.0])
    trees = [{"w": Gram(x.T @ x, 4), "b": Diagonal(f)}, {"w": Gram(np.eye(3), 4), "b": Diagonal(f)}]
    found = agreement_test(MergeProblem(sources=models, precisions=trees, weights=[1.0, 1.0]))
    assert found.by_site["w"][1] == 8 + 12 - 12
    assert found.by_site["b"][1] == 3
    for extra in ({"anchor": Anchor(models[0], 1.0)},):
        with pytest.raises(InvalidInputError, match="without anchor"):
            agreement_test(MergeProblem(sources=models, precisions=trees, **extra))
