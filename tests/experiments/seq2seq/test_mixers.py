"""Convolutions and Synthesizers against brute force, with packing, padding and caches."""
# ruff: noqa: E402

import pytest

torch = pytest.importorskip("torch")
from torch.nn import functional as F

from fishertope.core.errors import InvalidInputError
from fishertope.experiments.seq2seq.attention import causal_mask
from fishertope.experiments.seq2seq.conv import DynamicConvolution, LightweightConvolution
from fishertope.experiments.seq2seq.synthesizer import Synthesizer

TIGHT = {"atol": 1e-12, "rtol": 1e-12}  # float64, short sums in another order
MODES = [
    "dense", "dense_plus", "dense_plus_alpha", "factorized", "random", "random_plus",
    "random_plus_alpha",
]  # fmt: skip


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


def slow_convolution(layer, x):
    """The formulas, position by position and channel by channel."""
    d = x.shape[-1]
    both = x @ layer.gated.weight.T + layer.gated.bias
    g = both[..., :d] * torch.sigmoid(both[..., d:])
    mixed = torch.zeros_like(g)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            if isinstance(layer, DynamicConvolution):
                logits = (layer.kernel_map.weight @ g[b, t] + layer.kernel_map.bias).view(-1, d)
            else:
                logits = layer.kernel
            weights = logits.exp() / logits.exp().sum(0)
            assert torch.allclose(weights.sum(0), torch.ones(d, dtype=x.dtype))
            for j in range(layer.width):
                place = t + j - layer.left
                if 0 <= place < x.shape[1]:
                    mixed[b, t] += weights[j] * g[b, place]
    pointwise = mixed @ layer.pointwise.weight.T + layer.pointwise.bias
    return pointwise @ layer.output.weight.T + layer.output.bias


@pytest.mark.parametrize("kind", [LightweightConvolution, DynamicConvolution])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("d", "width", "n"), [(3, 5, 7), (4, 9, 4), (2, 1, 3)])
def test_check_19_convolutions_equal_the_formula(kind, causal, d, width, n):
    layer = made(kind(d, width, causal=causal))
    x = draw(2, n, d)
    torch.testing.assert_close(layer(x), slow_convolution(layer, x), **TIGHT)
    assert sum(p.numel() for p in layer.parameters()) == kind.count(d, width)


@pytest.mark.parametrize("causal", [False, True])
def test_check_19_light_convolution_equals_grouped_conv1d(causal):
    d, width = 6, 9
    layer = made(LightweightConvolution(d, width, causal=causal))
    x = draw(2, 12, d)
    kernel = torch.softmax(layer.kernel, 0)
    torch.testing.assert_close(kernel.sum(0), torch.ones(d, dtype=x.dtype), **TIGHT)
    g = F.glu(layer.gated(x), -1).transpose(1, 2)
    padded = F.pad(g, (layer.left, width - 1 - layer.left))
    mixed = F.conv1d(padded, kernel.T[:, None], groups=d).transpose(1, 2)
    expected = layer.output(layer.pointwise(mixed))
    torch.testing.assert_close(layer(x), expected, **TIGHT)


@pytest.mark.parametrize("kind", [LightweightConvolution, DynamicConvolution])
def test_check_14_cached_convolution_equals_the_whole(kind):
    layer = made(kind(4, 5, causal=True))
    x = draw(3, 11, 4)
    whole = layer(x, mask=causal_mask(11, 11, 0, x.device))
    cache, parts = layer.new_cache(), []
    for first, last in [(0, 3), (3, 4), (4, 10), (10, 11)]:
        mask = causal_mask(last - first, last, first, x.device)
        parts.append(layer(x[:, first:last], mask=mask, cache=cache))
        assert cache.length == last
    torch.testing.assert_close(torch.cat(parts, 1), whole, **TIGHT)
    cache.reorder(torch.tensor([2, 2]))
    again = layer(draw(2, 1, 4, seed=5), cache=cache)
    joined = torch.cat([x[[2, 2]], draw(2, 1, 4, seed=5)], 1)
    torch.testing.assert_close(again, layer(joined)[:, -1:], **TIGHT)


@pytest.mark.parametrize("kind", [LightweightConvolution, DynamicConvolution])
@pytest.mark.parametrize("causal", [False, True])
def test_convolutions_neither_read_padding_nor_other_segments(kind, causal):
    layer = made(kind(4, 5, causal=causal))
    parts = [draw(1, 6, 4, seed=2), draw(1, 3, 4, seed=3)]
    alone = [layer(p) for p in parts]
    padded = torch.cat([parts[1], draw(1, 3, 4, seed=4)], 1)
    rows = torch.cat([parts[0], padded])
    real = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    out = layer(rows, mask=real[:, None, :])
    torch.testing.assert_close(out[0], alone[0][0], **TIGHT)
    torch.testing.assert_close(out[1, :3], alone[1][0], **TIGHT)
    segments = torch.tensor([[1] * 6 + [2] * 3])
    mask = segments[:, :, None] == segments[:, None, :]
    if causal:
        mask = mask & causal_mask(9, 9, 0, rows.device)
    packed = layer(torch.cat(parts, 1), mask=mask)
    torch.testing.assert_close(packed, torch.cat(alone, 1), **TIGHT)


