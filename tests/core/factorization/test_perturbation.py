"""Perturbing along components: restored bits, exact directions, predicted and measured effects."""

import numpy as np
import pytest
from scipy.stats import spearmanr, wilcoxon

from fishertope.core.backend import to_numpy
from fishertope.core.errors import ConvergenceWarning, InvalidInputError
from fishertope.core.factorization import (
    LowRankNPEFF,
    component_direction,
    factorize,
    perturb,
    perturbation_report,
)
from fishertope.core.fisher import per_example_fishers
from fishertope.core.model import Bernoulli, Categorical, DenseNetwork, Gaussian, engine_for


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    net = DenseNetwork(
        [rng.normal(size=(8, 5)), rng.normal(size=(4, 8))], [rng.normal(size=8), np.zeros(4)],
        "tanh",
    )  # fmt: skip
    x = rng.normal(size=(150, 5))
    found = factorize(per_example_fishers(net, x), LowRankNPEFF(5), on_failure="return")
    return net, x, found


def test_check_23_the_move_is_the_component_and_is_undone_bit_for_bit(case):
    net, x, found = case
    engine = engine_for(net)
    theta, z = engine.theta(), engine.predict(x)
    with perturb(net, found, 2, magnitude=0.3, sign=-1) as moved:
        np.testing.assert_allclose(moved.theta() - theta, -0.3 * found.components[2], atol=1e-14)
        assert not np.array_equal(moved.predict(x), z)
    assert np.array_equal(engine.theta(), theta)
    with pytest.raises(KeyError), perturb(net, found, 2, magnitude=0.3):
        raise KeyError
    assert np.array_equal(engine.theta(), theta)
    assert np.array_equal(engine.predict(x), z)


def test_check_24_orthogonalised_directions_are_orthogonal_to_every_other_component(case):
    _, _, found = case
    for k in range(5):
        g = component_direction(found, k, direction="orthogonalised")
        assert abs(np.linalg.norm(g) - 1) <= 1e-12
        others = np.delete(found.components, k, axis=0)
        assert np.abs(others @ g).max() <= 1e-8
        order = np.random.default_rng(k).permutation(4)
        shuffled = np.insert(others[order], k, found.components[k], axis=0)
        again = component_direction(
            found.replace(components=shuffled), k, direction="orthogonalised"
        )
        np.testing.assert_allclose(again, g, atol=1e-10)


def test_near_duplicates_stay_in(case):
    _, _, found = case
    G = found.components.copy()
    G[1] = G[0] + 1e-3 * G[2]
    twin = found.replace(components=G)
    g = component_direction(twin, 0, direction="orthogonalised", max_abs_cos=0.99)
    assert abs(g @ G[0]) > 0.5
    G[1] = G[0]
    with pytest.raises(InvalidInputError, match="nothing is left"):
        component_direction(
            twin.replace(components=G), 0, direction="orthogonalised", max_abs_cos=1.1
        )


def test_check_23_no_move_no_effect_and_no_nan_warning(case):
    net, x, found = case
    report = perturbation_report(net, found, x, magnitude=0.0, n_top=10, n_baseline=20)
    assert (report.kl_top == 0).all()
    assert np.isnan(report.kl_ratio).all()
    assert (report.predicted_top == 0).all()


def test_check_23_plus_and_minus_agree_to_second_order(case):
    net, x, found = case
    gaps = []
    for epsilon in (4e-2, 2e-2, 1e-2):
        kl = perturbation_report(net, found, x, magnitude=epsilon, n_random=1).kl_top
        gaps.append((np.abs(kl[:, 0] - kl[:, 1]) / kl.mean(1)).max())
    assert gaps[0] > gaps[1] > gaps[2]


def test_check_24_prediction_is_the_measurement_at_small_moves(case):
    net, x, found = case
    report = perturbation_report(net, found, x, magnitude=1e-3, n_top=20, n_baseline=60)
    for predicted, measured in (
        (report.predicted_top, report.kl_top),
        (report.predicted_baseline, report.kl_baseline),
    ):
        np.testing.assert_allclose(measured.mean(1), predicted, rtol=0.05)
    ratio = spearmanr(report.predicted_ratio, report.kl_ratio).statistic
    assert ratio >= 0.9


