"""Precision trees: estimated, kept on disk, shown."""

import json

import numpy as np
import pytest

from fishertope.core.errors import CorruptFileError, InvalidInputError
from fishertope.core.fisher import (
    DataLabels,
    Diagonal,
    ExactLabels,
    Isotropic,
    PrecisionTree,
    SampledLabels,
    estimate_precision,
    per_example_fishers,
)
from fishertope.core.model import DenseNetwork

IDENTITY = 1e-10


def network(seed=0, sizes=(4, 6, 3)):
    rng = np.random.default_rng(seed)
    shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
    return DenseNetwork(
        [rng.normal(size=s) for s in shapes], [rng.normal(size=s[0]) for s in shapes]
    )


def inputs(n=11, seed=1):
    return np.random.default_rng(seed).normal(size=(n, 4))


def flat(tree):
    return np.concatenate([p.values.ravel() for p in tree.values()])


def test_the_diagonal_is_the_mean_of_the_examples_diagonals():
    net, x = network(), inputs()
    each = per_example_fishers(net, x, kind="diagonal").values
    tree = estimate_precision(net, x)
    np.testing.assert_allclose(flat(tree), each.mean(0), rtol=IDENTITY, atol=0)
    # Check 27: the trace is the mean squared score norm.
    rows = per_example_fishers(net, x).rows
    assert np.isclose(tree.trace(), (rows**2).sum() / len(x), rtol=IDENTITY, atol=0)
    spread = each[:, :24].sum(1).std(ddof=1) / len(x) ** 0.5
    assert np.isclose(tree.trace_errors["layers.0.weight"], spread, rtol=IDENTITY, atol=0)


@pytest.mark.parametrize("rule", [ExactLabels(), SampledLabels(3)])
def test_the_batch_size_changes_nothing(rule):
    whole = estimate_precision(network(), inputs(), labels=rule, batch_size=11, seed=4)
    for size in (1, 7):
        part = estimate_precision(network(), inputs(), labels=rule, batch_size=size, seed=4)
        np.testing.assert_allclose(flat(part), flat(whole), rtol=IDENTITY, atol=0)
        for name, error in whole.trace_errors.items():
            assert np.isclose(part.trace_errors[name], error, rtol=IDENTITY, atol=0)


def test_sampled_labels_are_unbiased_and_their_error_halves():
    net, x = network(), inputs(4)
    exact = flat(estimate_precision(net, x))

    def draws(n, count):
        options = {"labels": SampledLabels(n)}
        return np.stack([flat(estimate_precision(net, x, seed=s, **options)) for s in range(count)])

    few, many = draws(1, 400), draws(4, 400)
    error = few.std(0, ddof=1) / 20
    assert np.all(np.abs(few.mean(0) - exact) <= 4.5 * error + 1e-12)
    ratio = many.std(0)[error > 0] / few.std(0)[error > 0]
    assert 0.45 < np.median(ratio) < 0.55


def test_the_binary_case_is_p_q_times_the_squared_gradient():
    net, x = network(sizes=(4, 2)), inputs(1)
    logits = x @ net.weights[0].T + net.biases[0]
    p = np.exp(logits - logits.max())
    p /= p.sum()
    # z₁ − z₀ has the gradient x in the first row and −x in the second.
    expected = p[0, 0] * p[0, 1] * np.tile(x[0] ** 2, 2)
    np.testing.assert_allclose(
        flat(estimate_precision(net, x))[:8], expected, rtol=IDENTITY, atol=0
    )


def test_dead_units_certain_outputs_and_shifted_logits():
    net, x = network(), inputs()
    before = flat(estimate_precision(net, x))
    net.biases[1][:] += 3.0
    np.testing.assert_allclose(flat(estimate_precision(net, x)), before, rtol=1e-8, atol=1e-12)
    net.biases[0][2] = -1e6
    tree = estimate_precision(net, x)
    assert np.all(tree["layers.0.weight"].values[2] == 0)
    assert tree["layers.0.bias"].values[2] == 0
    net.biases[1][0] = 1e9
    assert np.all(flat(estimate_precision(net, x)) == 0)


def test_isotropic_is_the_mean_of_the_diagonal():
    diagonal = estimate_precision(network(), inputs())
    tree = estimate_precision(network(), inputs(), structure="isotropic")
    for name, one in tree.items():
        assert isinstance(one, Isotropic)
        assert np.isclose(one.trace(), diagonal[name].trace(), rtol=IDENTITY, atol=0)
    d = np.ones((6, 4))
    np.testing.assert_allclose(
        diagonal["layers.0.weight"].apply(d), diagonal["layers.0.weight"].values
    )


