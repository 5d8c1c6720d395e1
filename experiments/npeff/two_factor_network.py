"""Networks whose behaviour on every example is made of two independent factors.

An example names one of T places in a first block of bits and one of R places in a second block,
and holds the bits; the answer, one of four classes, is the pair of bits found there. So it uses
one of T mechanisms and one of R, chosen independently (compare the multitask sparse parities of
the quantization model, arXiv:2303.13506).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core.types import FloatArray, IntArray, NumpyArray

TASKS, RULES = 6, 6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TwoFactorData:
    """Bits (n, T) and (n, R), the places that are asked for (n,), and the answers (n,)."""

    first: IntArray
    second: IntArray
    task: IntArray
    rule: IntArray

    @property
    def answers(self) -> IntArray:
        """Which pair of bits (n,)."""
        rows = np.arange(len(self.task))
        return np.asarray(2 * self.first[rows, self.task] + self.second[rows, self.rule])

    @property
    def factors(self) -> NumpyArray:
        """Which factors each example uses: a column for each task, then each rule (n, T + R)."""
        return np.concatenate(
            [self.task[:, None] == np.arange(TASKS), self.rule[:, None] == np.arange(RULES)], axis=1
        )

    def inputs(self, network: str) -> FloatArray | IntArray:
        """For the transformer tokens (n, 3 + T + R), for the perceptron codes and bits."""
        if network == "perceptron":
            codes = [np.eye(TASKS)[self.task], np.eye(RULES)[self.rule]]
            bits = [2.0 * self.first - 1.0, 2.0 * self.second - 1.0]
            return np.concatenate([*codes, *bits], axis=1).astype(np.float32)
        last = 1 + TASKS + RULES
        tokens = [0 * self.task[:, None], 1 + self.task[:, None], 1 + TASKS + self.rule[:, None]]
        return np.concatenate([*tokens, last + self.first, last + 2 + self.second], axis=1)


def draw_examples(n: int, rng: np.random.Generator) -> TwoFactorData:
    """Everything uniform and independent."""
    return TwoFactorData(
        task=rng.integers(0, TASKS, n),
        rule=rng.integers(0, RULES, n),
        first=rng.integers(0, 2, (n, TASKS)),
        second=rng.integers(0, 2, (n, RULES)),
    )


def train_two_factor(network: str, seed: int, *, steps: int) -> Any:
    """A network that answers them: two-layer transformer, or perceptron with 96 hidden units."""
    import torch

    from .tiny_transformer import TinyTransformer, train

    rng = np.random.default_rng([seed, 1])
    model: Any
    if network == "perceptron":
        model = torch.nn.Sequential(
            torch.nn.Linear(2 * (TASKS + RULES), 96), torch.nn.ReLU(), torch.nn.Linear(96, 4)
        )
    else:
        model = TinyTransformer(5 + TASKS + RULES, 3 + TASKS + RULES, 32, 4, [(4, 8, 32)] * 2)

    def batch(step: int) -> tuple[Any, Any]:
        data = draw_examples(128, rng)
        return torch.from_numpy(data.inputs(network)), torch.from_numpy(data.answers)

    train(model, batch, steps=steps, rate=1e-2 if network == "perceptron" else 3e-3)
    return model.eval()


def hidden(model: Any, inputs: Any) -> FloatArray:
    """Activations (n, d) of the last hidden layer, at the position that is read."""
    import torch

    with torch.no_grad():
        found = model.hidden(inputs) if hasattr(model, "hidden") else model[:2](inputs)
    return np.asarray(found.numpy(), dtype=np.float64)
