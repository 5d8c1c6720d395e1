"""Cleaning of web text by the rules of C4, with counts of what each rule drops.

Source: Raffel et al., arXiv 1910.10683, section 2.2.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from fishertope.core.errors import InvalidInputError

LINE_ENDS = (".", "!", "?", '"', "”", "’")
POLICY_PHRASES = (
    "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies",
    "use cookies",
)  # fmt: skip
_CITATION = re.compile(r"\[(\d{1,3}|edit|citation needed)\]")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"”’]?\s+")


@dataclass(frozen=True, kw_only=True, slots=True)
class CleaningRules:
    """Which rules are applied, and their bounds; a rule is off with 0, (), or None.

    Parameters
    ----------
    line_ends
        A line must end in one of them.
    min_words
        Of a line.
    min_sentences
        Of a page, after its lines were cleaned.
    bad_words
        A page with one of them, as a whole word in any case, is dropped. None are shipped.
    page_phrases
        A page that has one of them anywhere is dropped ("{" marks code).
    line_phrases
        A line that has one of them, in any case, is dropped.
    span
        Sentences that occur again as part of a run of this many are dropped.
    language
        Text → probability of being of the wanted language; pages below ``min_language`` go.
    """

    line_ends: tuple[str, ...] = LINE_ENDS
    min_words: int = 5
    min_sentences: int = 3
    bad_words: frozenset[str] = frozenset()
    page_phrases: tuple[str, ...] = ("lorem ipsum", "{")
    line_phrases: tuple[str, ...] = ("javascript", *POLICY_PHRASES)
    strip_citations: bool = True
    span: int = 3
    language: Callable[[str], float] | None = None
    min_language: float = 0.99

    def __post_init__(self) -> None:
        if min(self.min_words, self.min_sentences, self.span) < 0:
            raise InvalidInputError(
                f"min_words={self.min_words}, min_sentences={self.min_sentences}, "
                f"span={self.span}; give numbers >= 0 (0 switches a rule off)"
            )


@dataclass(slots=True)
class CleaningReport:
    """How much was read, kept, and dropped by which rule (the first one that spoke)."""

    pages: int = 0
    lines: int = 0
    characters: int = 0
    pages_kept: int = 0
    characters_kept: int = 0
    pages_dropped: Counter[str] = field(default_factory=Counter)
    lines_dropped: Counter[str] = field(default_factory=Counter)
    sentences_dropped: int = 0

    def as_dict(self) -> dict[str, object]:
        """Plain numbers."""
        return {
            "pages": self.pages, "lines": self.lines, "characters": self.characters,
            "pages_kept": self.pages_kept, "characters_kept": self.characters_kept,
            "pages_dropped": dict(self.pages_dropped), "lines_dropped": dict(self.lines_dropped),
            "sentences_dropped": self.sentences_dropped,
        }  # fmt: skip


def clean(
    pages: Iterable[str], rules: CleaningRules | None = None, report: CleaningReport | None = None
) -> Iterator[str]:
    """The pages that pass, cleaned, one at a time; ``report`` counts along.

    Memory: 16 bytes for each sentence kept, by which repeats are found.
    """
    chosen = CleaningRules() if rules is None else rules
    counts = CleaningReport() if report is None else report
    cleaner = _Cleaner(chosen, counts)
    for page in pages:
        counts.pages += 1
        counts.characters += len(page)
        text = cleaner.page(page)
        if text is not None:
            counts.pages_kept += 1
            counts.characters_kept += len(text)
            yield text


class _Cleaner:
    def __init__(self, rules: CleaningRules, report: CleaningReport) -> None:
        self.rules, self.report = rules, report
        self.seen: set[bytes] = set()
        words = "|".join(re.escape(w) for w in sorted(rules.bad_words))
        self.bad = re.compile(rf"\b({words})\b", re.IGNORECASE) if words else None

    def page(self, page: str) -> str | None:
        rules, lowered = self.rules, page.lower()
        for phrase in rules.page_phrases:
            if phrase in lowered:
                self._drop(f"phrase {phrase!r}")
                return None
        if self.bad is not None and self.bad.search(page):
            self._drop("bad word")
            return None
        lines = [kept for line in page.splitlines() if (kept := self._line(line)) is not None]
        lines = self._without_repeats(lines)
        text = "\n".join(lines)
        if rules.min_sentences and len(_sentences(text)) < rules.min_sentences:
            self._drop("too few sentences")
            return None
        if rules.language is not None and rules.language(text) < rules.min_language:
            self._drop("language")
            return None
        return text

    def _drop(self, rule: str) -> None:
        self.report.pages_dropped[rule] += 1

    def _line(self, line: str) -> str | None:
        rules, text = self.rules, line.strip()
        if not text:
            return None
        self.report.lines += 1
        if rules.strip_citations:
            text = _CITATION.sub("", text).strip()
        lowered = text.lower()
        if rules.line_ends and not text.endswith(rules.line_ends):
            rule = "no end mark"
        elif len(text.split()) < rules.min_words:
            rule = "too few words"
        elif any(phrase in lowered for phrase in rules.line_phrases):
            rule = "phrase"
        else:
            return text
        self.report.lines_dropped[rule] += 1
        return None

    def _without_repeats(self, lines: list[str]) -> list[str]:
        """Lines without the sentences of runs that occurred before."""
        span = self.rules.span
        if not span:
            return lines
        parts = [_sentences(line) for line in lines]
        flat = [sentence for sentences in parts for sentence in sentences]
        repeated = [False] * len(flat)
        fresh = []
        for i in range(len(flat) - span + 1):
            run = " ".join(" ".join(s.split()).casefold() for s in flat[i : i + span])
            key = hashlib.blake2b(run.encode(), digest_size=16).digest()
            if key in self.seen:
                repeated[i : i + span] = [True] * span
            else:
                fresh.append(key)
        self.seen.update(fresh)
        self.report.sentences_dropped += sum(repeated)
        kept, at = [], 0
        for sentences in parts:
            rest = [s for k, s in enumerate(sentences) if not repeated[at + k]]
            at += len(sentences)
            if rest:
                kept.append(" ".join(rest))
        return kept


def _sentences(text: str) -> list[str]:
    return [s for s in _SENTENCE_END.split(text) if s.strip()]