def test_stopping_when_the_trace_is_known_well_enough():
    x = inputs(400)
    tree = estimate_precision(network(), x, relative_error=0.1, batch_size=10)
    assert 32 <= tree.n_examples < 400
    whole = np.array([p.trace() for p in tree.values()]).sum()
    part = per_example_fishers(network(), x[: tree.n_examples], kind="diagonal").values.sum(1)
    assert part.std(ddof=1) / len(part) ** 0.5 <= 0.1 * whole
    steps = []
    tree = estimate_precision(
        network(), x, batch_size=50, callback=lambda s: steps.append(s) or len(steps) == 2
    )
    assert (tree.n_examples, steps[-1].step, steps[-1].max_steps) == (100, 100, 400)


def test_saved_trees_come_back_and_the_bytes_repeat(tmp_path):
    for structure in ("diagonal", "isotropic"):
        tree = estimate_precision(network(), inputs(), structure=structure)
        tree.save(tmp_path / "a.safetensors")
        tree.save(tmp_path / "b.safetensors")
        assert (tmp_path / "a.safetensors").read_bytes() == (
            tmp_path / "b.safetensors"
        ).read_bytes()
        back = PrecisionTree.load(tmp_path / "a.safetensors")
        assert list(back) == list(tree)
        assert (back.n_examples, back.facts) == (tree.n_examples, tree.facts)
        assert back.trace_errors == tree.trace_errors
        assert back.trace() == tree.trace()
    one = estimate_precision(network(), inputs(1))
    one.save(tmp_path / "c.safetensors")
    assert all(np.isnan(list(PrecisionTree.load(tmp_path / "c.safetensors").trace_errors.values())))


def test_altered_and_foreign_files_are_refused(tmp_path):
    from fishertope.core.storage.arrays import save_arrays

    path = tmp_path / "tree.safetensors"
    estimate_precision(network(sizes=(4, 2)), inputs()).save(path)
    data = path.read_bytes()
    for length in range(0, len(data), 97):
        path.write_bytes(data[:length])
        with pytest.raises(CorruptFileError):
            PrecisionTree.load(path)
    path.write_bytes(data[:-3] + b"\x00\x01\x02")
    with pytest.raises(CorruptFileError):
        PrecisionTree.load(path)
    facts = {
        "order": ["w"], "sites": {"w": {"kind": "diagonal", "values": "w/values"}}, "layouts": {},
        "n_examples": 3, "trace_errors": {"w": 1.0}, "facts": {},
    }  # fmt: skip
    save_arrays(path, {"w/values": np.array([-1.0])}, facts, kind="precision tree")
    with pytest.raises(CorruptFileError, match="negative"):
        PrecisionTree.load(path)
    layout = {"weight": "w", "weight_shape": [2], "bias": None, "outputs": None}
    for broken in (
        {"order": ["v"]}, {"order": []}, {"trace_errors": {}}, {"sites": []}, {"n_examples": "x"},
        {"layouts": {"w": layout}}, {"layouts": {"w": {**layout, "bias": "v"}}},
        {"layouts": {"w": 1}},
        {"sites": {"w": {"kind": "pickle", "values": "w/values"}}},
        {"sites": {"w": {"kind": "isotropic", "values": "w/values"}}},
        {"sites": {"w": {"kind": "isotropic", "scale": 1.0, "shape": [1]}}},
    ):  # fmt: skip
        save_arrays(path, {"w/values": np.ones(1)}, {**facts, **broken}, kind="precision tree")
        with pytest.raises(CorruptFileError, match="precision tree"):
            PrecisionTree.load(path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"structure": "dense"}, "diagonal, isotropic"),
        ({"labels": "exact"}, "ExactLabels"),
        ({"labels": DataLabels()}, "label"),
        ({"relative_error": 2.0}, "between 0 and 1"),
        ({"batch_size": 0}, "batch_size"),
        ({"params": "nothing.*"}, "nothing"),
        ({"data": inputs(0)}, "at least one"),
        ({"data": np.full((2, 4), np.nan)}, "NaN|finite"),
    ],
)
def test_bad_input_is_named(options, words):
    data = options.pop("data", inputs())
    with pytest.raises(InvalidInputError, match=words):
        estimate_precision(network(), data, **options)


@pytest.mark.parametrize("values", [np.array([-1.0]), np.array([np.nan]), np.array([np.inf])])
def test_precisions_that_are_none_are_refused(values):
    with pytest.raises(InvalidInputError, match=">= 0"):
        Diagonal(values)
    with pytest.raises(InvalidInputError, match=">= 0"):
        Isotropic(float(values[0]), (3,))


def test_trees_show_themselves():
    tree = estimate_precision(network(), inputs())
    assert repr(tree).startswith("PrecisionTree(diagonal, sites=4, n=11, trace=")
    page = tree._repr_html_()
    assert "layers.0.weight" in page
    assert "standard error" in page
    assert json.dumps(dict(tree.facts))


def test_some_parameters_only():
    whole = estimate_precision(network(), inputs())
    part = estimate_precision(network(), inputs(), params="*.bias")
    assert list(part) == ["layers.0.bias", "layers.1.bias"]
    for name, one in part.items():
        np.testing.assert_allclose(one.values, whole[name].values, rtol=IDENTITY, atol=0)
