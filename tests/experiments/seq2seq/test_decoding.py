"""Decoding against transformers' generate and against brute force."""
# ruff: noqa: E402

import dataclasses
import itertools

import pytest

torch = pytest.importorskip("torch")

from fishertope.core.errors import InvalidInputError
from fishertope.experiments.seq2seq import (
    Seq2Seq,
    Seq2SeqConfig,
    prepared_attention,
    shift_right,
)
from fishertope.experiments.seq2seq.checkpoints import save_pretrained
from fishertope.experiments.seq2seq.decoding import (
    beam,
    greedy,
    label_log_likelihoods,
    rank_classify,
    sample,
)

NANO = Seq2SeqConfig(vocab_size=40, d_model=32, d_ff=48, d_kv=8, heads=4, layers=2, dropout=0.0)


def model_of(seed, **change):
    model = Seq2Seq(dataclasses.replace(NANO, **change), torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2 and weight is not model.embedding:
                weight.mul_(2.0)
    return model.eval()


def rows(seed, batch=4, length=11):
    inputs = torch.randint(2, 40, (batch, length), generator=torch.Generator().manual_seed(seed))
    inputs[0, 6:] = 0
    return inputs


def padded(tokens):
    """Padding after the first EOS: the reference beam search fills with EOS if the pad id is 0."""
    after = ((tokens == 1).cumsum(1) - (tokens == 1).long()) > 0
    return tokens.masked_fill(after, 0)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_f1_02_greedy_and_beam_equal_generate(gated, seed, tmp_path):
    transformers = pytest.importorskip("transformers")
    own = model_of(seed, gated=gated, activation="gelu" if gated else "relu")
    save_pretrained(own, tmp_path)
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    inputs = rows(seed)
    common = {
        "input_ids": inputs,
        "attention_mask": (inputs != 0).long(),
        "max_new_tokens": 12,
        "do_sample": False,
    }
    expected = theirs.generate(**common, num_beams=1)[:, 1:]
    assert torch.equal(greedy(own, inputs, max_new_tokens=12), expected)
    expected = theirs.generate(**common, num_beams=4, length_penalty=0.6)[:, 1:]
    got = beam(own, inputs, max_new_tokens=12, beams=4, alpha=0.6, penalty="power")
    assert torch.equal(got, padded(expected))


def test_a_wide_beam_finds_the_best_sequence():
    own = model_of(4, vocab_size=5)
    inputs = torch.tensor([[2, 3, 4, 2]])
    scores = {}
    for length in (1, 2, 3):
        for tokens in itertools.product(range(5), repeat=length):
            if 1 in tokens[:-1] or (tokens[-1] != 1 and length < 3):
                continue
            goal = torch.tensor([tokens])
            with torch.no_grad():
                logs = torch.log_softmax(own(inputs, shift_right(goal)), -1)
            total = logs.gather(-1, goal[..., None]).sum().item()
            scores[tokens] = total / ((5 + length) / 6) ** 0.6
    best = max(scores, key=scores.get)
    got = beam(own, inputs, max_new_tokens=3, beams=125)[0].tolist()
    assert tuple(got + [0] * (len(best) - len(got))) == best


def test_sampling_follows_the_softmax_and_its_seed():
    own = model_of(5)
    inputs = rows(5, batch=1, length=6).clamp(min=2).expand(4000, -1)
    with torch.no_grad():
        logits = own(inputs[:1], torch.zeros(1, 1, dtype=torch.long))[0, 0]
    expected = torch.softmax(logits / 1.5, -1)
    first = sample(
        own, inputs, max_new_tokens=1, generator=torch.Generator().manual_seed(0), temperature=1.5
    )[:, 0]
    again = sample(
        own, inputs, max_new_tokens=1, generator=torch.Generator().manual_seed(0), temperature=1.5
    )[:, 0]
    assert torch.equal(first, again)
    frequency = torch.bincount(first, minlength=40) / 4000
    deviation = (expected * (1 - expected) / 4000).sqrt()
    assert ((frequency - expected).abs() <= 5 * deviation + 1e-3).all()
    only = sample(
        own, inputs[:8], max_new_tokens=1, generator=torch.Generator().manual_seed(0), top_k=1
    )
    assert (only[:, 0] == logits.argmax()).all()


@pytest.mark.parametrize("arch", ["lm", "prefix_lm", "encdec_shared"])
def test_greedy_equals_decoding_without_a_cache(arch):
    own = model_of(6, arch=arch)
    inputs = rows(6)[1:]
    got = greedy(own, inputs, max_new_tokens=6)
    tokens = torch.zeros(3, 1, dtype=torch.long)
    if arch != "encdec_shared":
        tokens = torch.cat([tokens, inputs], 1)
    start, done = tokens.shape[1], torch.zeros(3, dtype=torch.bool)
    for _ in range(got.shape[1]):
        prefix = None
        if arch == "prefix_lm":
            prefix = torch.arange(tokens.shape[1])[None].expand(3, -1) < start
        with torch.no_grad():
            logits = own(inputs if arch == "encdec_shared" else None, tokens, prefix=prefix)
        chosen = logits[:, -1].argmax(-1).masked_fill(done, 0)
        done |= chosen == 1
        tokens = torch.cat([tokens, chosen[:, None]], 1)
    assert torch.equal(got, tokens[:, start:])


def test_rank_classification_scores_each_label():
    own = model_of(7)
    inputs, labels = rows(7), torch.tensor([[5, 6, 1], [7, 1, 0], [8, 1, 0]])
    with torch.no_grad():
        scores = label_log_likelihoods(own, inputs, labels)
        for c, label in enumerate(labels):
            goal = label[label != 0][None].expand(4, -1)
            logs = torch.log_softmax(own(inputs, shift_right(goal)), -1)
            alone = logs.gather(-1, goal[..., None])[..., 0].sum(-1)
            torch.testing.assert_close(scores[:, c], alone, atol=1e-5, rtol=1e-5)
    assert torch.equal(rank_classify(own, inputs, labels), scores.argmax(-1))


def test_refusals():
    own = model_of(8, arch="lm")
    with pytest.raises(InvalidInputError, match="without gaps"):
        greedy(own, rows(8), max_new_tokens=2)
    with pytest.raises(InvalidInputError, match="needs an encoder"):
        rank_classify(own, rows(8), torch.tensor([[3, 1]]))
    with pytest.raises(InvalidInputError, match="temperature"):
        sample(own, rows(8), max_new_tokens=2, generator=torch.Generator(), temperature=0.0)


@pytest.fixture(params=["keyed", "latent"])
def form(request, monkeypatch):
    """The form of what a prepared decoder remembers, whatever the number of rows."""
    least = 1 if request.param == "latent" else 10**6
    monkeypatch.setattr(prepared_attention, "LATENT_ROWS", least)
    return request.param


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_a_prepared_decoder_is_the_decoder(gated, padded, form):
    """Folded norms and fused matrices change nothing but rounding; rows can be reordered."""
    from fishertope.experiments.seq2seq.decoding import _Session
    from fishertope.experiments.seq2seq.prepared import can_prepare

    config = Seq2SeqConfig(
        vocab_size=30, d_model=16, d_ff=24, d_kv=8, heads=2, layers=3, gated=gated,
        activation="gelu" if gated else "relu",
    )  # fmt: skip
    model = Seq2Seq(config, torch.Generator().manual_seed(0)).double().eval()
    with torch.no_grad():
        for norm in model.modules():
            if hasattr(norm, "eps"):
                norm.weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
    inputs = torch.randint(2, 30, (3, 7), generator=torch.Generator().manual_seed(2))
    if padded:
        inputs[1, 5:] = 0
    assert not can_prepare(model)
    with torch.no_grad():
        assert can_prepare(model)
        fast, slow = (_Session(model, inputs, 2, room=3, prepare=p) for p in (True, False))
        assert fast.prepared is not None
        kinds = {type(m).__name__ for b in fast.prepared.layers for m in (b.past, b.source)}
        assert kinds == {form.capitalize() + what for what in ("Past", "Source")}
        assert slow.prepared is None
        tokens = fast.start
        for n in range(40):
            a, b = fast.step(tokens), slow.step(tokens)
            torch.testing.assert_close(a, b, atol=1e-10, rtol=0)
            if n % 7 == 3:
                rows = torch.tensor([1, 1, 2, 3, 5, 4])
                fast.reorder(rows)
                slow.reorder(rows)
                b = b[rows]
            tokens = b.argmax(-1, keepdim=True) % 28 + 2
        model.train()
        assert not can_prepare(model)


@pytest.mark.parametrize(
    ("dtype", "eps", "close"),
    [(torch.float64, 0.5, 1e-10), (torch.float64, 1e-12, 1e-10), (torch.bfloat16, 1e-6, 0.05)],
)
def test_the_constant_column_of_a_prepared_decoder_is_the_eps_of_its_norms(dtype, eps, close, form):
    from fishertope.experiments.seq2seq.decoding import _Session

    config = Seq2SeqConfig(
        vocab_size=30, d_model=16, d_ff=24, d_kv=8, heads=2, layers=2, norm_eps=eps
    )
    model = Seq2Seq(config, torch.Generator().manual_seed(0)).to(dtype).eval()
    inputs = torch.randint(2, 30, (3, 7), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        # Embeddings as small as the eps, where it matters.
        model.embedding.mul_(0.1)
        fast, slow = (_Session(model, inputs, room=4, prepare=p) for p in (True, False))
        assert fast.prepared is not None
        tokens = fast.start
        for _ in range(9):
            a, b = fast.step(tokens), slow.step(tokens)
            torch.testing.assert_close(a, b, atol=close * float(b.abs().max()), rtol=0)
            tokens = b.argmax(-1, keepdim=True)


@pytest.mark.parametrize(
    ("batch", "d_kv", "kind"), [(8, 8, "Latent"), (7, 8, "Keyed"), (8, 2, "Keyed")]
)
def test_many_rows_of_short_heads_are_remembered_once_for_all_heads(batch, d_kv, kind):
    from fishertope.experiments.seq2seq.prepared import PreparedDecoder

    model = model_of(3, d_kv=d_kv)
    with torch.no_grad():
        inputs = rows(4, batch)
        ready = PreparedDecoder(model, model.encode(inputs), model.source_mask(inputs), room=2)
    names = {type(m).__name__ for b in ready.layers for m in (b.past, b.source)}
    assert names == {f"{kind}Past", f"{kind}Source"}
