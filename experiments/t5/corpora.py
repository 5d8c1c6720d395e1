"""Unlabeled text for the studies, as token ids, and the vocabulary that they share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...core.errors import InvalidInputError
from ...core.storage import OutputFolder
from ..data import load_manual, load_spam, load_vader
from ..data._made import cached
from ..data.records import held_out_mask
from ..text2text.cleaning import CleaningReport, CleaningRules, clean
from ..text2text.suite import wordnet
from ..text2text.vocabulary import ByteVocabulary, SentencePieceVocabulary, Vocabulary

PIECES = 1024
SENSES_A_DOCUMENT = 50
_COMMAND = "the studies of T5"
_VERSION = 1
"""Counts up when corpora or vocabulary come to be others."""


@functools.cache
def texts(name: str, held_out: bool = False) -> tuple[str, ...]:
    """Documents of a corpus; a twentieth of its texts is held out.

    Parameters
    ----------
    name : str
        ``"wordnet"``: definitions with examples, in a random order, 50 a document;
        ``"manual"``: topics of Python's manual; ``"movie"``: sentences of film reviews (the side
        that the sentiment task is trained on), 50 a document; ``"mails"``: subjects and texts of
        e-mails as they came; ``"mails_clean"``: the same after the cleaning rules of C4.

    Raises
    ------
    InvalidInputError
        For an unknown name.
    """
    if name not in _SOURCES:
        raise InvalidInputError(f"corpus {name!r}; accepted are {', '.join(_SOURCES)}")
    found, together = _read(name)
    away = held_out_mask([text[:200] for text in found], held_out=0.05, seed=0)
    kept = [text for text, out in zip(found, away, strict=True) if bool(out) == held_out]
    order = np.random.default_rng(0).permutation(len(kept))
    shuffled = [kept[i] for i in order]
    return tuple("\n".join(shuffled[i : i + together]) for i in range(0, len(shuffled), together))


@functools.cache
def _read(name: str) -> tuple[list[str], int]:
    """Texts of a corpus, and how many of them make a document."""
    return _SOURCES[name]()


def _wordnet() -> tuple[list[str], int]:
    return [sense.text for sense in wordnet()], SENSES_A_DOCUMENT


def _manual() -> tuple[list[str], int]:
    return load_manual(), 1


def _movie() -> tuple[list[str], int]:
    return list(load_vader("movie", min_rating=0.0).train.texts), SENSES_A_DOCUMENT


def _raw_mails() -> list[str]:
    parts = load_spam(max_characters=4000)
    return [*parts.train.texts, *parts.held_out.texts]


def _mails() -> tuple[list[str], int]:
    return _raw_mails(), 1


def _clean_mails() -> tuple[list[str], int]:
    return list(clean(_raw_mails(), MAIL_RULES)), 1


MAIL_RULES = CleaningRules()
"""Those of C4; its list of bad words and its language test are not part of it."""

_SOURCES: dict[str, Callable[[], tuple[list[str], int]]] = {
    "wordnet": _wordnet,
    "manual": _manual,
    "movie": _movie,
    "mails": _mails,
    "mails_clean": _clean_mails,
}


def cleaning_counts() -> CleaningReport:
    """How much of the e-mails each rule drops."""
    report = CleaningReport()
    for _ in clean(_raw_mails(), MAIL_RULES, report):
        pass
    return report


@functools.cache
def vocabulary(kind: str) -> Vocabulary:
    """``"bytes"``, or ``"pieces"``: 924 SentencePiece pieces and 100 sentinels.

    Trained once on WordNet's texts (one of four), the manual and the film reviews, and kept in the
    cache.
    """
    if kind == "bytes":
        return ByteVocabulary()

    def fill(out: OutputFolder) -> dict[str, int]:
        lines = [*texts("wordnet")[::4], *texts("manual"), *texts("movie")]
        made = SentencePieceVocabulary.train(lines, size=PIECES)
        out.file("spiece.model").write_bytes(made.model)
        return {"size": made.size}

    name = f"t5-vocabulary-{_VERSION}"
    folder = cached(name, f"{PIECES} pieces", fill, command=_COMMAND)
    return SentencePieceVocabulary.load(folder / "spiece.model")


@functools.cache
def tokens(
    name: str, kind: str, held_out: bool = False, most: int | None = None
) -> Sequence[NDArray[np.int64]]:
    """Token ids of each document, of the first ``most`` of them."""
    words, chosen = vocabulary(kind), texts(name, held_out)[:most]
    return [np.asarray(words.encode(text), dtype=np.int64) for text in chosen]
