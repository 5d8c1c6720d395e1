"""Alignment: AUROC by counting pairs, names that hold on other data, shuffles that do not."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fishertope.core.errors import InvalidInputError
from fishertope.core.report import align, auroc
from fishertope.core.testing import tolerance


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30),
)
def test_auroc_counts_pairs(pairs: list[tuple[int, bool]]) -> None:
    scores = np.array([s for s, _ in pairs], dtype=float)
    labels = np.array([b for _, b in pairs])
    found = auroc(scores, labels)[0, 0]
    inside, outside = scores[labels], scores[~labels]
    if not len(inside) or not len(outside):
        assert np.isnan(found)
        return
    wins = np.mean(
        (inside[:, None] > outside) + 0.5 * (inside[:, None] == outside), dtype=np.float64
    )
    assert found == pytest.approx(wins, rel=tolerance("identity").relative)


def test_auroc_agrees_with_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    scores = np.round(rng.standard_normal((200, 3)), 1)
    labels = rng.random((200, 2)) < 0.3
    found = auroc(scores, labels)
    for k in range(3):
        for c in range(2):
            expected = metrics.roc_auc_score(labels[:, c], scores[:, k])
            assert found[k, c] == pytest.approx(expected, rel=tolerance("identity").relative)


def planted(seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 6, 400)
    labels = {f"class {c}": classes == c for c in range(6)}
    scores = rng.random((400, 4))
    scores[:, 0] += classes == 2
    scores[:, 1] += 0.8 * (classes == 5)
    return scores, labels


def test_planted_labels_are_found_and_noise_is_not() -> None:
    false_alarms = 0
    for seed in range(20):
        scores, labels = planted(seed)
        found = align(scores, labels, rng=np.random.default_rng(seed), n_shuffles=100)
        assert [found.labels[b] for b in found.best[:2]] == ["class 2", "class 5"]
        assert found.aligned[:2].all()
        assert found.best_auroc[0] > 0.95
        false_alarms += int(found.aligned[2:].sum())
    # 40 components of pure noise at a family-wise level of 5 % for 20 families.
    assert false_alarms <= 4


def test_alignment_ignores_the_order_of_examples_only_through_the_draw() -> None:
    scores, labels = planted(0)
    one = align(scores, labels, rng=np.random.default_rng(1), n_shuffles=5)
    two = align(scores, labels, rng=np.random.default_rng(1), n_shuffles=5)
    np.testing.assert_array_equal(one.control, two.control)
    np.testing.assert_array_equal(one.best_auroc, two.best_auroc)


def test_rare_labels_are_left_out_and_bad_ones_refused() -> None:
    scores, labels = planted(0)
    rare = np.zeros(400, dtype=bool)
    rare[:3] = True
    found = align(scores, labels | {"rare": rare}, rng=np.random.default_rng(0), n_shuffles=2)
    assert "rare" not in found.labels
    with pytest.raises(InvalidInputError, match="None of the 1 labels has 5 examples"):
        align(scores, {"rare": rare}, rng=np.random.default_rng(0))
    with pytest.raises(InvalidInputError, match=r"'x' has shape \(3,\); \(400,\) is taken"):
        align(scores, {"x": rare[:3]}, rng=np.random.default_rng(0))


def test_no_shuffles_no_claim() -> None:
    scores, labels = planted(0)
    found = align(scores, labels, rng=np.random.default_rng(0), n_shuffles=0)
    assert found.threshold == 0.5
