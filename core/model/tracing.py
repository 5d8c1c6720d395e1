"""What an engine tells of one example: where in the network a move of the parameters acts.

The function x ↦ z is cut at some tensors (block outputs) h_b with positions t. A move δ of the
parameters reaches the outputs through the cuts: u_bt is what the parameters between the previous
cuts and b change at (b, t) while everything that enters is held fixed (the *induced* tangent), and
a_bt = ∂(Uz)/∂h_bt the adjoint. By the chain rule, for any cuts,

    U J δ = Σ_{b,t} a_bt·u_bt + (what the parameters after the last cuts change).

The whole tangent ḣ_bt that passes (b, t) splits further, edge by edge, into what comes from the
positions of the block before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..types import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EdgeFlow:
    """What flows from the positions of one block to those of a later one.

    Attributes
    ----------
    source, target : int
        Numbers of the blocks.
    kind : {"transformed", "residual"}
        Through the target block's computation, or past it.
    values : float64 array (R, S, T)
        For each row, source position and target position; for "residual" (R, T), each position to
        itself.
    """

    source: int
    target: int
    kind: str
    values: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TracedFlows:
    """Contributions to U J δ of one example.

    Attributes
    ----------
    blocks : list of str
        In the order of computation.
    stacks : list of str
        Which stack each belongs to ("encoder", "decoder"; one name where there is one).
    induced, passing : list of float64 arrays (R, T_b)
        a_bt·u_bt, and a_bt·ḣ_bt with ḣ the whole tangent of the stream at (b, t).
    readout : float64 array (R,)
        What the parameters behind the last cut change.
    totals : float64 array (R,)
        U J δ, from a tangent pass without cuts.
    edges : list of EdgeFlow
    """

    blocks: Sequence[str]
    stacks: Sequence[str]
    induced: Sequence[FloatArray]
    passing: Sequence[FloatArray]
    readout: FloatArray
    totals: FloatArray
    edges: Sequence[EdgeFlow] = field(default_factory=list)


def dense_flows(
    weights: Sequence[FloatArray],
    activations: Sequence[FloatArray],
    slopes: Sequence[FloatArray],
    delta: Mapping[str, FloatArray],
    roots: FloatArray,
    *,
    edges: bool,
) -> TracedFlows:
    """A dense network cut at every pre-activation z_l: positions are units, nothing is left over.

    u_l = δW_l a_{l−1} + δb_l; ż_l = u_l + W_l(φ'_{l−1}∘ż_{l−1}); the edge from unit s to unit t
    carries a_t W_ts φ'_s ż_s.

    Parameters
    ----------
    weights, activations, slopes : sequences of arrays
        W_l, the inputs a_{l−1} of each layer, and φ' of each hidden layer.
    delta : mapping
        ``layers.l.weight`` and ``layers.l.bias``.
    roots : array (R, C)
    """
    L = len(weights)
    adjoints = [roots.astype(np.float64)] * L
    for layer in range(L - 2, -1, -1):
        adjoints[layer] = (adjoints[layer + 1] @ weights[layer + 1]) * slopes[layer]
    induced, passing, flows, tangent = [], [], [], np.zeros(0)
    for layer, W in enumerate(weights):
        moved = delta[f"layers.{layer}.weight"] @ activations[layer] + delta[f"layers.{layer}.bias"]
        induced.append(adjoints[layer] * moved)
        if layer:
            through = W * (slopes[layer - 1] * tangent)[None, :]
            if edges:
                values = np.einsum("rt,ts->rst", adjoints[layer], through)
                flows.append(
                    EdgeFlow(source=layer - 1, target=layer, kind="transformed", values=values)
                )
            moved = moved + through.sum(axis=1)
        tangent = moved
        passing.append(adjoints[layer] * tangent)
    return TracedFlows(
        blocks=[f"layers.{layer}" for layer in range(L)], stacks=["stack"] * L, induced=induced,
        passing=passing, readout=np.zeros(len(roots)), totals=roots @ tangent, edges=flows,
    )  # fmt: skip
