"""Adafactor over parameters of which every process holds some rows.

torch's own takes norms over whole axes in place, which ``DTensor`` refuses where an axis is split
("in-place operations that require placement changes are not supported").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from .optimizers import EPS1, EPS2
from .processes import ranks, summed_tensor


class ShardedAdafactor(torch.optim.Optimizer):
    """The steps of :func:`~fishertope.experiments.text2text.optimizers.adafactor`, to rounding.

    For a matrix ``G`` ``(n, m)`` of which a process holds the rows ``I``, with
    ``b = t ** -0.8``::

        R_i <- R_i + b (mean_j G_ij² - R_i)          its own rows, i in I
        C_j <- C_j + b (Σ_I Σ_{i in I} G_ij² / n - C_j)      summed over the processes
        V_ij = R_i C_j / (Σ_I Σ_{i in I} R_i / n)
        U = G / √V;   W <- W - max(1e-3, rms W) min(rate, 1/√t) U / max(1, rms U)

    with both rms over all processes. Vectors keep all of V, which is elementwise; arrays of more
    axes are factored along the last two, which are whole. The state has the names and, put
    together, the shapes of torch's Adafactor.

    Cost: two messages a step, of two numbers a parameter and its columns, and of one number a
    parameter.

    Parameters
    ----------
    parameters
        ``DTensor`` s split along axis 0, or plain tensors, which are equal in all processes.
    rate
        As ``adafactor``'s.
    """

    def __init__(self, parameters: Iterable[Tensor], *, rate: float) -> None:
        super().__init__(parameters, {"lr": rate})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        if closure is not None:
            raise NotImplementedError("ShardedAdafactor takes no closure")
        for group in self.param_groups:
            parts = [self._part(p, float(group["lr"])) for p in group["params"]
                     if p.grad is not None]  # fmt: skip
            if not parts:
                continue
            totals = _summed([part.sums() for part in parts])
            updates = [part.update(total) for part, total in zip(parts, totals, strict=True)]
            squares = _summed(
                [p.counted(_square(u))[None] for p, u in zip(parts, updates, strict=True)]
            )
            for part, update, total, square in zip(parts, updates, totals, squares, strict=True):
                part.move(update, float(total[0]), float(square))

    def _part(self, parameter: Tensor, rate: float) -> _Part:
        state = self.state[parameter]
        grad = cast(Tensor, parameter.grad)
        if not state:
            state["step"] = torch.tensor(0.0)
            if parameter.ndim > 1:
                rows = [*parameter.shape[:-1], 1]
                columns = [*parameter.shape[:-2], 1, parameter.shape[-1]]
                state["row_var"] = _zeros(parameter, rows)
                whole = parameter.ndim == 2
                state["col_var"] = (
                    _local(grad).new_zeros(columns) if whole else _zeros(parameter, columns)
                )
            else:
                state["variance"] = _zeros(parameter, list(parameter.shape))
        state["step"] += 1
        return _Part(parameter, _local(parameter), _local(grad), state, rate)


@dataclass(frozen=True, slots=True)
class _Part:
    """One parameter in one step, as this process sees it."""

    parameter: Tensor
    value: Tensor
    grad: Tensor
    state: dict[str, Any]
    rate: float

    @property
    def decay(self) -> float:
        return float(self.state["step"].item() ** -0.8)

    @property
    def splits_rows(self) -> bool:
        """Whether means down the columns need the other processes."""
        return self.parameter.ndim == 2

    def counted(self, own: Tensor) -> Tensor:
        """What this process adds to a sum: what all have in common is counted once."""
        counts = isinstance(self.parameter, DTensor) or ranks()[0] == 0
        return own if counts else torch.zeros_like(own)

    def sums(self) -> Tensor:
        """Σ W², and of a matrix Σ_i R_i and Σ_i G_ij²; float64."""
        found = [_square(self.value)[None]]
        if self.parameter.ndim > 1:
            row = _local(self.state["row_var"])
            row.lerp_(self.grad.square().mean(-1, keepdim=True), self.decay)
            if self.splits_rows:
                found += [row.double().sum()[None], self.grad.square().double().sum(0)]
        return self.counted(torch.cat(found))

    def update(self, total: Tensor) -> Tensor:
        """U of this process's rows."""
        if self.parameter.ndim < 2:
            variance = _local(self.state["variance"])
            variance.lerp_(self.grad.square(), self.decay)
            estimate = variance.clone()
        else:
            row, column = _local(self.state["row_var"]), _local(self.state["col_var"])
            if self.splits_rows:
                n = self.parameter.shape[0]
                mean = (total[1] / n).to(row.dtype)
                column.lerp_((total[2:] / n).to(column.dtype)[None], self.decay)
            else:
                mean = row.mean(-2, keepdim=True)
                column.lerp_(self.grad.square().mean(-2, keepdim=True), self.decay)
            estimate = (row @ column).div_(mean.clamp(min=EPS1))
        return estimate.clamp_(min=EPS1**2).rsqrt_().mul_(self.grad)

    def move(self, update: Tensor, norm: float, square: float) -> None:
        """Take the step, given Σ W² and Σ U²."""
        number = self.parameter.numel()
        rate = min(self.rate, self.state["step"].item() ** -0.5)
        scale = max(EPS2, (norm / number) ** 0.5)
        self.value.add_(update, alpha=-scale * rate / max(1.0, (square / number) ** 0.5))


def _local(tensor: Tensor) -> Tensor:
    """The part of this process, sharing memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _zeros(like: Tensor, shape: list[int]) -> Tensor:
    """Zeros of a shape whose first axis is split like the parameter's."""
    local = _local(like)
    if not isinstance(like, DTensor):
        return local.new_zeros(shape)
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        local.new_zeros([local.shape[0], *shape[1:]]), like.device_mesh, like.placements,
        run_check=False, shape=torch.Size(shape), stride=stride,
    )  # fmt: skip


def _square(x: Tensor) -> Tensor:
    return x.double().square().sum()


def _summed(parts: list[Tensor]) -> list[Tensor]:
    """Float64 vectors summed over the processes, in one message."""
    sizes = [part.numel() for part in parts]
    return list(torch.split(summed_tensor(torch.cat(parts)), sizes))
