"""One call of a layer: what the forward pass keeps of it, and whose parameters it has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ._layer_rules import Grads, LayerRule

# Output gradients of one layer, of the roots that share a pass, take about so many bytes: what a
# core's cache holds, and what the allocator keeps for the next pass instead of giving it back.
PASS_BYTES = 1 << 20


class Unsupported(Exception):
    """Why the layers of this model do not tell its gradients."""


@dataclass(slots=True, eq=False)
class Call:
    """One call of a layer in the forward pass."""

    layer: nn.Module
    name: str
    rule: LayerRule
    input: Tensor
    version: int
    edge: Any
    shape: tuple[int, ...]
    features: Tensor | None = None

    def ready(self) -> Tensor:
        """Features of the input, made when first asked for."""
        if self.features is None:
            if self.input._version != self.version:
                raise Unsupported(f"the input of {self.name!r} is changed in place")
            with torch.no_grad():
                self.features = self.rule.features(self.layer, self.input)
        return self.features


@dataclass(frozen=True, slots=True, eq=False)
class Passes:
    """Backward passes of a batch: the roots' gradients at the outputs of all calls.

    Iterating gives (first, deltas): output gradients (k', n, ...) of every call, or ``None`` where
    the outputs z (n, C) do not depend on it, from root number ``first`` on. Can be done once.
    """

    calls: Sequence[Call]
    z: Tensor
    roots: Tensor

    def __iter__(self) -> Iterator[tuple[int, list[Tensor | None]]]:
        edges = [c.edge for c in self.calls]
        U, k = self.roots, self.roots.shape[1]
        if not edges or not self.z.requires_grad or k == 0:
            return
        for roots in self._parts():
            first, after = roots[0], roots[-1] + 1
            if len(roots) > 1:
                found = torch.autograd.grad(
                    self.z, edges, U[:, first:after].transpose(0, 1), retain_graph=after < k,
                    is_grads_batched=True, allow_unused=True,
                )  # fmt: skip
                yield first, list(found)
            else:
                found = torch.autograd.grad(
                    self.z, edges, U[:, first], retain_graph=after < k, allow_unused=True
                )
                yield first, [None if d is None else d.unsqueeze(0) for d in found]

    def _parts(self) -> list[range]:
        """Roots that go through one pass: several where activations are small, else one."""
        k = self.roots.shape[1]
        together = 1
        if all(len(c.shape) == 2 for c in self.calls):
            width = max(c.shape[1] for c in self.calls)
            size = max(1, len(self.z) * width * self.z.element_size())
            together = max(1, PASS_BYTES // size)
        parts = -(-k // together)
        ends = [k * i // parts for i in range(parts + 1)]
        return [range(a, b) for a, b in pairwise(ends)]


def chosen(
    names: Mapping[Tensor, str], layer: nn.Module, grads: Grads
) -> Iterator[tuple[str, Tensor]]:
    """Gradients of the named parameters of a layer, under their names in the model."""
    for name, parameter in layer.named_parameters(recurse=False):
        full = names.get(parameter)
        if full is not None and name in grads:
            yield full, grads[name]
