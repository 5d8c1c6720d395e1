"""Tasks on real text, each in the form of one family of arXiv 1910.10683.

Records come from ``experiments.data``. A record's side is decided by its group, so that no
sentence, word or sense stands on both sides.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fishertope.core.errors import InvalidInputError
from fishertope.core.storage.atomic import parse_json
from fishertope.experiments.data import (
    Sense,
    TextSplit,
    load_sentiment,
    load_spam,
    load_translations,
    load_vader,
    load_wordnet,
)
from fishertope.experiments.data.records import held_out_mask

from . import formats, metrics
from .formats import Record
from .tasks import Source, Split, Task, TaskRegistry

OPINIONS = ("negative", "positive")
RELATIONS = ("entailment", "neutral", "contradiction")
TOPICS = {
    "act": 4, "animal": 5, "artifact": 6, "communication": 10, "food": 13, "location": 15,
    "person": 18, "plant": 20,
}  # fmt: skip
"""Fields of nouns, and WordNet's numbers of them."""
_LANGUAGES = {"de": "German", "fr": "French", "ro": "Romanian"}
SENTIMENT = ("amazon", "imdb", "yelp", "tweets", "movie", "nyt", "snippets")


def _sided(records: list[Record], groups: Sequence[str], split: Split) -> list[Record]:
    """Records of one side: a fifth is held out, half of it for validation, half for the test."""
    out = held_out_mask(groups, held_out=0.2, seed=0)
    test = held_out_mask(groups, held_out=0.5, seed=1)
    sides = {"train": ~out, "validation": out & ~test, "test": out & test}
    return [records[i] for i in np.flatnonzero(sides[split])]


def _texts(load: Any) -> Source:
    """Labelled texts: the held-out part is halved. The archive is read once."""
    once: Callable[[], TextSplit] = functools.cache(load)

    def source(split: Split) -> Iterable[Record]:
        parts = once()
        if split == "train":
            side = parts.train
        else:
            test = held_out_mask(parts.held_out.groups, held_out=0.5, seed=1)
            side = parts.held_out.take(np.flatnonzero(test if split == "test" else ~test))
        scores = side.scores
        return [
            {"sentence": text, "label": int(label)}
            | ({} if scores is None else {"score": float(scores[i])})
            for i, (text, label) in enumerate(zip(side.texts, side.labels, strict=True))
        ]

    return source


def _sentiment_source(domain: str) -> Source:
    if domain in ("amazon", "imdb", "yelp"):
        return _texts(functools.partial(load_sentiment, domain))  # type: ignore[arg-type]
    part = "amazon" if domain == "snippets" else domain
    return _texts(functools.partial(load_vader, part))  # type: ignore[arg-type]


def sentiment(domain: str) -> Task:
    """``sst2 sentence: …`` → negative or positive; one task for each of ``SENTIMENT``."""
    if domain not in SENTIMENT:
        raise InvalidInputError(f"domain={domain!r}; accepted are {', '.join(SENTIMENT)}")
    return Task(
        name=f"sentiment_{domain}", source=_sentiment_source(domain),
        format=formats.classification("sst2", OPINIONS, ("sentence",)),
        postprocess=_class(OPINIONS), metrics=(metrics.accuracy,), labels=OPINIONS,
    )  # fmt: skip


def spam() -> Task:
    """``spam sentence: …`` → ham or spam."""
    labels = ("ham", "spam")
    return Task(
        name="spam", source=_texts(functools.partial(load_spam, max_characters=200)),
        format=formats.classification("spam", labels, ("sentence",)),
        postprocess=_class(labels), metrics=(metrics.accuracy,), labels=labels,
    )  # fmt: skip


