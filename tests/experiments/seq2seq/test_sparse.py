"""Experts and product-key memory against brute force and transformers' Switch layers."""
# ruff: noqa: E402

import copy

import pytest

torch = pytest.importorskip("torch")
from torch.nn import functional as F

from fishertope.core.errors import InvalidInputError
from fishertope.experiments.seq2seq.memory import ProductKeyMemory, product_top_k
from fishertope.experiments.seq2seq.moe import (
    MixtureOfExperts,
    SwitchFeedForward,
    balance_loss,
    expert_capacity,
    split_into_groups,
    within_capacity,
)

TIGHT = {"atol": 1e-12, "rtol": 1e-12}  # float64, short sums in another order
FLOAT32 = {"atol": 1e-6, "rtol": 1e-5}  # the router of transformers works in float32


@pytest.fixture(autouse=True)
def _same_weights():
    """Layers made without a generator draw from the global one."""
    torch.manual_seed(0)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def expert(layer, e, x):
    return torch.relu(x @ layer.wi[e].T) @ layer.wo[e].T


def slow_experts(layer, x, capacity):
    """Token by token, with queues; groups as the layer makes them."""
    rows, n, width = x.shape
    groups = rows if layer.group_size is None else split_into_groups(rows * n, layer.group_size)
    out = []
    for group in x.reshape(groups, -1, width):
        probabilities = torch.softmax(group @ layer.router.weight.T, -1)
        best, chosen = probabilities.topk(layer.choices, -1)
        gates = best if layer.choices == 1 else best / best.sum(-1, keepdim=True)
        taken = [0] * layer.experts
        result = torch.zeros_like(group)
        for choice in range(layer.choices):
            for t in range(len(group)):
                e = int(chosen[t, choice])
                if capacity is None or taken[e] < capacity:
                    result[t] += gates[t, choice] * expert(layer, e, group[t])
                taken[e] += 1
        out.append(result)
    return torch.stack(out).view_as(x)


@pytest.mark.parametrize("kind", [MixtureOfExperts, SwitchFeedForward])
@pytest.mark.parametrize("factor", [None, 0.5, 1.2, 2.0, 50.0])
@pytest.mark.parametrize("group_size", [None, 12])
def test_check_18_experts_equal_queues_token_by_token(kind, factor, group_size):
    layer = kind(
        5, 7, 3, capacity_factor=factor, group_size=group_size, init_scale=9.0
    ).double().eval()  # fmt: skip
    x = draw(3, 16, 5)
    size = 16 if group_size is None else 12
    capacity = None if factor is None else max(min(size, int(size * factor / 3)), 4)
    expected = slow_experts(layer, x, capacity)
    torch.testing.assert_close(layer(x), expected, **TIGHT)
    layer.dispatch = "dense"
    torch.testing.assert_close(layer(x), expected, **TIGHT)
    assert sum(p.numel() for p in layer.parameters()) == kind.count(5, 7, 3)
    if factor == 50.0:  # capacity >= S: the dense sum over the chosen experts
        unlimited = slow_experts(layer, x, None)
        torch.testing.assert_close(expected, unlimited, **TIGHT)


def test_check_18_at_most_c_tokens_an_expert_and_dropped_ones_give_zero():
    layer = SwitchFeedForward(
        5, 7, 2, activation="softplus", capacity_factor=0.5, group_size=None
    ).double().eval()  # fmt: skip
    with torch.no_grad():  # every token goes to expert 1
        layer.router.weight[0], layer.router.weight[1] = -1.0, 1.0
    x = draw(2, 40, 5).abs()
    out = layer(x)
    assert layer.capacity(40) == expert_capacity(40, 2, 0.5) == 10
    assert (out[:, :10] != 0).any(-1).all()
    assert (out[:, 10:] == 0).all()
    generator = torch.Generator().manual_seed(0)
    choices = torch.randint(0, 4, (5, 60), generator=generator)  # 3 is none
    kept = within_capacity(choices, 3, 7)
    assert not kept[choices == 3].any()
    for e in range(3):
        assert ((kept & (choices == e)).sum(1) <= 7).all()
        first = [row[row == e].numel() for row in choices]
        assert (kept & (choices == e)).sum(1).tolist() == [min(7, c) for c in first]
    assert expert_capacity(10, 32, 2.0) == 4
    assert expert_capacity(1024, 32, 1.2) == 38
    assert [split_into_groups(t, 1024) for t in (1, 1024, 1025, 2048, 65_536)] == [1, 1, 5, 2, 64]


