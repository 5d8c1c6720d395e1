"""Modules in half precision: differentiated in float32, left as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from fishertope import LowRankNPEFF, estimate_precision, factorize, per_example_fishers  # noqa: E402
from fishertope.core.errors import InvalidInputError  # noqa: E402
from fishertope.core.factorization import perturb  # noqa: E402
from fishertope.core.model import engine_for  # noqa: E402

HALF = [torch.bfloat16, torch.float16]


class Tied(nn.Module):
    """A table that is also the output matrix, a norm, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(9, 6), nn.LayerNorm(6)
        self.middle, self.head = nn.Linear(6, 6), nn.Linear(6, 9, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("scale", torch.full((6,), 1.5))

    def forward(self, tokens: Any) -> Any:
        hidden = self.middle(self.norm(self.table(tokens))) * self.scale
        return self.head(torch.tanh(hidden).mean(1))


def tied(dtype: Any) -> Tied:
    torch.manual_seed(0)
    return Tied().to(dtype)


def tokens() -> Any:
    return torch.randint(0, 9, (7, 4), generator=torch.Generator().manual_seed(2))


def state(model: nn.Module) -> dict[str, Any]:
    bits = {n: x.detach().clone().view(torch.int16) for n, x in model.state_dict().items()}
    return bits | {"grad": {n: p.requires_grad for n, p in model.named_parameters()}}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one["grad"] == other["grad"] and all(
        torch.equal(x, other[n]) for n, x in one.items() if n != "grad"
    )


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("engine", ["hooks", "functional"])
def test_the_fishers_are_those_of_the_float32_module(dtype: Any, engine: str) -> None:
    model = tied(dtype)
    model.norm.bias.requires_grad_(False)
    model.train()
    before = state(model)
    found = per_example_fishers(model, tokens(), engine=engine)
    assert same(before, state(model))
    assert model.training and not model.table._forward_hooks  # noqa: PT018
    plain = tied(dtype).float()
    plain.norm.bias.requires_grad_(False)
    expected = per_example_fishers(plain, tokens(), engine=engine)
    assert found.rows.dtype == torch.float32
    assert [s.name for s in found.sites] == [s.name for s in expected.sites]
    assert torch.equal(torch.as_tensor(found.rows), torch.as_tensor(expected.rows))
    assert str(dtype).removeprefix("torch.") in found.facts["engine"]


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_precisions_know_the_values_whatever_their_dtype(dtype: Any) -> None:
    found = estimate_precision(tied(dtype), tokens(), structure="kronecker")
    expected = estimate_precision(tied(dtype).float(), tokens(), structure="kronecker")
    for key in ("model_sha256", "theta_sha256"):
        assert found.facts[key] == expected.facts[key]
    for name in expected:
        np.testing.assert_array_equal(found[name].diagonal(), expected[name].diagonal())


def test_frozen_half_under_float32_stays_as_it_was() -> None:
    """An adapter in float32 on a base in bfloat16 has no half parameter to differentiate."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    model[0].to(torch.bfloat16).requires_grad_(False)
    assert engine_for(model).module is model


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_patch_moves_copy_and_module_and_is_undone(dtype: Any) -> None:
    model = tied(dtype)
    model.norm.float()  # as is done for norms: the copy has them in common with the module
    engine = engine_for(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    start, theta = engine.predict(tokens()), engine.theta()
    delta = torch.full((engine.sites[-1].stop,), 0.25)
    with engine.patch(delta):
        for name, p in model.named_parameters():
            assert torch.equal(p, (before[name].float() + 0.25).to(p.dtype))
        assert torch.equal(engine.theta(), theta + 0.25)
        assert (engine.predict(tokens()) - start).abs().max() > 1e-3
    for name, p in model.named_parameters():
        assert p.dtype == before[name].dtype
        assert torch.equal(p, before[name])
    assert torch.equal(engine.predict(tokens()), start)


def test_perturbation_reaches_the_users_module() -> None:
    model = tied(torch.bfloat16)
    fishers = per_example_fishers(model, tokens())
    found = factorize(fishers, LowRankNPEFF(2, max_steps=5), on_failure="return")
    before = state(model)
    with torch.no_grad():
        start = model.eval()(tokens()).float()
        with perturb(model, found, component=0, magnitude=2.0):
            moved = model(tokens()).float()
    assert (moved - start).abs().max() > 0.01
    assert same(before, state(model))


def test_a_module_that_cannot_be_copied_is_refused_with_advice() -> None:
    model = nn.Sequential(nn.Linear(4, 3)).to(torch.bfloat16)
    model.numbers = iter(x for x in range(3))
    with pytest.raises(InvalidInputError, match=r"module\.float\(\)"):
        per_example_fishers(model, torch.zeros(2, 4))


def test_half_inputs_go_with_a_half_module() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(torch.bfloat16)
    x = torch.randn(6, 4).to(torch.bfloat16)
    found = per_example_fishers(model, x)
    expected = per_example_fishers(nn.Sequential(*model).float(), x.float())
    assert torch.equal(torch.as_tensor(found.rows), torch.as_tensor(expected.rows))


def test_a_transformer_in_bfloat16() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=16, num_labels=2,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval().to(torch.bfloat16)
    x = {"input_ids": torch.randint(0, 50, (3, 6)), "attention_mask": torch.ones(3, 6).long()}
    found = estimate_precision(model, x)
    expected = estimate_precision(model.float(), x)
    assert found.facts["model_sha256"] == expected.facts["model_sha256"]
    for name in expected:
        np.testing.assert_array_equal(found[name].values, expected[name].values)
