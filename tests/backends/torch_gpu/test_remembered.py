"""What is kept of a module between calls: no stale digest, no check that does not hold."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from fishertope import estimate_precision  # noqa: E402
from fishertope.backends.torch_gpu import _layer_calls, _remembered  # noqa: E402
from fishertope.core.errors import ConversionWarning  # noqa: E402


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()


def inputs(n: int = 5) -> Any:
    return torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def digests(model: nn.Module) -> dict[str, str]:
    return _remembered.digests_of(model, [n for n, _ in model.named_parameters()])


def plainly(model: nn.Module) -> str:
    """SHA-256 of θ, without any of our code."""
    return hashlib.sha256(
        b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    ).hexdigest()


CHANGES: dict[str, Callable[[Any], None]] = {
    "data, which autograd does not count": lambda m: m[0].weight.data.mul_(2),
    "rows in another order": lambda m: m[0].weight.data.copy_(m[0].weight.data.flip(0)),
    "one bit": lambda m: m[2].bias.data.view(torch.int64)[1].bitwise_xor_(1),
    "zero to minus zero": lambda m: m[2].bias.data[0].copy_(torch.tensor(-0.0)),
    "another tensor": lambda m: setattr(m[0], "weight", nn.Parameter(torch.ones(6, 4).double())),
    "through numpy": lambda m: m[0].bias.detach().numpy().__setitem__(0, 7.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_digest_is_of_the_bits_that_are_there(change: str) -> None:
    model = net()
    with torch.no_grad():
        model[2].bias[0] = 0.0
    before = digests(model)
    assert digests(model) == before
    assert before["theta_sha256"] == plainly(model)
    CHANGES[change](model)
    after = digests(model)
    assert after["theta_sha256"] == plainly(model) != before["theta_sha256"]
    assert after["model_sha256"] != before["model_sha256"]


def test_the_second_digest_reads_no_byte_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    before = digests(model)
    monkeypatch.setattr(_remembered, "_bytes", None)  # hashing anything fails now
    assert digests(model) == before


def test_large_modules_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_remembered, "COPY_BYTES", 8)
    model = net()
    assert digests(model) == digests(model)
    assert model not in _remembered._DIGESTS


def test_nothing_outlives_the_module() -> None:
    model = net()
    estimate_precision(model, inputs())
    before = len(_remembered._DIGESTS), len(_remembered._CHECKED)
    del model
    gc.collect()
    after = len(_remembered._DIGESTS), len(_remembered._CHECKED)
    assert after[0] < before[0]
    assert after[1] < before[1]


class Switched(nn.Module):
    """Uses a weight behind its layer's back, or mixes examples, as soon as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        self.way = "plain"

    def forward(self, x: Any) -> Any:
        hidden = torch.tanh(self.first(x))
        if self.way == "behind":
            hidden = hidden + F.linear(x, self.first.weight)
        if self.way == "mixing":
            hidden = hidden - hidden.mean(0)
        return self.last(hidden)


def test_the_check_is_made_once_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    from fishertope.backends.torch_gpu.hooks import HooksEngine

    made = []
    check = HooksEngine._check_first
    monkeypatch.setattr(HooksEngine, "_check_first", lambda *a: (made.append(1), check(*a))[1])
    model = Switched().double()
    first = estimate_precision(model, inputs())
    again = estimate_precision(model, inputs())
    assert len(made) == 1
    for name in first:
        np.testing.assert_array_equal(first[name].values, again[name].values)
    estimate_precision(model, inputs(), params="first.*")  # other parameters, another check
    assert len(made) == 2


def test_what_changes_the_module_brings_the_check_back() -> None:
    model = Switched().double()
    estimate_precision(model, inputs())
    model.way = "behind"
    with pytest.warns(ConversionWarning, match="outside the calls"):
        found = estimate_precision(model, inputs())
    expected = estimate_precision(model, inputs(), engine="functional")
    for name in found:
        np.testing.assert_allclose(found[name].values, expected[name].values, rtol=1e-10)
    model.way = "mixing"
    with pytest.warns(ConversionWarning, match="mixes the examples"):
        estimate_precision(model, inputs())


@pytest.mark.parametrize("kind", ["hook", "method", "closure"])
def test_what_has_a_state_of_its_own_is_checked_every_time(kind: str) -> None:
    model = Switched().double()
    state = {"scale": 1.0}
    if kind == "hook":
        model.first.register_forward_hook(lambda m, a, r: r * state["scale"])
    elif kind == "method":
        model.forward = model.forward  # type: ignore[method-assign]
    else:
        plain = model.forward
        model.forward = lambda x: plain(x) * state["scale"]  # type: ignore[method-assign]
    look = _remembered.look_of(model, ["first.weight"], inputs(), plain_reader)
    assert look is None


def plain_reader(returned: Any, given: Any) -> Any:
    return returned


@pytest.mark.parametrize("size", [1, 200, 1 << 20])
def test_how_many_roots_share_a_pass_changes_nothing(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 8)).double()
    expected = estimate_precision(model, inputs(), engine="functional")
    monkeypatch.setattr(_layer_calls, "PASS_BYTES", size)
    found = estimate_precision(model, inputs())
    for name in found:
        np.testing.assert_allclose(found[name].values, expected[name].values, rtol=1e-10)
        assert found.trace_errors[name] == pytest.approx(expected.trace_errors[name], rel=1e-9)
