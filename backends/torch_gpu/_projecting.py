"""Random projections of the gradients of layers, so that no row of a whole model is formed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...core.fisher.reduction import FactoredProjection
from ...core.model import Site
from ._layer_calls import Call, chosen
from ._layer_rules import counted, is_linear

# Per-example gradients that are formed on the way take at most this many bytes at a time.
BLOCK_BYTES = 32 << 20


class Projecting:
    """Adds the projected gradients of one call of a layer."""

    def __init__(self, sites: Sequence[Site], projection: Any, key: int) -> None:
        self.projection, self.key = projection, key
        self.sketch = projection.sketch(key)
        self.starts = {s.name: s.start for s in sites}
        self.numbers = {s.name: i for i, s in enumerate(sites)}
        self._factors: dict[tuple[str, int, torch.dtype, torch.device], Tensor] = {}

    def add(self, names: Mapping[Tensor, str], out: Tensor, call: Call, delta: Tensor) -> None:
        """``out`` (n, d) += gradients of the named parameters of a call times their rows of P."""
        layer, n = call.layer, len(delta)
        linear, table = is_linear(layer), isinstance(layer, nn.Embedding)
        weight = names.get(cast(Tensor, layer.weight)) if linear or table else None
        factored = isinstance(self.projection, FactoredProjection) and weight is not None
        if table and weight is not None:
            example, token, sums = counted(layer, call.ready(), delta)
            if not factored:
                self.sketch.add_rows(out, example, token, sums, self.starts[weight])
                return
            rows = self._factor(weight, 0, len(cast(Tensor, layer.weight)), sums)[token]
            parts = (
                rows.unsqueeze(2) * (sums @ self._factor(weight, 1, sums.shape[1], sums))[:, None]
            )
            out.index_add_(0, example, parts.flatten(1))
            return
        if factored:
            d_o, d_i = delta.shape[-1], call.input.shape[-1]
            a = call.ready().reshape(n, -1, d_i) @ self._factor(str(weight), 1, d_i, delta)
            b = delta.reshape(n, -1, d_o) @ self._factor(str(weight), 0, d_o, delta)
            out += torch.bmm(b.transpose(1, 2), a).flatten(1)
            bias = getattr(layer, "bias", None)
            name = None if bias is None else names.get(bias)
            if name is not None:
                total = delta.reshape(n, -1, d_o).sum(1)
                self.sketch.add(out, total, self.starts[name])
            return
        size = sum(p.numel() * p.element_size() for p in layer.parameters(recurse=False))
        step = max(1, BLOCK_BYTES // max(1, size))
        for start in range(0, n, step):
            part = slice(start, start + step)
            found = call.rule.per_example(layer, call.ready()[part], delta[part])
            for name, g in chosen(names, call.layer, found):
                self.sketch.add(out[part], g.reshape(len(g), -1), self.starts[name])

    def _factor(self, name: str, side: int, size: int, like: Tensor) -> Tensor:
        """Q_o or Q_i (size, d_o or d_i) of a weight."""
        where = name, side, like.dtype, like.device
        if where not in self._factors:
            drawn = self.projection.factor(self.key, self.numbers[name], side, size)
            self._factors[where] = torch.as_tensor(drawn).to(like)
        return self._factors[where]
