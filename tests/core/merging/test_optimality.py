"""Checks 14, 15 and 17 to 22 of the merging specification: is it the optimum, and how well."""

import warnings

import numpy as np
import pytest

from fishertope.core.errors import ConvergenceWarning, InvalidInputError, SolveFailedError
from fishertope.core.fisher.structures import (
    DenseBlock,
    Diagonal,
    Gram,
    Kronecker,
)
from fishertope.core.merging import PCG, Anchor, Cvxpy, MergeProblem, merge, solve

from .families import KINDS, dense_answer, mean, model, pair, precision, spd

SHAPE = (4, 3)


def agree(a, b, bound):
    assert np.abs(a - b).max() <= bound * np.abs(b).max()


def dense_twin(trees):
    return [{"w": DenseBlock(t["w"].to_dense(), SHAPE)} for t in trees]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [2, 3])
def test_merging_check_14_every_structure_equals_its_dense_matrix(kind, n):
    models, trees = pair(kind, n=n)
    lam = [0.5, 0.2, 0.3][:n]
    found = merge(models, trees, weights=lam)
    twin = merge(models, dense_twin(trees), weights=lam)
    bound = 1e-8 if kind == "implicit" else 1e-11
    agree(found.params["w"], twin.params["w"], bound * max(1.0, twin.condition / 100))
    by_hand = dense_answer(models, trees, lam, mean(models, lam))
    agree(found.params["w"], by_hand, bound * max(1.0, twin.condition / 100))


def test_merging_check_14_gram_is_kronecker_with_the_unit_is_dense():
    rng = np.random.default_rng(3)
    models, A = [model(s, {"w": SHAPE}) for s in (0, 1)], [spd(rng, 3), spd(rng, 3)]
    grams = merge(models, [{"w": Gram(a, 4)} for a in A])
    krons = merge(models, [{"w": Kronecker(np.eye(4), a)} for a in A])
    dense = merge(models, [{"w": DenseBlock(np.kron(np.eye(4), a), SHAPE)} for a in A])
    agree(grams.params["w"], dense.params["w"], 1e-12)
    agree(krons.params["w"], dense.params["w"], 1e-12)
    assert [f.sites[0].solver for f in (grams, krons, dense)] == [
        "cholesky", "kronecker", "cholesky",
    ]  # fmt: skip


@pytest.mark.parametrize("solver", ["cholesky", "pcg", "auto"])
def test_merging_check_14_mixed_structures_over_one_site(solver):
    models = [model(s, {"w": SHAPE}) for s in range(4)]
    kinds = ("diagonal", "kronecker", "lowrank+diagonal", "ekfac")
    trees = [{"w": precision(k, SHAPE, 50 + i)} for i, k in enumerate(kinds)]
    lam = [0.1, 0.4, 0.2, 0.3]
    found = merge(models, trees, weights=lam, solver=solver, damping=0.01)
    by_hand = dense_answer(models, trees, lam, mean(models, lam), extra=0.01)
    agree(found.params["w"], by_hand, 1e-9)


def test_merging_check_15_two_regressions_merge_to_pooled_least_squares():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=5)
    sigma = (0.5, 2.0)
    models, trees, rows, values = [], [], [], []
    for s in sigma:
        X = rng.normal(size=(40, 5))
        y = X @ truth + s * rng.normal(size=40)
        models.append({"w": np.linalg.lstsq(X, y, rcond=None)[0]})
        # The Fisher of 40 observations with noise σ.
        trees.append({"w": DenseBlock(X.T @ X / s**2, (5,))})
        rows.append(X / s)
        values.append(y / s)
    pooled = np.linalg.lstsq(np.concatenate(rows), np.concatenate(values), rcond=None)[0]
    found = merge(models, trees, weights=[1.0, 1.0])
    agree(found.params["w"], pooled, 1e-10)
    diagonal = merge(models, [{"w": np.diag(t["w"].matrix).copy()} for t in trees])
    assert np.abs(diagonal.params["w"] - pooled).max() > 1e-4


