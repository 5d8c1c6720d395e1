"""Checks 31 to 38 of the merging specification: what is refused, and how it says so."""

import numpy as np
import pytest

from fishertope.core.errors import CorruptFileError, InvalidInputError
from fishertope.core.fisher import PrecisionTree, estimate_precision
from fishertope.core.fisher.structures import (
    DenseBlock,
    Diagonal,
    Gram,
    Isotropic,
    Kronecker,
    SiteLayout,
)
from fishertope.core.merging import MergeProblem, SiteAction, SitePolicy, merge
from fishertope.core.model import DenseNetwork

from .families import SHAPES, model


def refused(match, *args, **options):
    with pytest.raises(InvalidInputError, match=match) as caught:
        merge(*args, **options)
    return str(caught.value)


def changed(seed=1, **new):
    out = {**model(seed), **new}
    return {k: v for k, v in out.items() if v is not None}


def test_merging_check_31_missing_and_extra_tensors_are_named():
    message = refused(r"'a\.bias' is missing in source 1", [model(0), changed(**{"a.bias": None})])
    assert "take" in message
    refused(r"'extra' is missing in source 0", [model(0), changed(extra=np.zeros(3))])


def test_merging_check_31_shapes_and_dtypes_are_named_with_their_sources():
    refused(
        r"'a\.weight' has the shape \(4, 3\) in source 0, \(3, 4\) in source 1",
        [model(0), changed(**{"a.weight": np.zeros((3, 4))})],
    )
    # A shape that broadcasting would hide.
    refused(r"'a\.bias' has the shape", [model(0), changed(**{"a.bias": np.zeros(1)})])
    mixed = [model(0), changed(**{"a.bias": np.zeros(4, dtype=np.float32)})]
    refused(r"'a\.bias' is float64 in source 0, float32 in source 1", mixed)
    found = merge(mixed, sites={"<mixed dtypes>": "merge"})
    assert found.params["a.bias"].dtype == np.float64


def test_merging_check_31_the_order_of_keys_does_not_matter():
    first = merge([model(0), model(1)], [as_tree(0), as_tree(1)])
    turned = dict(reversed(model(1).items()))
    tree = dict(reversed(as_tree(1).items()))
    second = merge([model(0), turned], [as_tree(0), tree])
    for name in SHAPES:
        np.testing.assert_array_equal(first.params[name], second.params[name])
    assert list(second.params) == list(SHAPES)


def as_tree(seed):
    rng = np.random.default_rng(seed)
    return {n: Diagonal(rng.uniform(0.1, 1, s)) for n, s in SHAPES.items()}


def test_merging_check_31_precisions_must_fit_their_sources():
    refused(r"1 precisions.*2 sources", [model(0), model(1)], [as_tree(0)])
    tree = as_tree(1)
    del tree["a.bias"]
    refused(
        r"'a\.bias' has a precision for some sources, but none for source 1",
        [model(0), model(1)], [as_tree(0), tree],
    )  # fmt: skip
    tree["b.bias"] = Diagonal(np.ones(2))
    refused(r"Precision 1 is for 'b\.bias'", [model(0), model(1)], [as_tree(0), tree])
    tree = {**as_tree(1), "a.weight": Diagonal(np.ones((3, 4)))}
    refused(r"'a\.weight'.*\(3, 4\)", [model(0), model(1)], [as_tree(0), tree])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_merging_check_32_nan_and_infinity_in_parameters(bad):
    broken = model(1)
    broken["a.weight"][2, 1] = bad
    models = [model(0), broken, model(2)]
    refused(r"'a\.weight' of source 1 has 1 NaN or infinite", models)
    refused(r"'a\.weight'", models, anchor=model(0), method="ties")
    found = merge(models, nonfinite="skip")
    np.testing.assert_allclose(
        found.params["a.weight"], (models[0]["a.weight"] + models[2]["a.weight"]) / 2, rtol=1e-15
    )
    assert {s.name: s.skipped for s in found.sites} == {"a.weight": 1, "a.bias": 0, "b.weight": 0}
    through = merge(models, nonfinite="propagate").params["a.weight"]
    assert np.isfinite(through).sum() == 11
    assert not np.isfinite(through[2, 1])
    with pytest.raises(InvalidInputError, match="every source"):
        merge([broken, broken], nonfinite="skip")
    refused("nonfinite='maybe'", models, nonfinite="maybe")


