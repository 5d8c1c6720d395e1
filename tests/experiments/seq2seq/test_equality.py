"""The model against transformers' T5 with the same weights, and against closed forms."""
# ruff: noqa: E402

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from fishertope.core.errors import InvalidInputError
from fishertope.experiments.seq2seq import (
    PUBLISHED,
    Cache,
    Seq2Seq,
    Seq2SeqConfig,
    relative_buckets,
    shift_right,
    token_loss,
)
from fishertope.experiments.seq2seq.checkpoints import (
    from_pretrained,
    load_hf_state,
    save_pretrained,
)

TOLERANCE = 1e-5  # float32, the sums of two implementations in different orders
NANO = Seq2SeqConfig(vocab_size=64, d_model=32, d_ff=48, d_kv=8, heads=4, layers=2)
EXACT = {
    "small": 60_506_624,
    "base": 222_903_552,
    "large": 737_668_096,
    "3b": 2_851_598_336,
    "11b": 11_307_321_344,
}


def oracle(kind):
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=64, d_model=32, d_ff=48, d_kv=8, num_heads=4, num_layers=2,
        feed_forward_proj=kind, decoder_start_token_id=0, dropout_rate=0.0,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(0.0, 0.3, generator=generator)
    own = Seq2Seq(
        dataclasses.replace(
            NANO,
            dropout=0.0,
            gated=kind != "relu",
            activation="relu" if kind == "relu" else "gelu",
        )
    ).eval()
    load_hf_state(own, dict(model.state_dict()))
    return own, model


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(2, 64, (3, 21), generator=generator)
    inputs[0, 15:] = 0
    inputs[2, 3:] = 0
    targets = torch.randint(2, 64, (3, 9), generator=generator)
    targets[1, 6:] = 0
    return inputs, targets


