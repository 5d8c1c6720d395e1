"""Running text and translated messages that ship with Python and with Django."""

from __future__ import annotations

import pydoc_data.topics
import re
import struct

from ...core.errors import CorruptFileError, InvalidInputError
from ._archives import zip_member, zip_names
from ._sources import archive

_HEADING = re.compile(r"\n[=\-*~^]{3,}\n")


def load_manual() -> list[str]:
    """The topics of Python's reference manual, about 80 documents; nothing is fetched.

    They ship with the interpreter (``help()`` shows them). Underlines of headings are taken out.
    """
    topics = pydoc_data.topics.topics
    return [_HEADING.sub("\n", topics[name]).strip() for name in sorted(topics)]


def load_translations(language: str, *, min_words: int = 3) -> list[tuple[str, str]]:
    """Messages of user interfaces in English and another language.

    From the catalogues of Django 5.2.8. Messages with tags, several lines or plural forms are left
    out, and each English message is kept once.

    Parameters
    ----------
    language : str
        Django's code of it: "de", "fr", "ro", …
    min_words : int
        Of the English message.

    Raises
    ------
    DataMissingError, CorruptFileError
        If it has not been fetched, or is damaged.
    InvalidInputError
        If there is no such language.
    """
    wheel = archive("django")
    suffix = f"/locale/{language}/LC_MESSAGES/django.mo"
    names = [name for name in zip_names(wheel) if name.endswith(suffix)]
    if not names:
        raise InvalidInputError(
            f"Django has no messages in {language!r}; codes such as de, fr, ro, es are accepted."
        )
    pairs: dict[str, str] = {}
    for name in sorted(names):
        for source, target in read_catalogue(zip_member(wheel, name), name).items():
            if _plain(source) and _plain(target) and len(source.split()) >= min_words:
                pairs.setdefault(source, target)
    return list(pairs.items())


def _plain(text: str) -> bool:
    return bool(text.strip()) and not re.search(r"[<>\0\x04\n]", text)


def read_catalogue(data: bytes, name: str) -> dict[str, str]:
    """Messages of a compiled gettext catalogue (``.mo``), its header left out.

    Format: magic, revision, number n, places of two tables of n (length, offset), then texts.

    Raises
    ------
    CorruptFileError
        If it is none, or a place lies outside of it.
    """
    try:
        order = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}[data[:4]]
        count, first, second = struct.unpack_from(f"{order}III", data, 8)
        if 8 * count > len(data):
            raise ValueError(f"{count} messages in {len(data)} bytes")
        tables = [
            struct.unpack_from(f"{order}{2 * count}I", data, place) for place in (first, second)
        ]
        out = {}
        for k in range(count):
            source, target = (_text(data, t[2 * k], t[2 * k + 1]) for t in tables)
            if source:
                out[source] = target
    except (KeyError, ValueError, struct.error) as error:
        raise CorruptFileError(f"{name} is no gettext catalogue: {error}.") from error
    return out


def _text(data: bytes, length: int, offset: int) -> str:
    if offset + length > len(data):
        raise ValueError(f"a text from {offset} to {offset + length} of {len(data)} bytes")
    return data[offset : offset + length].decode("utf-8")