def rating(part: str = "movie") -> Task:
    """``rating sentence: …`` → the mean rating from −4 to 4, rounded to fifths, as text."""

    def make(record: Record) -> list[formats.Example]:
        text = formats.rounded_rating(float(record["score"]))
        return [{"inputs": f"rating sentence: {record['sentence']}", "targets": text}]

    return Task(
        name=f"rating_{part}",
        source=_texts(functools.partial(load_vader, part, min_rating=0.0)),  # type: ignore[arg-type]
        format=make, postprocess=lambda text, _: formats.to_number(text),
        metrics=(metrics.correlations,),
    )  # fmt: skip


def translation(code: str = "de") -> Task:
    """``translate English to German: …`` on messages of user interfaces; BLEU."""
    if code not in _LANGUAGES:
        raise InvalidInputError(f"language {code!r}; accepted are {', '.join(_LANGUAGES)}")
    language = _LANGUAGES[code]

    def source(split: Split) -> Iterable[Record]:
        pairs = load_translations(code, min_words=1)
        records: list[Record] = [{"English": a, language: b} for a, b in pairs]
        return _sided(records, [a for a, _ in pairs], split)

    return Task(
        name=f"translate_{code}", source=source, format=formats.translation("English", language),
        metrics=(metrics.bleu,),
    )  # fmt: skip


def _senses(keep: Callable[[Sequence[Sense]], list[tuple[str, Record]]]) -> Source:
    """Records that ``keep(senses)`` makes, as (group, record), by sides."""

    def source(split: Split) -> Iterable[Record]:
        pairs = keep(wordnet())
        return _sided([record for _, record in pairs], [group for group, _ in pairs], split)

    return source


def _once(pairs: Iterable[tuple[str, Record]]) -> list[tuple[str, Record]]:
    """The first record of each group."""
    first: dict[str, Record] = {}
    for group, record in pairs:
        first.setdefault(group, record)
    return list(first.items())


@functools.cache
def wordnet() -> Sequence[Sense]:
    """All senses; read once a process."""
    return load_wordnet()


def _definitions(senses: Sequence[Sense]) -> list[tuple[str, Record]]:
    return _once(
        (s.definition.lower(), {"definition": s.definition, "words": s.words})
        for s in senses
        if len(s.definition.split()) >= 4 and s.words[0].isalpha()
    )


def reverse_dictionary() -> Task:
    """``define: …`` → a word of the meaning; exact match and F1 over all of its words."""

    def make(record: Record) -> list[formats.Example]:
        words = list(record["words"])
        return [{"inputs": f"define: {record['definition']}", "targets": words[0],
                 "references": words}]  # fmt: skip

    return Task(
        name="reverse_dictionary", source=_senses(_definitions), format=make,
        target=lambda example: example["references"], metrics=(metrics.squad,),
    )  # fmt: skip


def summary() -> Task:
    """``summarize:`` a definition with its examples → the definition's first clause; ROUGE."""

    def pairs(senses: Sequence[Sense]) -> list[tuple[str, Record]]:
        found = (
            (" ".join([s.definition, *s.examples]), s) for s in senses
            if s.examples and "," in s.definition
        )  # fmt: skip
        return _once(
            (text, {"article": text, "highlights": s.definition.split(";")[0].split(",")[0]})
            for text, s in found
        )

    return Task(
        name="summary", source=_senses(pairs), format=formats.summary(), metrics=(metrics.rouge,)
    )


def entailment() -> Task:
    """``mnli hypothesis: … premise: …`` of two words, from hypernyms and antonyms.

    Entailment: the hypothesis is a hypernym of the premise. Neutral: the other way round.
    Contradiction: an antonym. As many of each label; both orders of a pair are on one side.
    """

    def pairs(senses: Sequence[Sense]) -> list[tuple[str, Record]]:
        by_id = {s.id: s.words[0] for s in senses}
        kinds: list[dict[str, Record]] = [{}, {}, {}]
        for s in senses:
            word = s.words[0]
            related = [(by_id[i], 0) for i in s.hypernyms[:1]]
            related += [(by_id[i], 2) for i in s.antonyms]
            for other, label in related:
                key = "\0".join(sorted((word, other)))
                if any(key in kind for kind in kinds):
                    continue
                upside = label == 0 and len(kinds[1]) < len(kinds[0])
                premise, hypothesis = (other, word) if upside else (word, other)
                record = {"premise": premise, "hypothesis": hypothesis}
                chosen = 1 if upside else label
                kinds[chosen][key] = {**record, "label": chosen}
        few = min(map(len, kinds))
        rng = np.random.default_rng(0)
        kept = []
        for kind in kinds:
            items = list(kind.items())
            kept += [items[i] for i in rng.permutation(len(items))[:few]]
        return kept

    return Task(
        name="entailment", source=_senses(pairs), format=formats.glue("mnli"),
        postprocess=_class(RELATIONS), metrics=(metrics.accuracy,), labels=RELATIONS,
    )  # fmt: skip


