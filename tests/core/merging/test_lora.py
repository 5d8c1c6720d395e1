"""Check 47 of the merging specification: adapters as exact differences."""

import numpy as np
import pytest

from fishertope.core.errors import InvalidInputError
from fishertope.core.merging import LoRA, applied, merge_lora, read_adapter


def adapter(seed, rank=3, alpha=6.0, rslora=False, turned=False, shape=(7, 5), dtype=np.float64):
    rng = np.random.default_rng(seed)
    o, i = shape
    A, B = rng.normal(size=(rank, i)).astype(dtype), rng.normal(size=(o, rank)).astype(dtype)
    return LoRA.of(A, B, alpha=alpha, rslora=rslora, fan_in_fan_out=turned)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_merging_check_47_weights_one_and_zero_return_the_first_delta_exactly(rslora, turned):
    one, two = (adapter(s, 3 + s, rslora=rslora, turned=turned) for s in (0, 1))
    merged = merge_lora([{"q": one}, {"q": two}], [1.0, 0.0])
    assert merged["q"].delta().tobytes() == one.delta().tobytes()
    rank = 3
    scale = 6.0 / (rank**0.5 if rslora else rank)
    expected = scale * one.B @ one.A
    np.testing.assert_allclose(one.delta(), expected.T if turned else expected, rtol=1e-14)
    assert one.shape == ((5, 7) if turned else (7, 5))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_merging_check_47_the_merged_delta_is_the_weighted_sum(turned, dtype):
    parts = [
        adapter(s, 2 + s, alpha=4 + s, rslora=s == 1, turned=turned, dtype=dtype) for s in range(3)
    ]
    w = [0.5, -0.3, 0.8]
    expected = sum(v * p.delta() for v, p in zip(w, parts, strict=True))
    for rank in (None, 9, 20):  # Σ r_i = 2 + 3 + 4: nothing is lost
        merged = merge_lora([{"q": p} for p in parts], w, rank=rank)["q"]
        assert merged.rank == 9
        assert merged.scaling == 1.0
        assert merged.A.dtype == dtype
        np.testing.assert_allclose(
            merged.delta(), expected, rtol=0, atol=1e-6 * np.abs(expected).max()
        )
    # Weighted sums of the factors by themselves are far off.
    if not turned:
        A = sum(v * np.pad(p.A, ((0, 4 - p.rank), (0, 0))) for v, p in zip(w, parts, strict=True))
        B = sum(v * np.pad(p.B, ((0, 0), (0, 4 - p.rank))) for v, p in zip(w, parts, strict=True))
        assert np.linalg.norm(B @ A - expected) > 0.5 * np.linalg.norm(expected)


@pytest.mark.parametrize("rank", [1, 2, 4, 5])
def test_merging_check_47_a_lower_rank_is_the_nearest_matrix(rank):
    parts = [{"q": adapter(s)} for s in (0, 1)]
    whole = merge_lora(parts)["q"].delta()
    low = merge_lora(parts, rank=rank)["q"]
    u, s, vt = np.linalg.svd(whole)
    np.testing.assert_allclose(low.delta(), u[:, :rank] * s[:rank] @ vt[:rank], atol=1e-12)
    assert low.rank == rank
    with pytest.raises(InvalidInputError, match="rank=0"):
        merge_lora(parts, rank=0)


def peft_state(names, rank=2, seed=0):
    rng = np.random.default_rng(seed)
    state = {}
    for name in names:
        state[f"base_model.model.{name}.lora_A.weight"] = rng.normal(size=(rank, 5))
        state[f"base_model.model.{name}.lora_B.weight"] = rng.normal(size=(7, rank))
    return state


def test_merging_check_47_adapter_files_of_peft():
    state = peft_state(["m.0.q", "m.0.v"])
    config = {"r": 2, "lora_alpha": 8, "use_rslora": True, "alpha_pattern": {"v": 3}}
    found = read_adapter(state, config)
    assert set(found) == {"m.0.q", "m.0.v"}
    assert np.isclose(found["m.0.q"].scaling, 8 / 2**0.5)
    assert np.isclose(found["m.0.v"].scaling, 3 / 2**0.5)
    base = {"m.0.q.weight": np.zeros((7, 5)), "m.0.v.weight": np.ones((7, 5)), "b": np.ones(2)}
    full = applied(base, found)
    np.testing.assert_allclose(full["m.0.q.weight"], found["m.0.q"].delta())
    np.testing.assert_allclose(full["m.0.v.weight"] - 1, found["m.0.v"].delta())
    assert full["b"] is base["b"]
    for key in ("use_dora", "lora_bias"):
        with pytest.raises(InvalidInputError, match=key):
            read_adapter(state, {**config, key: True})
    with pytest.raises(InvalidInputError, match="lora_magnitude_vector"):
        read_adapter({**state, "base_model.model.m.0.q.lora_magnitude_vector": np.ones(7)}, config)
    del state["base_model.model.m.0.q.lora_B.weight"]
    with pytest.raises(InvalidInputError, match=r"only lora_A of 'm\.0\.q'"):
        read_adapter(state, config)
    with pytest.raises(InvalidInputError, match="no such tensor"):
        applied({}, found)


def test_merging_check_47_against_peft_on_a_real_module():
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(5, 7))
    config = peft.LoraConfig(r=2, lora_alpha=5, use_rslora=True, target_modules=["0"])
    model = peft.get_peft_model(net, config)
    for p in model.parameters():
        torch.nn.init.normal_(p)
    state = peft.get_peft_model_state_dict(model)
    ours = read_adapter(state, config.to_dict())["0"]
    theirs = model.base_model.model[0].get_delta_weight("default").detach()
    np.testing.assert_allclose(ours.delta(), theirs, rtol=1e-5)


def test_layers_of_one_adapter_only_count_as_zero_in_the_other():
    one, two = adapter(0), adapter(1)
    merged = merge_lora([{"q": one}, {"v": two}], [0.5, 0.5])
    np.testing.assert_allclose(merged["q"].delta(), 0.5 * one.delta(), rtol=1e-14)
    with pytest.raises(InvalidInputError, match="'q' has adapters of the shapes"):
        merge_lora([{"q": one}, {"q": adapter(1, shape=(5, 7))}])
    with pytest.raises(InvalidInputError, match=r"\(r, i\) and \(o, r\)"):
        LoRA(np.ones((2, 3)), np.ones((4, 3)))
