"""Trees of structures: products over a whole model, permutations, files."""

import numpy as np
import pytest

from fishertope.core.errors import CorruptFileError, InvalidInputError
from fishertope.core.fisher import Diagonal, Implicit, Isotropic, Kronecker, PrecisionTree, Sum
from fishertope.core.fisher.structures import SiteLayout

from .test_structures import NAMES, SAME, SHAPE, cases, close, psd


def tree_of(precision, **options):
    return PrecisionTree(sites={"w": precision}, n_examples=2, trace_errors={"w": 0.1}, **options)


def layered():
    """A tree of a layer [W|b] stored by inputs, and a diagonal."""
    rng = np.random.default_rng(1)
    layout = SiteLayout(weight="fc.weight", weight_shape=(2, 3), bias="fc.bias", outputs="last")
    return PrecisionTree(
        sites={
            "fc.weight": Kronecker(psd(3, rng), psd(3, rng)),
            "norm.weight": Diagonal(rng.uniform(1, 2, 4)),
        },
        layouts={"fc.weight": layout},
        n_examples=7,
        trace_errors={"fc.weight": 0.1, "norm.weight": float("nan")},
        facts={"labels": "exact"},
    )


def displacement(rng=None):
    rng = np.random.default_rng(2) if rng is None else rng
    return {
        "fc.weight": rng.normal(size=(2, 3)), "fc.bias": rng.normal(size=3),
        "norm.weight": rng.normal(size=4),
    }  # fmt: skip


def test_products_by_parameter_name():
    tree, d = layered(), displacement()
    assert tree.parameters == ("fc.weight", "fc.bias", "norm.weight")
    assert tree.structure == "kronecker, diagonal"
    matrix = np.concatenate([d["fc.weight"].T, d["fc.bias"][:, None]], axis=1)
    dense = tree["fc.weight"].to_dense()
    expected = (dense @ matrix.ravel()).reshape(3, 3)
    found = tree.apply(d)
    close(found["fc.weight"], expected[:, :2].T)
    close(found["fc.bias"], expected[:, 2])
    close(found["norm.weight"], tree["norm.weight"].values * d["norm.weight"])
    whole = sum((found[n] * d[n]).sum() for n in d)
    assert np.isclose(tree.quad(d), whole, rtol=SAME)
    entries = tree.diagonal()
    assert {n: v.shape for n, v in entries.items()} == {n: v.shape for n, v in d.items()}
    assert np.isclose(sum(v.sum() for v in entries.values()), tree.trace(), rtol=SAME)


def test_scaled_damped_and_cast_trees():
    tree, d = layered(), displacement()
    assert np.isclose(tree.scaled(2.0).quad(d), 2 * tree.quad(d), rtol=SAME)
    assert tree.scaled(2.0).trace_errors["fc.weight"] == 0.2
    norm = sum((v**2).sum() for v in d.values())
    assert np.isclose(tree.damped(0.5).quad(d), tree.quad(d) + 0.5 * norm, rtol=SAME)
    assert tree.astype("float32")["norm.weight"].values.dtype == np.float32
    assert tree.damped(0.1).facts == tree.facts


def test_permuted_models_have_permuted_precisions():
    tree, d = layered(), displacement()
    rows, columns = [2, 0, 1], [1, 0]
    perms = {
        "fc.weight": {1: rows, 0: columns}, "fc.bias": {0: rows}, "norm.weight": {0: [3, 2, 1, 0]},
    }  # fmt: skip
    moved = {
        "fc.weight": d["fc.weight"][columns][:, rows], "fc.bias": d["fc.bias"][rows],
        "norm.weight": d["norm.weight"][::-1],
    }  # fmt: skip
    assert np.isclose(tree.permuted(perms).quad(moved), tree.quad(d), rtol=SAME)
    with pytest.raises(InvalidInputError, match="different orders"):
        tree.permuted({"fc.weight": {1: rows}})
    with pytest.raises(InvalidInputError, match="unknown"):
        tree.permuted({"other": {0: [0]}})


@pytest.mark.parametrize("name", [n for n in NAMES if n != "implicit"])
def test_every_structure_comes_back_from_a_file(name, tmp_path):
    precision, _ = cases()[name]
    tree = tree_of(precision, facts={"seed": 3})
    tree.save(tmp_path / "a.safetensors")
    tree.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    back = PrecisionTree.load(tmp_path / "a.safetensors")
    assert type(back["w"]) is type(precision)
    assert (back.facts, back.n_examples, back.layouts) == (tree.facts, 2, tree.layouts)
    np.testing.assert_array_equal(back["w"].to_dense(), precision.to_dense())
    if name not in ("isotropic", "masked isotropic"):
        single = tree.astype("float32")
        single.save(tmp_path / "c.safetensors")
        found = PrecisionTree.load(tmp_path / "c.safetensors")["w"].to_dense()
        np.testing.assert_array_equal(found, single["w"].to_dense())


def test_layouts_come_back(tmp_path):
    tree = layered()
    tree.save(tmp_path / "a.safetensors")
    back = PrecisionTree.load(tmp_path / "a.safetensors")
    assert back.layouts == tree.layouts
    assert np.isnan(back.trace_errors["norm.weight"])
    assert back.quad(displacement()) == tree.quad(displacement())


def test_products_cannot_be_saved_and_deep_files_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(InvalidInputError, match="products alone"):
        tree_of(Implicit(lambda d: d, SHAPE)).save(path)
    assert not path.exists()
    deep = Isotropic(1.0, (2,))
    for _ in range(8):
        deep = Sum([deep])
    tree_of(deep).save(path)
    with pytest.raises(CorruptFileError):
        PrecisionTree.load(path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trace_errors": {}}, "standard errors"),
        ({"sites": {}}, "without sites"),
        ({"layouts": {"v": SiteLayout(weight="v", weight_shape=(2,))}}, "without precision"),
        ({"layouts": {"w": SiteLayout(weight="w", weight_shape=(3,))}}, "make up"),
        (
            {"layouts": {"w": SiteLayout(weight="v", weight_shape=(2,))},
             "sites": {"w": Isotropic(1.0, (2,)), "v": Isotropic(1.0, (2,))},
             "trace_errors": {"w": 0.1, "v": 0.1}},
            "belongs to the sites",
        ),
    ],
)  # fmt: skip
def test_trees_that_do_not_fit_are_refused(options, words):
    given = {
        "sites": {"w": Isotropic(1.0, (2,))}, "n_examples": 1, "trace_errors": {"w": 0.1},
    } | options  # fmt: skip
    with pytest.raises(InvalidInputError, match=words):
        PrecisionTree(**given)
