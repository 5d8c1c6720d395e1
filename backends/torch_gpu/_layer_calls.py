"""One call of a layer: what the forward pass keeps of it, and whose parameters it has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ._layer_rules import Grads, LayerRule


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


def chosen(
    names: Mapping[Tensor, str], layer: nn.Module, grads: Grads
) -> Iterator[tuple[str, Tensor]]:
    """Gradients of the named parameters of a layer, under their names in the model."""
    for name, parameter in layer.named_parameters(recurse=False):
        full = names.get(parameter)
        if full is not None and name in grads:
            yield full, grads[name]
