"""Norms, residuals, embeddings, softmaxes, positions, sharing: each against its formula."""
# ruff: noqa: E402

import dataclasses
import math

import pytest

torch = pytest.importorskip("torch")

from fishertope.core.errors import InvalidInputError
from fishertope.experiments.seq2seq import (
    AdaptiveSoftmax,
    ClusteredEmbedding,
    ContextualBias,
    FactorizedEmbedding,
    FeedForward,
    GatedFeedForward,
    MixtureOfSoftmaxes,
    PartialRMSNorm,
    RMSNorm,
    Seq2Seq,
    Seq2SeqConfig,
    SinusoidalPositions,
    relative_buckets,
    shift_right,
)
from fishertope.experiments.seq2seq.positions import places_in_segments

CONFIG = Seq2SeqConfig(
    vocab_size=30, d_model=16, d_ff=24, d_kv=8, heads=2, layers=2, norm="layer", ffn_bias=True,
    dropout=0.0,
)  # fmt: skip
CLUSTERS = {"clusters": (8, 10, 12), "cluster_inner": (16, 8, 4)}
SUM = 2e-6  # a log-sum-exp of float32 terms
SAME = 2e-5  # float32 products in another order


def seeded(n=0):
    return torch.Generator().manual_seed(n)


def model_of(seed=0, **change):
    return Seq2Seq(dataclasses.replace(CONFIG, **change), seeded(seed)).eval()


def batch():
    inputs = torch.randint(2, 30, (2, 9), generator=seeded(1))
    inputs[0, 6:] = 0
    return inputs, torch.randint(2, 30, (2, 7), generator=seeded(2))


def logits_of(model):
    inputs, targets = batch()
    with torch.no_grad():
        return model(inputs, shift_right(targets))


# --- check 16 ------------------------------------------------------------------------------------


def test_check_16_gated_units_at_two_thirds_have_vanillas_parameters():
    def count(layer):
        return sum(p.numel() for p in layer.parameters())

    for d_model, d_ff in ((768, 3_072), (64, 256)):
        config = dataclasses.replace(CONFIG, d_model=d_model, d_ff=d_ff)
        narrow = dataclasses.replace(config, d_ff=round(2 / 3 * d_ff))
        with torch.device("meta"):
            plain, gated = count(FeedForward(config)), count(GatedFeedForward(narrow))
        assert abs(gated / plain - 1) < 0.01


def test_check_16_the_linear_gated_unit_is_bilinear():
    config = dataclasses.replace(CONFIG, activation="linear", gated=True, ffn_bias=False)
    layer = GatedFeedForward(config).double()
    x, y = torch.randn(2, 5, 16, generator=seeded(), dtype=torch.double)
    torch.testing.assert_close(layer(3 * x), 9 * layer(x))
    mixed = layer(x + y) - layer(x - y)  # 2 (B(x, y) + B(y, x))
    torch.testing.assert_close(layer(x + 2 * y) - layer(x - 2 * y), 2 * mixed)


@pytest.mark.parametrize("kind", ["relu", "gelu", "swish", "elu", "selu", "sigmoid", "softplus"])
def test_check_16_activations_have_their_formulas(kind):
    from fishertope.experiments.seq2seq.layers import activate

    x = torch.linspace(-4, 4, 41, dtype=torch.double)
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    sigmoid = 1 / (1 + torch.exp(-x))
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    expected = {
        "relu": torch.where(x > 0, x, 0.0),
        "gelu": 0.5 * x * (1 + torch.tanh(inner)),
        "swish": x * sigmoid,
        "elu": torch.where(x > 0, x, torch.exp(x) - 1),
        "selu": scale * torch.where(x > 0, x, alpha * (torch.exp(x) - 1)),
        "sigmoid": sigmoid,
        "softplus": torch.log(1 + torch.exp(x)),
    }[kind]
    torch.testing.assert_close(activate(kind, x), expected)


