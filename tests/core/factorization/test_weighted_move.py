"""Moves along components of diagonal Fishers: the published formula, its search, modules too."""

import numpy as np
import pytest

from fishertope.core.errors import InvalidInputError
from fishertope.core.factorization import (
    DiagonalNPEFF,
    LowRankNPEFF,
    factorize,
    fisher_weighted_move,
    perturb,
    perturbation_report,
)
from fishertope.core.factorization.weighted_move import FLOOR, search_move
from fishertope.core.fisher import estimate_precision, per_example_fishers
from fishertope.core.model import DenseNetwork, engine_for


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    net = DenseNetwork(
        [rng.normal(size=(8, 5)), rng.normal(size=(4, 8))], [rng.normal(size=8), np.zeros(4)],
        "tanh",
    )  # fmt: skip
    x = rng.normal(size=(120, 5))
    fishers = per_example_fishers(net, x, kind="diagonal")
    return net, x, fishers, factorize(fishers, DiagonalNPEFF(4), on_failure="return")


def test_the_move_is_the_fisher_weighted_mean_with_the_moved_copy(case):
    net, x, fishers, found = case
    step, weight, k = 0.3, 0.2, 1
    phi = fishers.values.mean(0) / np.linalg.norm(fishers.values.mean(0))
    phi = np.maximum(phi, FLOOR)
    h = found.components[k] / np.linalg.norm(found.components[k])
    engine = engine_for(net)
    theta, top = engine.theta(), found.top_examples(16)[k]
    answer = engine.predict(x).argmax(1)[top]
    gradient = np.zeros(engine.n_parameters)
    for j in range(engine.n_parameters):
        for sign in (+1, -1):
            with engine.patch(sign * 1e-6 * np.eye(engine.n_parameters)[j]):
                loss = -engine.output.log_prob(engine.predict(x[top]), answer).sum()
            gradient[j] += sign * loss
    moved = theta - step * np.sign(gradient)
    mean = ((1 - weight) * phi * theta + weight * h * moved) / ((1 - weight) * phi + weight * h)
    move = fisher_weighted_move(
        net, found, k, x, step=step, weight=weight, precision=fishers, n_top=16
    )
    np.testing.assert_allclose(move, mean - theta, atol=1e-10)
    with perturb(net, found, k, magnitude=float(np.linalg.norm(move)), direction=move) as there:
        np.testing.assert_allclose(there.theta(), mean, atol=1e-10)
        after = engine.output.log_prob(there.predict(x[top]), answer).sum()
    assert np.array_equal(engine.theta(), theta)
    assert after > engine.output.log_prob(engine.predict(x[top]), answer).sum()


def test_the_data_sets_fisher_may_come_from_a_precision_or_from_the_factorization(case):
    net, x, fishers, found = case
    options = {"step": 0.1, "weight": 0.5, "n_top": 16}
    given = fisher_weighted_move(net, found, 0, x, precision=fishers, **options)
    tree = estimate_precision(net, x)
    np.testing.assert_allclose(
        fisher_weighted_move(net, found, 0, x, precision=tree, **options), given, rtol=1e-9
    )
    told = fisher_weighted_move(net, found, 0, x, **options)
    assert np.corrcoef(told, given)[0, 1] > 0.95
    labels = np.full(len(x), 2)
    labelled = fisher_weighted_move(net, found, 0, x, labels=labels, **options)
    assert np.array_equal(np.abs(labelled), np.abs(told))
    assert not np.array_equal(labelled, told)


def test_reports_search_for_the_effect_and_keep_the_weights(case):
    net, x, fishers, found = case
    engine = engine_for(net)
    theta = engine.theta()
    report = perturbation_report(
        net, found, x, target_kl=0.05, n_random=4, n_top=16, precision=fishers
    )
    assert np.array_equal(engine.theta(), theta)
    largest = report.kl_top.max(1)
    assert ((largest >= 0.025) & (largest <= 0.1)).all()
    assert report.moves.shape == (4, 2)
    assert (report.moves[:, 0] > 0).all()
    assert ((report.moves[:, 1] > 0.03) & (report.moves[:, 1] < 0.97)).all()
    small = perturbation_report(net, found, x, magnitude=1e-3, n_random=1, precision=fishers)
    np.testing.assert_allclose(small.magnitudes, 1e-3)
    np.testing.assert_allclose(small.kl_top.mean(1), small.predicted_top, rtol=0.05)
    assert np.median(small.kl_ratio) > np.median(small.random_ratio)


def bowl(step, weight):
    return (step * weight) ** 2


def test_the_search_alternates_and_ends_in_the_range():
    rng = np.random.default_rng(0)
    for target in ((1e-6, 4e-6), (0.01, 0.02), (3.0, 3.2)):
        step, weight, value = search_move(bowl, steps=(1e-5, 10.0), target=target, rng=rng)
        assert target[0] <= value <= target[1]
        assert value == bowl(step, weight)
    flat = search_move(lambda *a: 0.0, steps=(1e-5, 1.0), target=(1.0, 2.0), rng=rng)
    assert flat[2] == 0.0


def test_a_torch_module_with_named_inputs_is_moved_and_restored():
    torch = pytest.importorskip("torch")

    class Bag(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(12, 6)
            self.head = torch.nn.Linear(6, 3)

        def forward(self, input_ids, attention_mask):
            h = self.embedding(input_ids) * attention_mask[..., None]
            return self.head(torch.tanh(h.sum(1)))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Bag().double()
        batch = {
            "input_ids": torch.randint(12, (60, 4)),
            "attention_mask": torch.ones(60, 4, dtype=torch.float64),
        }
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for kind, method in (("diagonal", DiagonalNPEFF(3)), ("low_rank", LowRankNPEFF(3, tol=1e-2))):
        found = factorize(per_example_fishers(model, batch, kind=kind), method, on_failure="return")
        report = perturbation_report(
            model, found, batch, magnitude=1e-3, n_top=10, n_baseline=20, n_random=2
        )
        np.testing.assert_allclose(report.kl_top.mean(1), report.predicted_top, rtol=0.05)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    short = batch | {"attention_mask": batch["attention_mask"][:5]}
    with pytest.raises(InvalidInputError, match="same examples"):
        perturbation_report(model, found, short)


def test_bad_weighted_moves_are_named(case):
    net, x, _, found = case
    low = factorize(per_example_fishers(net, x), LowRankNPEFF(2), on_failure="return")
    for wrong, options, words in (
        (low, {}, "DiagonalFishers"),
        (found, {"weight": 1.0}, "weight=1.0"),
        (found, {"precision": np.ones(3)}, "PrecisionTree"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            fisher_weighted_move(net, wrong, 0, x, **({"step": 0.1} | options))
    with (
        pytest.raises(InvalidInputError, match="fisher_weighted_move"),
        perturb(net, found, 0, magnitude=0.1),
    ):
        pass