def test_merging_check_15_one_hidden_unit_to_second_order():
    # y = v tanh(w x) with known noise: near the optima the merge is the pooled fit up to O(h²).
    rng = np.random.default_rng(1)
    x = rng.uniform(-2, 2, 400)

    def fit(y, start=(0.9, 1.1)):
        t = np.array(start)
        for _ in range(60):
            a = np.tanh(t[0] * x)
            J = np.stack([t[1] * (1 - a**2) * x, a], 1)
            t = t + np.linalg.lstsq(J, y - t[1] * a, rcond=None)[0]
        a = np.tanh(t[0] * x)
        J = np.stack([t[1] * (1 - a**2) * x, a], 1)
        return t, J.T @ J

    noise = [rng.normal(size=400) for _ in range(2)]
    gaps = []
    for h in (0.1, 0.05):
        ys = [np.tanh(x) + h * e for e in noise]
        fits = [fit(y) for y in ys]
        pooled, _ = fit((ys[0] + ys[1]) / 2)
        found = merge([{"w": t} for t, _ in fits], [{"w": DenseBlock(F, (2,))} for _, F in fits])
        gaps.append(np.abs(found.params["w"] - pooled).max())
    assert gaps[1] < 0.35 * gaps[0]  # halving the noise quarters the gap


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("anchored", [False, True])
def test_merging_check_17_the_gradient_of_an_independent_q_vanishes(kind, anchored):
    torch = pytest.importorskip("torch")
    models, trees = pair(kind, n=3, seed=2)
    lam = [0.5, 0.2, 0.3]
    base = model(99, {"w": SHAPE})
    anchor = Anchor(base, 0.2) if anchored else None
    problem = MergeProblem(sources=models, precisions=trees, weights=lam, anchor=anchor)
    found = solve(problem)
    dense = [torch.from_numpy(np.array(t["w"].to_dense())) for t in trees]
    theta = torch.from_numpy(np.array(found.params["w"])).requires_grad_()
    total, scale = torch.zeros(()), 0.0
    for w, m, P in zip(lam, models, dense, strict=True):
        gap = (theta - torch.from_numpy(m["w"])).reshape(-1)
        total = total + w * gap @ P @ gap
        scale += float((w * P @ torch.from_numpy(m["w"]).reshape(-1)).norm())
    if anchored:
        gap = theta - torch.from_numpy(base["w"])
        total = total + 0.2 * (gap * gap).sum()
    total.backward()
    assert float(theta.grad.norm()) <= 1e-10 * scale * (50 if kind == "implicit" else 1)
    assert np.isclose(total.item(), problem.objective(found.params), rtol=1e-10)
    assert np.isclose(total.item(), found.objective, rtol=1e-10)
    own = problem.gradient(found.params)["w"]
    agree(own + 1.0, theta.grad.numpy() + 1.0, 1e-9)


def test_merging_check_17_in_float32():
    models, trees = pair("kronecker", n=2, seed=2)
    small = [{"w": m["w"].astype(np.float32)} for m in models]
    problem = MergeProblem(
        sources=small, precisions=[{"w": t["w"].astype("float32")} for t in trees]
    )
    found = solve(problem)
    assert found.params["w"].dtype == np.float32
    scale = sum(
        np.linalg.norm(0.5 * t["w"].apply(m["w"])) for t, m in zip(trees, models, strict=True)
    )
    assert np.linalg.norm(problem.gradient(found.params)["w"]) <= 1e-5 * scale


@pytest.mark.parametrize("solver", ["CLARABEL", "SCS"])
@pytest.mark.parametrize("kind", ["dense", "kronecker", "lowrank+diagonal"])
def test_merging_check_18_cvxpy_finds_the_same_optimum(kind, solver):
    models, trees = pair(kind, n=2, shape=(5, 4), seed=4)
    problem = MergeProblem(sources=models, precisions=trees, weights=[0.4, 0.6])
    ours, theirs = solve(problem), solve(problem, Cvxpy(solver=solver))
    agree(theirs.params["w"], ours.params["w"], 1e-6)
    assert np.isclose(theirs.objective, ours.objective, rtol=1e-9)