def expected_bucket(relative, bidirectional):
    """The published table: first distance of each bucket."""
    if bidirectional:
        starts = [*range(8), 8, 12, 16, 23, 32, 46, 64, 91]
        offset, distance = (16 if relative > 0 else 0), abs(relative)
    else:
        starts = [*range(16), 16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
        offset, distance = 0, max(-relative, 0)
    return offset + max(b for b, first in enumerate(starts) if first <= distance)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_f1_01_relative_buckets(bidirectional):
    relative = torch.arange(-200, 201)
    got = relative_buckets(relative, bidirectional=bidirectional).tolist()
    assert got == [expected_bucket(r, bidirectional) for r in range(-200, 201)]


@pytest.mark.parametrize("kind", ["relu", "gated-gelu"])
def test_f1_02_logits_loss_and_gradients(kind):
    own, theirs = oracle(kind)
    inputs, targets = batch()
    labels = targets.masked_fill(targets == 0, -100)
    reference = theirs(input_ids=inputs, attention_mask=(inputs != 0).long(), labels=labels)
    logits = own(inputs, shift_right(targets))
    loss = token_loss(logits, targets)
    torch.testing.assert_close(logits, reference.logits, atol=TOLERANCE, rtol=TOLERANCE)
    torch.testing.assert_close(loss, reference.loss, atol=TOLERANCE, rtol=TOLERANCE)
    loss.backward()
    reference.loss.backward()
    gradients = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    image = Seq2Seq(own.config)
    load_hf_state(image, gradients)
    for (name, mine), other in zip(own.named_parameters(), image.parameters(), strict=True):
        torch.testing.assert_close(
            mine.grad, other.data, atol=TOLERANCE, rtol=TOLERANCE, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_f1_03_published_sizes(name):
    with torch.device("meta"):
        model = Seq2Seq(PUBLISHED[name])
    assert sum(p.numel() for p in model.parameters()) == EXACT[name]


@pytest.mark.parametrize("kind", ["relu", "gated-gelu"])
def test_folders_load_on_both_sides(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    own, theirs = oracle(kind)
    inputs, targets = batch(1)
    theirs.save_pretrained(tmp_path / "theirs")
    save_pretrained(own, tmp_path / "own")
    loaded = from_pretrained(tmp_path / "theirs")
    back = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "own").eval()
    with torch.no_grad():
        expected = own(inputs, shift_right(targets))
        assert torch.equal(loaded(inputs, shift_right(targets)), expected)
        got = back(
            input_ids=inputs,
            attention_mask=(inputs != 0).long(),
            decoder_input_ids=shift_right(targets),
        ).logits
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_a_folder_without_safetensors_is_refused(tmp_path):
    own, _ = oracle("relu")
    save_pretrained(own, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InvalidInputError, match="only safetensors"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("arch", ["encdec", "encdec_shared", "lm", "prefix_lm"])
@pytest.mark.parametrize("position", ["rel_shared", "rel_per_layer"])
def test_incremental_equals_full_decoding(arch, position):
    config = dataclasses.replace(NANO, arch=arch, position=position)
    model = Seq2Seq(config, torch.Generator().manual_seed(3)).eval()
    inputs, targets = batch(2)
    tokens = shift_right(targets)
    first, extra, first_extra = 1, {}, {}
    if config.has_encoder:
        extra = {"encoded": model.encode(inputs), "source_mask": (inputs != 0)[:, None, :]}
    prefix = None
    if arch == "prefix_lm":
        first = 4
        prefix = torch.arange(tokens.shape[1])[None].expand(3, -1) < first
        first_extra = {"prefix": prefix[:, :first]}
    with torch.no_grad():
        full = model.decode(tokens, prefix=prefix, **extra)
        cache = Cache(config.decoder_depth)
        parts = [model.decode(tokens[:, :first], cache=cache, **extra, **first_extra)]
        for i in range(first, tokens.shape[1]):
            parts.append(model.decode(tokens[:, i : i + 1], cache=cache, **extra))
    torch.testing.assert_close(torch.cat(parts, 1), full, atol=TOLERANCE, rtol=TOLERANCE)


def test_f1_09_causality():
    inputs, targets = batch(4)
    tokens = shift_right(targets)
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 7) % 60 + 2
    for arch in ("encdec", "lm"):
        config = dataclasses.replace(NANO, arch=arch)
        model = Seq2Seq(config, torch.Generator().manual_seed(5)).eval()
        source = inputs if config.has_encoder else None
        before, after = model(source, tokens), model(source, changed)
        assert torch.equal(before[:, :5], after[:, :5])
        assert (before[:, 5] != after[:, 5]).any(-1).all()
    model = Seq2Seq(
        dataclasses.replace(NANO, arch="prefix_lm"), torch.Generator().manual_seed(5)
    ).eval()
    prefix = torch.arange(tokens.shape[1])[None].expand(3, -1) < 4
    before, after = model(None, tokens, prefix=prefix), model(None, changed, prefix=prefix)
    assert torch.equal(before[:, :5], after[:, :5])
    in_prefix = tokens.clone()
    in_prefix[:, 3] = (in_prefix[:, 3] + 7) % 60 + 2
    after = model(None, in_prefix, prefix=prefix)
    assert (before != after).any(-1).all()


def test_f1_09_encoder_sees_everything_but_padding():
    model = Seq2Seq(NANO, torch.Generator().manual_seed(6)).eval()
    inputs, _ = batch(5)
    before = model.encode(inputs)
    changed = inputs.clone()
    changed[:, 2] = (changed[:, 2] + 7) % 60 + 2
    real = inputs != 0
    assert (before != model.encode(changed)).any(-1)[real].all()
    shorter = model.encode(inputs[2:, :3])
    torch.testing.assert_close(before[2:, :3], shorter, atol=TOLERANCE, rtol=TOLERANCE)


def test_f1_08_packed_rows_equal_separate_rows():
    model = Seq2Seq(NANO, torch.Generator().manual_seed(8)).eval()
    generator = torch.Generator().manual_seed(9)
    sources = [torch.randint(2, 64, (1, n), generator=generator) for n in (5, 7)]
    goals = [torch.randint(2, 64, (1, n), generator=generator) for n in (4, 3)]
    decoder = [shift_right(g) for g in goals]
    padded = torch.zeros(1, 2, dtype=torch.long)

    def segments(parts):
        numbers = [torch.full_like(p, i + 1) for i, p in enumerate(parts)]
        return torch.cat([*numbers, padded], 1)

    packed = model(
        torch.cat([*sources, padded], 1),
        torch.cat([*decoder, padded], 1),
        input_segments=segments(sources),
        target_segments=segments(decoder),
    )
    alone = torch.cat([model(s, d) for s, d in zip(sources, decoder, strict=True)], 1)
    torch.testing.assert_close(packed[:, :7], alone, atol=1e-6, rtol=1e-5)


def test_shared_stacks_count_once():
    whole = Seq2Seq(dataclasses.replace(NANO, arch="encdec_shared"))
    own = sum(p.numel() for p in whole.parameters())
    separate = sum(p.numel() for p in Seq2Seq(NANO).parameters())
    attention, feed, norms = 4 * 32 * 32, 2 * 32 * 48, 2 * 32
    assert separate - own == 2 * (attention + feed + norms)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "rnn"}, "accepted are 'encdec'"),
        ({"heads": 0}, "heads=0"),
        ({"arch": "lm", "embedding": "tied_dec"}, "speaks of two stacks"),
        ({"arch": "lm", "decoder_layers": 3}, "different depth"),
        ({"dropout": 1.0}, "probability"),
        ({"buckets": 31}, "must be even"),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(InvalidInputError, match=message):
        dataclasses.replace(NANO, **change)
