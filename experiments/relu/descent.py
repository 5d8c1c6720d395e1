"""Gradient methods on shallow ReLU networks, many starts at once: what greedy search is up against.

All of them train the weights W of Σ_j v_j (w_j·x)_+ with v fixed, from He's normal starts, on the
squared loss of all examples; the last iterate counts. Each call gives its CPU time of one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ...core.types import FloatArray
from ...theory import ReluProblem

ADAM_RATES = (1e-2, 3e-2, 1e-1)
SGD_RATES = (1e-3, 1e-2, 3e-2, 1e-1)
STEPS, PARTS = 4000, 4


def starts(problem: ReluProblem, count: int, rng: np.random.Generator) -> FloatArray:
    """He's normal weights (count, m, d)."""
    _, d, m = problem.sizes
    return np.asarray(rng.normal(size=(count, m, d)) * np.sqrt(2.0 / d))


def adam(problem: ReluProblem, begin: FloatArray, rates: FloatArray) -> tuple[FloatArray, float]:
    """Mean squared errors (k,) after full-batch Adam with cosine rates, and seconds.

    begin (k, m, d) and the rate (k,) of each start; all starts share every operation.
    """
    return _batched(problem, begin, rates, _adam_steps)


def sgd(problem: ReluProblem, begin: FloatArray, rates: FloatArray) -> tuple[FloatArray, float]:
    """As :func:`adam`: momentum 0.9 on quarters of the examples, in a new order every epoch."""
    return _batched(problem, begin, rates, _sgd_steps)


def _batched(
    problem: ReluProblem, begin: FloatArray, rates: FloatArray, steps: Callable[..., Any]
) -> tuple[FloatArray, float]:
    import torch

    x, y, v, w, rate = (
        torch.as_tensor(np.ascontiguousarray(a))
        for a in (problem.inputs, problem.targets, problem.signs, begin, rates)
    )
    clock = time.process_time()
    with torch.no_grad():
        w = steps(torch, x, y, v, w.clone(), rate[:, None, None])
        f = torch.einsum("m,kmn->kn", v, (w @ x.T).clamp_min_(0.0))
        errors = ((f - y) ** 2).mean(dim=1)
    seconds = time.process_time() - clock
    return np.nan_to_num(errors.numpy(), nan=np.inf), seconds


def _gradient(x: Any, xt: Any, y: Any, v: Any, w: Any) -> Any:
    """Of the mean squared error / 2, for all starts: k·m·n numbers a pass."""
    z = w @ xt
    on = (z > 0).to(z.dtype)
    residual = (z.clamp_min_(0.0) * v[:, None]).sum(dim=1, keepdim=True).sub_(y)
    return on.mul_(residual).mul_(v[:, None]).matmul(x).div_(len(y))


def _adam_steps(torch: Any, x: Any, y: Any, v: Any, w: Any, rate: Any) -> Any:
    first, second = torch.zeros_like(w), torch.zeros_like(w)
    xt = x.T.contiguous()
    for step in range(1, STEPS + 1):
        g = _gradient(x, xt, y, v, w)
        first.lerp_(g, 0.1)
        second.lerp_(g.square_(), 0.001)
        size = 0.5 * (1 + np.cos(np.pi * step / STEPS))
        size *= np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        w -= (first / second.sqrt().add_(1e-12)).mul_(rate * size)
    return w


def _sgd_steps(torch: Any, x: Any, y: Any, v: Any, w: Any, rate: Any) -> Any:
    order = np.random.default_rng(0)
    velocity = torch.zeros_like(w)
    batches: list[Any] = []
    for step in range(1, STEPS + 1):
        if not batches:
            parts = np.array_split(order.permutation(len(y)), PARTS)
            batches = [torch.as_tensor(p) for p in parts]
        rows = batches.pop()
        part = x[rows]
        velocity.mul_(0.9).add_(_gradient(part, part.T.contiguous(), y[rows], v, w))
        w -= velocity * (rate * 0.5 * (1 + np.cos(np.pi * step / STEPS)))
    return w


def lbfgs(problem: ReluProblem, begin: FloatArray) -> tuple[FloatArray, float]:
    """Mean squared errors (k,) of SciPy's L-BFGS, one start after the other, and seconds."""
    from scipy.optimize import minimize

    x, y, v = problem.inputs, problem.targets, problem.signs
    xt = np.ascontiguousarray(x.T)

    def value(flat: FloatArray) -> tuple[float, FloatArray]:
        z = flat.reshape(len(v), -1) @ xt
        r = v @ np.maximum(z, 0.0) - y
        return 0.5 * float(r @ r), (((z > 0) * r * v[:, None]) @ x).ravel()

    clock = time.process_time()
    found = [
        minimize(value, w.ravel(), jac=True, method="L-BFGS-B",
                 options={"maxiter": STEPS, "maxfun": 2 * STEPS, "ftol": 1e-15, "gtol": 1e-10})
        for w in begin
    ]  # fmt: skip
    seconds = time.process_time() - clock
    return np.array([2.0 * f.fun / len(y) for f in found]), seconds
