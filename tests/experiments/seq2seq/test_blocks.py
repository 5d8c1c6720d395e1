"""Branched attention, Evolved and Universal blocks, the funnel: against other ways to compute."""
# ruff: noqa: E402

import dataclasses

import pytest

torch = pytest.importorskip("torch")
from torch.nn import functional as F

from fishertope.core.errors import InvalidInputError
from fishertope.experiments.seq2seq import Seq2Seq, Seq2SeqConfig
from fishertope.experiments.seq2seq.attention import causal_mask
from fishertope.experiments.seq2seq.evolved import (
    EvolvedDecoderConvolution,
    EvolvedEncoderConvolution,
    GatedLinearUnit,
)
from fishertope.experiments.seq2seq.funnel import pool_pairs, pooling_layers
from fishertope.experiments.seq2seq.universal import GatedResidual, StepEmbedding
from fishertope.experiments.seq2seq.weighted import (
    WeightedAttention,
    branch_weights,
    freeze_branches,
)

TIGHT = {"atol": 1e-12, "rtol": 1e-12}  # float64, short sums in another order
NANO = Seq2SeqConfig(
    vocab_size=40, d_model=16, d_ff=24, d_kv=4, heads=4, layers=4, dropout=0.0, norm="layer"
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(layer, seed=1):
    """The layer in float64 with all parameters drawn, biases too."""
    layer = layer.double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) / 2)
    return layer


def size(layer):
    return sum(p.numel() for p in layer.parameters())


@pytest.mark.parametrize("ffn_bias", [False, True])
@pytest.mark.parametrize("cross", [False, True])
def test_weighted_attention_equals_its_branches(ffn_bias, cross):
    config = dataclasses.replace(NANO, ffn_bias=ffn_bias, activation="gelu")
    layer = made(WeightedAttention(config, cross=cross))
    x, source, bias = draw(2, 5, 16), draw(2, 7, 16, seed=2), draw(1, 4, 5, 7, seed=3)
    read = source if cross else x
    bias = bias if cross else bias[..., :5]
    queries, keys, values = (
        f(y).view(2, y.shape[1], 4, 4).transpose(1, 2)
        for f, y in ((layer.query, x), (layer.key, read), (layer.value, read))
    )
    heads = torch.softmax(queries @ keys.transpose(2, 3) + bias, -1) @ values
    out = layer(x, source=source if cross else None, bias=bias)
    torch.testing.assert_close(out, layer.by_branch(heads), **TIGHT)
    assert size(layer) == WeightedAttention.count(16, 24, 4, 4, ffn_bias=ffn_bias)


def test_branch_weights_are_positive_sum_to_one_and_can_be_frozen():
    raw = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)
    weights = branch_weights(raw)
    assert (weights > 0).all()
    assert weights.sum().item() == pytest.approx(1.0, abs=1e-12)
    assert torch.isfinite(branch_weights(-raw.abs())).all()
    model = Seq2Seq(dataclasses.replace(NANO, mixer="weighted"), torch.Generator().manual_seed(0))
    before = [n for n, p in model.named_parameters() if p.requires_grad]
    assert freeze_branches(model) == 12  # self-attention in 8 blocks, cross-attention in 4
    after = [n for n, p in model.named_parameters() if p.requires_grad]
    assert {n.split(".")[-1] for n in set(before) - set(after)} == {"alpha", "kappa"}
    with pytest.raises(InvalidInputError, match="mixer='weighted'"):
        freeze_branches(Seq2Seq(NANO))


def separable(part, x, left, right):
    padded = F.pad(x.transpose(1, 2), (left, right))
    mixed = F.conv1d(padded, part.kernel.T[:, None], groups=x.shape[2])
    weight = part.pointwise.weight[:, :, None]
    return F.conv1d(mixed, weight, part.pointwise.bias).transpose(1, 2)


def behind(x, width):
    return torch.cat([x, x.new_zeros(*x.shape[:2], width - x.shape[2])], -1)