def test_convolution_errors_say_what_to_do():
    with pytest.raises(InvalidInputError, match="odd where the window is centred"):
        LightweightConvolution(4, 4)
    with pytest.raises(InvalidInputError, match="only causal ones decode"):
        DynamicConvolution(4, 5).new_cache()
    with pytest.raises(InvalidInputError, match="cannot read a source"):
        LightweightConvolution(4, 5).forward(torch.zeros(1, 2, 4), source=torch.zeros(1, 2, 4))


def slow_logits(layer, x):
    """Logits of a Synthesizer entry by entry."""
    batch, n, _ = x.shape
    heads, width, mode = layer.heads, layer.d_kv, layer.mode
    out = torch.zeros(batch, heads, n, n, dtype=x.dtype)
    for b in range(batch):
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            for i in range(n):
                for j in range(n):
                    if mode.startswith("dense"):
                        q = layer.query.weight[part] @ x[b, i]
                        made_up = sum(max(q[c], 0.0) * layer.table[c, j] for c in range(width))
                    elif mode == "factorized":
                        made_up = (layer.left[:, h, i] * layer.right[:, h, j]).sum()
                    else:
                        made_up = layer.table[h, i, j]
                    if "plus" in mode:
                        q, k = layer.query.weight[part] @ x[b, i], layer.key.weight[part] @ x[b, j]
                        s = torch.sigmoid(layer.alpha) if layer.alpha is not None else None
                        made_up = q @ k + made_up if s is None else (1 - s) * (q @ k) + s * made_up
                    out[b, h, i, j] = made_up
    return out


@pytest.mark.parametrize("mode", MODES)
def test_check_19_synthesizers_equal_the_table(mode):
    layer = made(Synthesizer(6, 2, 3, mode=mode, max_length=8, rank=2))
    x, bias = draw(2, 5, 6), draw(1, 2, 5, 5, seed=3)
    weights = torch.softmax(slow_logits(layer, x) + bias, -1)
    values = layer.value(x).view(2, 5, 2, 3).transpose(1, 2)
    expected = layer.output((weights @ values).transpose(1, 2).reshape(2, 5, 6))
    torch.testing.assert_close(layer(x, bias=bias), expected, **TIGHT)
    counted = Synthesizer.count(6, 2, 3, mode=mode, max_length=8, rank=2)
    assert sum(p.numel() for p in layer.parameters()) == counted


@pytest.mark.parametrize("kind", ["dense", "random"])
def test_check_19_plus_alpha_at_zero_is_the_half_half_mix(kind):
    mixed = made(Synthesizer(6, 2, 3, mode=f"{kind}_plus_alpha", max_length=5))
    summed = made(Synthesizer(6, 2, 3, mode=f"{kind}_plus", max_length=5))
    assert Synthesizer(6, 2, 3, mode=f"{kind}_plus_alpha").alpha.item() == 0.0
    with torch.no_grad():
        mixed.alpha.zero_()
        state = mixed.state_dict()
        state.pop("alpha")
        summed.load_state_dict(state)
        summed.table /= 2
        summed.key.weight /= 2
    x = draw(2, 5, 6)
    torch.testing.assert_close(mixed(x), summed(x), **TIGHT)


@pytest.mark.parametrize("mode", MODES)
def test_check_14_cached_synthesizer_equals_the_whole(mode):
    layer = made(Synthesizer(6, 2, 3, mode=mode, max_length=9))
    x = draw(2, 9, 6)
    causal = causal_mask(9, 9, 0, x.device)
    whole = layer(x, mask=causal)
    cache, parts = layer.new_cache(), []
    for first, last in [(0, 2), (2, 3), (3, 8), (8, 9)]:
        mask = causal[:, first:last, :last]
        parts.append(layer(x[:, first:last], mask=mask, cache=cache))
    torch.testing.assert_close(torch.cat(parts, 1), whole, **TIGHT)
    changed = x.clone()
    changed[:, 5] += 1.0
    after = layer(changed, mask=causal)
    assert torch.equal(after[:, :5], whole[:, :5])
    assert not torch.equal(after[:, 5:], whole[:, 5:])


def test_synthesizer_errors_say_what_to_do():
    with pytest.raises(InvalidInputError, match="accepted are 'dense'"):
        Synthesizer(4, 1, 4, mode="vanilla")
    with pytest.raises(InvalidInputError, match="max_length=5"):
        Synthesizer(4, 1, 4, mode="random", max_length=4).forward(torch.zeros(1, 5, 4))
    with pytest.raises(InvalidInputError, match="cannot read a source"):
        Synthesizer(4, 1, 4, mode="dense").forward(
            torch.zeros(1, 2, 4), source=torch.zeros(1, 2, 4)
        )
