"""Layers that multiply by a matrix: their layouts, inputs and output gradients by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...core.model import LayerTerm, SiteLayout
from ._layer_calls import Call, Unsupported
from ._layer_rules import is_matrix, outputs_first


def _by_position(call: Call, features: Tensor, delta: Tensor | None) -> Tensor:
    if call.rule.positions is None:
        raise Unsupported(f"{call.name!r} has no inputs and output gradients by position")
    return call.rule.positions(call.layer, features, delta)


def layouts_of(layers: Sequence[nn.Module], names: Mapping[Tensor, str]) -> dict[str, SiteLayout]:
    """Layouts of the named weights whose every owner is a layer with a matrix.

    A bias belongs to the site where weight and bias always occur together.
    """
    owners: dict[Tensor, list[nn.Module]] = {}
    for layer in layers:
        for p in layer.parameters(recurse=False):
            owners.setdefault(p, []).append(layer)
    found: dict[str, SiteLayout] = {}
    for weight, own in owners.items():
        if weight not in names or not all(
            is_matrix(layer) and layer.weight is weight for layer in own
        ):
            continue
        firsts = {outputs_first(layer) for layer in own}
        if len(firsts) > 1:
            continue
        biases = {cast(Tensor | None, getattr(layer, "bias", None)) for layer in own}
        bias = biases.pop() if len(biases) == 1 else None
        together = bias is not None and bias in names and owners[bias] == own
        found[names[weight]] = SiteLayout(
            weight=names[weight],
            weight_shape=tuple(weight.shape),
            bias=names[bias] if together and bias is not None else None,
            outputs="first" if firsts.pop() else "last",
        )
    return found


class Terms:
    """The terms of a batch, made from the calls of the forward pass."""

    def __init__(
        self,
        calls: Sequence[Call],
        names: Mapping[Tensor, str],
        layouts: Mapping[str, SiteLayout],
        masks: Sequence[Tensor],
    ) -> None:
        self._members: dict[str, list[int]] = {}
        for i, call in enumerate(calls):
            name = names.get(cast(Tensor, call.layer.weight), "")
            if name in layouts:
                self._members.setdefault(name, []).append(i)
        self._calls, self._layouts, self._masks = calls, layouts, masks

    @property
    def sites(self) -> list[str]:
        """Sites that were used in the forward pass."""
        return list(self._members)

    def of(self, site: str, deltas: Sequence[Tensor | None] | None, first: bool) -> LayerTerm:
        """One site's inputs with the output gradients of some roots, all its uses in a row."""
        calls = [self._calls[i] for i in self._members[site]]
        features, kept = [], []
        for call in calls:
            a = self._features(call)
            if self._layouts[site].bias is not None:
                a = torch.cat([a, a.new_ones(*a.shape[:2], 1)], dim=2)
            features.append(a)
            kept.append(self._kept(call, a))
        masked = any(k is not None for k in kept)
        ones = [a.new_ones(a.shape[:2]) for a in features] if masked else []
        return LayerTerm(
            site=site,
            inputs=features[0] if len(features) == 1 else torch.cat(features, dim=1),
            deltas=None if deltas is None else self._deltas(site, deltas, features),
            kept=torch.cat([o if k is None else k for k, o in zip(kept, ones, strict=True)], dim=1)
            if masked
            else None,
            first=first,
        )

    def _features(self, call: Call) -> Tensor:
        return _by_position(call, call.ready(), None)

    def _deltas(
        self, site: str, deltas: Sequence[Tensor | None], features: Sequence[Tensor]
    ) -> Tensor | None:
        members = self._members[site]
        found = [deltas[i] for i in members]
        like = next((d for d in found if d is not None), None)
        if like is None:
            return None
        parts = []
        for i, delta, a in zip(members, found, features, strict=True):
            call = self._calls[i]
            d = like.new_zeros(len(like), *call.shape) if delta is None else delta
            parts.append(_by_position(call, a, d))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def _kept(self, call: Call, a: Tensor) -> Tensor | None:
        """The padding mask that fits the positions of a sequence."""
        if call.input.ndim != 3 or not isinstance(call.shape, tuple) or not is_sequence(call.layer):
            return None
        fitting = [m for m in self._masks if tuple(m.shape) == tuple(a.shape[:2])]
        if not fitting:
            return None
        if any(not torch.equal(m, fitting[0]) for m in fitting[1:]):
            raise Unsupported(
                f"two different masks fit the inputs of {call.name!r}; pad the inputs of encoder "
                "and decoder to different lengths"
            )
        return fitting[0].to(a.dtype)


def is_sequence(layer: nn.Module) -> bool:
    """Whether axis 1 of a three-axes input counts positions."""
    return not isinstance(layer, nn.Conv1d | nn.Conv2d)


def masks_in(inputs: Any) -> list[Tensor]:
    """The padding masks (n, T) of a batch: ``attention_mask`` and those that end like it."""
    if not isinstance(inputs, Mapping):
        return []
    return [
        v
        for key, v in inputs.items()
        if key.endswith("attention_mask") and isinstance(v, Tensor) and v.ndim == 2
    ]
