"""One-hidden-layer ReLU networks inside torch modules: read, checked, and written back."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import ArrayTypeError
from ..core.types import Array, FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModuleNetwork:
    """f(x) = V (W x)_+ + b.

    Attributes
    ----------
    weights : array (m, d)
        With ``bias`` the last column is the hidden bias.
    outputs : array (c, m)
    offset : array (c,)
    bias, has_offset : bool
        Which of the two layers have a bias.
    """

    weights: FloatArray
    outputs: FloatArray
    offset: FloatArray
    bias: bool
    has_offset: bool

    def predict(self, inputs: Array) -> FloatArray:
        """Outputs of every row (n, c)."""
        x = np.asarray(inputs, dtype=np.float64)
        if self.bias:
            x = np.column_stack([x, np.ones(len(x))])
        return np.asarray(np.maximum(x @ self.weights.T, 0) @ self.outputs.T + self.offset)


def _layers(module: Any) -> tuple[Any, Any]:
    import torch

    found = [m for m in module.modules() if isinstance(m, torch.nn.Linear)]
    inside = {id(p) for layer in found for p in layer.parameters()}
    others = [name for name, p in module.named_parameters() if id(p) not in inside]
    if len(found) != 2 or others:
        more = f" and other parameters ({', '.join(others[:4])})" if others else ""
        raise ArrayTypeError(
            f"The module has {len(found)} linear layers{more}; exactly two linear layers with a "
            "ReLU between them, and no other parameters, are taken."
        )
    first, second = found
    if second.in_features != first.out_features:
        raise ArrayTypeError("The second linear layer does not take what the first gives.")
    return first, second


def read_module(module: Any) -> ModuleNetwork:
    """The two layers of a torch module as float64 arrays, checked by calling the module.

    Raises
    ------
    ArrayTypeError
        Other layers or parameters, or the module computes something else than V(Wx)_+ + b.
    """
    import torch

    first, second = _layers(module)
    arrays = [
        None if p is None else p.detach().to("cpu", torch.float64).numpy()
        for p in (first.weight, first.bias, second.weight, second.bias)
    ]
    w, b, v, c = arrays
    assert w is not None and v is not None  # noqa: PT018
    read = ModuleNetwork(
        weights=w.copy() if b is None else np.column_stack([w, b]),
        outputs=v.copy(),
        offset=np.zeros(len(v)) if c is None else c.copy(),
        bias=b is not None,
        has_offset=c is not None,
    )
    probe = np.random.default_rng(0).normal(size=(16, first.in_features))
    given = torch.as_tensor(probe, dtype=first.weight.dtype, device=first.weight.device)
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            answer = module(given).detach().to("cpu", torch.float64).numpy()
    finally:
        module.train(training)
    due = read.predict(given.to("cpu", torch.float64).numpy())
    answer = answer.reshape(len(probe), -1)
    close = 1e-3 if first.weight.dtype != torch.float64 else 1e-9
    size = np.abs(due).max(initial=0.0) + np.abs(read.offset).max(initial=0.0) + 1e-30
    if answer.shape != due.shape or np.abs(answer - due).max(initial=0.0) > close * size:
        raise ArrayTypeError(
            "The module does not compute V·relu(W·x) + b with its two linear layers; that is what "
            "is taken. Another activation, a scaling or a residual connection is in the way."
        )
    return read


def with_network(module: Any, network: ModuleNetwork) -> Any:
    """A copy of ``module`` that computes ``network``; the same class, dtype, device and mode."""
    import torch

    copy = deepcopy(module)
    first, second = _layers(copy)
    w = network.weights
    values = [(first.weight, w[:, :-1] if network.bias else w), (second.weight, network.outputs)]
    if network.bias:
        values.append((first.bias, w[:, -1]))
    if network.has_offset:
        values.append((second.bias, network.offset))
    with torch.no_grad():
        for parameter, value in values:
            parameter.copy_(torch.as_tensor(np.ascontiguousarray(value)).to(parameter))
    return copy