def test_check_16_rms_norm_is_torchs():
    x = torch.randn(4, 16, generator=seeded())
    mine, theirs = RMSNorm(16, 1e-6), torch.nn.RMSNorm(16, eps=1e-6)
    with torch.no_grad():
        mine.weight.copy_(torch.rand(16, generator=seeded(1)))
        theirs.weight.copy_(mine.weight)
    assert torch.equal(mine(x), theirs(x))
    whole = PartialRMSNorm(16, 1.0)
    with torch.no_grad():
        whole.weight.copy_(mine.weight)
    assert torch.equal(whole(x), mine(x))


def test_check_16_partial_rms_norm_reads_the_first_channels():
    x = torch.randn(4, 768, generator=seeded())
    norm = PartialRMSNorm(768)
    assert norm.read == 52  # ceil(.0675 * 768)
    expected = x / (x[:, :52].square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(norm(x), expected, atol=SAME, rtol=SAME)
    changed = x.clone()
    changed[:, 52:] += 1.0
    assert torch.equal(norm(changed)[:, :52], norm(x)[:, :52])
    with pytest.raises(InvalidInputError, match="part=0"):
        PartialRMSNorm(8, 0.0)


@pytest.mark.parametrize("change", [
    {"residual": "rezero", "norm": "none"},
    {"residual": "rezero", "norm": "layer"},
    {"residual": "fixup", "norm": "none", "fixup_cross": "zero"},
    {"residual": "fixup", "norm": "none", "fixup_cross": "released"},
])  # fmt: skip
def test_check_16_stacks_start_as_the_identity(change):
    model = model_of(**change)
    h = torch.randn(2, 5, 16, generator=seeded(3))
    mask = torch.ones(2, 1, 5, dtype=torch.bool)
    released = change.get("fixup_cross") == "released"
    with torch.no_grad():
        expected = model.encoder.final_norm(h)
        if change["norm"] == "none":
            assert torch.equal(expected, h)
        assert torch.equal(model.encoder(h, mask), expected)
        out = model.decoder(h, mask, source=h, source_mask=mask)
        assert torch.equal(out, model.decoder.final_norm(h)) != released


def test_check_16_fixups_initial_weights():
    model = model_of(d_model=64, d_ff=256, residual="fixup", norm="none", gated=True)
    count = 2 * 2 + 3 * 2
    block = model.decoder.blocks[0]
    assert model.config.sublayers == count
    assert model.config.attention_scale == 8**-0.5
    for weight, std in (
        (block.self_attention.key.weight, (2 / 64) ** 0.5 * count ** (-1 / 6)),
        (block.self_attention.query.weight, (2 / 64) ** 0.5 * count ** (-1 / 6)),
        (block.feed_forward.wi.weight, (2 / 64) ** 0.5 * count ** (-1 / 2)),
        (block.feed_forward.gate.weight, (2 / 64) ** 0.5 * count ** (-1 / 2)),
        (block.cross_attention.key.weight, 64**-0.5),
    ):
        # The deviation of n draws has one of std / sqrt(2 n) itself.
        assert abs(weight.std().item() / std - 1) < 4 / math.sqrt(2 * weight.numel())
    for weight in (block.self_attention.output.weight, block.feed_forward.wo.weight):
        assert not weight.any()
    assert block.cross_attention.output.weight.any()


def test_check_16_folded_and_explicit_scales_are_one_function():
    folded = model_of()
    explicit = Seq2Seq(dataclasses.replace(CONFIG, scaling="explicit")).eval()
    explicit.load_state_dict(folded.state_dict())
    with torch.no_grad():
        explicit.embedding.div_(4.0)
        for name, weight in explicit.named_parameters():
            if name.endswith("attention.query.weight"):
                weight.mul_(8**0.5)
    torch.testing.assert_close(logits_of(explicit), logits_of(folded), atol=SAME, rtol=SAME)
    drawn = model_of(scaling="explicit", d_model=64)
    assert abs(drawn.embedding.std().item() * 8 - 1) < 0.1
    assert abs(drawn.encoder.blocks[0].self_attention.query.weight.std().item() * 8 - 1) < 0.1


# --- check 17 ------------------------------------------------------------------------------------


def as_torch(head):
    """``nn.AdaptiveLogSoftmaxWithLoss`` of 100 words, with our weights."""
    theirs = torch.nn.AdaptiveLogSoftmaxWithLoss(64, 100, cutoffs=[10, 40], div_value=4.0)
    tables = head.embedding.tables
    with torch.no_grad():
        theirs.head.weight.copy_(torch.cat([tables[0].tokens, head.nodes]))
        for tail, table in zip(theirs.tail, tables[1:], strict=True):
            tail[0].weight.copy_(table.expand)
            tail[1].weight.copy_(table.tokens)
    return theirs


def adaptive_head():
    embedding = ClusteredEmbedding((10, 30, 60), (64, 16, 4), 64)
    head = AdaptiveSoftmax(embedding)
    embedding.draw(seeded(4), 0.2)
    head.initialise(seeded(5))
    return head


def test_check_17_adaptive_softmax_is_torchs():
    head = adaptive_head()
    theirs = as_torch(head)
    h = torch.randn(50, 64, generator=seeded(6))
    targets = torch.randint(0, 100, (50,), generator=seeded(7))
    targets[:3] = torch.tensor([0, 10, 99])
    logs = head.log_probabilities(h)
    torch.testing.assert_close(logs, theirs.log_prob(h), atol=SAME, rtol=SAME)
    torch.testing.assert_close(logs.logsumexp(-1), torch.zeros(50), atol=SUM, rtol=0)
    loss = head.loss(h.view(5, 10, 64), targets.view(5, 10))
    torch.testing.assert_close(loss.flatten(), -theirs(h, targets).output, atol=SAME, rtol=SAME)
    loss.mean().backward()
    theirs(h, targets).loss.backward()
    node = theirs.head.weight.grad[10:]
    torch.testing.assert_close(head.nodes.grad, node, atol=SAME, rtol=SAME)
    table = head.embedding.tables[2].tokens.grad
    torch.testing.assert_close(table, theirs.tail[1][1].weight.grad, atol=SAME, rtol=SAME)


def test_check_17_an_adaptive_loss_without_tail_words_and_its_z_loss():
    head = adaptive_head()
    h, targets = torch.randn(4, 64, generator=seeded(6)), torch.tensor([0, 9, 3, 50])
    logits = head.head_logits(h)
    log_z = logits.logsumexp(-1)
    tail = head.embedding.tables[2].logits(h[3:]).logsumexp(-1)
    extra = 0.1 * log_z.square()
    extra[3] += 0.1 * tail[0].square()
    expected = head.loss(h, targets) + extra
    torch.testing.assert_close(head.loss(h, targets, 0.1), expected, atol=SAME, rtol=SAME)
    head.loss(h[:3], targets[:3]).sum().backward()
    assert head.embedding.tables[2].tokens.grad is None


@pytest.mark.parametrize("change", [
    {"softmax": "adaptive", **CLUSTERS},
    {"softmax": "adaptive_noproj", "clusters": (8, 10, 12)},
    {"softmax": "mos", "softmax_components": 3},
])  # fmt: skip
def test_check_17_a_models_probabilities_sum_to_one(change):
    total = logits_of(model_of(**change)).logsumexp(-1)
    torch.testing.assert_close(total, torch.zeros_like(total), atol=SUM, rtol=0)


def test_check_17_one_cluster_is_a_plain_embedding():
    plain = model_of()
    one = Seq2Seq(dataclasses.replace(
        CONFIG, embedding_form="adaptive", clusters=(30,), cluster_inner=(16,)
    )).eval()  # fmt: skip
    state = plain.state_dict()
    state["embedding.tables.0.tokens"] = state.pop("embedding")
    one.load_state_dict(state)
    assert torch.equal(logits_of(one), logits_of(plain))


def test_check_17_clusters_are_rows_of_one_matrix():
    table = ClusteredEmbedding((8, 10, 12), (16, 8, 4), 16)
    table.draw(seeded())
    rows = torch.cat([t.tokens if not hasattr(t, "expand") else t.tokens @ t.expand
                      for t in table.tables])  # fmt: skip
    tokens = torch.arange(30).view(5, 6)
    torch.testing.assert_close(table(tokens), rows[tokens], atol=SAME, rtol=SAME)
    h = torch.randn(4, 16, generator=seeded(1))
    torch.testing.assert_close(table.logits(h), h @ rows.T, atol=SAME, rtol=SAME)


def test_check_17_a_factorized_embedding_is_its_product():
    table = FactorizedEmbedding(30, 4, 16)
    table.draw(seeded())
    full, h = table.tokens @ table.expand, torch.randn(4, 16, generator=seeded(1))
    torch.testing.assert_close(table(torch.arange(30)), full, atol=SAME, rtol=SAME)
    torch.testing.assert_close(table.logits(h), h @ full.T, atol=SAME, rtol=SAME)
    factors = model_of(embedding_form="factorized", embedding_inner=4)
    plain = Seq2Seq(CONFIG).eval()
    state = factors.state_dict()
    state["embedding"] = state.pop("embedding.tokens") @ state.pop("embedding.expand")
    plain.load_state_dict(state)
    torch.testing.assert_close(logits_of(factors), logits_of(plain), atol=SAME, rtol=SAME)


def test_check_17_one_component_in_its_linear_range_is_a_plain_softmax():
    small = 1e-5
    words = torch.randn(30, 16, generator=seeded(), dtype=torch.double)
    head = MixtureOfSoftmaxes(torch.nn.Parameter(words / small), 1).double()
    with torch.no_grad():
        head.contexts.copy_(small * torch.eye(16, dtype=torch.double)[None])
        head.prior.zero_()
    h = torch.randn(3, 16, generator=seeded(1), dtype=torch.double)
    # tanh(x) = x - x³/3: relative error of small² h² / 3
    torch.testing.assert_close(
        head.log_probabilities(h), torch.log_softmax(h @ words.T, -1), atol=1e-6, rtol=0
    )


def test_check_17_a_mixture_is_the_sum_over_its_components():
    words = torch.nn.Parameter(torch.randn(30, 16, generator=seeded()))
    head = MixtureOfSoftmaxes(words, 3)
    head.initialise(seeded(1))
    h = torch.randn(2, 16, generator=seeded(2)) / 4
    prior = torch.softmax(h @ head.prior.T, -1)
    expected = sum(
        prior[:, k, None] * torch.softmax(torch.tanh(h @ head.contexts[k]) @ words.T, -1)
        for k in range(3)
    )
    torch.testing.assert_close(head.log_probabilities(h).exp(), expected, atol=SAME, rtol=SAME)


@pytest.mark.parametrize("training", [True, False])
def test_a_mixtures_loss_and_gradients_are_those_of_its_log_probabilities(training):
    words = torch.nn.Parameter(torch.randn(30, 16, generator=seeded(), dtype=torch.double))
    head = MixtureOfSoftmaxes(words, 3).double().train(training)
    head.initialise(seeded(1))
    h = torch.randn(2, 5, 16, generator=seeded(2), dtype=torch.double, requires_grad=True)
    targets = torch.randint(30, (2, 5), generator=seeded(3))
    inputs = (h, *head.parameters())
    expected = -head.log_probabilities(h).gather(-1, targets[..., None])[..., 0]
    losses = head.loss(h, targets, z_loss=1.0)
    torch.testing.assert_close(losses, expected, atol=1e-12, rtol=1e-12)
    weights = torch.rand(2, 5, generator=seeded(4), dtype=torch.double)
    for ours, theirs in zip(
        torch.autograd.grad((losses * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_heads_take_their_words_from_the_right_matrix():
    tied, untied = (model_of(softmax="mos", embedding=e) for e in ("tied_all", "untied"))
    assert tied.softmax.weight is tied.embedding
    assert untied.softmax.weight is untied.head
    assert "softmax.weight" not in dict(tied.named_parameters())
    own = model_of(embedding="tied_dec")
    assert own.head is None
    assert own.encoder_embedding is not None
    inputs = model_of(embedding="tied_inputs")
    assert inputs.encoder_embedding is None
    assert inputs.head is not None
    adaptive = model_of(softmax="adaptive", **CLUSTERS)
    assert adaptive.softmax.embedding is adaptive.embedding


# --- check 19 ------------------------------------------------------------------------------------


def test_check_19_transparent_weights_sum_to_one_and_mix_the_layers():
    model = model_of(cross="transparent", layers=3, decoder_layers=2)
    weights = model.decoder.mixture.weights()
    assert weights.shape == (4, 2)
    torch.testing.assert_close(weights.sum(0), torch.ones(2))
    inputs, targets = batch()
    with torch.no_grad():
        layers = model.encode(inputs)
        assert layers.shape == (2, 4, 9, 16)
        assert torch.equal(layers[:, 0], model.embedding[inputs])
        # All weight on the last layer: the ordinary model.
        model.decoder.mixture.weight.copy_(torch.tensor([-1e4, -1e4, -1e4, 1e4])[:, None])
        plain = Seq2Seq(dataclasses.replace(model.config, cross="plain")).eval()
        state = {k: v for k, v in model.state_dict().items() if "mixture" not in k}
        plain.load_state_dict(state)
        tokens = shift_right(targets)
        torch.testing.assert_close(
            model(inputs, tokens), plain(inputs, tokens), atol=SAME, rtol=SAME
        )


@pytest.mark.parametrize("share", ["enc", "dec", "both"])
def test_check_19_shared_blocks_are_one_storage_and_one_function(share):
    shared, apart = model_of(share_blocks=share), Seq2Seq(CONFIG).eval()
    assert len(shared.encoder.blocks) == (2 if share == "dec" else 1)
    assert len(shared.decoder.blocks) == (2 if share == "enc" else 1)
    state = shared.state_dict()
    for stack in ("encoder", "decoder"):
        if share in ("both", stack[:3]):
            again = {k.replace("blocks.0", "blocks.1"): v for k, v in state.items()
                     if k.startswith(f"{stack}.blocks.0")}  # fmt: skip
            state.update(again)
    apart.load_state_dict(state)
    assert torch.equal(logits_of(shared), logits_of(apart))


def test_check_19_contextual_bias_is_its_formula():
    config = dataclasses.replace(CONFIG, position="rel_contextual")
    for source in ("query", "input"):
        bias = ContextualBias(
            dataclasses.replace(config, contextual_from=source), bidirectional=False
        )
        bias.initialise(seeded())
        x = torch.randn(2, 3, 16, generator=seeded(1))
        query = torch.randn(2, 2, 3, 8, generator=seeded(2))
        got = bias(x, query, 5)
        for b in range(2):
            for head in range(2):
                for i in range(3):
                    for j in range(5):
                        bucket = relative_buckets(torch.tensor(j - i - 2), bidirectional=False)
                        read = query[b, head, i] if source == "query" else x[b, i]
                        expected = read @ bias.weight[head, bucket]
                        torch.testing.assert_close(got[b, head, i, j], expected)


def test_check_19_sinusoids_and_places_of_packed_rows():
    vectors = SinusoidalPositions(CONFIG)(torch.arange(5))
    for p in range(5):
        for k in range(8):
            angle = p * 10_000.0 ** (-k / 7)
            assert math.isclose(vectors[p, k], math.sin(angle), abs_tol=1e-6)
            assert math.isclose(vectors[p, 8 + k], math.cos(angle), abs_tol=1e-6)
    segments = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 2, 3, 3, 0, 0]])
    assert places_in_segments(segments).tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 0, 1, 0, 1]]