def test_merging_check_32_an_anchor_with_nan_is_refused():
    base = model(5)
    base["b.weight"][0, 0] = np.nan
    refused(r"'b\.weight' of the anchor", [model(0), model(1)], anchor=base)
    refused(r"'b\.weight' of the anchor", [model(0), model(1)], anchor=base, method="ties")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_merging_check_32_nan_and_infinity_in_precisions(bad):
    f = np.ones((4, 3))
    f[1, 1] = bad
    tree = {n: np.ones(s) for n, s in SHAPES.items()}
    refused(r"'a\.weight' of source 1.*not finite", [model(0), model(1)],
            [tree, {**tree, "a.weight": f}])  # fmt: skip


def test_merging_check_33_negative_precisions():
    tree = {n: np.ones(s) for n, s in SHAPES.items()}
    f = np.ones((4, 3))
    f[0, 0] = -0.1
    refused(r"'a\.weight' of source 0.*negative", [model(0), model(1)],
            [{**tree, "a.weight": f}, tree])  # fmt: skip
    f[0, 0], f[0, 1] = -1e-14, -1e-16
    found = merge([model(0), model(1)], [{**tree, "a.weight": f}, tree])
    assert found.facts["clipped_precisions"] == 2
    np.testing.assert_array_equal(found.params["a.weight"][0, :2], model(1)["a.weight"][0, :2])


def test_merging_check_33_factors_that_are_not_semidefinite():
    bad = np.diag([1.0, 1.0, 1.0])
    bad[0, 1] = bad[1, 0] = 3.0  # eigenvalues 4, -2, 1
    models = [model(s, {"w": (4, 3)}) for s in (0, 1)]
    for tree in (
        {"w": Gram(bad, 4)},
        {"w": DenseBlock(np.kron(np.eye(4), bad), (4, 3))},
        {"w": Kronecker(np.eye(4), bad)},
    ):
        refused(r"'w'.*negative eigenvalue", models, [tree, tree])


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        ([0.5, -0.5], "numbers >= 0"),
        ([0.0, 0.0], "All weights are 0"),
        ([0.5, np.nan], "finite"),
        ([0.5, np.inf], "finite"),
        ([1.0], r"shape \(1,\).*2 sources"),
        ([[0.5, 0.5]], "shape"),
        (["a", "b"], "2 numbers"),
    ],
)
def test_merging_check_34_weights(weights, match):
    refused(match, [model(0), model(1)], weights=weights)


def test_merging_check_34_methods_on_differences_take_negative_weights():
    found = merge([model(1)], anchor=model(0), method="task_arithmetic", weights=[-0.5])
    for name in SHAPES:
        expected = model(0)[name] - 0.5 * (model(1)[name] - model(0)[name])
        np.testing.assert_allclose(found.params[name], expected, rtol=1e-14, atol=1e-15)


def test_merging_check_35_no_precision_at_all():
    models = [model(s, {"w": (4, 3)}) for s in (0, 1)]
    zero = {"w": Diagonal(np.zeros((4, 3)))}
    found = merge(models, [zero, zero], weights=[0.25, 0.75])
    assert found.fallback == 12
    np.testing.assert_allclose(
        found.params["w"], 0.25 * models[0]["w"] + 0.75 * models[1]["w"], rtol=1e-15, atol=1e-16
    )
    refused(r"'w'.*12 coordinates.*anchor or damping", models, [zero, zero], fallback="error")
    part = np.outer(np.ones(3), np.ones(3))
    gram = {"w": Gram(part, 4)}
    assert merge(models, [gram, gram]).fallback == 8
    refused(r"'w'.*8 coordinates or directions", models, [gram, gram], fallback="error")
    anchored = merge(models, [zero, zero], anchor=models[1], fallback="error")
    np.testing.assert_array_equal(anchored.params["w"], models[1]["w"])
    isotropic = {"w": Isotropic(0.0, (4, 3))}
    assert merge(models, [isotropic, isotropic]).fallback == 12


