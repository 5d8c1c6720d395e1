"""Adafactor against its equations, step by step in NumPy."""
# ruff: noqa: E402

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fishertope.core.errors import InvalidInputError
from fishertope.experiments.text2text.optimizers import adafactor


def rms(x):
    return np.sqrt(np.mean(x**2))


@pytest.mark.parametrize("shape", [(6,), (4, 5)])
@pytest.mark.parametrize("start", [1, 9_999, 40_000])
def test_f1_12_three_steps_of_adafactor(shape, start):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape)
    parameter = torch.nn.Parameter(torch.tensor(x))
    optimizer = adafactor([parameter])
    second = rows = columns = 0.0
    for k in range(3):
        gradient = rng.normal(size=shape)
        parameter.grad = torch.tensor(gradient)
        if k == 1:  # continue as if many steps were done
            optimizer.state[parameter]["step"].fill_(start)
        optimizer.step()
        n = 1 if k == 0 else start + k
        keep = 1 - n**-0.8
        if len(shape) == 1:
            second = keep * second + (1 - keep) * gradient**2
            variance = second
        else:
            rows = keep * rows + (1 - keep) * (gradient**2).mean(1, keepdims=True)
            columns = keep * columns + (1 - keep) * (gradient**2).mean(0, keepdims=True)
            variance = rows * columns / rows.mean()
        update = gradient / np.sqrt(variance)
        update /= max(1.0, rms(update))
        x = x - update * max(1e-3, rms(x)) / np.sqrt(max(n, 10**4))
        np.testing.assert_allclose(parameter.detach().numpy(), x, rtol=1e-12, atol=1e-14)


def test_a_rate_without_meaning_is_refused():
    with pytest.raises(InvalidInputError, match="rate=0"):
        adafactor([torch.nn.Parameter(torch.ones(2))], rate=0)


def test_rows_without_gradient_stay_as_they_are():
    """A clamp of 1e-30 squared is 0 in float32, and 0 · 1/√0 is NaN."""
    weight = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = adafactor([weight])
    for _ in range(3):
        weight.grad = torch.zeros(4, 3)
        weight.grad[1] = 0.5
        optimizer.step()
    assert torch.isfinite(weight).all()
    assert torch.equal(weight[[0, 2, 3]], torch.ones(3, 3))
    assert (weight[1] < 1).all()
