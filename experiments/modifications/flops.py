"""Floating-point operations of a training step, counted as it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from ..seq2seq import Seq2Seq
    from ..text2text import Batch


def training_flops(model: Seq2Seq, batch: Batch) -> int:
    """Operations of forward and backward for one batch, 2 for a multiply-add.

    Matrix products and attention are counted by ``torch.utils.flop_counter``, convolutions by their
    closed form, as it counts the backward pass of depthwise ones as if each channel read all. What
    it misses is added, twice as much again for the backward pass: the sums of dynamic convolution,
    2 · width · d_model a token, and of product-key memory, 2 · heads · top · d_model a token. What
    is done element by element (norms, activations, the optimizer) is not counted, for vanilla as
    little as for the variants.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ..text2text.steps import batch_loss

    device = next(model.parameters()).device
    was = model.training
    model.train()
    aten = torch.ops.aten
    own = {aten.convolution: _convolution, aten.convolution_backward: _convolution_backward}
    counter: Any = FlopCounterMode(display=False, custom_mapping=own)
    try:
        with torch.random.fork_rng(devices=[]), counter, _missed(model) as missed:
            loss = batch_loss(model, batch, device=device)
            torch.autograd.backward(loss.total)
    finally:
        model.train(was)
        for parameter in model.parameters():
            parameter.grad = None
    return int(counter.get_total_flops()) + 3 * sum(missed)


def _convolution(
    x: Sequence[int], weight: Sequence[int], *rest: Any, out_shape: Sequence[int], **more: Any
) -> int:
    """2 · outputs · (channels a group) · width, of shapes."""
    return 2 * prod(out_shape) * prod(weight[1:])


def _convolution_backward(
    out: Sequence[int], x: Sequence[int], weight: Sequence[int], *rest: Any, **more: Any
) -> int:
    """As much for the gradient of the inputs, and for that of the weights, where it is wanted."""
    wanted = rest[7]  # after sizes of the bias, stride, padding, dilation and three more
    return 2 * prod(out) * prod(weight[1:]) * (int(wanted[0]) + int(wanted[1]))


def _sums(module: nn.Module) -> int:
    """Operations a token that the counter does not see."""
    # By name: the modules of variants are imported only where a configuration asks for them.
    own: Any = module
    match type(module).__name__:
        case "DynamicConvolution":
            return 2 * int(own.width) * int(own.output.out_features)
        case "ProductKeyMemory":
            return 2 * int(own.heads) * int(own.top) * int(own.values.shape[1])
    return 0


@contextmanager
def _missed(model: nn.Module) -> Iterator[list[int]]:
    """A list that gets the missed operations of each call of such a module."""
    found: list[int] = []

    def note(module: nn.Module, arguments: Any, result: Any) -> None:
        found.append(_sums(module) * int(arguments[0].numel()) // int(arguments[0].shape[-1]))

    handles = [m.register_forward_hook(note) for m in model.modules() if _sums(m)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
