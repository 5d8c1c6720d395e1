"""The networks and scores that the NPEFF studies rest on, each against its definition."""

import numpy as np
import pytest

from fishertope.experiments.npeff.scores import average_precision, track

pytest.importorskip("torch")


@pytest.mark.parametrize("seed", range(3))
def test_the_compiled_network_obeys_its_rules_exactly(seed):
    import torch

    from fishertope.experiments.npeff.compiled_rules import (
        CLASSES,
        compile_rules,
        draw_rules,
        draw_sequences,
    )

    rng = np.random.default_rng(seed)
    rules = draw_rules(rng)
    tokens = draw_sequences(rules, 500, rng)
    tokens[250:, 1:] = rng.integers(1, 17, (250, 10))  # any sequence at all
    holds = np.stack([r.holds(tokens) for r in rules], axis=1)
    model = compile_rules(rules)
    with torch.no_grad():
        said = model.hidden(torch.from_numpy(tokens))[:, -len(rules) :].numpy()
        z = model(torch.from_numpy(tokens)).numpy()
    np.testing.assert_array_equal(said > 1e-3, holds)
    wanted = np.zeros((500, CLASSES))
    for j, rule in enumerate(rules):
        wanted[:, rule.label] += rule.strength * said[:, j]
    np.testing.assert_allclose(z, wanted, atol=1e-12)
    plain = [j for j, r in enumerate(rules) if r.kind != "twice"]
    np.testing.assert_allclose(said[:, plain], holds[:, plain], atol=2e-3)
    assert (holds.mean(axis=0) > 0.05).all()


def test_programs_are_searched_completely():
    from itertools import combinations_with_replacement

    from fishertope.experiments.npeff.compiled_rules import Predicates, best_predicate

    rng = np.random.default_rng(0)
    values = rng.random((60, 5)) < 0.4
    top = rng.random(60) < 0.3
    name, holds, f1 = best_predicate(Predicates([f"p{i}" for i in range(5)], values), top)
    both = np.concatenate([values, ~values], axis=1)

    def score(mask):
        return 2 * (mask & top).sum() / max(mask.sum() + top.sum(), 1)

    best = max(
        score(both[:, i] & both[:, j]) for i, j in combinations_with_replacement(range(10), 2)
    )
    assert f1 == pytest.approx(best, rel=1e-6)
    assert score(holds) == pytest.approx(best, rel=1e-6)
    assert name


def test_two_factor_answers_are_read_where_they_are_asked_for():
    from fishertope.experiments.npeff.two_factor_network import draw_examples

    data = draw_examples(200, np.random.default_rng(0))
    tokens, codes = data.inputs("transformer"), data.inputs("perceptron")
    for i in range(200):
        task, rule = tokens[i, 1] - 1, tokens[i, 2] - 7
        assert codes[i, task] == codes[i, 6 + rule] == 1.0
        first, second = tokens[i, 3 + task] - 13, tokens[i, 9 + rule] - 15
        assert data.answers[i] == 2 * first + second
        assert codes[i, 12 + task] == 2 * first - 1
        assert data.factors[i, task]
        assert data.factors[i, 6 + rule]
        assert data.factors[i].sum() == 2


def test_average_precision_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = rng.integers(0, 6, 50).astype(float)
        labels = rng.random(50) < 0.3
        assert average_precision(scores, labels) == pytest.approx(
            metrics.average_precision_score(labels, scores), rel=1e-12
        )


def test_tracking_finds_what_was_planted_and_nothing_in_shuffles():
    rng = np.random.default_rng(0)
    labels = rng.random((600, 4)) < 0.25
    units = rng.random((600, 9))
    units[:, [2, 5, 7, 0]] += 2.0 * labels
    found = track(units, labels, rng)
    np.testing.assert_array_equal(found.unit, [2, 5, 7, 0])
    np.testing.assert_allclose(found.auroc, 1.0)
    np.testing.assert_allclose(found.precision, 1.0)
    assert abs(found.shuffled.mean() - 0.5) < 0.1
