"""What can be said of an example, as yes/no features: labels, answers, words, metadata.

A component is then compared with every feature (see ``enrichment``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InvalidInputError
from ..types import FloatArray, IntArray, NumpyArray

# A word: letters, with an apostrophe inside.
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
# Traits of English texts, by pattern.
_TRAITS: dict[str, str] = {
    "negation": r"\b(?:not|no|never|nothing|nobody|none|nor|neither|without|cannot)\b|n['’]t\b",
    "question mark": r"\?",
    "exclamation mark": r"!",
    "laughter or emoticon": r"\b(?:ha){2,}h?\b|\blol\b|\blmao\b|[:;=]-?[)D(P]|<3|xd\b|♥",
    "a number": r"\d",
    "first person": r"\b(?:i|me|my|mine|we|our|us)\b|\bi['’]",
    "second person": r"\b(?:you|your|yours)\b",
    "comparison": r"\b(?:than|more|less|better|worse)\b|\bas \w+ as\b",
    "but, however": r"\b(?:but|however|though|although|yet)\b",
    "@ or #": r"[@#]\w",
}
SAID = "said "
"""Begins the name of a feature that is an answer."""
NUMBERS_FEW = 12
"""Numeric metadata with at most so many values are taken as categories."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Feature:
    """A yes/no feature of every example.

    Attributes
    ----------
    name : str
        In words, as it is shown.
    kind : {"label", "answer", "word", "text", "metadata", "both"}
        "both" are two features together.
    mask : bool array (n,)
    """

    name: str
    kind: str
    mask: NumpyArray


def label_features(
    labels: Sequence[Any] | IntArray, classes: Sequence[str] | None
) -> list[Feature]:
    """One feature a class of the data's labels."""
    return [
        Feature(name=f"label: {name}", kind="label", mask=mask)
        for name, mask in _by_value(labels, classes)
    ]


def answer_features(
    predictions: Sequence[Any] | IntArray,
    classes: Sequence[str] | None,
    *,
    labels: Sequence[Any] | IntArray | None = None,
    probabilities: FloatArray | None = None,
) -> list[Feature]:
    """What the model answers, whether it is wrong, and whether it is unsure.

    Parameters
    ----------
    predictions : sequence (n,)
        Class numbers or names.
    probabilities : array (n, C), optional
        "model is sure", "unsure": the answer's probability is in the highest, the lowest quarter.
    """
    found = [
        Feature(name=f"{SAID}{name}", kind="answer", mask=mask)
        for name, mask in _by_value(predictions, classes)
    ]
    if labels is not None:
        wrong = np.asarray(labels) != np.asarray(predictions)
        found.append(Feature(name="wrong answer", kind="answer", mask=wrong))
    if probabilities is not None:
        sure = np.asarray(probabilities, dtype=np.float64).max(axis=1)
        low, high = np.quantile(sure, [0.25, 0.75])
        found.append(Feature(name="model is unsure", kind="answer", mask=sure <= low))
        found.append(Feature(name="model is sure", kind="answer", mask=sure >= high))
    return found


def text_features(
    texts: Sequence[str], *, min_count: int = 20, max_words: int = 400
) -> list[Feature]:
    """Words that at least ``min_count`` texts hold, traits of English texts, and their length.

    Examples
    --------
    >>> found = text_features(["not good", "so good!", "no"] * 4, min_count=4)
    >>> [f.name for f in found if f.mask.any() and f.kind != "word"]
    ['negation', 'exclamation mark', 'words ≤ 1', 'words ≥ 2']
    """
    words = [set(w.lower().replace("’", "'") for w in _WORD.findall(t)) for t in texts]
    counts = Counter(w for each in words for w in each)
    common = [w for w, c in counts.most_common(max_words) if c >= min_count]
    found = [
        Feature(name=f"“{w}”", kind="word", mask=np.array([w in each for each in words]))
        for w in common
    ]
    for name, pattern in _TRAITS.items():
        seen = re.compile(pattern, re.IGNORECASE)
        mask = np.array([seen.search(t) is not None for t in texts])
        found.append(Feature(name=name, kind="text", mask=mask))
    length = np.array([len(_WORD.findall(t)) for t in texts], dtype=np.float64)
    return found + _ends("words", length, "text")


def metadata_features(metadata: Mapping[str, Sequence[Any] | NumpyArray]) -> list[Feature]:
    """One feature a value of what is known of the examples; numbers by their outer quarters.

    Raises
    ------
    InvalidInputError
        Columns of different length, or numbers that are not finite.
    """
    lengths = {name: len(values) for name, values in metadata.items()}
    if len(set(lengths.values())) > 1:
        raise InvalidInputError(f"metadata of lengths {lengths} were given; one value an example.")
    found: list[Feature] = []
    for name, values in metadata.items():
        array = np.asarray(values)
        if array.dtype == bool:
            found.append(Feature(name=name, kind="metadata", mask=array))
        elif array.dtype.kind in "iuf" and len(np.unique(array)) > NUMBERS_FEW:
            if not np.isfinite(array.astype(np.float64)).all():
                raise InvalidInputError(
                    f"The metadata {name!r} hold NaN or infinite numbers; fill or drop them."
                )
            found += _ends(name, array.astype(np.float64), "metadata")
        else:
            found += [
                Feature(name=f"{name}: {value}", kind="metadata", mask=mask)
                for value, mask in _by_value(values, None)
            ]
    return found


def conjunctions(features: Sequence[Feature], answers: Sequence[Feature]) -> list[Feature]:
    """Each feature but labels and answers themselves together with each answer."""
    return [
        Feature(name=f"{f.name} + {a.name}", kind="both", mask=f.mask & a.mask)
        for f in features
        for a in answers
        if f.kind != "label" and a.name.startswith(SAID) and not f.name.startswith(SAID)
    ]


def _by_value(
    values: Sequence[Any] | NumpyArray, classes: Sequence[str] | None
) -> list[tuple[str, NumpyArray]]:
    array = np.asarray(values)
    if classes is not None and array.dtype.kind in "iu":
        return [(str(name), array == i) for i, name in enumerate(classes)]
    texts = np.array([str(v) for v in array.tolist()])
    return [(str(v), texts == v) for v in sorted(set(texts.tolist()))]


def _ends(name: str, values: FloatArray, kind: str) -> list[Feature]:
    """The lowest and the highest quarter of a number."""
    low, high = np.quantile(values, [0.25, 0.75])
    if low == high:
        return []
    return [
        Feature(name=f"{name} ≤ {low:g}", kind=kind, mask=values <= low),
        Feature(name=f"{name} ≥ {high:g}", kind=kind, mask=values >= high),
    ]
