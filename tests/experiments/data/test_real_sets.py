"""The fetched archives themselves: what the loaders find in them."""

import numpy as np
import pytest

from fishertope.experiments.data import load_sentiment, load_spam, load_vader

SENTIMENT = {"amazon": 987, "imdb": 997, "yelp": 996}
VADER = {"tweets": 2913, "amazon": 2682, "movie": 9610, "nyt": 2062}


def whole(split):
    return [*split.train.texts, *split.held_out.texts], [
        *split.train.labels,
        *split.held_out.labels,
    ]


def checked(split, n, positive):
    texts, labels = whole(split)
    assert len(texts) == n
    assert len({" ".join(t.split()).casefold() for t in texts}) == n
    assert abs(np.mean(labels) - positive) < 0.05
    assert not set(split.train.groups) & set(split.held_out.groups)


@pytest.mark.parametrize("part", SENTIMENT)
def test_sentences_of_reviews(need_data, part):
    need_data("sentiment")
    checked(load_sentiment(part), SENTIMENT[part], 0.5)


@pytest.mark.parametrize("part", VADER)
def test_rated_snippets(need_data, part):
    need_data("vader")
    split = load_vader(part)
    texts, labels = whole(split)
    scores = np.concatenate([split.train.scores, split.held_out.scores])
    assert len(texts) == VADER[part]
    assert np.array_equal(scores > 0, labels)
    assert np.abs(scores).min() >= 0.8


@pytest.mark.slow
def test_mails(need_data):
    need_data("spam")
    checked(load_spam(), 5858, 0.32)
