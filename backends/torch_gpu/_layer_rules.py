"""Per-example parameter gradients of single layers, from their inputs and output gradients alone.

A rule knows, for one call of a layer with features of its input (made once) and output gradients
δ (n, ...) of one root: the gradients of each example, and where there is a shorter way the sum of
their squares over examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

Grads = dict[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class TableRows:
    """Sums over few rows of a table: ``values`` (u, d) belong to the rows ``rows`` (u,).

    Rows may repeat until they are :meth:`merged`.
    """

    rows: Tensor
    values: Tensor

    def merged(self) -> TableRows:
        """Every row once."""
        rows, place = torch.unique(self.rows, return_inverse=True)
        sums = self.values.new_zeros(len(rows), self.values.shape[1])
        return TableRows(rows, sums.index_add_(0, place, self.values))


Squares = tuple[Mapping[str, Tensor | TableRows], Grads]

# Gradients that are squared one example at a time: tiles that a core's cache holds, and weights
# for which several examples at once are faster.
TILE_BYTES = 512 << 10
SMALL_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class LayerRule:
    """How one type of layer is differentiated.

    Attributes
    ----------
    features : callable
        (layer, input) → what the gradients need of the input; called once a call of the layer.
    per_example : callable
        (layer, features, δ (n, ...)) → gradients (n, *shape) by parameter name.
    squares : callable or None
        (layer, features, δ (k, n, ...)) → Σ over n and k of the squared gradients (*shape), and
        Σ over n's own k and entries of them (n,), by parameter name; or ``None`` in place of the
        two where gradients of a few examples at a time are as good.
    pooled : callable or None
        Where a layer's output is (n, o): (layer, features, Σ over roots of δ∘δ (n, o)) → as
        ``squares``, for all roots at once.
    positions : callable or None
        For layers that multiply by a matrix: (layer, features, None) → inputs (n, T, i) of every
        position; (layer, features, δ (k, n, ...)) → output gradients (k, n, T, o).
    """

    features: Callable[[nn.Module, Tensor], Tensor]
    per_example: Callable[[nn.Module, Tensor, Tensor], Grads]
    squares: Callable[[nn.Module, Tensor, Tensor], Squares | None] | None = None
    pooled: Callable[[nn.Module, Tensor, Tensor], Squares] | None = None
    positions: Callable[[nn.Module, Tensor, Tensor | None], Tensor] | None = None


def rule_of(layer: nn.Module) -> LayerRule | None:
    """The rule of a layer with parameters of its own, or ``None`` where there is none."""
    for kind, rule, fits in _RULES:
        # A subclass counts only where it computes what its base computes.
        if isinstance(layer, kind) and type(layer).forward is kind.forward and fits(layer):
            return rule
    kind = type(layer)
    own = [name for name, _ in layer.named_parameters(recurse=False)]
    if kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers."):
        return _LINEAR
    if kind.__name__.endswith(("RMSNorm", "T5LayerNorm")) and own == ["weight"]:
        return _SCALE_LAST
    return None


def is_linear(layer: nn.Module) -> bool:
    """Whether a layer multiplies the last axis of its input by a matrix."""
    return rule_of(layer) is _LINEAR


def is_matrix(layer: nn.Module) -> bool:
    """Whether a layer multiplies each position by one matrix: linear layers and convolutions."""
    rule = rule_of(layer)
    return rule is not None and rule.positions is not None and getattr(layer, "groups", 1) == 1


def outputs_first(layer: nn.Module) -> bool:
    """Whether the first axis of the weight counts the outputs, else the last."""
    return not is_linear(layer) or not _transposed(layer)


def _whole(layer: nn.Module, x: Tensor) -> Tensor:
    return x


def _sequence(x: Tensor) -> Tensor:
    """(n, ..., d) as (n, T, d)."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _transposed(layer: nn.Module) -> bool:
    """Whether the weight is stored (inputs, outputs)."""
    return not isinstance(layer, nn.Linear)


def _linear(layer: nn.Module, a: Tensor, delta: Tensor) -> Grads:
    a, delta = _sequence(a), _sequence(delta)
    first, second = (a, delta) if _transposed(layer) else (delta, a)
    return {"weight": torch.bmm(first.transpose(1, 2), second), "bias": delta.sum(1)}


def _linear_positions(layer: nn.Module, a: Tensor, delta: Tensor | None) -> Tensor:
    if delta is None:
        return _sequence(a)
    return delta.reshape(*delta.shape[:2], -1, delta.shape[-1])


