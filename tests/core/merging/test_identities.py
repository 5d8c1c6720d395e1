"""Checks 1 to 12 and 16 of the merging specification: what must hold whatever the numbers are."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fishertope.core.fisher.structures import DenseBlock, Diagonal, Isotropic
from fishertope.core.merging import METHODS, Anchor, MergeProblem, merge, solve

from .families import EPS, KINDS, SHAPES, mean, model, pair, precision, spd

quick = settings(deadline=None, derandomize=True, max_examples=25)
QUADRATIC = ("isotropic", "fisher", "ota", "quadratic")


def bits(params):
    return {k: np.asarray(v).tobytes() for k, v in params.items()}


def diagonal_tree(seed, shapes=SHAPES, low=0.1):
    rng = np.random.default_rng(seed)
    return {n: Diagonal(rng.uniform(low, 2, s)) for n, s in shapes.items()}


def relative(actual, expected):
    scale = max(np.abs(v).max() for v in expected.values())
    return max(np.abs(actual[k] - expected[k]).max() for k in expected) / scale


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_merging_check_01_identical_models_come_back_bit_for_bit(kind, dtype):
    one = model(0, {"w": (4, 3)}, dtype)
    one["w"][0, :2] = -0.0, 1e-7
    trees = [{"w": precision(kind, (4, 3), s)} for s in (1, 2, 3)]
    for weights in ([0.2, 0.5, 0.3], [1.0, 0.0, 2.0], [0.1, 0.1, 0.1]):
        found = merge([dict(one) for _ in range(3)], trees, weights=weights)
        assert bits(found.params) == bits(one)
    found = merge([one, one, one], trees, damping=0.3, anchor=one)
    assert bits(found.params) == bits(one)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_merging_check_01_identical_torch_models_in_every_dtype(dtype):
    torch = pytest.importorskip("torch")
    one = {"w": torch.randn(7, 5, generator=torch.Generator().manual_seed(0))}
    one = {"w": one["w"].to(getattr(torch, dtype))}
    trees = [{"w": torch.rand(7, 5) + 0.1} for _ in range(3)]
    for method, options in (
        ("fisher", {}), ("isotropic", {}), ("slerp", {}), ("task_arithmetic", {"anchor": one}),
    ):  # fmt: skip
        n = 2 if method == "slerp" else 3
        found = merge([one] * n, trees[:n], method=method, **options)
        assert found.params["w"].dtype == one["w"].dtype
        assert torch.equal(found.params["w"].view(torch.uint8), one["w"].view(torch.uint8))


@pytest.mark.parametrize("kind", KINDS)
def test_merging_check_02_one_model_comes_back_bit_for_bit(kind):
    models, trees = pair(kind, n=1)
    found = merge(models, trees, weights=[0.37])
    assert bits(found.params) == bits(models[0])


@pytest.mark.parametrize("kind", KINDS)
def test_merging_check_03_corners_give_the_model_and_never_nan(kind):
    models, trees = pair(kind, n=3)
    for k in range(3):
        found = merge(models, trees, weights=np.eye(3)[k])
        np.testing.assert_array_max_ulp(found.params["w"], models[k]["w"], maxulp=2)


def test_merging_check_03_the_nan_corner_of_the_papers_code_is_cured():
    models = [model(0, {"w": (3, 2)}), model(1, {"w": (3, 2)})]
    zeros = np.zeros((3, 2))
    some = zeros.copy()
    some[0] = 1.0
    for weights in ([0.0, 1.0], [1.0, 0.0], [0.5, 0.5]):
        for options in ({}, {"floor": 1e-6}, {"floor": 1e-6, "normalize": True}):
            trees = [{"w": some}, {"w": some}]
            found = merge(models, trees, method="fisher", weights=weights, **options)
            assert np.isfinite(found.params["w"]).all()
    found = merge(models, [{"w": some}, {"w": some}], method="fisher", weights=[0, 1], floor=1e-6)
    np.testing.assert_array_equal(found.params["w"], models[1]["w"])


@quick
@given(st.integers(0, 10**6), st.lists(st.floats(0.01, 10), min_size=2, max_size=5))
def test_merging_check_04_equal_precisions_give_the_weighted_mean(seed, weights):
    models = [model(seed + i) for i in range(len(weights))]
    tree = diagonal_tree(seed)
    found = merge(models, [tree] * len(weights), weights=weights)
    plain = {
        k: sum(w * m[k] for w, m in zip(weights, models, strict=True)) / sum(weights)
        for k in SHAPES
    }
    assert relative(found.params, plain) <= 8 * EPS * len(weights)


@quick
@given(st.integers(0, 10**6))
def test_merging_check_05_isotropic_precisions_become_weights(seed):
    rng = np.random.default_rng(seed)
    p, w = rng.uniform(0.1, 3, 3), rng.uniform(0.1, 3, 3)
    models = [model(seed + i) for i in range(3)]
    trees = [{n: Isotropic(float(v), s) for n, s in SHAPES.items()} for v in p]
    found = merge(models, trees, weights=w)
    plain = {
        k: sum(a * m[k] for a, m in zip(w * p, models, strict=True)) / (w * p).sum() for k in SHAPES
    }
    assert relative(found.params, plain) <= 8 * EPS


@pytest.mark.parametrize("kind", KINDS)
def test_merging_check_06_the_order_of_the_models_does_not_matter(kind):
    models, trees = pair(kind, n=4, seed=3)
    weights = np.array([0.4, 0.1, 0.3, 0.2])
    first = merge(models, trees, weights=weights)
    order = [2, 0, 3, 1]
    turned = [models[i] for i in order], [trees[i] for i in order]
    second = merge(*turned, weights=weights[order])
    iterative = 1e-9 if kind == "implicit" else 0.0
    bound = max(iterative, 4 * 4 * EPS * max(first.condition, 10))
    assert relative(second.params, first.params) <= bound
    options = {"deterministic": True}
    a = merge(models, trees, weights=weights, **options)
    b = merge([models[i] for i in order], [trees[i] for i in order], weights=weights[order],
              **options)  # fmt: skip
    assert bits(a.params) == bits(b.params)


@pytest.mark.parametrize("kind", KINDS)
def test_merging_check_07_common_factors_do_not_matter(kind):
    models, trees = pair(kind, n=3, seed=5)
    weights = np.array([0.5, 0.2, 0.3])
    first = merge(models, trees, weights=weights)
    tolerance = 8 * EPS * max(first.condition, 4)
    second = merge(models, trees, weights=7.3 * weights)
    assert relative(second.params, first.params) <= tolerance
    scaled = [{"w": t["w"].scaled(3.7)} for t in trees]
    third = merge(models, scaled, weights=weights)
    assert relative(third.params, first.params) <= tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_merging_check_08_translations_go_through(kind):
    models, trees = pair(kind, n=3, seed=7)
    v = np.random.default_rng(1).normal(size=(4, 3))
    first = merge(models, trees, weights=[0.5, 0.2, 0.3])
    moved = merge([{"w": m["w"] + v} for m in models], trees, weights=[0.5, 0.2, 0.3])
    bound = 40 * EPS * max(first.condition, 10)
    np.testing.assert_allclose(moved.params["w"], first.params["w"] + v, rtol=0, atol=bound)


@quick
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_merging_check_09_diagonal_merges_stay_between_the_models(seed, n):
    models = [model(seed + i) for i in range(n)]
    rng = np.random.default_rng(seed)
    trees = [
        {k: Diagonal(10.0 ** rng.uniform(-12, 6, s) * (rng.random(s) < 0.8))
         for k, s in SHAPES.items()}
        for _ in range(n)
    ]  # fmt: skip
    found = merge(models, trees, weights=rng.uniform(0, 1, n) + 1e-3)
    for k in SHAPES:
        stack = np.stack([m[k] for m in models])
        assert (found.params[k] >= stack.min(0)).all()
        assert (found.params[k] <= stack.max(0)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_merging_check_10_two_then_one_equals_three_at_once(kind):
    models, trees = pair(kind, n=3, seed=11)
    if kind == "masked":  # what no precision determines depends on the mean, which differs
        trees = [{"w": t["w"].damped(0.1)} for t in trees]
    lam = [0.5, 0.2, 0.3]
    together = merge(models, trees, weights=lam)
    first = merge(models[:2], trees[:2], weights=lam[:2])
    then = merge([first.params, models[2]], [first.precision, trees[2]], weights=[1.0, lam[2]])
    bound = 1e-12 * max(together.condition, 10)
    assert relative(then.params, together.params) <= bound
    d = np.random.default_rng(0).normal(size=(4, 3))
    np.testing.assert_allclose(
        then.precision["w"].apply(d), together.precision["w"].apply(d), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("kind", KINDS)
def test_merging_check_11_half_a_model_twice_is_the_model(kind):
    models, trees = pair(kind, n=2, seed=13)
    first = merge(models, trees, weights=[0.6, 0.4])
    again = merge(
        [models[0], models[1], models[1]], [trees[0], trees[1], trees[1]], weights=[0.6, 0.2, 0.2]
    )
    iterative = 1e-9 if kind == "implicit" else 0.0  # PCG stops at a residual of 1e-10
    bound = max(iterative, 20 * EPS * max(first.condition, 10))
    assert relative(again.params, first.params) <= bound


def test_merging_check_12_the_target_floor_is_an_anchor_at_the_target():
    rng = np.random.default_rng(2)
    models = [model(s) for s in (20, 21)]
    floor, lam = 1e-3, [0.3, 0.7]
    trees = [
        {k: Diagonal(10.0 ** rng.uniform(-8, 0, s)) for k, s in SHAPES.items()} for _ in range(2)
    ]
    floored = merge(models, trees, method="fisher", weights=lam, floor=floor)
    rho = {k: Diagonal(lam[0] * np.maximum(floor - trees[0][k].values, 0.0)) for k in SHAPES}
    anchored = merge(models, trees, weights=lam, anchor=Anchor(models[0], rho))
    assert relative(anchored.params, floored.params) <= 1e-15 * 10
    counted = sum(int((trees[0][k].values < floor).sum()) for k in SHAPES)
    assert floored.facts["raised_to_floor"] == [counted, 0]


def test_merging_check_16_it_is_the_normalised_product_of_the_gaussians():
    rng = np.random.default_rng(5)
    models = [{"w": rng.normal(size=2)} for _ in range(2)]
    P = [spd(rng, 2) + 0.5 * np.eye(2) for _ in range(2)]
    lam = [0.7, 1.3]
    found = merge(models, [{"w": DenseBlock(p, (2,))} for p in P], weights=lam)
    # The product of N(θ_i, (λ_i P_i)⁻¹), by hand.
    total = lam[0] * P[0] + lam[1] * P[1]
    first = lam[0] * P[0] @ models[0]["w"] + lam[1] * P[1] @ models[1]["w"]
    np.testing.assert_allclose(found.params["w"], np.linalg.solve(total, first), rtol=1e-12)
    np.testing.assert_allclose(found.precision["w"].to_dense(), total, rtol=1e-13)
    # Exact samples of that product by rejection: x ~ N(θ_1, ·) kept with the density of the other.
    cov = np.linalg.inv(lam[0] * P[0])
    x = rng.multivariate_normal(models[0]["w"], cov, size=400_000)
    gap = x - models[1]["w"]
    keep = rng.random(len(x)) < np.exp(-0.5 * np.einsum("ni,ij,nj->n", gap, lam[1] * P[1], gap))
    kept = x[keep]
    assert len(kept) > 10_000
    error = kept.std(0, ddof=1) / len(kept) ** 0.5
    assert (np.abs(kept.mean(0) - found.params["w"]) <= 4 * error).all()
    spread = np.cov(kept.T) @ total
    np.testing.assert_allclose(spread, np.eye(2), atol=6 / len(kept) ** 0.5)


def test_the_weighted_mean_is_where_nothing_is_determined():
    models = [model(0, {"w": (3, 2)}), model(1, {"w": (3, 2)})]
    zero = [{"w": Diagonal(np.zeros((3, 2)))}] * 2
    found = merge(models, zero, weights=[1.0, 3.0])
    np.testing.assert_allclose(found.params["w"], mean(models, [1, 3]), rtol=4 * EPS)
    assert found.fallback == 6
    assert found.sites[0].fallback == 6
    anchored = merge(models, zero, weights=[1.0, 3.0], anchor=models[1])
    assert bits(anchored.params) == bits(models[1])


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_names_its_paper(name):
    method = METHODS[name]
    assert method.reference.startswith(("arXiv:", "doi:"))
    assert method.reference.split(":", 1)[1] in method.__doc__ or method.reference.startswith("doi")


def test_the_problem_and_the_entry_agree():
    models, trees = pair("kronecker", n=2)
    direct = solve(MergeProblem(sources=models, precisions=trees, weights=[0.5, 0.5]))
    assert bits(direct.params) == bits(merge(models, trees).params)