def test_merging_check_18_cvxpy_at_two_hundred_parameters():
    models, trees = pair("kronecker", n=3, shape=(20, 10), seed=4)
    trees = [{"w": t["w"].damped(0.05)} for t in trees]
    problem = MergeProblem(sources=models, precisions=trees)
    ours, theirs = solve(problem), solve(problem, "cvxpy")
    agree(theirs.params["w"], ours.params["w"], 1e-6)
    assert np.isclose(theirs.objective, ours.objective, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_merging_check_19_no_neighbour_is_better(kind):
    models, trees = pair(kind, n=3, seed=6)
    problem = MergeProblem(sources=models, precisions=trees, weights=[0.5, 0.2, 0.3])
    found = solve(problem)
    best = problem.objective(found.params)
    rng = np.random.default_rng(0)
    for k in range(100):
        h = rng.normal(size=SHAPE) * 10.0 ** -(k % 7)
        assert problem.objective({"w": found.params["w"] + h}) >= best * (1 - 1e-12)


def test_merging_check_20_the_reported_residual_is_the_recomputed_one():
    models, trees = pair("sum", n=3, shape=(6, 5), seed=8)
    problem = MergeProblem(sources=models, precisions=trees)
    found = solve(problem, PCG(tol=1e-6))
    total = sum(t["w"].to_dense() for t in trees) / 3
    c = mean(models, [1, 1, 1])
    right = sum(
        t["w"].to_dense() @ (m["w"] - c).ravel() for t, m in zip(trees, models, strict=True)
    )
    rest = total @ (found.params["w"] - c).ravel() - right / 3
    assert np.isclose(found.residual, np.linalg.norm(rest) / np.linalg.norm(right / 3), rtol=1e-6)
    assert found.residual <= 1e-6
    assert found.sites[0].steps > 1
    assert found.converged


def test_merging_check_20_a_cap_is_an_error_unless_it_was_asked_for():
    models, trees = pair("sum", n=3, shape=(6, 5), seed=8)
    problem = MergeProblem(sources=models, precisions=trees)
    with pytest.raises(SolveFailedError, match=r"'w'.*3 steps.*damping"):
        solve(problem, PCG(max_steps=3))
    with pytest.warns(ConvergenceWarning, match="stopped after 3 steps"):
        found = solve(problem, PCG(max_steps=3, early_stop=True))
    assert not found.converged
    assert not found.sites[0].converged
    assert found.sites[0].residual > 1e-10
    assert found.sites[0].steps == 3


@pytest.mark.parametrize("singular", [None, "first", "second"])
def test_merging_check_21_two_kronecker_models_in_closed_form(singular):
    rng = np.random.default_rng(10)
    o, i = 5, 4
    models = [model(s, {"w": (o, i)}) for s in (0, 1)]
    trees = [
        {"w": Kronecker(spd(rng, o, 2 if singular == which else None),
                        spd(rng, i, 2 if singular == which else None))}
        for which in ("first", "second")
    ]  # fmt: skip
    lam = [0.3, 0.7]
    if singular:
        trees = [{"w": t["w"].damped(1e-4, "factored")} for t in trees]
    found = merge(models, trees, weights=lam)
    assert found.sites[0].solver == "kronecker"
    total = sum(w * np.kron(t["w"].output_factor, t["w"].input_factor)
                for w, t in zip(lam, trees, strict=True))  # fmt: skip
    c = mean(models, lam)
    right = sum(
        w * np.kron(t["w"].output_factor, t["w"].input_factor) @ (m["w"] - c).ravel()
        for w, t, m in zip(lam, trees, models, strict=True)
    )
    expected = c + np.linalg.solve(total, right).reshape(o, i)
    agree(found.params["w"], expected, 1e-10)
    assert found.residual < 1e-12


def test_merging_check_21_one_singular_pair_still_has_the_closed_form():
    rng = np.random.default_rng(11)
    models = [model(s, {"w": (5, 4)}) for s in (0, 1)]
    trees = [
        {"w": Kronecker(spd(rng, 5, 2), spd(rng, 4, 2))},
        {"w": Kronecker(spd(rng, 5), spd(rng, 4))},
    ]
    found = merge(models, trees)
    assert found.sites[0].solver == "kronecker"
    agree(found.params["w"], dense_answer(models, trees, [0.5, 0.5], mean(models, [1, 1])), 1e-10)


@pytest.mark.parametrize("build", ["dense", "gram", "diagonal"])
def test_merging_check_22_a_condition_of_1e12_warns_and_reports(build):
    rng = np.random.default_rng(12)
    models = [model(s, {"w": SHAPE}) for s in (0, 1)]
    if build == "gram":
        Q = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        one = Gram(Q @ np.diag([1.0, 1e-6, 1e-12]) @ Q.T, 4)
    elif build == "dense":
        Q = np.linalg.qr(rng.normal(size=(12, 12)))[0]
        one = DenseBlock(Q @ np.diag(np.logspace(0, -12, 12)) @ Q.T, SHAPE)
    else:
        one = Diagonal(np.logspace(0, -12, 12).reshape(SHAPE))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = merge(models, [{"w": one}, {"w": one.scaled(0.5)}])
    assert np.isfinite(found.params["w"]).all()
    assert found.residual < 1e-8
    assert found.condition > 1e10
    if build != "diagonal":  # coordinates by themselves are not sensitive
        assert any(issubclass(w.category, ConvergenceWarning) for w in caught)


def test_merging_check_22_the_null_space_stays_at_the_anchor_like_the_pseudo_inverse():
    rng = np.random.default_rng(13)
    models, base = [model(s, {"w": SHAPE}) for s in (0, 1)], model(9, {"w": SHAPE})
    U = rng.normal(size=(12, 5))
    trees = [{"w": DenseBlock(U[:, :3] @ U[:, :3].T, SHAPE)}, {"w": DenseBlock(U @ U.T, SHAPE)}]
    found = merge(models, trees, anchor=base)
    expected = dense_answer(models, trees, [0.5, 0.5], base["w"])
    agree(found.params["w"], expected, 1e-9)
    null = np.linalg.svd(U.T)[2][5:]
    np.testing.assert_allclose(null @ (found.params["w"] - base["w"]).ravel(), 0, atol=1e-9)
    assert found.fallback == 7
    assert found.sites[0].solver == "pseudo-inverse"


def test_auto_says_what_it_chose_and_why():
    chosen = {}
    for kind in KINDS:
        models, trees = pair(kind, n=2)
        site = merge(models, trees).sites[0]
        assert site.why
        chosen[kind] = site.solver
    assert chosen == {
        "isotropic": "closed_form", "diagonal": "closed_form", "gram": "cholesky",
        "kronecker": "kronecker", "ekfac": "cholesky", "dense": "cholesky",
        "lowrank+diagonal": "woodbury", "implicit": "pcg", "masked": chosen["masked"],
        "sum": "cholesky",
    }  # fmt: skip
    big = [model(s, {"w": (40, 40)}) for s in range(3)]
    trees = [{"w": precision("kronecker", (40, 40), s).damped(0.1, "factored")} for s in range(3)]
    assert merge(big, trees).sites[0].solver == "pcg"


def test_one_kronecker_with_an_anchor_is_solved_in_its_eigenbasis():
    models, trees = pair("kronecker", n=1)
    base = model(5, {"w": SHAPE})
    found = merge(models, trees, anchor=Anchor(base, 0.3))
    assert found.sites[0].solver == "closed_form"
    expected = dense_answer(models, trees, [1.0], base["w"], extra=0.3)
    agree(found.params["w"], expected, 1e-12)


@pytest.mark.parametrize("mode", ["absolute", "relative_trace", "factored"])
def test_damping_modes_mean_what_they_say(mode):
    models, trees = pair("kronecker", n=2, seed=3)
    found = merge(models, trees, damping=(0.05, mode))
    damped = trees
    extra = 0.05
    if mode == "factored":
        damped, extra = [{"w": t["w"].damped(0.05, "factored")} for t in trees], 0.0
    elif mode == "relative_trace":
        extra = 0.05 * np.mean([np.trace(t["w"].to_dense()) / 12 for t in trees])
    expected = dense_answer(models, damped, [0.5, 0.5], mean(models, [1, 1]), extra=extra)
    agree(found.params["w"], expected, 1e-11)


def test_constraints_hold_and_cost():
    models, trees = pair("dense", n=2, seed=14)
    problem = MergeProblem(sources=models, precisions=trees)
    free = solve(problem)
    box = solve(problem, Cvxpy(box=(-0.5, 0.5)))
    assert np.abs(box.params["w"]).max() <= 0.5 + 1e-7
    assert box.objective > free.objective
    total = problem.system(problem.groups[0]).total
    c = mean(models, [1, 1])
    length = float(total.quad(free.params["w"] - c)) ** 0.5
    near = solve(problem, Cvxpy(trust_region=length / 2))
    assert np.isclose(float(total.quad(near.params["w"] - c)) ** 0.5, length / 2, rtol=1e-5)
    wide = solve(problem, Cvxpy(trust_region=length * 2))
    agree(wide.params["w"], free.params["w"], 1e-6)
    hull = solve(problem, Cvxpy(hull=True))
    t = np.linspace(0, 1, 2001)
    line = [problem.objective({"w": (1 - s) * models[0]["w"] + s * models[1]["w"]}) for s in t]
    assert hull.objective <= min(line) + 1e-9
    assert hull.objective >= free.objective - 1e-12


def test_a_negative_sum_is_refused():
    models, trees = pair("diagonal", n=2)
    base = model(5, {"w": SHAPE})
    with pytest.raises(InvalidInputError, match=r"'w'.*not positive.*anchor"):
        merge(models, trees, anchor=Anchor(base, 10.0, -1.0))
    _, dense = pair("dense", n=2)
    with pytest.raises(InvalidInputError, match="negative eigenvalue"):
        merge(models, dense, anchor=Anchor(base, 10.0, -1.0))


def test_solvers_refuse_what_they_cannot_take():
    models, trees = pair("ekfac", n=2)
    for solver in ("closed_form", "kronecker", "woodbury"):
        with pytest.raises(InvalidInputError, match=f"{solver}.*ekfac.*'cholesky' or 'pcg'"):
            merge(models, trees, solver=solver)
    with pytest.raises(InvalidInputError, match="accepted: auto, closed_form"):
        merge(models, trees, solver="gauss")


@pytest.mark.parametrize("kind", ["isotropic", "diagonal", "gram", "kronecker"])
def test_reference_and_numba_agree(kind):
    models, trees = pair(kind, n=3, seed=15)
    found = {b: merge(models, trees, backend=b) for b in ("reference", "numba")}
    assert [f.facts["backend"] for f in found.values()] == ["reference", "numba"]
    np.testing.assert_array_max_ulp(*(f.params["w"] for f in found.values()), maxulp=2)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "implicit"])