def network(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return DenseNetwork(
        [rng.normal(size=(5, 4)).astype(dtype), rng.normal(size=(3, 5)).astype(dtype)],
        [rng.normal(size=5).astype(dtype), rng.normal(size=3).astype(dtype)],
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_merging_check_36_precisions_of_another_model_are_refused(dtype):
    nets = [network(0, dtype), network(1, dtype)]
    x = np.random.default_rng(2).normal(size=(30, 4))
    trees = [estimate_precision(n, x) for n in nets]
    found = merge(nets, trees, method="fisher")
    assert isinstance(found.model(), DenseNetwork)
    refused("Precision 0 was estimated for other parameters.*order", nets, trees[::-1])
    merge(nets, trees[::-1], check_models=False)


def test_merging_check_36_precisions_of_torch_modules_and_of_some_parameters():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    nets = [
        torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 3))
        for _ in range(2)
    ]
    x = torch.randn(20, 4)
    trees = [estimate_precision(n.eval(), x) for n in nets]
    rules = {"<integers>": "take:0"}
    found = merge(nets, trees, sites=rules)
    assert {s.name: s.action for s in found.sites}["1.running_mean"] == "average"
    out = found.model()
    assert isinstance(out, torch.nn.Sequential)
    assert torch.equal(out[0].weight, found.params["0.weight"])
    assert not torch.equal(out[0].weight, nets[0][0].weight)
    refused("Precision 0", nets, trees[::-1], sites=rules)
    some = [estimate_precision(n, x, params=["0.weight"]) for n in nets]
    merge(nets, some, sites=rules)
    refused("Precision 0", nets, some[::-1], sites=rules)


def test_merging_check_36_units_of_two_precisions_must_agree():
    trees = [
        PrecisionTree(
            sites=as_tree(i), n_examples=4, trace_errors=dict.fromkeys(SHAPES, 0.0),
            facts={"token_normalisation": unit},
        )
        for i, unit in enumerate(("per token", "per example"))
    ]  # fmt: skip
    refused(r"differ in 'token_normalisation': per example, per token", [model(0), model(1)], trees)


