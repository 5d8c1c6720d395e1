"""The dense-ReLU-dense layer of a text-to-text model as a shallow ReLU regression.

With everything else frozen, the last feed-forward layer of the decoder decides between two labels
by one number. Let h ∈ R^d be the residual stream before it, x = norm(h) its input, and u = w ∘
(e₊ − e₋)/√d, w the weights of the last norm, e± the embeddings of the two tokens in which the
labels first differ. The difference of their logits is s · u·(h + V (W x)_+), with s > 0 the scale
of the last norm. So the layer's one output f(x) = Σ_j a_j (w_j·x)_+, a = Vᵀu, should reach
y = c ℓ/s − u·h for the margin c ℓ, ℓ = ±1: least squares over one hidden ReLU layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from fishertope.experiments.seq2seq.layers import FeedForward, RMSNorm
from fishertope.experiments.seq2seq.model import Block
from fishertope.experiments.seq2seq.prepared import can_prepare

from ...core.errors import InvalidInputError
from ...core.types import FloatArray
from ..text2text.evaluation import label_tokens
from ..text2text.folders import TextModel
from ..text2text.formats import Example
from .fishers import InputBatches


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OneOutput:
    """A trained layer's one-output form with its frozen data, in float64.

    Attributes
    ----------
    inputs : array (n, d)
        x, the layer's inputs.
    targets : array (n,)
        y = c ℓ/s − u·h.
    residuals : array (n,)
        u·h, what the rest of the model says.
    labels : array (n,)
        ℓ = ±1, +1 for the second label.
    weights : array (m, d)
        W.
    outputs : array (m,)
        a = Vᵀu.
    margin : float
        c, the mean size of the model's own margins.
    """

    inputs: FloatArray
    targets: FloatArray
    residuals: FloatArray
    labels: FloatArray
    weights: FloatArray
    outputs: FloatArray
    margin: float

    def loss(self, weights: FloatArray, outputs: FloatArray) -> float:
        """½ Σ (f(x) − y)²."""
        f = np.maximum(self.inputs @ weights.T, 0) @ outputs
        return 0.5 * float(((f - self.targets) ** 2).sum())

    def accuracy(self, weights: FloatArray, outputs: FloatArray) -> float:
        """Share of examples whose first differing token is decided rightly."""
        f = np.maximum(self.inputs @ weights.T, 0) @ outputs
        return float((np.sign(self.residuals + f) == self.labels).mean())

    def directions(self, k: int) -> FloatArray:
        """The k strongest directions of the inputs (d, k), orthonormal."""
        return np.asarray(np.linalg.svd(self.inputs, full_matrices=False)[2][:k].T)

    def part(self, units: Sequence[int], directions: FloatArray | None = None) -> OneOutput:
        """The form of some units, with all others frozen as they are.

        What the others say goes from the targets into the residuals. With ``directions`` (d, k)
        the units see k numbers of each input.
        """
        others = np.setdiff1d(np.arange(len(self.outputs)), units)
        said = np.maximum(self.inputs @ self.weights[others].T, 0) @ self.outputs[others]
        chosen = self.weights[list(units)]
        if directions is not None:
            chosen = chosen @ directions
        return replace(
            self, inputs=self.inputs if directions is None else self.inputs @ directions,
            targets=self.targets - said, residuals=self.residuals + said, weights=chosen,
            outputs=self.outputs[list(units)],
        )  # fmt: skip

    def strongest(self, m: int) -> list[int]:
        """The m units whose contributions vary most over the examples."""
        each = np.maximum(self.inputs @ self.weights.T, 0) * self.outputs
        return [int(j) for j in np.sort(np.argsort(-each.std(0), kind="stable")[:m])]


def as_module(weights: FloatArray, outputs: FloatArray) -> nn.Sequential:
    """Units W (m, d) and a (m,) as a float64 torch module without biases."""
    m, d = weights.shape
    first, second = nn.Linear(d, m, bias=False), nn.Linear(m, 1, bias=False)
    made = nn.Sequential(first, nn.ReLU(), second).double()
    with torch.no_grad():
        first.weight.copy_(torch.from_numpy(np.ascontiguousarray(weights)))
        second.weight.copy_(torch.from_numpy(np.ascontiguousarray(outputs[None])))
    return made


@torch.no_grad()
def one_output(
    text_model: TextModel, examples: Sequence[Example], labels: Sequence[str],
    *, margin: float | None = None,
) -> OneOutput:  # fmt: skip
    """Read the last feed-forward layer of the decoder in its one-output form.

    Parameters
    ----------
    text_model
        An encoder-decoder with ReLU layers without biases, as T5 v1.0 has them.
    examples
        With ``inputs``, and one of the labels as ``targets``.
    labels
        Two label strings.
    margin
        c; ``None`` takes the mean size of the model's own margins.

    Raises
    ------
    InvalidInputError
        Another kind of layer or norm, or other than two labels.

    Notes
    -----
    The decoder reads what the labels have in common, so that the place is the first at which they
    differ. s is that of the trained model; a new layer changes it, but not the sign of the margin.
    """
    model, was = text_model.model, text_model.model.training
    model.eval()
    known = can_prepare(model)
    model.train(was)
    block = cast(Block, model.decoder.blocks[-1])
    feed, last = cast(FeedForward, block.feed_forward), cast(RMSNorm, model.decoder.final_norm)
    if not known or type(feed) is not FeedForward or feed.activation != "relu" or len(labels) != 2:
        raise InvalidInputError(
            f"{len(labels)} labels and a model with arch={model.config.arch!r}, "
            f"activation={model.config.activation!r}, gated={model.config.gated}, "
            f"norm={model.config.norm!r} were given; two labels and a T5 v1.0 (ReLU, RMS norms, no "
            "biases, no adapters) are taken."
        )
    tokens = label_tokens(labels, text_model.vocabulary)
    place = int((tokens[0] != tokens[1]).nonzero()[0])
    read = torch.cat([tokens.new_full((1,), model.config.start_id), tokens[0, :place]])
    h, x = _streams(text_model, block, examples, read)
    head = cast(torch.Tensor, model.embedding if model.head is None else model.head)
    scale = model.config.d_model**-0.5 if model.config.logits_scaled else 1.0
    towards = head[tokens[1, place]] - head[tokens[0, place]]
    u = (last.weight * towards * scale).double().numpy()
    W, V = feed.wi.weight.double().numpy(), feed.wo.weight.double().numpy()
    out = h + np.maximum(x @ W.T, 0) @ V.T
    s = 1.0 / np.sqrt((out**2).mean(1) + last.eps)
    c = float(np.abs(s * (out @ u)).mean()) if margin is None else float(margin)
    sign = np.array([1.0 if str(e["targets"]) == labels[1] else -1.0 for e in examples])
    return OneOutput(
        inputs=x, targets=c * sign / s - h @ u, residuals=h @ u, labels=sign, weights=W,
        outputs=V.T @ u, margin=c,
    )  # fmt: skip


def _streams(
    text_model: TextModel, block: Block, examples: Sequence[Example], read: torch.Tensor
) -> tuple[FloatArray, FloatArray]:
    """The stream h and norm(h) (n, d) at the last token read."""
    seen: list[tuple[Any, Any]] = []

    def keep(module: nn.Module, args: Any, result: Any) -> None:
        seen.append((args[0][:, -1].double(), result[:, -1].double()))

    model, was = text_model.model, text_model.model.training
    handle = cast(RMSNorm, block.feed_norm).register_forward_hook(keep)
    model.eval()
    try:
        for batch in InputBatches(text_model, tuple(examples), 64):
            ids = batch["input_ids"]
            model(ids, read.repeat(len(ids), 1).to(ids.device))
    finally:
        handle.remove()
        model.train(was)
    h, x = (torch.cat(parts).cpu().numpy() for parts in zip(*seen, strict=True))
    return h, x