def _linear_squares(layer: nn.Module, a: Tensor, delta: Tensor) -> Squares | None:
    return _matrix_squares(layer, _sequence(a), _linear_positions(layer, a, delta))


def _linear_pooled(layer: nn.Module, a: Tensor, squares: Tensor) -> Squares:
    """For one position an example: Σ (δ aᵀ)∘² = (Σ δ∘δ)ᵀ (a∘a), summed over roots first.

    ‖δ aᵀ‖² = ‖δ‖²‖a‖².
    """
    ready, norms = a.square(), squares.sum(1)
    first, second = (ready, squares) if _transposed(layer) else (squares, ready)
    return (
        {"weight": first.T @ second, "bias": squares.sum(0)},
        {"weight": norms * ready.sum(1), "bias": norms},
    )


def _matrix_squares(layer: nn.Module, a: Tensor, delta: Tensor) -> Squares | None:
    """Σ (Σ_t δ_t a_tᵀ)∘² over examples and roots, for a (n, T, i) and δ (k, n, T, o).

    One example's gradient at a time, in tiles of its rows that stay in the cache.
    """
    weight = cast(Tensor, layer.weight)
    # Where kernels are launched one by one, or are small, several examples at once are faster.
    if delta.device.type != "cpu" or weight.numel() * weight.element_size() < SMALL_BYTES:
        return None
    total = delta.new_zeros(delta.shape[3], a.shape[2])
    norms = delta.new_zeros(a.shape[0])
    rows = max(1, TILE_BYTES // (a.shape[2] * a.element_size()))
    inputs = a.unbind(0)
    for one in delta:
        for start in range(0, len(total), rows):
            tile = total[start : start + rows]
            scratch = torch.empty_like(tile)
            flat, found = scratch.view(-1), []
            for d, x in zip(one[:, :, start : start + rows].unbind(0), inputs, strict=True):
                torch.mm(d.T, x, out=scratch)
                tile.addcmul_(scratch, scratch)
                found.append(torch.dot(flat, flat))
            norms += torch.stack(found)
    bias = delta.sum(2).square()
    shaped = total if outputs_first(layer) else total.T
    return (
        {"weight": shaped.reshape(weight.shape), "bias": bias.sum((0, 1))},
        {"weight": norms, "bias": bias.sum((0, 2))},
    )


def _unfolded(layer: nn.Module, x: Tensor) -> Tensor:
    """Patches (n, groups, c·kernel, positions) of a convolution's input."""
    kernel, dilation, padding, stride = _as_2d(layer)
    if x.ndim == 3:
        x = x.unsqueeze(2)
    patches = F.unfold(x, kernel, dilation=dilation, padding=padding, stride=stride)
    groups = int(layer.groups)  # type: ignore[arg-type]
    return patches.reshape(x.shape[0], groups, -1, patches.shape[-1])


def _as_2d(layer: nn.Module) -> tuple[tuple[int, int], ...]:
    found = []
    for name, lead in (("kernel_size", 1), ("dilation", 1), ("padding", 0), ("stride", 1)):
        value = tuple(getattr(layer, name))
        found.append(value if len(value) == 2 else (lead, value[0]))
    return tuple(found)


def _conv(layer: nn.Module, patches: Tensor, delta: Tensor) -> Grads:
    n, groups = patches.shape[:2]
    delta = delta.reshape(n, groups, -1, patches.shape[-1])
    weight = torch.matmul(delta, patches.transpose(2, 3))
    shape = (n, *layer.weight.shape)  # type: ignore[misc]
    return {"weight": weight.reshape(shape), "bias": delta.sum(-1).reshape(n, -1)}


def _conv_positions(layer: nn.Module, patches: Tensor, delta: Tensor | None) -> Tensor:
    if delta is None:
        return patches[:, 0].transpose(1, 2)
    return delta.flatten(3).transpose(2, 3)


def _conv_squares(layer: nn.Module, patches: Tensor, delta: Tensor) -> Squares | None:
    if int(layer.groups) != 1:  # type: ignore[arg-type]
        return None
    a = _conv_positions(layer, patches, None)
    return _matrix_squares(layer, a, _conv_positions(layer, patches, delta))


def _is_plain_conv(layer: nn.Module) -> bool:
    return getattr(layer, "padding_mode", "") == "zeros" and not isinstance(layer.padding, str)


def counted(layer: nn.Module, tokens: Tensor, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of δ over equal tokens of one example: (example, token, sum)."""
    n, rows = tokens.shape[0], int(layer.weight.shape[0])  # type: ignore[union-attr,index]
    owner = torch.arange(n, device=tokens.device)[:, None]
    key = (owner * rows + tokens.reshape(n, -1)).reshape(-1)
    kept, place = torch.unique(key, return_inverse=True)
    sums = delta.new_zeros(len(kept), delta.shape[-1])
    sums.index_add_(0, place, delta.reshape(-1, delta.shape[-1]))
    skip = layer.padding_idx
    if skip is not None:
        live = kept % rows != skip
        kept, sums = kept[live], sums[live]
    return kept // rows, kept % rows, sums


def _embedding(layer: nn.Module, tokens: Tensor, delta: Tensor) -> Grads:
    example, token, sums = counted(layer, tokens, delta)
    weight = delta.new_zeros(tokens.shape[0], *layer.weight.shape)  # type: ignore[misc]
    weight[example, token] = sums
    return {"weight": weight}


def _embedding_squares(layer: nn.Module, tokens: Tensor, delta: Tensor) -> Squares:
    """Repeated tokens of an example are added before squaring; no table an example is formed."""
    norms, rows, values = delta.new_zeros(tokens.shape[0]), [], []
    for one in delta:
        example, token, sums = counted(layer, tokens, one)
        norms.index_add_(0, example, sums.square_().sum(1))
        rows.append(token)
        values.append(sums)
    return {"weight": TableRows(torch.cat(rows), torch.cat(values))}, {"weight": norms}


def _is_plain_embedding(layer: nn.Module) -> bool:
    return layer.max_norm is None and not layer.scale_grad_by_freq


def _normalised(layer: nn.Module, x: Tensor) -> Tensor:
    """x̂ of a layer w∘x̂ + b: its value at w = 1, less that at w = 0."""
    own = {name: p.detach() for name, p in layer.named_parameters(recurse=False)}
    ones = {name: torch.ones_like(p) for name, p in own.items() if name == "weight"}
    zeros = {name: torch.zeros_like(p) for name, p in own.items()}
    call = functional_call
    return call(layer, zeros | ones, (x,)) - call(layer, zeros, (x,))


def _scale_last(layer: nn.Module, x: Tensor, delta: Tensor) -> Grads:
    """Scale and shift over the last axes."""
    lead = (delta.shape[0], -1)
    shape = tuple(layer.weight.shape)  # type: ignore[union-attr,arg-type]
    both = {"weight": delta * x, "bias": delta}
    return {name: g.reshape(*lead, *shape).sum(1) for name, g in both.items()}


def _scale_channels(layer: nn.Module, x: Tensor, delta: Tensor) -> Grads:
    """Scale and shift of the channels on axis 1."""
    lead = (delta.shape[0], delta.shape[1], -1)
    return {
        "weight": (delta * x).reshape(*lead).sum(2),
        "bias": delta.reshape(*lead).sum(2),
    }


_LINEAR = LayerRule(_whole, _linear, _linear_squares, _linear_pooled, _linear_positions)
_CONV = LayerRule(_unfolded, _conv, _conv_squares, positions=_conv_positions)
_SCALE_LAST = LayerRule(_normalised, _scale_last)
_SCALE_CHANNELS = LayerRule(_normalised, _scale_channels)

_RULES: tuple[tuple[type[nn.Module], LayerRule, Callable[[nn.Module], bool]], ...] = (
    (nn.Linear, _LINEAR, lambda layer: True),
    (nn.Conv1d, _CONV, _is_plain_conv),
    (nn.Conv2d, _CONV, _is_plain_conv),
    (
        nn.Embedding,
        LayerRule(_whole, _embedding, _embedding_squares),
        _is_plain_embedding,
    ),
    (nn.LayerNorm, _SCALE_LAST, lambda layer: True),
    (nn.RMSNorm, _SCALE_LAST, lambda layer: True),
    (nn.GroupNorm, _SCALE_CHANNELS, lambda layer: True),
    # In evaluation mode the running statistics are constants.
    (nn.BatchNorm1d, _SCALE_CHANNELS, lambda layer: bool(layer.track_running_stats)),
    (nn.BatchNorm2d, _SCALE_CHANNELS, lambda layer: bool(layer.track_running_stats)),
)