def test_torch_gives_what_numpy_gives(kind):
    torch = pytest.importorskip("torch")
    models, trees = pair(kind, n=2, seed=15)
    expected = merge(models, trees).params["w"]
    tensors = [{"w": torch.from_numpy(m["w"])} for m in models]
    found = merge(tensors, trees)
    assert isinstance(found.params["w"], torch.Tensor)
    assert found.facts["backend"] == "torch on cpu"
    agree(found.params["w"].numpy(), expected, 1e-11)
    back = merge(models, trees, backend="torch", device="cpu")
    assert isinstance(back.params["w"], np.ndarray)
    assert back.facts["backend"] == "torch on cpu"


def test_check_22_grams_summed_in_float32_keep_their_null_space():
    # Products in float32 leave eigenvalues of ±1e-8 where there is no data; they are no precision.
    rng = np.random.default_rng(22)
    basis = np.linalg.qr(rng.normal(size=(40, 40)))[0]
    seen = (rng.normal(size=(2, 30, 12)) @ basis[:12]).astype(np.float32)
    grams = [Gram((x.T @ x).astype(np.float64), 5) for x in seen]
    lowest = np.linalg.eigvalsh(sum(g.input_factor for g in grams))[0]
    assert lowest < 0
    models = [{"w": rng.normal(size=(5, 40))} for _ in range(2)]
    found = merge(models, [{"w": g} for g in grams])
    assert found.fallback == 5 * 28
    mean = (models[0]["w"] + models[1]["w"]) / 2
    apart = (found.params["w"] - mean) @ basis[12:].T
    np.testing.assert_allclose(apart, 0, atol=1e-4)
    exact = [x.astype(np.float64) @ basis[:12].T for x in seen]
    A = [x.T @ x for x in exact]
    W = [m["w"] @ basis[:12].T for m in models]
    right = np.linalg.solve(A[0] + A[1], (W[0] @ A[0] + W[1] @ A[1]).T).T
    np.testing.assert_allclose(found.params["w"] @ basis[:12].T, right, atol=1e-4)
