"""Check 10 of text_to_text: metrics against scipy, scikit-learn, sacrebleu and rouge-score."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fishertope.core.errors import InvalidInputError
from fishertope.experiments.text2text import metrics

LABELS = st.lists(st.tuples(st.integers(0, 1), st.integers(-1, 1)), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(LABELS)
def test_check_10_binary_scores_equal_scikit_learn(pairs):
    from sklearn.metrics import f1_score, matthews_corrcoef

    targets, predictions = (list(side) for side in zip(*pairs, strict=True))
    filled = [p if p >= 0 else 1 - t for t, p in pairs]
    scores = metrics.f1_with_invalid(targets, predictions)
    assert scores["f1"] == pytest.approx(100 * f1_score(targets, filled, zero_division=0))
    if len(set(targets)) > 1 and len(set(filled)) > 1:
        expected = 100 * matthews_corrcoef(targets, filled)
    else:
        expected = 0.0
    assert metrics.matthews(targets, predictions)["matthews"] == pytest.approx(expected, abs=1e-9)
    right = sum(t == p for t, p in pairs)
    assert scores["accuracy"] == pytest.approx(100 * right / len(pairs))


def test_check_10_an_invalid_label_is_wrong_on_both_sides():
    assert metrics.accuracy([0, 1], [-1, -1]) == {"accuracy": 0.0}
    # (1, −1) counts as predicting 0, (0, −1) as predicting 1: one false positive, one miss.
    assert metrics.f1_with_invalid([1, 0, 1], [-1, -1, 1])["f1"] == pytest.approx(50.0)


def test_check_10_mean_class_f1_equals_scikit_learn():
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(0)
    targets, predictions = rng.integers(0, 3, 50), rng.integers(0, 3, 50)
    scores = metrics.mean_class_f1(3)(targets, predictions)
    assert scores["mean_3class_f1"] == pytest.approx(
        100 * f1_score(targets, predictions, average="macro")
    )


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_check_10_correlations_equal_scipy(seed):
    from scipy.stats import pearsonr, spearmanr

    rng = np.random.default_rng(seed)
    t, p = rng.normal(size=12).round(1), rng.normal(size=12).round(1)
    scores = metrics.correlations(t.tolist(), p.tolist())
    assert scores["pearson"] == pytest.approx(100 * pearsonr(t, p)[0])
    assert scores["spearman"] == pytest.approx(100 * spearmanr(t, p)[0])
    assert metrics.correlations([1.0, 2.0], [3.0, 3.0]) == {"pearson": 0.0, "spearman": 0.0}


def test_check_10_multirc_groups_by_question():
    targets = [("q1", 1), ("q1", 0), ("q2", 1)]
    scores = metrics.multirc(targets, [("q1", 1), ("q1", 1), ("q2", 1)])
    assert scores == {"f1": pytest.approx(80.0), "exact_match": 50.0}


def test_check_10_squad_by_hand():
    scores = metrics.squad([["The Cat!", "dog"], ["a b c d"], ["x"]], ["cat", "b c z", ""])
    # Second: 2 common words of 3 (the article is dropped) and 3: F1 = 4/6. Third: nothing.
    assert scores["exact_match"] == pytest.approx(100 / 3)
    assert scores["f1"] == pytest.approx(100 * (1 + 2 / 3 + 0) / 3)
    assert metrics.normalize_answer("  The QUICK, an Ox.") == "quick ox"
    assert metrics.exact_text(["The end."], ["end"]) == {"exact_match": 100.0}


def test_check_10_bleu_equals_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu")
    targets = ["Der Hund läuft schnell über die Wiese .", "Das ist gut ."]
    guesses = ["Der Hund rennt schnell über die Wiese .", "Das ist sehr gut ."]
    expected = sacrebleu.BLEU(smooth_method="exp", tokenize="intl").corpus_score(guesses, [targets])
    assert metrics.bleu(targets, guesses)["bleu"] == pytest.approx(expected.score)
    two = metrics.bleu([[t, g] for t, g in zip(targets, guesses, strict=True)], guesses)
    assert two["bleu"] == pytest.approx(100.0)


def test_check_10_rouge_equals_rouge_score():
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    target, guess = "the cat sat . it slept . all was well", "the cat slept . all was quiet"
    found = metrics.rouge([target], [guess])
    expected = scorer.RougeScorer(["rouge1", "rouge2", "rougeLsum"]).score(
        target.replace(" . ", " .\n"), guess.replace(" . ", " .\n")
    )
    assert found == {k: pytest.approx(100 * v.fmeasure) for k, v in expected.items()}


def test_bad_scores_are_refused():
    with pytest.raises(InvalidInputError, match="2 targets and 1 predictions"):
        metrics.accuracy([1, 2], [1])
    with pytest.raises(InvalidInputError, match="0 targets"):
        metrics.accuracy([], [])
    with pytest.raises(InvalidInputError, match="0 and 1"):
        metrics.matthews([0, 2], [0, 1])
    with pytest.raises(InvalidInputError, match="list of at least one"):
        metrics.squad(["text"], ["text"])