def topic() -> Task:
    """``topic sentence: …`` of a noun's definition → its field, one of eight; as many of each."""

    def pairs(senses: Sequence[Sense]) -> list[tuple[str, Record]]:
        rng = np.random.default_rng(0)
        kinds: list[dict[str, Record]] = [{} for _ in TOPICS]
        for label, group in enumerate(TOPICS.values()):
            for s in senses:
                if s.group == group and len(s.definition.split()) >= 4:
                    text = s.definition
                    kinds[label].setdefault(text.lower(), {"sentence": text, "label": label})
        shared = Counter(key for kind in kinds for key in kind)
        alone = [[(k, r) for k, r in kind.items() if shared[k] == 1] for kind in kinds]
        few = min(map(len, alone))
        return [kind[i] for kind in alone for i in rng.permutation(len(kind))[:few]]

    labels = tuple(TOPICS)
    return Task(
        name="topic", source=_senses(pairs),
        format=formats.classification("topic", labels, ("sentence",)),
        postprocess=_class(labels), metrics=(metrics.accuracy,), labels=labels,
    )  # fmt: skip


def same_sense() -> Task:
    """``wic sentence1: … sentence2: … word: …``: is the word used in one meaning? True, False."""
    labels = ("False", "True")

    def pairs(senses: Sequence[Sense]) -> list[tuple[str, Record]]:
        uses: dict[str, list[tuple[str, str]]] = {}
        for s in senses:
            for word in s.words:
                key = word.lower()
                uses.setdefault(key, []).extend(
                    (s.id, text) for text in s.examples if key in text.lower().split()
                )
        out: list[tuple[str, Record]] = []
        for word, found in uses.items():
            first = {a: t for a, t in reversed(found)}
            same = next(((t, first[a]) for a, t in found if t != first[a]), None)
            other = list(first.values())[:2]
            if same is None or len(other) < 2:
                continue
            for (one, two), label in ((same, 1), ((other[0], other[1]), 0)):
                out.append((word, {"sentence1": one, "sentence2": two, "word": word,
                                   "label": label}))  # fmt: skip
        return out

    return Task(
        name="same_sense", source=_senses(pairs), format=formats.glue("wic"),
        postprocess=_class(labels), metrics=(metrics.accuracy,), labels=labels,
    )  # fmt: skip


def _same(word: str) -> str:
    return word


def _reversed(word: str) -> str:
    return word[::-1]


def _sorted(word: str) -> str:
    return "".join(sorted(word))


def algorithmic(
    kind: str, *, letters: str = "abcdefgh", longest: int = 8, count: int = 4000
) -> Task:
    """``copy``, ``reverse`` or ``sort`` of random words, or ``add`` modulo 100; exact match.

    No word is on two sides. For tests and for what can be learned exactly.
    """
    rules = {"copy": _same, "reverse": _reversed, "sort": _sorted}

    def source(split: Split) -> Iterable[Record]:
        rng = np.random.default_rng(0)
        if kind == "add":
            texts = [f"{a} {b}" for a in range(100) for b in range(100)]
        else:
            texts = list(dict.fromkeys(
                "".join(rng.choice(list(letters), rng.integers(1, longest + 1)))
                for _ in range(count)
            ))  # fmt: skip
        return _sided([{"text": t} for t in texts], texts, split)

    def make(record: Record) -> list[formats.Example]:
        text = str(record["text"])
        answer = str(sum(map(int, text.split())) % 100) if kind == "add" else rules[kind](text)
        return [{"inputs": f"{kind}: {text}", "targets": answer}]

    if kind not in (*rules, "add"):
        raise InvalidInputError(f"kind={kind!r}; accepted are {', '.join((*rules, 'add'))}")
    return Task(name=kind, source=source, format=make, metrics=(metrics.accuracy,))


