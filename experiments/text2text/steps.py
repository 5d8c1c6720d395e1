"""One training step: a batch as tensors, its loss, and the gradients of a whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fishertope.experiments.seq2seq.model import Seq2Seq, token_loss

from .batches import Batch


@dataclass(frozen=True, slots=True)
class BatchLoss:
    """Summed loss of the counted tokens and their number.

    ``auxiliary`` is what the model adds to the loss a token while it is trained (the balance loss
    of experts, times its coefficient); it is no part of ``total``.
    """

    total: Tensor
    tokens: float
    auxiliary: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        """Loss a token; 0 without tokens."""
        return self.total / max(self.tokens, 1.0)


def batch_tensors(batch: Batch, device: torch.device | str = "cpu") -> dict[str, Tensor | None]:
    """The arguments of the model's ``forward``; shapes as in :class:`Batch`."""

    def tensor(name: str) -> Tensor | None:
        array = getattr(batch, name)
        return None if array is None else torch.from_numpy(array).to(device)

    found = {
        name: tensor(name)
        for name in ("inputs", "decoder_tokens", "input_segments", "target_segments", "prefix")
    }
    optional = ("input_segments", "target_segments", "prefix")
    return {k: v for k, v in found.items() if v is not None or k not in optional}


def batch_loss(
    model: nn.Module, batch: Batch, *, z_loss: float = 0.0, device: torch.device | str = "cpu"
) -> BatchLoss:
    """Σ over counted tokens of −log p(target) + ``z_loss`` · (log Z)²."""
    arguments = batch_tensors(batch, device)
    places = (arguments.pop("inputs"), arguments.pop("decoder_tokens"))
    targets = torch.from_numpy(batch.targets).to(device)
    weights = torch.from_numpy(batch.weights).to(device)
    if isinstance(model, Seq2Seq):  # it may need less than all logits, or less memory for them
        losses = model(*places, **arguments, targets=targets, z_loss=z_loss)
        total = (losses * weights.to(losses.dtype)).sum()
    else:
        logits = model(*places, **arguments)
        total = token_loss(logits, targets, z_loss=z_loss, weights=weights, reduction="sum")
    auxiliary = None
    if model.training and isinstance(model, Seq2Seq):
        auxiliary = model.auxiliary_loss()
    return BatchLoss(total=total, tokens=float(batch.weights.sum()), auxiliary=auxiliary)


@torch.no_grad()
def mean_loss(
    model: nn.Module, batches: Sequence[Batch], device: torch.device | str = "cpu"
) -> float:
    """Loss a token over all batches, in evaluation mode; the mode is put back."""
    was = model.training
    model.eval()
    try:
        losses = [batch_loss(model, batch, device=device) for batch in batches]
    finally:
        model.train(was)
    tokens = sum(loss.tokens for loss in losses)
    return sum(float(loss.total) for loss in losses) / max(tokens, 1.0)