def test_check_18_balance_loss_is_one_for_uniform_routing():
    uniform = torch.full((2, 12, 4), 0.25, dtype=torch.float64)
    first = torch.arange(12).remainder(4).expand(2, -1)
    real = torch.ones(2, 12, dtype=torch.bool)
    assert float(balance_loss(uniform, first, real)) == pytest.approx(1.0, abs=1e-12)
    one = F.one_hot(torch.zeros(2, 12, dtype=torch.long), 4).double()
    assert float(balance_loss(one, one.argmax(-1), real)) == pytest.approx(4.0, abs=1e-12)
    half = real.clone()
    half[:, 8:] = False  # padding counts nowhere
    uniform[:, 8:] = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    assert float(balance_loss(uniform, first, half)) == pytest.approx(1.0, abs=1e-12)


def test_check_18_gates_sum_to_one_and_second_policies():
    layer = MixtureOfExperts(5, 7, 4, second_policy="random").double()
    x, real = draw(1, 20_000, 5), torch.ones(1, 20_000, dtype=torch.bool)
    _, _, gates = layer.route(x, real)
    torch.testing.assert_close(gates.sum(-1), torch.ones(1, 20_000, dtype=x.dtype), **TIGHT)
    layer.eval()
    _, choices, gates = layer.route(x, real)
    assert (choices < 4).all()
    with torch.no_grad():
        layer.router.weight.mul_(8.0)  # gates below the threshold, too
    torch.manual_seed(0)
    layer.train()
    _, choices, gates = layer.route(x, real)
    used, chance = choices[0, :, 1] < 4, (gates[0, :, 1] / 0.2).clamp(max=1)
    assert used[chance == 1].all()
    spread = (chance * (1 - chance)).sum().sqrt()
    assert abs(used.sum() - chance.sum()) < 4 * spread
    for policy, expected in [
        ("all", torch.ones_like(used)),
        ("none", torch.zeros_like(used)),
        ("threshold", gates[0, :, 1] > 0.2),
    ]:
        layer.second_policy = policy
        assert torch.equal(layer.route(x, real)[1][0, :, 1] < 4, expected)


def test_check_18_switch_with_one_expert_is_the_dense_layer():
    layer = SwitchFeedForward(5, 7, 1).double().eval()
    x = draw(2, 6, 5)
    torch.testing.assert_close(layer(x), expert(layer, 0, x), **TIGHT)


@pytest.mark.parametrize("capacity", [5, 64])
def test_g2_switch_equals_transformers(capacity):
    switch = pytest.importorskip(
        "transformers.models.switch_transformers.modeling_switch_transformers"
    )
    from transformers import SwitchTransformersConfig

    config = SwitchTransformersConfig(
        d_model=12,
        d_ff=20,
        num_experts=4,
        expert_capacity=capacity,
        dropout_rate=0.0,
        router_jitter_noise=0.0,
    )
    theirs = switch.SwitchTransformersSparseMLP(config)
    own = SwitchFeedForward(
        12,
        20,
        4,
        capacity_factor=capacity * 4 / 20 + 1e-9,
        group_size=None,
        loss_weight=1.0,
        jitter=0.0,
    )
    generator = torch.Generator().manual_seed(0)
    own.initialise(generator)
    with torch.no_grad():
        own.router.weight.mul_(10.0)
        theirs.router.classifier.weight.copy_(own.router.weight)
        for e in range(4):
            theirs.experts[f"expert_{e}"].wi.weight.copy_(own.wi[e])
            theirs.experts[f"expert_{e}"].wo.weight.copy_(own.wo[e])
    x = torch.randn(3, 20, 12, generator=generator)
    assert own.capacity(20) == min(20, capacity)
    expected = theirs(x)
    torch.testing.assert_close(own(x), expected, **FLOAT32)
    dropped = (expected == 0).all(-1)
    assert bool(dropped.any()) == (capacity == 5)
    _, _, logits = theirs.router(x)
    probabilities = torch.softmax(logits, -1)
    loss = switch.load_balancing_loss_func(probabilities, probabilities.argmax(-1))
    torch.testing.assert_close(own.auxiliary_loss(), loss, **FLOAT32)
    assert copy.deepcopy(own).auxiliary_loss() is None  # a graph can be neither copied nor stored
    own.eval()(x)
    assert own.auxiliary_loss() is None