def _class(labels: Sequence[str]) -> Any:
    read = formats.to_class(labels)
    return lambda text, _: read(text)


def suite() -> TaskRegistry:
    """All tasks of this module. Nothing is read before a task's examples are asked for."""
    return TaskRegistry([
        *(sentiment(domain) for domain in SENTIMENT), spam(), rating(), translation("de"),
        translation("fr"), translation("ro"), reverse_dictionary(), summary(), entailment(),
        same_sense(), topic(), *(algorithmic(kind) for kind in ("copy", "reverse", "sort", "add")),
    ])  # fmt: skip


def corpus(name: str, *, held_out: bool = False) -> list[str]:
    """Documents of a corpus for the unsupervised objective.

    "wordnet" has one document for each of its 45 groups of senses, "manual" one for each topic.
    A twentieth of the texts (senses, topics) is held out.
    """
    from fishertope.experiments.data import load_manual

    if name == "manual":
        texts = load_manual()
        keys: Sequence[str] = [t[:80] for t in texts]
        groups = list(range(len(texts)))
    elif name == "wordnet":
        senses = wordnet()
        texts, keys = [s.text for s in senses], [s.id for s in senses]
        groups = [s.group for s in senses]
    else:
        raise InvalidInputError(f"corpus {name!r}; accepted are wordnet and manual")
    out = held_out_mask(keys, held_out=0.05, seed=0)
    documents: dict[int, list[str]] = {}
    for text, group, away in zip(texts, groups, out, strict=True):
        if bool(away) == held_out:
            documents.setdefault(group, []).append(text)
    return ["\n".join(parts) for parts in documents.values()]


def file_corpus(path: Path) -> tuple[list[str], list[str]]:
    """Documents of a text file, one a line: those to learn from, and a twentieth held out."""
    if not path.is_file():
        raise InvalidInputError(
            f"{path} is no file; give a text file with one document a line, or wordnet or manual"
        )
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(lines) < 2:
        raise InvalidInputError(f"{path} has {len(lines)} documents; at least 2 are needed")
    out = held_out_mask(lines, held_out=0.05, seed=0) if len(lines) >= 100 else np.zeros(1, bool)
    out = np.broadcast_to(out, (len(lines),))
    sides = [[t for t, away in zip(lines, out, strict=True) if bool(away) == s] for s in (0, 1)]
    return sides[0], sides[1]


def file_task(path: Path) -> Task:
    """A task of a JSON-lines file with ``inputs`` and ``targets``; exact match.

    A tenth of the lines, by a hash of their inputs, is the validation part, a tenth the test.
    """
    if not path.is_file():
        raise InvalidInputError(f"{path} is no file; give JSON lines with inputs and targets")
    records: list[Record] = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            record = parse_json(line, f"{path}, line {number}: this")
            if not isinstance(record, dict) or not {"inputs", "targets"} <= set(record):
                raise InvalidInputError(
                    f"{path}, line {number} has no inputs and targets; give an object with both"
                )
            records.append(record)
    if len(records) < 20:
        raise InvalidInputError(f"{path} has {len(records)} examples; at least 20 are needed")
    groups = [str(r["inputs"]) for r in records]
    return Task(
        name=path.stem, source=lambda split: _sided(records, groups, split),
        format=lambda r: [{"inputs": str(r["inputs"]), "targets": str(r["targets"])}],
        metrics=(metrics.exact_text,),
    )  # fmt: skip
