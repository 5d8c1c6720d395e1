"""Check 13 of the merging specification: every named method against a formula of ten lines."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fishertope.core.errors import InvalidInputError
from fishertope.core.fisher.structures import Diagonal, Gram, Kronecker
from fishertope.core.merging import (
    DARE,
    DELLA,
    METHODS,
    TIES,
    WUDI,
    Anchor,
    Breadcrumbs,
    DFMerge,
    MaTS,
    ModelStock,
    RegMeanPlusPlus,
    Slerp,
    TaskArithmetic,
    WiSEFT,
    merge,
)
from fishertope.core.merging.draws import SiteDraws
from fishertope.core.merging.methods.base import SiteView
from fishertope.core.merging.statistics import CHUNK, chunks_of, kth_largest
from fishertope.core.model import DenseNetwork

from .families import SHAPES, model, spd

TOLERANCE = 1e-10
BASE, LAM = model(50), [0.5, 0.2, 0.3]
MODELS = [model(s) for s in range(3)]


def flat(params):
    return np.concatenate([np.asarray(params[n]).ravel() for n in SHAPES])


X, X0 = np.stack([flat(m) for m in MODELS]), flat(BASE)
TAU = X - X0


def tree(seed):
    rng = np.random.default_rng(seed)
    return {n: Diagonal(rng.uniform(0.1, 2, s)) for n, s in SHAPES.items()}


TREES = [tree(70 + i) for i in range(3)]
F = np.stack([np.concatenate([t[n].values.ravel() for n in SHAPES]) for t in TREES])


def check(found, expected):
    np.testing.assert_allclose(flat(found.params), expected, rtol=TOLERANCE, atol=TOLERANCE)


def by_tensor(formula):
    """The formula on the flat tensors one by one: formula(name, taus (n, d), base (d,)) → (d,)."""
    parts = []
    for n in SHAPES:
        x0 = BASE[n].ravel()
        parts.append(formula(n, np.stack([m[n].ravel() - x0 for m in MODELS]), x0))
    return np.concatenate(parts)


def test_merging_check_13_isotropic_and_soups():
    w = np.array(LAM)
    check(merge(MODELS, method="isotropic", weights=LAM), w @ X / w.sum())
    check(merge(MODELS, TREES, method="isotropic", weights=LAM), w @ X / w.sum())
    check(merge(MODELS, method="uniform_soup", weights=LAM), X.mean(0))


def test_merging_check_13_wise_ft():
    for alpha in (0.0, 0.3, 1.0):
        found = merge(MODELS[:1], anchor=BASE, method="wise_ft", alpha=alpha)
        check(found, (1 - alpha) * X0 + alpha * X[0])
    # The quadratic of two models with weights 1 − α and α.
    check(merge([BASE, MODELS[0]], weights=[0.7, 0.3]), 0.7 * X0 + 0.3 * X[0])


@pytest.mark.parametrize("alphas", [[0.3, 0.3, 0.3], [0.9, 0.8, 0.4], [0.5, -0.2, 0.1]])
def test_merging_check_13_task_arithmetic_and_its_quadratic(alphas):
    found = merge(MODELS, anchor=BASE, method="task_arithmetic", weights=alphas)
    check(found, X0 + np.array(alphas) @ TAU)
    if min(alphas) >= 0:
        # Unit precisions and an anchor of weight 1 − Σα, which may be negative.
        anchor = Anchor(BASE, 1.0, 1.0 - sum(alphas))
        check(merge(MODELS, weights=alphas, anchor=anchor), X0 + np.array(alphas) @ TAU)
    normalized = merge(MODELS, anchor=BASE, method=TaskArithmetic(normalize=True), weights=alphas)
    check(normalized, X0 + np.array(alphas) @ TAU / sum(alphas))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("floor_on", ["target", "all"])
def test_merging_check_13_fisher_with_floor_and_normalisation(normalize, floor_on):
    floor, w = 0.6, np.array(LAM)
    found = merge(MODELS, TREES, method="fisher", weights=LAM, floor=floor, floor_on=floor_on,
                  normalize=normalize)  # fmt: skip
    G = F.copy()
    for i in range(3 if floor_on == "all" else 1):
        G[i] = np.maximum(G[i], floor)
    if normalize:
        w = w / np.linalg.norm(G, axis=1)
    check(found, (w[:, None] * G * X).sum(0) / (w[:, None] * G).sum(0))
    assert sum(found.facts["raised_to_floor"]) == int(
        (F[: 3 if floor_on == "all" else 1] < floor).sum()
    )


def test_merging_check_13_ota():
    P = F**0.5 + 1e-8
    w = np.array(LAM)[:, None]
    check(merge(MODELS, TREES, method="ota", weights=LAM), (w * P * X).sum(0) / (w * P).sum(0))


@pytest.mark.parametrize("alphas", [[0.2, 0.3, 0.1], [0.5, 0.5, 0.3]])
def test_merging_check_13_uncertainty_gradient_matching(alphas):
    H0 = tree(99)
    h0 = np.concatenate([H0[n].values.ravel() for n in SHAPES])
    a = np.array(alphas)
    total = h0 + a @ F
    expected = X0 + (a[:, None] * (h0 + F) * TAU).sum(0) / total
    found = merge(
        MODELS, TREES, anchor=Anchor(BASE, H0), weights=alphas, method="gradient_matching"
    )
    check(found, expected)
    number = merge(
        MODELS, TREES, anchor=Anchor(BASE, 0.7), weights=alphas, method="gradient_matching"
    )
    check(number, X0 + (a[:, None] * (0.7 + F) * TAU).sum(0) / (0.7 + a @ F))


def test_merging_check_13_df_merge():
    a = np.array([0.6, 0.3, 0.9])
    expected = X0 + 3 * (F * a[:, None] * TAU).sum(0) / F.sum(0)
    check(merge(MODELS, TREES, anchor=BASE, weights=a, method="df_merge"), expected)
    seen = []

    def fisher_at(i, params):
        seen.append(flat(params))
        return TREES[i]

    check(merge(MODELS, anchor=BASE, weights=a, method=DFMerge(fisher_at=fisher_at)), expected)
    np.testing.assert_allclose(np.stack(seen), X0 + a[:, None] * TAU, rtol=1e-12, atol=1e-14)


def grams(seed):
    rng = np.random.default_rng(seed)
    return {n: Gram(spd(rng, s[1], 50), s[0]) for n, s in SHAPES.items() if len(s) == 2}


@pytest.mark.parametrize("a", [1.0, 0.9, 0.1, 0.0])
def test_merging_check_13_regmean(a):
    trees = [grams(i) for i in range(3)]
    found = merge(MODELS, trees, weights=LAM, method="regmean", offdiagonal=a)
    for n, s in SHAPES.items():
        if len(s) == 1:
            expected = sum(w * m[n] for w, m in zip(LAM, MODELS, strict=True)) / sum(LAM)
        else:
            G = [t[n].input_factor for t in trees]
            G = [a * g + (1 - a) * np.diag(np.diag(g)) for g in G]
            right = sum(w * m[n] @ g for w, m, g in zip(LAM, MODELS, G, strict=True))
            expected = right @ np.linalg.inv(sum(w * g for w, g in zip(LAM, G, strict=True)))
        np.testing.assert_allclose(found.params[n], expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_merging_check_13_regmean_from_kronecker_factors():
    rng = np.random.default_rng(0)
    krons = [
        {n: Kronecker(spd(rng, s[0]), g.input_factor) for n, s in SHAPES.items()
         if (g := grams(i).get(n)) is not None}
        for i in range(3)
    ]  # fmt: skip
    a = merge(MODELS, krons, method="regmean")
    b = merge(MODELS, [grams(i) for i in range(3)], method="regmean")
    np.testing.assert_allclose(flat(a.params), flat(b.params), rtol=1e-12)


def network(seed):
    rng = np.random.default_rng(seed)
    return DenseNetwork(
        [rng.normal(size=(5, 4)), rng.normal(size=(6, 5)), rng.normal(size=(3, 6))],
        [rng.normal(size=5), rng.normal(size=6), rng.normal(size=3)],
        "tanh",
    )


def test_merging_check_13_regmean_plus_plus():
    nets, rng = [network(0), network(1)], np.random.default_rng(2)
    data = [rng.normal(size=(80, 4)), rng.normal(size=(80, 4)) + 1]
    found = merge(nets, method=RegMeanPlusPlus(data=data, offdiagonal=0.8))
    inputs = [np.c_[x, np.ones(80)] for x in data]
    for k in range(3):
        G = [x.T @ x / 80 for x in inputs]
        G = [0.8 * g + 0.2 * np.diag(np.diag(g)) for g in G]
        W = [np.c_[n.weights[k], n.biases[k]] for n in nets]
        M = (W[0] @ G[0] + W[1] @ G[1]) @ np.linalg.inv(G[0] + G[1])
        np.testing.assert_allclose(
            found.params[f"layers.{k}.weight"], M[:, :-1], rtol=1e-9, atol=1e-9
        )
        np.testing.assert_allclose(found.params[f"layers.{k}.bias"], M[:, -1], rtol=1e-9, atol=1e-9)
        inputs = [np.c_[np.tanh(x @ M.T), np.ones(80)] for x in inputs]
    plain = [{f"layers.{k}.weight": g for k, g in enumerate([Gram(np.cov(x.T), 5)])} for x in data]
    assert plain
    with pytest.raises(InvalidInputError, match="0 data sets for 2"):
        merge(nets, method="regmean++")


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_merging_check_13_mats_is_conjugate_gradients(steps):
    rng = np.random.default_rng(4)
    shape = (4, 3)
    models = [{"w": m["a.weight"]} for m in MODELS]
    trees = [{"w": Kronecker(spd(rng, 4), spd(rng, 3))} for _ in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = merge(models, trees, weights=LAM, method=MaTS(iterations=steps))
    A = sum(w * t["w"].to_dense() for w, t in zip(LAM, trees, strict=True))
    b = sum(
        w * t["w"].to_dense() @ m["w"].ravel() for w, t, m in zip(LAM, trees, models, strict=True)
    )
    x = sum(w * m["w"] for w, m in zip(LAM, models, strict=True)).ravel()
    r = b - A @ x
    p = r
    for _ in range(steps):
        q = A @ p
        x, new = x + (r @ r) / (p @ q) * p, r - (r @ r) / (p @ q) * q
        p, r = new + (new @ new) / (r @ r) * p, new
    np.testing.assert_allclose(found.params["w"], x.reshape(shape), rtol=1e-9, atol=1e-10)
    assert found.sites[0].steps == steps
    ends = merge(models, trees, weights=LAM, method=MaTS(iterations=None))
    np.testing.assert_allclose(ends.params["w"], np.linalg.solve(A, b).reshape(shape), rtol=1e-9)


@pytest.mark.parametrize("initial", ["anchor", "task_arithmetic"])
def test_mats_starts_where_it_is_told(initial):
    rng = np.random.default_rng(4)
    models, base = [{"w": m["a.weight"]} for m in MODELS], {"w": BASE["a.weight"]}
    trees = [{"w": Kronecker(spd(rng, 4), spd(rng, 3))} for _ in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = merge(models, trees, anchor=base, method=MaTS(iterations=60, initial=initial))
    exact = merge(models, trees, anchor=base)
    np.testing.assert_allclose(found.params["w"], exact.params["w"], rtol=1e-7, atol=1e-8)


def wudi_loss(tau, taus):
    return sum(np.linalg.norm((tau - t) @ t.T) ** 2 / np.linalg.norm(t) ** 2 for t in taus)


def test_merging_check_13_wudi_optimum_and_its_early_stop():
    shapes = {"w": (12, 8), "b": (12,)}
    models, base = [model(s, shapes) for s in range(3)], model(9, shapes)
    taus = [m["w"] - base["w"] for m in models]
    found = merge(models, anchor=base, method="wudi")
    G = [t.T @ t / np.linalg.norm(t) ** 2 for t in taus]
    tau = sum(t @ g for t, g in zip(taus, G, strict=True)) @ np.linalg.inv(sum(G))
    np.testing.assert_allclose(found.params["w"] - base["w"], tau, rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(found.params["b"], np.mean([m["b"] for m in models], 0), rtol=1e-14)
    assert np.isclose(found.objective, wudi_loss(tau, taus), rtol=1e-10)
    # The published iteration, written again.
    early = merge(models, anchor=base, method=WUDI(iterations=40, learning_rate=1e-2))
    t, m, v = sum(taus), 0.0, 0.0
    for k in range(1, 41):
        g = sum(2 * (t - s) @ s.T @ s / np.linalg.norm(s) ** 2 for s in taus)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        t = t - 1e-2 * (m / (1 - 0.9**k)) / (np.sqrt(v / (1 - 0.999**k)) + 1e-8)
    np.testing.assert_allclose(early.params["w"] - base["w"], t, rtol=1e-8, atol=1e-9)
    assert early.objective > found.objective
    site = {s.name: s for s in early.sites}["w"]
    assert (site.solver, site.converged, site.steps) == ("adam", False, 40)


def test_merging_check_13_model_stock():
    def formula(name, tau, x0):
        unit = tau / np.linalg.norm(tau, axis=1)[:, None]
        c = max(0.0, np.mean([(unit @ unit.T)[i, j] for i in range(3) for j in range(i)]))
        t = 3 * c / (1 + 2 * c)
        return t * (x0 + tau.mean(0)) + (1 - t) * x0

    check(merge(MODELS, anchor=BASE, method="model_stock"), by_tensor(formula))


def trimmed(tau, density):
    out = np.zeros_like(tau)
    for i, row in enumerate(tau):
        k = max(int(density * row.size), 1 if density else 0)
        keep = np.argsort(-np.abs(row))[:k]
        out[i, keep] = row[keep]
    return out


@pytest.mark.parametrize("density", [0.0, 0.2, 0.5, 1.0])
def test_merging_check_13_ties(density):
    w = np.array(LAM)[:, None]

    def formula(name, tau, x0):
        d = w * trimmed(tau, density)
        agree = np.where(d.sum(0) >= 0, d > 0, d < 0)
        below = (w * agree).sum(0)
        return x0 + 0.7 * (d * agree).sum(0) / np.where(below > 0, below, 1)

    check(merge(MODELS, anchor=BASE, method=TIES(density=density, scale=0.7), weights=LAM),
          by_tensor(formula))  # fmt: skip


@pytest.mark.parametrize("elect", [None, "mass", "count"])
def test_merging_check_13_dare(elect):
    w, q = np.array(LAM)[:, None], 0.4

    def formula(name, tau, x0):
        draws = SiteDraws(7, name)
        u = np.stack([draws.uniform(i, 0, tau.shape[1]) for i in range(3)])
        d = w * tau * (u < q) / q
        if elect is None:
            return x0 + d.sum(0)
        votes = d.sum(0) if elect == "mass" else np.sign(d).sum(0)
        return x0 + np.where(np.where(votes >= 0, d > 0, d < 0), d, 0).sum(0)

    found = merge(MODELS, anchor=BASE, method=DARE(density=q, elect=elect), weights=LAM, seed=7)
    check(found, by_tensor(formula))


def test_merging_check_13_dare_is_unbiased():
    shapes = {"w": (50, 40)}
    one, base = model(1, shapes), model(0, shapes)
    draws = [
        merge([one], anchor=base, method=DARE(density=0.3), weights=[1.0], seed=s).params["w"]
        for s in range(60)
    ]
    error = np.std(draws, axis=0, ddof=1) / 60**0.5
    z = (np.mean(draws, 0) - one["w"]) / np.where(error > 0, error, 1)
    assert abs(z.mean()) < 4 / z.size**0.5
    assert 0.8 < z.std() < 1.3


def test_merging_check_13_della():
    w, q, e = np.array(LAM)[:, None], 0.5, 0.2

    def formula(name, tau, x0):
        row = SHAPES[name][-1]
        u = np.stack([SiteDraws(3, name).uniform(i, 0, tau.shape[1]) for i in range(3)])
        rank = np.abs(tau).reshape(3, -1, row).argsort(-1).argsort(-1).reshape(tau.shape)
        keep = q - e + 2 * e * rank / (row - 1)
        d = w * tau * (u < keep) / keep
        agree = np.where(d.sum(0) >= 0, d > 0, d < 0)
        below = (w * agree).sum(0)
        return x0 + (d * agree).sum(0) / np.where(below > 0, below, 1)

    found = merge(MODELS, anchor=BASE, method=DELLA(density=q, epsilon=e), weights=LAM, seed=3)
    check(found, by_tensor(formula))


def test_merging_check_13_breadcrumbs():
    w = np.array(LAM)[:, None]

    def formula(name, tau, x0):
        d = np.zeros_like(tau)
        for i, row in enumerate(tau):
            order = np.argsort(-np.abs(row))
            cut = int(0.1 * row.size)
            keep = order[cut : cut + min(row.size - cut, int(0.6 * row.size))]
            d[i, keep] = row[keep]
        return x0 + (w * d).sum(0)

    method = Breadcrumbs(density=0.6, outliers=0.1)
    check(merge(MODELS, anchor=BASE, method=method, weights=LAM), by_tensor(formula))


def test_merging_check_13_slerp():
    def formula(t):
        parts = []
        for n in SHAPES:
            a, b = MODELS[0][n].ravel(), MODELS[1][n].ravel()
            phi = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            parts.append((np.sin((1 - t) * phi) * a + np.sin(t * phi) * b) / np.sin(phi))
        return np.concatenate(parts)

    for t in (0.25, 0.5):
        check(merge(MODELS[:2], method="slerp", weights=[1 - t, t]), formula(t))
    near = [MODELS[0], {n: v * 1.001 for n, v in MODELS[0].items()}]
    check(merge(near, method="slerp", weights=[0.5, 0.5]), X[0] * 1.0005)


BLOCKWISE = [
    TaskArithmetic(scale=0.4), ModelStock(), TIES(density=0.3), TIES(density=0.3, elect="count"),
    DARE(density=0.5), DARE(density=0.5, elect="mass"), DELLA(), Breadcrumbs(density=0.7),
    Slerp(), WiSEFT(alpha=0.3),
]  # fmt: skip


@pytest.mark.parametrize("method", BLOCKWISE, ids=lambda m: m.name)
@pytest.mark.parametrize("block", [1, 7, 4096])
def test_blocks_of_any_size_give_the_same_bits(method, block):
    """What streaming relies on: block by block equals the whole, bit for bit."""
    rng = np.random.default_rng(0)
    rows, row = 13, 7
    n = {"slerp": 2, "wise_ft": 1}.get(method.name, 9)
    x, base = rng.normal(size=(n, rows * row)), rng.normal(size=rows * row)
    weights = rng.uniform(0.1, 1, n).tolist()
    stats = method.statistics(SiteView("w", (rows, row), lambda: iter([(x, base)])))
    draws = SiteDraws(5, "w")
    whole = method.block(x, base, weights, stats, draws, 0, row)
    step = row * max(1, block // row) if method.unit == "row" else block
    parts = [
        method.block(x[:, at : at + step], base[at : at + step], weights, stats, draws, at, row)
        for at in range(0, rows * row, step)
    ]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.lists(st.floats(0, 1e3, width=32), min_size=1, max_size=60), st.data())
def test_the_kth_largest_is_exact(values, data):
    k = data.draw(st.integers(1, len(values)))
    x = np.array(values)
    assert kth_largest(chunks_of(x), k) == np.sort(x)[::-1][k - 1]


def test_the_kth_largest_over_many_chunks():
    x = np.abs(np.random.default_rng(0).normal(size=3 * CHUNK + 11))
    for k in (1, 1000, len(x)):
        assert kth_largest(chunks_of(x), k) == np.sort(x)[-k]
    with pytest.raises(InvalidInputError, match="k=0"):
        kth_largest(chunks_of(x), 0)


@pytest.mark.parametrize(
    "method", [m for m in BLOCKWISE if m.name != "slerp"], ids=lambda m: m.name
)
def test_torch_and_numpy_draw_and_compute_the_same(method):
    torch = pytest.importorskip("torch")
    models = MODELS[:1] if method.name == "wise_ft" else MODELS
    expected = flat(merge(models, anchor=BASE, method=method, seed=11).params)
    tensors = [{k: torch.from_numpy(v) for k, v in m.items()} for m in models]
    base = {k: torch.from_numpy(v) for k, v in BASE.items()}
    found = merge(tensors, anchor=base, method=method, seed=11)
    np.testing.assert_allclose(flat(found.params), expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", ["ties", "dare", "della", "task_arithmetic", "fisher", "ota"])
def test_results_repeat_and_depend_on_the_seed_only_where_they_should(name):
    options = {"method": name, "anchor": BASE}
    trees = TREES if name in ("fisher", "ota") else None
    a, b, c = (flat(merge(MODELS, trees, seed=s, **options).params) for s in (1, 1, 2))
    assert a.tobytes() == b.tobytes()
    assert (a.tobytes() == c.tobytes()) is (name not in ("dare", "della"))


def test_the_list_of_methods():
    assert set(METHODS) == {
        "quadratic", "isotropic", "fisher", "regmean", "regmean++", "mats", "gradient_matching",
        "df_merge", "ota", "wudi", "uniform_soup", "wise_ft", "task_arithmetic", "model_stock",
        "ties", "dare", "della", "breadcrumbs", "slerp",
    }  # fmt: skip
