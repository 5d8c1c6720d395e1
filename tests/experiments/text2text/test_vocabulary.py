"""Bytes and SentencePiece: round trips, sentinels, errors."""

import pydoc_data.topics

import pytest
from hypothesis import given, settings, strategies as st

from fishertope.core.errors import CorruptFileError, InvalidInputError
from fishertope.experiments.text2text import ByteVocabulary, SentencePieceVocabulary


@pytest.fixture(scope="module")
def pieces():
    pytest.importorskip("sentencepiece")
    return SentencePieceVocabulary.train(pydoc_data.topics.topics.values(), size=612)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text())
def test_bytes_come_back(text):
    vocabulary = ByteVocabulary()
    ids = vocabulary.encode(text)
    assert all(3 <= i < 259 for i in ids)
    assert vocabulary.decode([*ids, vocabulary.eos_id, 7]) == text


def test_pieces_come_back_and_training_is_deterministic(pieces):
    text = "The assignment statement evaluates the expression list."
    ids = pieces.encode(text)
    assert pieces.size == 612
    assert len(ids) < len(text)
    assert max(ids) < 512
    assert pieces.decode([*ids, pieces.eos_id, 5]) == text
    again = SentencePieceVocabulary.train(pydoc_data.topics.topics.values(), size=612)
    assert again.model == pieces.model
    assert again.facts() == pieces.facts()


def test_sentinels_count_down_from_the_end(pieces):
    for vocabulary in (pieces, ByteVocabulary(sentinels=100)):
        assert vocabulary.sentinel(0) == vocabulary.size - 1
        assert vocabulary.sentinel(99) == vocabulary.size - 100
        with pytest.raises(InvalidInputError, match="sentinel 100 of a vocabulary with 100"):
            vocabulary.sentinel(100)
        ids = [*vocabulary.encode("one"), vocabulary.sentinel(3), *vocabulary.encode("two")]
        assert vocabulary.decode([0, *ids]).replace(" ", "") == "one<extra_id_3>two"


def test_what_is_no_model_is_refused(pieces, tmp_path):
    (tmp_path / "spiece.model").write_bytes(pieces.model)
    assert SentencePieceVocabulary.load(tmp_path / "spiece.model").model == pieces.model
    with pytest.raises(CorruptFileError, match="not a SentencePiece model"):
        SentencePieceVocabulary(model=b"\x00" + pieces.model[:50])
    with pytest.raises(InvalidInputError, match="more text or a smaller size"):
        SentencePieceVocabulary.train(["a b c"], size=5_000)