def test_linear_outputs_predict_small_moves_as_second_order_does(case):
    net, x, found = case
    report = perturbation_report(net, found, x, magnitude=1e-3, n_top=20, n_baseline=60)
    for linear, predicted in (
        (report.linearised_top, report.predicted_top),
        (report.linearised_baseline, report.predicted_baseline),
    ):
        np.testing.assert_allclose(linear.mean(1), predicted, rtol=1e-3)


def test_linear_outputs_predict_certain_answers_where_second_order_cannot():
    """Outputs that are linear in θ: any move is told exactly, however certain the answers."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(40, 5))
    net = DenseNetwork([6.0 * rng.normal(size=(3, 5))], [np.zeros(3)])
    found = factorize(per_example_fishers(net, x), LowRankNPEFF(3), on_failure="return")
    report = perturbation_report(net, found, x, magnitude=3.0, n_top=8, n_baseline=20)
    np.testing.assert_allclose(report.linearised_top, report.kl_top, rtol=1e-9)
    np.testing.assert_allclose(report.linearised_baseline, report.kl_baseline, rtol=1e-9)
    np.testing.assert_allclose(report.linearised_ratio, report.kl_ratio, rtol=1e-9)
    off = np.abs(np.log(report.predicted_baseline / report.kl_baseline.mean(1)))
    assert off.max() > 0.5


def test_prediction_is_the_fisher_quadratic_form(case):
    net, x, found = case
    fishers = per_example_fishers(net, x)
    report = perturbation_report(net, found, x, components=[1], magnitude=0.01, n_top=7)
    g = found.components[1]
    form = [0.5e-4 * np.sum((fishers.block(i) @ g) ** 2) for i in report.top[0]]
    np.testing.assert_allclose(report.predicted_top[0], np.mean(form), rtol=1e-8)


def test_top_and_baseline_are_disjoint_and_the_seed_decides(case):
    net, x, found = case
    a = perturbation_report(net, found, x, magnitude=0.1, seed=1)
    b = perturbation_report(net, found, x, magnitude=0.1, seed=1)
    for k in range(5):
        assert not set(a.top[k]) & set(a.baseline[k])
        assert np.array_equal(np.sort(a.top[k]), np.sort(found.top_examples(32)[k]))
    assert np.array_equal(a.baseline, b.baseline)
    assert np.array_equal(a.kl_top, b.kl_top)


def test_automatic_magnitude_reaches_the_target(case):
    net, x, found = case
    report = perturbation_report(net, found, x, magnitude="auto", target_kl=0.05)
    np.testing.assert_allclose(report.kl_top.max(1), 0.05, rtol=0.06)


def test_check_25_components_beat_random_directions(case):
    net, x, found = case
    report = perturbation_report(net, found, x, magnitude=0.05, n_random=20)
    own = np.log(report.kl_ratio)
    control = np.log(report.random_top.mean(1) / report.random_baseline.mean(1))
    assert wilcoxon(own - control, alternative="greater").pvalue <= 0.05
    traces = per_example_fishers(net, x).traces()
    expected = [
        traces[t].mean() / traces[b].mean()
        for t, b in zip(report.top, report.baseline, strict=True)
    ]
    np.testing.assert_allclose(np.exp(control), expected, rtol=0.25)


def test_sequential_directions_take_the_others_off_in_order(case):
    _, _, found = case
    G = found.components
    for k in range(5):
        expected = G[k].copy()
        others = [j for j in range(5) if j != k]
        for j in others:
            expected -= (expected @ G[j]) * G[j]
        g = component_direction(found, k, direction="sequential")
        np.testing.assert_allclose(g, expected / np.linalg.norm(expected), atol=1e-12)
        assert abs(g @ G[others[-1]]) <= 1e-12
    near = np.abs(G @ G[0])
    bound = float(np.sort(near)[-2]) * 0.999
    left_in = int(np.argsort(near)[-2])
    g = component_direction(found, 0, direction="sequential", max_abs_cos=bound)
    without = [j for j in range(1, 5) if j != left_in]
    assert abs(g @ G[without[-1]]) <= 1e-12
    assert abs(g @ G[left_in]) > 1e-6


def test_any_vector_may_be_the_direction(case):
    net, _, found = case
    v = np.random.default_rng(3).normal(size=found.components.shape[1])
    engine = engine_for(net)
    theta = engine.theta()
    with perturb(net, found, 0, magnitude=0.2, direction=v) as moved:
        np.testing.assert_allclose(moved.theta() - theta, 0.2 * v / np.linalg.norm(v), atol=1e-14)
    assert np.array_equal(engine.theta(), theta)
    for bad in (v[:-1], 0 * v, np.full(len(v), np.nan)):
        with (
            pytest.raises(InvalidInputError, match="direction="),
            perturb(net, found, 0, magnitude=0.2, direction=bad),
        ):
            pass


def test_accuracies_when_labels_are_given(case):
    net, x, found = case
    labels = engine_for(net).predict(x).argmax(1)
    report = perturbation_report(net, found, x, magnitude=1e-9, labels=labels)
    assert (report.accuracy_top == 1).all()
    assert (report.accuracy_baseline == 1).all()
    assert perturbation_report(net, found, x, magnitude=0.1).accuracy_top is None


@pytest.mark.parametrize("n_classes", [2, 3])
def test_accuracy_of_a_scikit_learn_classifier_is_its_own_score(n_classes):
    pytest.importorskip("sklearn")
    from sklearn.neural_network import MLPClassifier

    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 3))
    y = np.digitize(x[:, 0] + rng.normal(size=80), [0.0, 1.0][: n_classes - 1])
    model = MLPClassifier((6,), solver="lbfgs", alpha=0.1, max_iter=2000).fit(x, y)
    found = factorize(per_example_fishers(model, x), LowRankNPEFF(2), on_failure="return")
    report = perturbation_report(model, found, x, magnitude=0.0, labels=y, n_top=20)
    for k in range(2):
        for examples, accuracy in (
            (report.top[k], report.accuracy_top[k]),
            (report.baseline[k], report.accuracy_baseline[k]),
        ):
            np.testing.assert_allclose(accuracy, model.score(x[examples], y[examples]))
    moved = perturbation_report(model, found, x, magnitude=0.5, labels=y, n_top=20)
    with perturb(model, found, 1, magnitude=0.5, sign=-1):
        score = model.score(x[moved.top[1]], y[moved.top[1]])
    np.testing.assert_allclose(moved.accuracy_top[1, 1], score)


@pytest.mark.parametrize("output", [Categorical(), Bernoulli(), Gaussian()])
def test_the_centroid_climbs_the_likeliest_answer(case, output):
    net, x, found = case
    engine = engine_for(net, output=output)
    z = engine.predict(x)
    top = found.top_examples(12)[0]
    answer = output.mode(z)[top]
    gradient, h = np.zeros(engine.n_parameters), 1e-5
    for j in range(engine.n_parameters):
        step = h * np.eye(engine.n_parameters)[j]
        for sign in (+1, -1):
            with engine.patch(sign * step):
                gradient[j] += sign * output.log_prob(engine.predict(x[top]), answer).mean()
    gradient /= 2 * h
    report = perturbation_report(
        engine, found, x, components=0, magnitude=0.2, n_top=12, n_random=0
    )
    assert report.random_top.shape == (1, 0)
    if output.name == "gaussian":
        assert np.abs(gradient).max() <= 1e-9
        assert report.centroid_top == 0
        return
    effects = []
    for sign in (+1, -1):
        with engine.patch(sign * 0.2 * gradient / np.linalg.norm(gradient)):
            kl = output.kl(engine.predict(x), z)
        effects.append((kl[top].mean(), kl[report.baseline[0]].mean()))
    expected = max(effects, key=lambda pair: pair[0] / pair[1])
    np.testing.assert_allclose(
        (report.centroid_top[0], report.centroid_baseline[0]), expected, rtol=1e-6
    )


def test_float32_networks_keep_small_effects(case):
    net, x, _ = case
    single = DenseNetwork(
        [W.astype(np.float32) for W in net.weights], [b.astype(np.float32) for b in net.biases],
        net.activation,
    )  # fmt: skip
    fishers = per_example_fishers(single, x)
    found = factorize(fishers, LowRankNPEFF(3, tol=1e-3), on_failure="return")
    report = perturbation_report(single, found, x, magnitude=1e-3, n_top=20)
    np.testing.assert_allclose(report.kl_top.mean(1), report.predicted_top, rtol=0.05)
    np.testing.assert_allclose(report.kl_baseline.mean(1), report.predicted_baseline, rtol=0.05)


def test_check_25_random_directions_move_examples_by_the_trace_of_their_fishers(case):
    net, x, found = case
    epsilon, p = 1e-3, found.components.shape[1]
    report = perturbation_report(net, found, x, components=0, magnitude=epsilon, n_random=400)
    traces = per_example_fishers(net, x).traces()
    for measured, examples in (
        (report.random_top[0], report.top[0]),
        (report.random_baseline[0], report.baseline[0]),
    ):
        expected = epsilon**2 / (2 * p) * traces[examples].mean()
        assert abs(measured.mean() - expected) <= 4 * measured.std() / np.sqrt(400)


def test_an_unreachable_target_is_told(case):
    net, x, found = case
    with pytest.warns(ConvergenceWarning, match="mean top KL of 1e"):
        perturbation_report(net, found, x, components=0, target_kl=1e9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"components": [99]}, "0 to 4"),
        ({"components": -1}, "0 to 4"),
        ({"components": [0.5]}, "0 to 4"),
        ({"components": []}, "leave it out"),
        ({"magnitude": "large"}, "'auto' is accepted"),
        ({"magnitude": -1.0}, "'auto' is accepted"),
        ({"magnitude": float("nan")}, "'auto' is accepted"),
        ({"target_kl": 0.0}, "target_kl"),
        ({"n_top": 0}, "n_top=0"),
        ({"n_baseline": 0}, "n_baseline=0"),
        ({"n_random": -1}, "n_random=-1"),
        ({"labels": [0] * 3}, "labels of shape"),
        ({"labels": [0.5] * 150}, "whole numbers"),
    ],
)
def test_bad_reports_are_named(case, options, words):
    net, x, found = case
    with pytest.raises(InvalidInputError, match=words):
        perturbation_report(net, found, x, **options)


def test_gaussian_outputs_have_no_accuracy(case):
    net, x, found = case
    engine = engine_for(net, output=Gaussian())
    with pytest.raises(InvalidInputError, match="not classes"):
        perturbation_report(engine, found, x, magnitude=0.1, labels=[0] * 150)


def test_a_torch_module_is_moved_and_restored(case):
    torch = pytest.importorskip("torch")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
        x = torch.randn(60, 4)
    fishers = per_example_fishers(module, x)
    found = factorize(fishers, LowRankNPEFF(3, tol=1e-2), on_failure="return")
    assert isinstance(found.components, torch.Tensor)
    before = [p.detach().clone() for p in module.parameters()]
    with perturb(module, found, 0, magnitude=0.5):
        flat = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
        start = torch.cat([p.reshape(-1) for p in before])
        np.testing.assert_allclose(
            to_numpy(flat - start), 0.5 * to_numpy(found.components[0]), atol=1e-6
        )
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))
    report = perturbation_report(module, found, x, magnitude=0.1)
    assert np.isfinite(report.kl_ratio).all()


@pytest.mark.parametrize(
    ("component", "options", "words"),
    [
        (5, {}, "0 to 4"),
        (0, {"magnitude": -1.0}, "magnitude"),
        (0, {"magnitude": float("nan")}, "magnitude"),
        (0, {"sign": 2}, "sign"),
        (0, {"direction": "sideways"}, "component, sequential, orthogonalised"),
    ],
)
def test_bad_requests_are_named(case, component, options, words):
    net, _, found = case
    with (
        pytest.raises(InvalidInputError, match=words),
        perturb(net, found, component, **({"magnitude": 0.1} | options)),
    ):
        pass


def test_components_of_another_model_are_refused(case):
    _, x, found = case
    other = DenseNetwork([np.ones((4, 5))], [np.zeros(4)])
    with pytest.raises(InvalidInputError, match="belong"), perturb(other, found, 0, magnitude=1.0):
        pass
    with pytest.raises(InvalidInputError, match="3 inputs"):
        perturbation_report(other, found, x[:3])