def test_g2_evolved_encoder_convolution_equals_conv1d():
    layer, d = made(EvolvedEncoderConvolution(6)), 6
    x = draw(2, 11, d)
    taps = layer.narrow.weight.view(d // 2, 3, d).transpose(1, 2)
    right = torch.relu(F.conv1d(x.transpose(1, 2), taps, padding=1).transpose(1, 2))
    hidden = torch.relu(x @ layer.wide.weight.T) + behind(right, 4 * d)
    hidden = F.layer_norm(hidden, (4 * d,), layer.norm.weight, layer.norm.bias, 1e-6)
    expected = behind(separable(layer.separable, hidden, 4, 4), d)
    torch.testing.assert_close(layer(x), expected, **TIGHT)
    assert size(layer) == EvolvedEncoderConvolution.count(d)
    unit = made(GatedLinearUnit(d))
    torch.testing.assert_close(unit(x), F.glu(unit.both(x), -1), **TIGHT)
    assert size(unit) == GatedLinearUnit.count(d)


def test_g2_evolved_decoder_convolution_equals_conv1d_and_its_cache():
    layer, d = made(EvolvedDecoderConvolution(6)), 6
    x = draw(2, 15, d)
    left = torch.relu(separable(layer.left, x, 10, 0))
    hidden = left + behind(separable(layer.right, x, 6, 0), 2 * d)
    hidden = F.layer_norm(hidden, (2 * d,), layer.norm.weight, layer.norm.bias, 1e-6)
    whole = separable(layer.last, hidden, 6, 0)
    torch.testing.assert_close(layer(x), whole, **TIGHT)
    assert size(layer) == EvolvedDecoderConvolution.count(d)
    cache, parts = layer.new_cache(), []
    for first, last in [(0, 1), (1, 9), (9, 10), (10, 15)]:
        mask = causal_mask(last - first, last, first, x.device)
        parts.append(layer(x[:, first:last], mask=mask, cache=cache))
        assert cache.length == last
    torch.testing.assert_close(torch.cat(parts, 1), whole, **TIGHT)


@pytest.mark.parametrize("kind", [EvolvedEncoderConvolution, EvolvedDecoderConvolution])
def test_evolved_convolutions_do_not_cross_segments(kind):
    layer = made(kind(6))
    parts = [draw(1, 6, 6, seed=2), draw(1, 4, 6, seed=3)]
    segments = torch.tensor([[1] * 6 + [2] * 4])
    mask = segments[:, :, None] == segments[:, None, :]
    if kind is EvolvedDecoderConvolution:
        mask = mask & causal_mask(10, 10, 0, mask.device)
    packed = layer(torch.cat(parts, 1), mask=mask)
    torch.testing.assert_close(packed, torch.cat([layer(p) for p in parts], 1), **TIGHT)


def test_gated_residual_equals_its_formula():
    layer = made(GatedResidual(3))
    x, y = draw(4, 3), draw(4, 3, seed=2)
    w, b = layer.gates.weight, layer.gates.bias
    both = torch.cat([x, y], -1)
    update = torch.sigmoid(both @ w[:3].T + b[:3])
    reset = torch.sigmoid(both @ w[3:].T + b[3:])
    candidate = torch.sigmoid(layer.candidate(torch.cat([reset * x, y], -1)))
    expected = x + (1 - update) * y + update * candidate
    torch.testing.assert_close(layer(x, y), expected, **TIGHT)
    assert size(layer) == GatedResidual.count(3)
    assert size(StepEmbedding(5, 3)) == StepEmbedding.count(5, 3)


def test_check_19_universal_with_one_step_and_open_gate_is_one_block():
    config = dataclasses.replace(NANO, layers=1)
    plain = Seq2Seq(config, torch.Generator().manual_seed(0)).double().eval()
    universal = Seq2Seq(dataclasses.replace(config, recurrence=1)).double().eval()
    missing = universal.load_state_dict(plain.state_dict(), strict=False)
    assert missing.unexpected_keys == []
    with torch.no_grad():
        for module in universal.modules():
            if isinstance(module, GatedResidual):  # the gate of the update shut off
                module.gates.weight.zero_()
                module.gates.bias.fill_(-1e3)
            elif isinstance(module, StepEmbedding):
                module.weight.zero_()
    inputs = torch.randint(2, 40, (2, 7), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(universal(inputs, inputs), plain(inputs, inputs), **TIGHT)


def test_universal_stack_passes_its_block_once_a_step():
    config = dataclasses.replace(NANO, layers=1, recurrence=3, position="none")
    model = Seq2Seq(config, torch.Generator().manual_seed(0)).double().eval()
    stack, h = model.encoder, draw(2, 5, 16)
    expected = h
    for step in range(3):
        expected = stack.blocks[0](
            expected + stack.steps.weight[step], bias=None, mask=None, source=None,
            cross_bias=None, source_mask=None, cache=None,
        )  # fmt: skip
    torch.testing.assert_close(stack(h, None), stack.final_norm(expected), **TIGHT)
    assert len(model.new_cache().passes) == 3
    assert len(stack.blocks) == 1


def test_g2_pooling_equals_transformers_funnel():
    funnel = pytest.importorskip("transformers.models.funnel.modeling_funnel")
    from transformers import FunnelConfig

    config = FunnelConfig(separate_cls=False, truncate_seq=False)
    structure = funnel.FunnelAttentionStructure(config)
    for n in (1, 2, 7, 8):
        x = draw(2, n, 5, seed=n)
        torch.testing.assert_close(pool_pairs(x), structure.pool_tensor(x, mode="mean"), **TIGHT)


def test_pooling_leaves_padding_out():
    x = draw(2, 7, 3)
    real = torch.tensor([[True] * 7, [True] * 3 + [False] * 4])
    out = pool_pairs(x, real)
    torch.testing.assert_close(out[0], pool_pairs(x)[0], **TIGHT)
    torch.testing.assert_close(out[1, :2], pool_pairs(x[1:, :3])[0], **TIGHT)
    assert (out[1, 2:] == 0).all()
    assert pooling_layers(12, 3) == (4, 8)
    assert pooling_layers(2, 2) == (1,)


def test_check_19_funnel_lengths_and_strided_mask():
    config = dataclasses.replace(NANO, pool_blocks=4)
    model = Seq2Seq(config, torch.Generator().manual_seed(0)).eval()
    lengths = []
    for block in model.encoder.blocks:
        block.feed_norm.register_forward_hook(lambda m, i, o: lengths.append(o.shape[1]))
    inputs = torch.randint(2, 40, (2, 20), generator=torch.Generator().manual_seed(1))
    inputs[1, 9:] = 0
    encoded, mask = model.encode(inputs), model.source_mask(inputs)
    assert lengths == [20, 10, 5, 3]
    assert encoded.shape[1] == mask.shape[2] == 3
    assert mask[:, 0].tolist() == [[True, True, True], [True, True, False]]
    with pytest.raises(InvalidInputError, match="one example a row"):
        model.encoder(draw(1, 4, 16).float(), torch.ones(1, 4, 4, dtype=torch.bool))


@pytest.mark.parametrize("pools", [2, 4])
def test_funnel_of_repeated_tokens_equals_the_plain_encoder(pools):
    """Without positions, repeating every token changes nothing that attention reads."""
    config = dataclasses.replace(NANO, position="none")
    plain = Seq2Seq(config, torch.Generator().manual_seed(0)).double().eval()
    pooled = Seq2Seq(dataclasses.replace(config, pool_blocks=pools)).double().eval()
    pooled.load_state_dict(plain.state_dict())
    tokens = torch.randint(2, 40, (2, 5), generator=torch.Generator().manual_seed(1))
    tokens[1, 3:] = 0
    repeated = tokens.repeat_interleave(2 ** (pools - 1), 1)
    real = (tokens != 0)[..., None]
    torch.testing.assert_close(
        pooled.encode(repeated) * real, plain.encode(tokens) * real, atol=1e-11, rtol=1e-11
    )
