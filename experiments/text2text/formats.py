"""Records of data sets as pairs of texts, written as arXiv 1910.10683 and its code write them.

A format maps one record, a mapping of named fields, to the examples made of it: ``inputs``,
``targets`` and, where an evaluation needs them, ``references`` or a ``question`` key.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from fishertope.core.errors import InvalidInputError

Record: TypeAlias = Mapping[str, Any]
Example: TypeAlias = dict[str, Any]
Format: TypeAlias = Callable[[Record], list[Example]]
UNKNOWN = "<unk>"
_NOT_FIELDS = ("label", "idx")


def classification(task: str, labels: Sequence[str], fields: Sequence[str] | None = None) -> Format:
    """``<task> <field>: <text> <field>: <text> …`` → the word of the label.

    The fields stand in alphabetical order unless listed. Label −1 (a hidden one) gives ``<unk>``.
    """

    def make(record: Record) -> list[Example]:
        names = sorted(set(record) - set(_NOT_FIELDS)) if fields is None else fields
        parts = [task]
        for name in names:
            parts += [f"{name}:", str(_field(record, name))]
        return [{"inputs": " ".join(parts), "targets": _word(record, labels)}]

    return make


def _field(record: Record, name: str) -> Any:
    if name not in record:
        raise InvalidInputError(
            f"the record has the fields {sorted(record)}; this format needs {name!r}"
        )
    return record[name]


def _word(record: Record, labels: Sequence[str]) -> str:
    label = int(_field(record, "label"))
    if not -1 <= label < len(labels):
        raise InvalidInputError(
            f"label {label}; accepted are 0 to {len(labels) - 1} ({', '.join(labels)}), and -1 "
            "for a hidden one"
        )
    return UNKNOWN if label == -1 else labels[label]


def stsb(record: Record) -> list[Example]:
    """``stsb sentence1: … sentence2: …`` → the rating rounded to fifths, with one decimal."""
    inputs = f"stsb sentence1: {_field(record, 'sentence1')} sentence2: {record['sentence2']}"
    return [{"inputs": inputs, "targets": rounded_rating(float(_field(record, "label")))}]


def rounded_rating(rating: float) -> str:
    """``round(5 y) / 5`` with one decimal: 2.57 → "2.6"."""
    return f"{round(rating * 5) / 5:.1f}"


_TAG = re.compile(r"<[^>]*>")


def multirc(record: Record) -> list[Example]:
    """Question, answer, paragraph, in this order and without HTML; True or False.

    The example keeps the key of its question, by which answers are grouped.
    """
    parts = ["multirc"]
    for name in ("question", "answer", "paragraph"):
        text = " ".join(_TAG.sub(" ", str(_field(record, name))).split())
        parts += [f"{name}:", text]
    index = record.get("idx", {})
    key = (index.get("paragraph"), index.get("question")) if isinstance(index, Mapping) else index
    targets = _word(record, ("False", "True"))
    return [{"inputs": " ".join(parts), "targets": targets, "question": key}]


def record_entities(record: Record) -> list[Example]:
    """``record query: … entities: a, b passage: …``, one example for each answer.

    Highlights become sentences of the passage. Without answers the target is ``<unk>``. All
    examples of a record keep the same references; evaluate one of them
    (:func:`without_repeats`).
    """
    passage = re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", str(_field(record, "passage")))
    passage = re.sub(r"\n@highlight\n", ". ", passage)
    entities = ", ".join(str(e) for e in _field(record, "entities"))
    inputs = f"record query: {_field(record, 'query')} entities: {entities} passage: {passage}"
    answers = [str(a) for a in _field(record, "answers")]
    return [
        {"inputs": inputs, "targets": answer, "references": answers}
        for answer in answers or [UNKNOWN]
    ]


def without_repeats(examples: Iterable[Example]) -> list[Example]:
    """The first example of each input text."""
    first: dict[str, Example] = {}
    for example in examples:
        first.setdefault(example["inputs"], example)
    return list(first.values())


def pad_punctuation(text: str) -> str:
    """Spaces around every character that is no letter, digit or underscore; single spaces."""
    return " ".join(re.sub(r"(\W)", r" \1 ", text).split())


def squad(record: Record) -> list[Example]:
    """``question: … context: …`` with spaces around punctuation → the first answer."""
    question, context = (pad_punctuation(str(_field(record, k))) for k in ("question", "context"))
    answers = [pad_punctuation(str(a)) for a in _field(record, "answers")]
    return [
        {
            "inputs": f"question: {question} context: {context}",
            "targets": answers[0] if answers else "",
            "references": answers,
        }
    ]


def squad_without_context(record: Record) -> list[Example]:
    """``squad trivia question: …`` → the first answer; nothing to read it from."""
    example = squad({**record, "context": ""})[0]
    question = pad_punctuation(str(_field(record, "question")))
    return [{**example, "inputs": f"squad trivia question: {question}"}]


def squad_spans(record: Record) -> list[Example]:
    """As :func:`squad`, with the target ``start: i end: j`` in words of the context.

    A record whose answer is not in its context gives no example.
    """
    example = squad(record)[0]
    words = pad_punctuation(str(record["context"])).split()
    answer = example["targets"].split()
    for start in range(len(words) - len(answer) + 1 if answer else 0):
        if words[start : start + len(answer)] == answer:
            end = start + len(answer) - 1
            return [{**example, "targets": f"start: {start} end: {end}"}]
    return []


def closed_book(task: str) -> Format:
    """``<task> question: …`` → the first answer; all answers are references."""

    def make(record: Record) -> list[Example]:
        answers = [str(a) for a in _field(record, "answers")]
        if not answers:
            return []
        inputs = f"{task} question: {_field(record, 'question')}"
        return [{"inputs": inputs, "targets": answers[0], "references": answers}]

    return make


def translation(source: str, target: str) -> Format:
    """``translate <Language> to <Language>: …``; the fields are named as the languages."""

    def make(record: Record) -> list[Example]:
        inputs = f"translate {source} to {target}: {_field(record, source)}"
        return [{"inputs": inputs, "targets": str(_field(record, target))}]

    return make


def summary(text: str = "article", short: str = "highlights") -> Format:
    """``summarize: …``; the names of the two fields are given."""

    def make(record: Record) -> list[Example]:
        inputs = f"summarize: {_field(record, text)}"
        return [{"inputs": inputs, "targets": str(_field(record, short))}]

    return make


_GLUE: dict[str, tuple[tuple[str, ...], tuple[str, ...] | None]] = {
    "cola": (("unacceptable", "acceptable"), None),
    "sst2": (("negative", "positive"), None),
    "mrpc": (("not_equivalent", "equivalent"), None),
    "qqp": (("not_duplicate", "duplicate"), None),
    "mnli": (("entailment", "neutral", "contradiction"), None),
    "qnli": (("entailment", "not_entailment"), None),
    "rte": (("entailment", "not_entailment"), None),
    "boolq": (("False", "True"), None),
    "cb": (("entailment", "contradiction", "neutral"), None),
    "copa": (("choice1", "choice2"), None),
    "wic": (("False", "True"), ("sentence1", "sentence2", "word")),
}
_SAME_PREFIX = {"ax": "mnli", "axb": "rte", "axg": "rte"}
LABELS = {name: labels for name, (labels, _) in _GLUE.items()}
"""Label words of the classification tasks of GLUE and SuperGLUE, in the order of their numbers."""


def glue(task: str) -> Format:
    """The format of a task of GLUE or SuperGLUE by its short name.

    The diagnostic sets use the prefixes of their tasks: ax → mnli, axb and axg → rte.
    """
    others: dict[str, Format] = {"stsb": stsb, "multirc": multirc, "record": record_entities}
    if task in others:
        return others[task]
    prefix = _SAME_PREFIX.get(task, task)
    if prefix not in _GLUE:
        known = sorted({*_GLUE, *_SAME_PREFIX, *others})
        raise InvalidInputError(f"task {task!r}; accepted are {', '.join(known)}")
    labels, fields = _GLUE[prefix]
    return classification(prefix, labels, fields)


def to_class(labels: Sequence[str]) -> Callable[[str], int]:
    """Prediction → its number among the labels, −1 for what is no label."""
    numbers = {label: i for i, label in enumerate(labels)}

    def number(text: str) -> int:
        return numbers.get(text.strip(), -1)

    return number


def to_number(text: str) -> float:
    """Prediction → float, −1 for what is no number."""
    try:
        value = float(text)
    except ValueError:
        return -1.0
    return value if abs(value) < float("inf") else -1.0
