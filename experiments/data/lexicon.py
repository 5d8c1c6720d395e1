"""WordNet: words, definitions, example sentences and relations of senses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...core.errors import CorruptFileError
from ._archives import deb_data, tar_members
from ._sources import archive

PARTS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
_POINTERS = {"@": "hypernyms", "@i": "hypernyms", "!": "antonyms"}
_CLASSES = 45
"""Lexicographer files: animal, artifact, act, …"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sense:
    """A set of words of one meaning.

    Attributes
    ----------
    id : str
        "n00001740": part of speech and place in the data file.
    words : tuple of str
        The most usual first; underscores are spaces.
    definition : str
    examples : tuple of str
        Sentences with one of the words.
    group : int
        Number of the lexicographer file, 0 to 44.
    hypernyms, antonyms : tuple of str
        Ids; antonyms hold between words of two senses.
    """

    id: str
    words: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]
    group: int
    hypernyms: tuple[str, ...]
    antonyms: tuple[str, ...]

    @property
    def text(self) -> str:
        """Words, definition and examples as one paragraph."""
        parts = [f"{', '.join(self.words)}: {self.definition}.", *map(_sentence, self.examples)]
        return " ".join(parts)


def load_wordnet() -> list[Sense]:
    """All senses of WordNet 3.0: nouns, verbs, adjectives, adverbs, in the order of its files.

    Source: Miller 1995, "WordNet: a lexical database for English", from the Debian package
    ``wordnet-base``.

    Raises
    ------
    DataMissingError
        If it has not been fetched; says how.
    CorruptFileError
        If the archive has other bytes than the pinned ones, or a line is not in its format.
    """
    wanted = {f"usr/share/wordnet/data.{name}": code for name, code in PARTS.items()}
    found: dict[str, list[Sense]] = {}
    for name, data in tar_members(deb_data(archive("wordnet")), prefix="usr/share/wordnet/data."):
        if name in wanted:
            lines = data.decode("utf-8", "replace").splitlines()
            found[name] = [
                _sense(line, wanted[name], f"{name}, line {n}")
                for n, line in enumerate(lines, 1)
                if line and not line.startswith(" ")
            ]
    missing = sorted(set(wanted) - set(found))
    if missing:
        raise CorruptFileError(f"The archive of wordnet holds no {', '.join(missing)}.")
    return [sense for name in wanted for sense in found[name]]


def _sense(line: str, code: str, place: str) -> Sense:
    """``offset file type n (word id)×n m (symbol offset part numbers)×m … | gloss``."""
    try:
        head, _, gloss = line.partition("|")
        fields = head.split()
        count = int(fields[3], 16)
        words = fields[4 : 4 + 2 * count : 2]
        at = 4 + 2 * count
        pointers = int(fields[at])
        quads = [fields[at + 1 + 4 * k : at + 5 + 4 * k] for k in range(pointers)]
        related: dict[str, list[str]] = {"hypernyms": [], "antonyms": []}
        for symbol, offset, part, _ in quads:
            if symbol in _POINTERS:
                related[_POINTERS[symbol]].append(f"{part.replace('s', 'a')}{offset}")
        group = int(fields[1])
        if not 0 <= group < _CLASSES or len(words) != count or not count:
            raise ValueError("its numbers do not fit")
    except (ValueError, IndexError) as error:
        raise CorruptFileError(f"{place} is no sense of WordNet: {error}.") from error
    definition, examples = _parts(gloss)
    return Sense(
        id=f"{code}{fields[0]}",
        words=tuple(word.split("(")[0].replace("_", " ") for word in words),
        definition=definition,
        examples=examples,
        group=group,
        hypernyms=tuple(dict.fromkeys(related["hypernyms"])),
        antonyms=tuple(dict.fromkeys(related["antonyms"])),
    )


def _parts(gloss: str) -> tuple[str, tuple[str, ...]]:
    """Definition and quoted examples; attributions after a quotation are left out."""
    before, mark, after = gloss.strip().partition('"')
    definition = before.strip().rstrip(";: ")
    quoted: Sequence[str] = (mark + after).split('"')[1::2]
    return definition, tuple(text.strip() for text in quoted if text.strip())


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