def test_merging_check_36_a_damaged_precision_file_is_refused(tmp_path):
    tree = PrecisionTree(sites=as_tree(0), n_examples=4, trace_errors=dict.fromkeys(SHAPES, 0.0))
    path = tmp_path / "p.safetensors"
    tree.save(path)
    whole = path.read_bytes()
    for cut in (4, 8, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(CorruptFileError):
            PrecisionTree.load(path)
    huge = (2**60).to_bytes(8, "little") + whole[8:]
    path.write_bytes(huge)
    with pytest.raises(CorruptFileError):
        PrecisionTree.load(path)


def test_merging_check_37_integers_are_copied_or_refused_never_averaged():
    ids, other = np.arange(4), np.arange(4) + 1
    flags = np.array([True, False])
    same = [{**model(s), "ids": ids, "flags": flags} for s in (0, 1)]
    found = merge(same)
    np.testing.assert_array_equal(found.params["ids"], ids)
    assert found.params["flags"].dtype == np.bool_
    differ = [same[0], {**same[1], "ids": other}]
    refused(r"'ids' holds integers.*never averaged", differ)
    refused(r"'ids'.*never averaged", differ, sites={"ids": "average"})
    np.testing.assert_array_equal(
        merge(differ, sites={"<integers>": "take:1"}).params["ids"], other
    )
    assert "ids" not in merge(differ, sites={"<integers>": "skip"}).params
    refused(r"'ids'.*integers and floats", [same[0], {**same[1], "ids": ids.astype(float)}])
    floats = [{**model(s), "c": np.array([1j])} for s in (0, 1)]
    refused(r"'c' is of dtype complex128", floats)


def test_merging_check_38_heads_of_different_sizes_follow_the_policy():
    one, two = model(0), {**model(1), "b.weight": np.zeros((7, 4)), "b.bias": np.zeros(7)}
    refused(r"'b\.weight' has the shape \(2, 4\) in source 0, \(7, 4\)", [one, two])
    for rules, expected in (
        ({"b.*": "take:0", "b.bias": "skip"}, None),
        ({"<different>": "take"}, None),
    ):
        if "b.*" in rules:
            rules = {"b.bias": "skip", "b.*": "take:0"}
        found = merge([one, two], sites=rules)
        np.testing.assert_array_equal(found.params["b.weight"], one["b.weight"])
        assert ("b.bias" in found.params) is ("<different>" in rules)
        assert expected is None
    found = merge([one, two], sites={"b.*": "take:1"})
    np.testing.assert_array_equal(found.params["b.weight"], two["b.weight"])
    assert list(found.params) == ["a.weight", "a.bias", "b.weight", "b.bias"]
    assert "b.weight" not in merge([one, two], sites={"<different>": "skip"}).params
    refused("taken from source 5", [one, two], sites={"b.*": "take:5"})


def test_site_rules_are_read_and_written():
    policy = SitePolicy.of({"a.*": "average", "*.bias": "take:1", "<different>": "take:1"})
    assert SitePolicy.of(policy.to_dict()) == policy
    assert policy.action("a.bias") == SiteAction("average")
    found = merge([model(0), model(1)], sites={"*.bias": "take:1"})
    np.testing.assert_array_equal(found.params["a.bias"], model(1)["a.bias"])
    for bad in ("melt", "take:-1", "take:x", "average:1"):
        with pytest.raises(InvalidInputError, match="accepted"):
            SitePolicy.of({"a": bad})
    with pytest.raises(InvalidInputError, match="<different>"):
        SitePolicy.of({"<other>": "take"})
    with pytest.raises(InvalidInputError, match="mapping"):
        SitePolicy.of(["a"])


def test_tied_tensors_stay_tied():
    torch = pytest.importorskip("torch")
    models = []
    for seed in (0, 1):
        w = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
        models.append({"embed": w, "head": w, "other": w + 1})
    found = merge(models)
    assert found.params["embed"] is found.params["head"]
    assert found.params["other"] is not found.params["embed"]
    loose = merge([models[0], {k: v.clone() for k, v in models[1].items()}])
    assert torch.equal(loose.params["embed"], found.params["embed"])
    assert loose.params["embed"] is not loose.params["head"]


def test_groups_of_weight_and_bias_are_not_torn_apart():
    layout = SiteLayout(weight="a.weight", weight_shape=(4, 3), bias="a.bias", outputs="first")
    rng = np.random.default_rng(0)

    def tree(i):
        x = rng.normal(size=(9, 4))
        return PrecisionTree(
            sites={"a.weight": Gram(x.T @ x, 4), "b.weight": Diagonal(np.ones((2, 4)))},
            layouts={"a.weight": layout}, n_examples=9,
            trace_errors={"a.weight": 0.0, "b.weight": 0.0},
        )  # fmt: skip

    trees = [tree(0), tree(1)]
    models = [model(0), model(1)]
    found = merge(models, trees)
    assert found.sites[0].parameters == ("a.weight", "a.bias")
    joined = [np.concatenate([m["a.weight"], m["a.bias"][:, None]], 1) for m in models]
    A = [t["a.weight"].input_factor for t in trees]
    expected = np.linalg.solve(A[0] + A[1], (joined[0] @ A[0] + joined[1] @ A[1]).T).T
    np.testing.assert_allclose(found.params["a.weight"], expected[:, :3], rtol=1e-10)
    np.testing.assert_allclose(found.params["a.bias"], expected[:, 3], rtol=1e-10)
    refused("share a precision", models, trees, sites={"a.bias": "take:0"})
    # A diagonal of one model joins the other's group.
    mixed = merge(models, [trees[0], as_tree(1)])
    assert mixed.sites[0].parameters == ("a.weight", "a.bias")
    assert mixed.residual < 1e-12


def test_other_refusals_say_what_to_do():
    refused("at least one model", [])
    refused("sequence", model(0))
    refused("source 0 is a builtins.int|Source 0 is a builtins.int", [3, 4])
    refused("accepted: quadratic, isotropic", [model(0)], method="average")
    refused("options dropout; it takes density", [model(0)], method="ties", dropout=1)
    refused("base", [model(0)], method="ties")
    refused("needs precisions", [model(0)], method="fisher")
    refused("RegMean needs Grams", [model(0)], [as_tree(0)], method="regmean")
    refused(r"density=1\.5", [model(0)], method="ties", density=1.5, anchor=model(1))
    refused("two sources", [model(0)] * 3, method="slerp")
    refused("damping -1", [model(0)], damping=-1)
    partial = {k: v for k, v in model(1).items() if k != "a.bias"}
    refused(r"anchor has no tensor 'a\.bias'", [model(0)], anchor=partial)
    with pytest.raises(InvalidInputError, match="No source"):
        MergeProblem(sources=[])
    half = {"w": np.array([60000.0], dtype=np.float16)}
    message = refused("does not fit in float16", [half], anchor={"w": np.zeros(1)},
                      method="task_arithmetic", weights=[2.0])  # fmt: skip
    assert "float32" in message
