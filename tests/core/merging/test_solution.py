"""Merged models of every kind, end to end, and what results show of themselves."""

import io
import json
import warnings

import numpy as np
import pytest
from rich.console import Console

from fishertope import DenseNetwork, estimate_precision, merge, search_weights
from fishertope.core.errors import InvalidInputError
from fishertope.core.fisher import PrecisionTree
from fishertope.core.merging import Anchor, MaTS, PairGrid, RegMeanPlusPlus

from .families import model, pair


@pytest.fixture(scope="module")
def torch_pair():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    nets = [
        torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
        for _ in range(2)
    ]
    return nets, [torch.randn(50, 6), torch.randn(50, 6) + 0.5]


STRUCTURES = ["diagonal", "isotropic", "gram", "kronecker", "ekfac", "block", "lowrank+diagonal"]


@pytest.mark.parametrize("structure", STRUCTURES)
def test_estimated_precisions_of_modules_merge(torch_pair, structure):
    import torch

    nets, data = torch_pair
    options = {"structure": structure}
    trees = [estimate_precision(n, x, **options) for n, x in zip(nets, data, strict=True)]
    found = merge(nets, trees, damping=(1e-2, "relative_trace"))
    assert found.residual < 1e-8
    assert found.converged
    out = found.model()
    assert torch.isfinite(out(data[0])).all()
    assert {p for s in found.sites for p in s.parameters} == {
        "0.weight", "0.bias", "2.weight", "2.bias",
    }  # fmt: skip
    # The optimum beats the sources and their mean on the objective.
    from fishertope.core.merging import Damping, MergeProblem

    problem = MergeProblem(sources=nets, precisions=trees, damping=Damping(1e-2, "relative_trace"))
    at = [problem.objective(n.state_dict()) for n in nets]
    at.append(problem.objective(merge(nets, method="isotropic").params))
    assert found.objective <= min(at) * (1 + 1e-6)


def test_regmean_plus_plus_on_a_module_is_that_on_the_dense_network(torch_pair):
    nets, data = torch_pair
    found = merge(nets, method=RegMeanPlusPlus(data=data))
    dense = [
        DenseNetwork(
            [n[0].weight.detach().double().numpy(), n[2].weight.detach().double().numpy()],
            [n[0].bias.detach().double().numpy(), n[2].bias.detach().double().numpy()],
            "tanh",
        )
        for n in nets
    ]
    twin = merge(dense, method=RegMeanPlusPlus(data=[x.double().numpy() for x in data]))
    for a, b in (("0.weight", "layers.0.weight"), ("2.weight", "layers.1.weight"),
                 ("0.bias", "layers.0.bias"), ("2.bias", "layers.1.bias")):  # fmt: skip
        np.testing.assert_allclose(found.params[a], twin.params[b], rtol=1e-3, atol=2e-5)


def test_mats_on_estimated_factors(torch_pair):
    nets, data = torch_pair
    trees = [
        estimate_precision(n, x, structure="kronecker") for n, x in zip(nets, data, strict=True)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        few = merge(nets, trees, method=MaTS(iterations=2))
        many = merge(nets, trees, method=MaTS(iterations=400))
    assert many.objective < few.objective
    assert {s.converged for s in few.sites} == {False}


def test_models_of_scikit_learn_come_back():
    sklearn = pytest.importorskip("sklearn.neural_network")
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(80, 5)), rng.integers(0, 3, 80)
    nets = []
    for part in (slice(0, 50), slice(30, 80)):
        net = sklearn.MLPClassifier((6,), max_iter=20, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nets.append(net.fit(X[part], y[part]))
    trees = [estimate_precision(n, X) for n in nets]
    before = [c.copy() for c in nets[0].coefs_]
    found = merge(nets, trees, method="fisher")
    out = found.model()
    assert out is not nets[0]
    assert out.predict(X).shape == (80,)
    for c, b in zip(nets[0].coefs_, before, strict=True):
        np.testing.assert_array_equal(c, b)
    np.testing.assert_array_equal(out.coefs_[0], found.params["layers.0.weight"].T)


def test_the_precision_of_a_merge_is_kept_in_a_file(tmp_path):
    models, trees = pair("kronecker", n=2)
    found = merge(models, trees)
    assert isinstance(found.precision, PrecisionTree)
    found.precision.save(tmp_path / "p.safetensors")
    again = PrecisionTree.load(tmp_path / "p.safetensors")
    d = np.random.default_rng(0).normal(size=(4, 3))
    np.testing.assert_array_equal(again["w"].apply(d), found.precision["w"].apply(d))


def test_results_show_themselves():
    models, trees = pair("kronecker", n=2)
    found = merge(models, trees)
    text = repr(found)
    assert "\n" not in text
    assert "kronecker" in text
    assert "two Kronecker products" in found._repr_html_()
    plain = json.loads(json.dumps(found.report(), allow_nan=False))
    assert plain["sites"][0]["solver"] == "kronecker"
    rng = np.random.default_rng(0)
    sources = [{"w": np.array([0.0])}, {"w": np.array([4.0])}]

    def score(m, data):
        return -((data - m["w"][0]) ** 2)

    search = search_weights(sources, score, rng.normal(size=50), rng.normal(size=50),
                            search=PairGrid(5))  # fmt: skip
    assert "isotropic (searched)" in search._repr_html_()
    assert "<svg" in search._repr_html_()
    json.dumps(search.to_dict(), allow_nan=False)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(found)
    console.print(search)
    shown = console.export_text()
    assert "largest residual" in shown
    assert "report split" in shown


def test_a_network_with_an_anchor_and_its_precision():
    models, trees = pair("gram", n=2)
    base = model(5, {"w": (4, 3)})
    anchored = merge(models, trees, anchor=Anchor(base, {"w": trees[0]["w"]}, 0.5))
    A = [t["w"].input_factor for t in trees]
    total = 0.5 * A[0] + 0.5 * A[1] + 0.5 * A[0]
    right = 0.5 * models[0]["w"] @ A[0] + 0.5 * models[1]["w"] @ A[1] + 0.5 * base["w"] @ A[0]
    np.testing.assert_allclose(anchored.params["w"], right @ np.linalg.inv(total), rtol=1e-10)
    with pytest.raises(InvalidInputError, match="anchor precision"):
        Anchor(base, -1.0)