@pytest.mark.parametrize("kind", [MixtureOfExperts, SwitchFeedForward])
def test_padding_goes_to_no_expert(kind):
    layer = kind(5, 7, 3, capacity_factor=0.8, group_size=None).double()
    layer.jitter, layer.second_policy = 0.0, "all"
    x = draw(2, 20, 5)
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[:, ::3] = False
    out = layer(x, mask=mask)
    loss = layer.auxiliary_loss()
    assert (out[~mask] == 0).all()
    other = torch.where(mask[..., None], x, draw(2, 20, 5, seed=4))
    torch.testing.assert_close(layer(other, mask=mask), out, **TIGHT)
    torch.testing.assert_close(layer.auxiliary_loss(), loss, **TIGHT)
    assert (layer(x, mask=torch.zeros_like(mask)) == 0).all()


def test_check_18_causal_only_without_a_limit():
    x = draw(1, 30, 5)
    changed = x.clone()
    changed[:, 20] += 3.0
    free = MixtureOfExperts(5, 7, 3).double().eval()
    assert torch.equal(free(x)[:, :20], free(changed)[:, :20])


@pytest.mark.parametrize("kind", [MixtureOfExperts, SwitchFeedForward])
def test_dense_dispatch_gives_per_example_gradients(kind):
    layer = kind(5, 7, 3, loss_weight=0.0, dispatch="dense").double().eval()
    x = draw(4, 3, 5)
    state = dict(layer.named_parameters())

    def loss(weights, row):
        return torch.func.functional_call(layer, weights, (row[None],)).square().sum()

    rows = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(state, x)
    for i in range(4):
        layer.zero_grad()
        layer.dispatch = "sorted"
        layer(x[i : i + 1]).square().sum().backward()
        layer.dispatch = "dense"
        for name, weight in layer.named_parameters():
            torch.testing.assert_close(rows[name][i], weight.grad, atol=1e-10, rtol=1e-10)


def test_jitter_moves_the_router_alone_and_only_in_training():
    layer = SwitchFeedForward(5, 7, 3, jitter=0.5).double()
    x = draw(2, 8, 5)
    torch.manual_seed(0)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_expert_errors_say_what_to_do():
    with pytest.raises(InvalidInputError, match="at least 2 experts"):
        MixtureOfExperts(4, 8, 1)
    with pytest.raises(InvalidInputError, match="accepted are 'random'"):
        MixtureOfExperts(4, 8, 2, second_policy="some")
    with pytest.raises(InvalidInputError, match="jitter"):
        SwitchFeedForward(4, 8, 2, jitter=1.0)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 9), (7, 4), (16, 4), (16, 40), (5, 25)])
def test_check_19_product_top_k_equals_all_products(n, k):
    left, right = draw(6, 2, n, seed=n), draw(6, 2, n, seed=n + 1)
    best, place = product_top_k(left, right, k)
    every = (left[..., :, None] + right[..., None, :]).flatten(-2)
    expected, at = every.topk(k, -1)
    assert torch.equal(best, expected)
    assert torch.equal(place, at)


def test_check_19_memory_equals_all_products():
    layer = ProductKeyMemory(6, keys=5, heads=3, top=4, key_size=8).double()
    with torch.no_grad():
        layer.query.bias.normal_(generator=torch.Generator().manual_seed(1))
    x = draw(2, 7, 6)
    out = layer(x)
    expected = torch.zeros_like(x)
    for b in range(2):
        for t in range(7):
            query = layer.query(x[b, t]).view(3, 8)
            for h in range(3):
                q = F.layer_norm(query[h], (8,), layer.norm.weight, layer.norm.bias, 1e-6)
                scores = torch.stack([
                    q[:4] @ layer.keys[h, 0, m // 5] + q[4:] @ layer.keys[h, 1, m % 5]
                    for m in range(25)
                ])  # fmt: skip
                best, at = scores.topk(4)
                expected[b, t] += torch.softmax(best, -1) @ layer.values[at]
    torch.testing.assert_close(out, expected, **TIGHT)
    counted = ProductKeyMemory.count(6, keys=5, heads=3, key_size=8)
    assert sum(p.numel() for p in layer.parameters()) == counted
    out.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in layer.parameters())
    with pytest.raises(InvalidInputError, match="key_size even"):
        ProductKeyMemory(6, keys=5, heads=3, top=4, key_size=7)
