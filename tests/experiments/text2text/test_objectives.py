"""Noise masks and objectives against published lengths, counts and their inverse."""

from collections import Counter

import numpy as np
import pytest
from scipy import stats

from fishertope.core.errors import InvalidInputError
from fishertope.experiments.text2text import (
    ByteVocabulary,
    denoise,
    random_spans_lengths,
    reconstruct,
)
from fishertope.experiments.text2text.objectives import random_spans_mask, replace_runs

VOCABULARY = ByteVocabulary()
SENTENCE = np.array(VOCABULARY.encode("Thank you for inviting me to your party last week ."))


@pytest.mark.parametrize(
    ("inputs", "density", "mean", "expected"),
    [
        (512, 0.15, 2, (552, 126)),
        (512, 0.15, 3, (568, 114)),
        (512, 0.15, 5, (581, 105)),
        (512, 0.15, 10, (591, 99)),
        (512, 0.10, 3, (548, 74)),
        (512, 0.25, 3, (614, 206)),
        (512, 0.5, 3, (766, 512)),
        (128, 0.15, 3, (141, 29)),
        (64, 0.15, 3, (70, 14)),
    ],
)
def test_f1_04_lengths(inputs, density, mean, expected):
    assert random_spans_lengths(inputs, density, mean) == expected


def test_f1_04_span_counts():
    rng = np.random.default_rng(0)
    for n in (2, 3, 17, 100, 568):
        for density, mean in ((0.15, 3.0), (0.5, 2.0), (0.1, 10.0)):
            mask = random_spans_mask(n, density, mean, rng)
            noise = min(max(round(n * density), 1), n - 1)
            starts = int((mask & ~np.append(False, mask[:-1])).sum())
            assert len(mask) == n
            assert mask.sum() == noise
            assert starts == min(max(round(noise / mean), 1), n - noise)
            assert not mask[0]
            assert mask[-1]


def test_f1_04_every_composition_is_equally_likely():
    rng = np.random.default_rng(1)
    counts = Counter(random_spans_mask(6, 0.5, 1.5, rng).tobytes() for _ in range(4000))
    assert len(counts) == 4  # 3 noise and 3 kept tokens in 2 runs each: 2 times 2 ways
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.parametrize("closing", [False, True])
@pytest.mark.parametrize("objective", ["span_corruption", "replace_spans"])
def test_f1_05_inverse(objective, closing):
    rng = np.random.default_rng(2)
    seen = set()
    for _ in range(300):
        raw = rng.integers(3, 259, rng.integers(4, 60))
        halves = denoise(raw, objective, VOCABULARY, rng, density=0.3, closing_sentinel=closing)
        assert np.array_equal(reconstruct(*halves, VOCABULARY), raw)
        seen.add((bool(halves[0][0] >= 259), bool(halves[0][-1] >= 259)))
        if objective == "span_corruption":
            spans = int((halves[0] >= 259).sum())
            assert sum(map(len, halves)) == len(raw) + 2 * spans + closing
    assert len(seen) == (4 if objective == "replace_spans" else 1)


def test_f1_05_more_runs_than_sentinels_are_refused():
    alternate = np.arange(402) % 2 == 0
    with pytest.raises(InvalidInputError, match="sentinel 200 of a vocabulary with 100"):
        replace_runs(np.full(402, 7), alternate, VOCABULARY)


def test_f1_06_shapes_of_the_objectives():
    rng = np.random.default_rng(3)
    first, n = VOCABULARY.sentinel(0), len(SENTENCE)
    inputs, targets = denoise(SENTENCE, "prefix_lm", VOCABULARY, rng)
    assert np.array_equal(np.concatenate([inputs, targets]), SENTENCE)
    inputs, targets = denoise(SENTENCE, "deshuffling", VOCABULARY, rng)
    assert np.array_equal(np.sort(inputs), np.sort(SENTENCE))
    assert np.array_equal(targets, SENTENCE)
    inputs, targets = denoise(SENTENCE, "mass_style", VOCABULARY, rng)
    assert np.array_equal(targets, SENTENCE)
    assert ((inputs == SENTENCE) | (inputs == first)).all()
    assert 0 < (inputs == first).sum() < n
    inputs, targets = denoise(SENTENCE, "drop_tokens", VOCABULARY, rng)
    assert len(inputs) + len(targets) == n
    inputs, targets = denoise(np.full(20_000, 300 - 50), "bert_style", VOCABULARY, rng)
    changed = inputs != 250
    assert abs(changed.mean() - 0.15) < 0.015
    assert abs((inputs[changed] != first).mean() - 0.1) < 0.03
    assert (inputs <= first).all()


def test_f1_06_the_figure_of_the_paper():
    words = np.arange(10, 21)  # Thank you for inviting me to your party last week .
    mask = np.isin(np.arange(11), [2, 3, 8])
    x, y = VOCABULARY.sentinel(0), VOCABULARY.sentinel(1)
    inputs = replace_runs(words, mask, VOCABULARY)
    assert inputs.tolist() == [10, 11, x, 14, 15, 16, 17, y, 19, 20]
    z = VOCABULARY.sentinel(2)
    assert replace_runs(words, ~mask, VOCABULARY).tolist() == [x, 12, 13, y, 18, z]


def test_bytes_survive_a_round_trip():
    text = "Thaïs – ok"
    assert VOCABULARY.decode([*VOCABULARY.encode(text), 1, 40]) == text
    assert VOCABULARY.decode([VOCABULARY.sentinel(0), 3 + 65]) == "<extra_id_0>A"
