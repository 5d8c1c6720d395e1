"""Winograd schemas: the pronoun is marked, the answer is the noun phrase it stands for.

Source: Raffel et al., arXiv 1910.10683, section 2.4 and appendix B, and the released code.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fishertope.core.errors import InvalidInputError

from .formats import Example, Record

PRONOUNS = frozenset(
    ("he", "she", "it", "they", "him", "her", "them", "his", "hers", "its", "their", "theirs",
     "this", "that", "these", "those")
)  # fmt: skip
_DETERMINERS = frozenset(
    ("a", "an", "few", "her", "his", "each", "every", "many", "much", "my", "our", "some", "that",
     "the", "their", "these", "this", "those", "which", "whose", "your")
)  # fmt: skip


def mark_word(text: str, index: int, word: str, mark: str = "*") -> str:
    """Put marks around ``word``, which begins in the ``index``-th word of the text."""
    starts = [m.start() for m in re.finditer(r"\S+", text)]
    if not 0 <= index < len(starts) or not text.startswith(word, starts[index]):
        raise InvalidInputError(f"word {index} of {text!r} is not {word!r}")
    at = starts[index]
    return f"{text[:at]}{mark}{word}{mark}{text[at + len(word) :]}"


def wsc(record: Record, *, training: bool = False) -> list[Example]:
    """``wsc: … *pronoun* …`` → the referent.

    For training only records whose candidate is right are used: a wrong one does not say what
    the right one is. For evaluation the target is the candidate and ``correct`` its label.
    """
    text = mark_word(str(record["text"]), int(record["span2_index"]), str(record["span2_text"]))
    correct = int(record["label"])
    if training and correct != 1:
        return []
    return [{"inputs": f"wsc: {text}", "targets": str(record["span1_text"]), "correct": correct}]


def definite_pronoun(record: Record) -> list[Example]:
    """The same form from the set of Rahman and Ng: sentence, pronoun, candidates, label.

    The last place of the pronoun, as a whole word, is marked.
    """
    sentence, pronoun = str(record["sentence"]), str(record["pronoun"])
    places = list(re.finditer(rf"\b{re.escape(pronoun)}\b", sentence))
    if not places:
        raise InvalidInputError(f"the pronoun {pronoun!r} is not in {sentence!r}")
    at = places[-1]
    text = f"{sentence[: at.start()]}*{pronoun}*{sentence[at.end() :]}"
    referent = str(record["candidates"][int(record["label"])])
    return [{"inputs": f"wsc: {text}", "targets": referent, "correct": 1}]


def wnli(record: Record) -> list[Example]:
    """WNLI (premise ``sentence1``, hypothesis ``sentence2``) in the same form.

    Of all pronouns of the premise the one whose surroundings agree best with the hypothesis is
    marked: the hypothesis begins with words that stand before the pronoun and ends with words
    that follow it, as many as possible together. The rest of the hypothesis is the candidate. A
    record without a pronoun gives no example.
    """
    premise, hypothesis = str(record["sentence1"]).split(), str(record["sentence2"]).split()
    best: tuple[int, int, int, int] | None = None
    for at, word in enumerate(premise):
        if _bare(word) not in PRONOUNS:
            continue
        for start in range(len(hypothesis)):
            if not _same_words(premise[max(0, at - start) : at], hypothesis[:start]):
                continue
            for stop in range(start + 1, len(hypothesis) + 1):
                rest = hypothesis[stop:]
                if _same_words(premise[at + 1 : at + 1 + len(rest)], rest):
                    found = (start + len(rest), at, start, stop)
                    best = found if best is None else max(best, found)
    if best is None:
        return []
    _, at, start, stop = best
    candidate = " ".join(hypothesis[start:stop]).rstrip(".,;:!?")
    word = premise[at]
    core = re.match(r"\w+", word)
    pronoun = word if core is None else core.group()
    text = mark_word(" ".join(premise), at, pronoun)
    return [{"inputs": f"wsc: {text}", "targets": candidate, "correct": int(record["label"])}]


def _bare(word: str) -> str:
    return re.sub(r"\W", "", word).lower()


def _same_words(left: Sequence[str], right: Sequence[str]) -> bool:
    """Whether the words are the same, case and punctuation aside."""
    return [_bare(word) for word in left] == [_bare(word) for word in right]


def same_referent(prediction: str, reference: str) -> bool:
    """Whether the words of one are among the words of the other.

    Lower-cased, without determiners. A difference in apostrophes is a different referent; an
    empty prediction is none.
    """
    if ("'" in prediction) != ("'" in reference):
        return False
    guess, wanted = _content(prediction), _content(reference)
    return bool(guess) and bool(wanted) and (guess <= wanted or wanted <= guess)


def _content(text: str) -> set[str]:
    words = (re.sub(r"[^\w']", "", word) for word in text.lower().split())
    return {word for word in words if word and word not in _DETERMINERS}


def to_class(prediction: str, example: Mapping[str, Any]) -> int:
    """1 if the prediction is the candidate, else 0; −1 for an empty one."""
    if not prediction.strip():
        return -1
    return int(same_referent(prediction, str(example["targets"])))
