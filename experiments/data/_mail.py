"""The readable part of a raw e-mail, however broken the mail is."""

from __future__ import annotations

import email
import email.errors
import email.header
import email.message
import html
import re
from dataclasses import dataclass

_TAGS = re.compile(r"<(?:script|style)\b.*?</(?:script|style)\s*>|<!--.*?-->|<[^>]*>", re.S | re.I)
_ANSWER = re.compile(r"^(?:(?:re|aw|fwd?|sv)\s*(?:\[\d+\])?\s*:|\[[^\]]*\])\s*", re.I)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """What a person reads.

    Attributes
    ----------
    subject, text : str
        With single spaces.
    thread : str
        The subject without "Re:", tags of mailing lists and case.
    """

    subject: str
    text: str
    thread: str


def readable(raw: bytes, max_characters: int) -> Mail:
    """Subject and the first text part; that of HTML without its tags.

    Mails of spam name unknown encodings and lie about their structure, so whatever cannot be
    decoded is read as Latin-1, which every byte string is.
    """
    message = email.message_from_bytes(raw)
    subject = " ".join(_subject(message.get("Subject", "")).split())
    plain, rich = _parts(message)
    text = plain if plain.strip() else html.unescape(_TAGS.sub(" ", rich))
    thread = subject.casefold()
    while (shorter := _ANSWER.sub("", thread)) != thread:
        thread = shorter
    return Mail(subject=subject, text=" ".join(text.split())[:max_characters], thread=thread)


def _subject(value: object) -> str:
    """A header in its own characters."""
    pieces = []
    try:
        decoded = email.header.decode_header(str(value))
    except (email.errors.HeaderParseError, ValueError):
        return str(value)
    for piece, charset in decoded:
        pieces.append(piece if isinstance(piece, str) else _decoded(piece, charset))
    return "".join(pieces)


def _parts(message: email.message.Message) -> tuple[str, str]:
    """The first plain and the first HTML part."""
    found = {"text/plain": "", "text/html": ""}
    for part in message.walk():
        kind = part.get_content_type()
        if kind in found and not found[kind] and not part.is_multipart():
            content = part.get_payload(decode=True)
            if isinstance(content, bytes):
                found[kind] = _decoded(content, part.get_content_charset())
    return found["text/plain"], found["text/html"]


def _decoded(data: bytes, charset: str | None) -> str:
    try:
        return data.decode(charset or "ascii")
    except (LookupError, UnicodeError, ValueError):
        return data.decode("latin-1")
