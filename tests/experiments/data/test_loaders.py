"""Loaders: what they read, what they leave out, and how they split."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from fishertope.core.errors import CorruptFileError, DataMissingError, InvalidInputError
from fishertope.experiments.data import (
    TextSplit,
    load_digits,
    load_fashion_mnist,
    load_sentiment,
    load_spam,
    load_vader,
    split_texts,
)
from fishertope.experiments.data._mail import readable
from fishertope.experiments.data.images import CLOTHING, read_idx

from .conftest import tar_of

Place = Callable[[str, bytes], Path]


def idx(array: np.ndarray) -> bytes:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(b"\0\0\x08" + bytes([array.ndim]) + sizes + array.tobytes())


def deb_of(member: bytes) -> bytes:
    def entry(name: str, data: bytes) -> bytes:
        head = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode()
        return head + data + b"\n" * (len(data) % 2)

    return b"!<arch>\n" + entry("debian-binary", b"2.0") + entry("data.tar.xz", member)


def all_ids(split: TextSplit) -> list[str]:
    return sorted(split.train.ids + split.held_out.ids)


def test_sentiment_drops_repeats_and_rows_without_label(place: Place) -> None:
    rows = [{"text": f"Text {i}", "class": i % 2} for i in range(40)]
    rows += [{"text": "TEXT  0 ", "class": 1}, {"text": "unlabelled", "class": None}]
    data = {"package/test/fixtures/imdb.json": json.dumps(rows).encode()}
    place("sentiment", tar_of(data))
    split = load_sentiment("imdb")
    assert all_ids(split) == sorted(f"imdb/{i}" for i in range(40))
    for side in (split.train, split.held_out):
        for text, label, key in zip(side.texts, side.labels, side.ids, strict=True):
            number = int(key.split("/")[1])
            assert (text, label) == (f"Text {number}", number % 2)


def test_vader_keeps_clear_ratings_and_whole_reviews(place: Place) -> None:
    lines = [
        f"{review}_{sentence}\t{(-1) ** review * 1.5}\tReview {review}, sentence {sentence}\n"
        for review in range(1, 31)
        for sentence in range(3)
    ] + ["99_0\t0.3\tToo weak\n"]
    inner = tar_of(
        {"hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": "".join(lines).encode()}
    )
    at = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    place("vader", tar_of({at: inner}))
    split = load_vader("movie")
    assert len(split.train) + len(split.held_out) == 90
    assert not set(split.train.groups) & set(split.held_out.groups)
    assert split.train.scores is not None
    np.testing.assert_array_equal(split.train.labels, split.train.scores > 0)
    weak = load_vader("movie", min_rating=0.0)
    assert "movie/99_0" in all_ids(weak)


@pytest.mark.parametrize("line", ["1_0\t9.5\ttext", "1_0\tnan\ttext", "1_0 2 text", "1_0\tx\ty"])
def test_vader_names_a_damaged_line(place: Place, line: str) -> None:
    inner = tar_of({"hutto_ICWSM_2014/tweets_GroundTruth.txt": f"0\t1.0\tfine\n{line}\n".encode()})
    at = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    place("vader", tar_of({at: inner}))
    with pytest.raises(CorruptFileError, match="Line 2"):
        load_vader("tweets")


def test_spam_keeps_threads_together_and_reads_broken_mails(place: Place) -> None:
    files = {}
    for i in range(30):
        files[f"package/data/easy-ham-1/{i:03}.x.txt"] = (
            f"Subject: Topic {i}\n\nquestion {i}\n".encode()
        )
        files[f"package/data/easy-ham-1/{i + 100}.x.txt"] = (
            f"Subject: Re: [list] RE: topic {i}\n\nanswer {i}\n".encode()
        )
    files["package/data/spam-1/001.y.txt"] = (
        b"Subject: =?nonsense?B?4pyT?=\nContent-Type: text/html; charset=made-up\n\n"
        b"<style>p {}</style><p>Buy&nbsp;\xff now</p>"
    )
    place("spam", tar_of(files))
    split = load_spam()
    assert len(split.train) + len(split.held_out) == 61
    assert not set(split.train.groups) & set(split.held_out.groups)
    both = {**dict(zip(split.train.ids, split.train.texts, strict=True))}
    both.update(zip(split.held_out.ids, split.held_out.texts, strict=True))
    assert both["easy-ham-1/100"] == "Re: [list] RE: topic 0\nanswer 0"
    assert both["spam-1/001"].endswith("Buy ÿ now")
    assert split.train.classes == ("ham", "spam")


@given(st.binary(max_size=300))
def test_any_bytes_are_a_mail(raw: bytes) -> None:
    mail = readable(raw, 50)
    assert len(mail.text) <= 50


@given(st.text(max_size=30), st.sampled_from([b"7bit", b"base64", b"quoted-printable", b"8bit"]))
def test_mail_headers_of_any_charset(charset: str, encoding: bytes) -> None:
    head = b"Subject: =?" + charset.encode() + b"?Q?a=FFb?=\nContent-Type: text/plain; charset="
    raw = head + charset.encode() + b"\nContent-Transfer-Encoding: " + encoding + b"\n\n\xffbody"
    assert isinstance(readable(raw, 50).text, str)


def test_fashion_mnist_reads_its_package(place: Place) -> None:
    rng = np.random.default_rng(0)
    folder = "./usr/share/datasets/fashion-mnist/"
    files, kept = {}, {}
    for part, n in (("train", 7), ("t10k", 3)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, n, dtype=np.uint8)
        files[f"{folder}{part}-images-idx3-ubyte.gz"] = idx(images)
        files[f"{folder}{part}-labels-idx1-ubyte.gz"] = idx(labels)
        kept[part] = images, labels
    place("fashion_mnist", deb_of(tar_of(files, "w:xz")))
    split = load_fashion_mnist()
    np.testing.assert_array_equal(split.train.images, kept["train"][0])
    np.testing.assert_array_equal(split.held_out.labels, kept["t10k"][1])
    assert split.train.classes == CLOTHING
    assert split.train.inputs().max() <= 1
    np.testing.assert_allclose(split.train.inputs() * 255, kept["train"][0].reshape(7, -1))


def test_fashion_mnist_says_which_file_is_absent(place: Place) -> None:
    images = idx(np.zeros((2, 28, 28), np.uint8))
    at = "./usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz"
    place("fashion_mnist", deb_of(tar_of({at: images}, "w:xz")))
    with pytest.raises(CorruptFileError, match="train-labels-idx1"):
        load_fashion_mnist()


@pytest.mark.parametrize(
    "plain",
    [b"", b"\0\0\x09\x01\0\0\0\x01a", b"\0\0\x08\x03\0\0", b"\0\0\x08\x01\0\0\0\x09abc"],
    ids=["empty", "floats", "short", "too few"],
)
def test_idx_headers_are_checked(plain: bytes) -> None:
    with pytest.raises(CorruptFileError, match="a-file"):
        read_idx(gzip.compress(plain), "a-file")
    with pytest.raises(CorruptFileError, match="a-file"):
        read_idx(plain, "a-file")


def test_digits_are_those_of_scikit_learn() -> None:
    split = load_digits(seed=3)
    assert len(split.train) + len(split.held_out) == 1797
    assert 0.25 < len(split.held_out) / 1797 < 0.35
    assert not set(split.train.ids) & set(split.held_out.ids)


def test_a_text_keeps_its_side_when_others_come(place: Place) -> None:
    rows = [{"text": f"Text {i}", "class": i % 2} for i in range(60)]

    def sides(n: int, seed: int) -> set[str]:
        data = {"package/test/fixtures/yelp.json": json.dumps(rows[:n]).encode()}
        place("sentiment", tar_of(data))
        return set(load_sentiment("yelp", seed=seed).held_out.ids)

    few, many = sides(30, 0), sides(60, 0)
    assert few == {key for key in many if int(key.split("/")[1]) < 30}
    assert sides(60, 1) != many


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_shares_outside_are_refused(place: Place, share: float) -> None:
    rows = [{"text": f"Text {i}", "class": i % 2} for i in range(10)]
    place("sentiment", tar_of({"package/test/fixtures/yelp.json": json.dumps(rows).encode()}))
    with pytest.raises(InvalidInputError, match="between 0 and 1"):
        load_sentiment("yelp", held_out=share)
    whole = load_sentiment("yelp").train
    with pytest.raises(InvalidInputError, match="between 0 and 1"):
        split_texts(whole, held_out=share)


def test_unknown_parts_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="amazon, imdb, yelp"):
        load_sentiment("rotten")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="min_rating"):
        load_vader("nyt", min_rating=4.0)
    with pytest.raises(InvalidInputError, match="max_characters"):
        load_spam(max_characters=-1)


@pytest.mark.parametrize(
    "load", [lambda: load_sentiment("imdb"), lambda: load_vader("nyt"), load_spam,
             load_fashion_mnist],
)  # fmt: skip
def test_what_was_not_fetched_says_how(cache: Path, load: Callable[[], object]) -> None:
    with pytest.raises(DataMissingError, match=r"python -m fishertope\.experiments\.data fetch"):
        load()
    assert not cache.exists()
