"""Streams: a function of seed and place, the same for every number of shards."""

import numpy as np
import pytest

from fishertope.core.errors import InvalidInputError
from fishertope.experiments.text2text import ByteVocabulary, reconstruct
from fishertope.experiments.text2text.batches import Lengths
from fishertope.experiments.text2text.streams import (
    BatchStream,
    CorpusStream,
    MixtureStream,
    TaskStream,
    raw_length,
    tokenized,
)

VOCABULARY = ByteVocabulary()
LENGTHS = Lengths(inputs=32, targets=24)
TEXTS = [f"Sentence number {i} has some words in it." for i in range(40)]
EXAMPLES = [{"inputs": f"copy: {i}", "targets": str(i)} for i in range(7)]


def corpus(**options):
    return CorpusStream(tokenized(TEXTS, VOCABULARY), VOCABULARY, LENGTHS, **options)


def same(a, b):
    return np.array_equal(a.inputs, b.inputs) and np.array_equal(a.targets, b.targets)


def test_a_round_of_a_task_has_every_example_once():
    stream = TaskStream(EXAMPLES, VOCABULARY, LENGTHS, seed=3)
    rounds = [[VOCABULARY.decode(stream[7 * k + i].targets) for i in range(7)] for k in range(3)]
    assert all(sorted(r) == sorted(str(i) for i in range(7)) for r in rounds)
    assert rounds[0] != rounds[1]
    kept = TaskStream(EXAMPLES, VOCABULARY, LENGTHS, shuffle=False)
    assert [VOCABULARY.decode(kept[i].targets) for i in range(7)] == [str(i) for i in range(7)]


def test_a_round_of_a_corpus_reads_every_token_once():
    stream = corpus(seed=1)
    raw = [reconstruct(stream[i].inputs[:-1], stream[i].targets[:-1], VOCABULARY)
           for i in range(len(stream))]  # fmt: skip
    assert {len(r) for r in raw} == {stream.raw_length}
    joined = "".join(VOCABULARY.decode(r) for r in raw)
    whole = sum(len(t) for t in TEXTS)
    assert whole - stream.raw_length < len(joined) <= whole
    assert sum(t in joined for t in TEXTS) >= len(TEXTS) - 2


@pytest.mark.parametrize(
    "objective",
    ["span_corruption", "replace_spans", "bert_style", "mass_style", "drop_tokens", "deshuffling",
     "prefix_lm", "lm"],
)  # fmt: skip
def test_every_objective_fits_and_depends_on_seed_and_place_alone(objective):
    stream, again = (corpus(objective=objective, seed=5) for _ in range(2))
    other = corpus(objective=objective, seed=6)
    assert all(len(stream[i].inputs) <= 32 and len(stream[i].targets) <= 24 for i in range(60))
    assert all(same(stream[i], again[i]) for i in (40, 0, 17, 3))
    assert not all(same(stream[i], other[i]) for i in range(4))
    assert stream[0].targets[-1] == VOCABULARY.eos_id


def test_repeats_come_from_a_fixed_part():
    stream = corpus(objective="lm", max_tokens=100)
    assert len(stream) == 100 // stream.raw_length
    kept = {"".join(TEXTS)[:100][i : i + 5] for i in range(96)}
    for i in range(50):
        text = VOCABULARY.decode(stream[i].targets)
        foreign = [text[k : k + 5] for k in range(len(text) - 4) if text[k : k + 5] not in kept]
        assert len(foreign) <= 4 * 2, "only where two documents meet"


def test_lengths_fill_the_row():
    """The fixture of the released code: inputs 512, rate 0.15, spans of 3: 568 raw, 114 targets."""
    lengths = Lengths(inputs=512, targets=114)
    assert raw_length("span_corruption", lengths, density=0.15, mean_span=3.0) == 568
    tight = Lengths(inputs=512, targets=60)
    assert raw_length("span_corruption", tight, density=0.15, mean_span=3.0) < 568


def mixture(seed=0):
    streams = {"a": TaskStream(EXAMPLES, VOCABULARY, LENGTHS, seed=1), "b": corpus(seed=2)}
    return MixtureStream(streams, {"a": 0.3, "b": 0.7}, seed=seed), streams


def test_a_mixture_reads_each_stream_in_its_order():
    mixed, streams = mixture()
    numbers = {"a": 0, "b": 0}
    for i in range(9_000):
        name, n = mixed.which(i)
        assert n == numbers[name]
        numbers[name] += 1
    share = numbers["a"] / 9_000
    assert abs(share - 0.3) <= 4 * np.sqrt(0.3 * 0.7 / 9_000)
    fresh, _ = mixture()
    assert fresh.which(8_500) == mixed.which(8_500)
    name, n = mixed.which(123)
    assert same(mixed[123], streams[name][n])


@pytest.mark.parametrize("packed", [False, True])
def test_shards_together_are_the_whole_batch(packed):
    def batches(shards):
        return [BatchStream(mixture()[0], LENGTHS, batch_size=4, packed=packed, shard=k,
                            shards=shards) for k in range(shards)]  # fmt: skip

    (whole,), halves = batches(1), batches(2)
    for _ in range(5):
        expected = next(whole)
        parts = [next(h) for h in halves]
        for k, part in enumerate(parts):
            assert np.array_equal(part.targets, expected.targets[k::2])
            assert np.array_equal(part.inputs, expected.inputs[k::2])


def test_f3_a_stored_place_goes_on_with_the_same_batches():
    first = BatchStream(mixture()[0], LENGTHS, batch_size=3, packed=True)
    for _ in range(4):
        next(first)
    state = first.state()
    expected = [next(first) for _ in range(3)]
    second = BatchStream(mixture()[0], LENGTHS, batch_size=3, packed=True)
    second.restore(state)
    for batch in expected:
        again = next(second)
        assert np.array_equal(batch.inputs, again.inputs)
        assert np.array_equal(batch.targets, again.targets)
    for bad in (-1, True, "3", None):
        with pytest.raises(InvalidInputError, match="whole number >= 0"):
            second.restore({"place": bad})


def test_bad_streams_say_why():
    with pytest.raises(InvalidInputError, match="no examples"):
        TaskStream([], VOCABULARY, LENGTHS)
    with pytest.raises(InvalidInputError, match="has no sequence"):
        CorpusStream(tokenized(["short"], VOCABULARY), VOCABULARY, LENGTHS)
    with pytest.raises(InvalidInputError, match="each stream one positive rate"):
        MixtureStream({"a": corpus()}, {"b": 1.0})
    with pytest.raises(InvalidInputError, match="multiple of the number of shards"):
        BatchStream(corpus(), LENGTHS, batch_size=3, shards=2)
