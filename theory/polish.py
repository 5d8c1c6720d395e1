"""A trained one-hidden-layer ReLU network, made better and proven as far as can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import InvalidInputError
from ..core.types import FloatArray, NumpyArray, Seed
from ..core.zonotope.cone_program import cone_least_squares, cone_of
from .certificates import Certificate, certify
from .greedy import greedy_search
from .modules import ModuleNetwork, read_module, with_network
from .networks import ShallowNetwork
from .program import ReluProblem

_DECREASE = 1e-9
# The generic cell solver forms dense systems of this many weights at most.
_LARGEST = 600


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Polished:
    """The outcome of :func:`polish`.

    Attributes
    ----------
    module : torch.nn.Module
        A copy of the given module with the new weights: same class, dtype, device and mode.
    loss_before, loss_after : float
        ½ Σ (f − y)² of the two modules, each computed by calling it.
    proven : str
        What the new weights are, in words.
    certificate : Certificate or None
        Of the float64 weights, for one output. Rounding to the module's dtype comes after it.
    history : tuple of float
        Losses after each round.
    """

    module: Any
    loss_before: float
    loss_after: float
    proven: str
    certificate: Certificate | None
    history: tuple[float, ...]

    def __repr__(self) -> str:
        return f"Polished(loss {self.loss_before:.6g} → {self.loss_after:.6g}, {self.proven!r})"


def polish(
    module: Any,
    inputs: Any,
    targets: Any,
    *,
    neighbourhood: str = "edges",
    max_rounds: int = 100,
    max_steps: int = 10_000,
    seed: Seed = 0,
) -> Polished:
    """Lower the squared loss of a trained network, or prove that nothing near lowers it.

    From the patterns of the trained units: the optimum of their cell, then flips, dead units and
    edges (:func:`greedy_search`), then the output's offset with the units, until nothing helps.
    With several outputs, cell and flips for the hidden layer and least squares for the output layer
    take turns.

    Parameters
    ----------
    module : torch.nn.Module
        Two linear layers with a ReLU between them; each may lack its bias.
    inputs, targets : tensors or arrays (n, d), (n,) or (n, c)
        What the module was trained on.
    neighbourhood : {"tight", "edges"}
        For one output: how far to look.
    max_rounds, max_steps : int
    seed : int or numpy.random.Generator

    Returns
    -------
    Polished

    Raises
    ------
    ArrayTypeError
        A module of another form.
    InvalidInputError
        Shapes that do not fit, NaN, too many weights for several outputs.
    """
    network = read_module(module)
    x, y = _data(network, inputs, targets)
    start = _loss(module, inputs, y)
    if len(network.outputs) == 1:
        better, history, proven, certificate = _one(
            network, x, y[:, 0], neighbourhood, max_rounds, max_steps, seed
        )
    else:
        better, history, proven = _several(network, x, y, max_rounds)
        certificate = None
    made = with_network(module, better)
    after = _loss(made, inputs, y)
    if not after <= start:
        made, after = with_network(module, network), start
        proven = f"unchanged: the weights found ({proven}) are not better in the module's dtype"
        certificate = None
    return Polished(
        module=made,
        loss_before=start,
        loss_after=after,
        proven=proven,
        certificate=certificate,
        history=tuple(history),
    )


def _array(value: Any) -> FloatArray:
    if hasattr(value, "detach"):
        value = value.detach().cpu().double().numpy()
    return np.asarray(value, dtype=np.float64)


def _data(network: ModuleNetwork, inputs: Any, targets: Any) -> tuple[FloatArray, FloatArray]:
    x, y = _array(inputs), _array(targets)
    y = y[:, None] if y.ndim == 1 else y
    due = network.weights.shape[1] - int(network.bias)
    if x.ndim != 2 or x.shape[1] != due or y.shape != (len(x), len(network.outputs)):
        raise InvalidInputError(
            f"Inputs of shape {x.shape} and targets of shape {y.shape} were given; (n, {due}) and "
            f"(n, {len(network.outputs)}) are due."
        )
    bad = ~(np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1))
    if bad.any():
        rows = np.flatnonzero(bad)[:8].tolist()
        raise InvalidInputError(f"Rows {rows} hold NaN or infinite entries; drop or fix them.")
    return (np.column_stack([x, np.ones(len(x))]) if network.bias else x), y


def _loss(module: Any, inputs: Any, y: FloatArray) -> float:
    import torch

    parameter = next(module.parameters())
    given = torch.as_tensor(_array(inputs)).to(parameter)
    with torch.no_grad():
        f = module(given).detach().cpu().double().numpy().reshape(y.shape)
    return 0.5 * float(((f - y) ** 2).sum())


def _one(
    network: ModuleNetwork,
    x: FloatArray,
    y: FloatArray,
    neighbourhood: str,
    max_rounds: int,
    max_steps: int,
    seed: Seed,
) -> tuple[ModuleNetwork, list[float], str, Certificate]:
    a = network.outputs[0]
    signs = np.where(a < 0, -1.0, 1.0)
    w, b = np.abs(a)[:, None] * network.weights, float(network.offset[0])
    history = [0.5 * float(((np.maximum(x @ w.T, 0) @ signs + b - y) ** 2).sum())]
    reached = ""
    for _ in range(max_rounds):
        problem = ReluProblem(inputs=x, targets=y - b, signs=signs)
        patterns = np.where(x @ w.T >= 0, 1, -1).T
        found = greedy_search(
            problem, patterns=patterns, neighbourhood=neighbourhood, max_steps=max_steps, seed=seed
        )
        if found.loss <= history[-1]:
            w, reached = found.weights, found.certificate
            value = found.loss
        else:
            value = history[-1]
        if network.has_offset:
            w, b, value = _with_offset(x, y, signs, w, b, value)
        history.append(value)
        if not value < history[-2] * (1 - _DECREASE) or not network.has_offset:
            break
    held = ShallowNetwork(
        weights=w, outputs=signs, offset=b, bias=False, has_offset=network.has_offset
    )
    proof = certify(held, x, y)
    proven = reached if proof.local_minimum else f"lower, not proven: {proof.claims[0].detail}"
    if proof.global_optimum:
        proven = "global optimum (zero loss)"
    elif proof.local_minimum and not reached.startswith("local minimum"):
        proven = "local minimum of the loss"
    size = np.where(np.abs(a) > 0, np.abs(a), 1.0)  # the split between the layers stays
    better = ModuleNetwork(
        weights=w / size[:, None],
        outputs=(signs * size)[None],
        offset=np.array([b]),
        bias=network.bias,
        has_offset=network.has_offset,
    )
    return better, history, proven, proof


def _with_offset(
    x: FloatArray, y: FloatArray, signs: FloatArray, w: FloatArray, b: float, value: float
) -> tuple[FloatArray, float, float]:
    """The optimum of the cell of w over the units and the offset together."""
    m, d = w.shape
    patterns = np.where(x @ w.T >= 0, 1.0, -1.0).T
    if m * d > _LARGEST:
        f = np.maximum(x @ w.T, 0) @ signs
        b = float((y - f).mean())
        return w, b, 0.5 * float(((f + b - y) ** 2).sum())
    phi = np.hstack([v * (s > 0)[:, None] * x for v, s in zip(signs, patterns, strict=True)])
    phi = np.column_stack([phi, np.ones(len(x))])
    cone = np.column_stack([cone_of(x, patterns), np.zeros(m * len(x))])
    solved, _ = cone_least_squares(phi, cone, y)
    trial, offset = solved[:-1].reshape(m, d), float(solved[-1])
    loss = 0.5 * float(((np.maximum(x @ trial.T, 0) @ signs + offset - y) ** 2).sum())
    return (trial, offset, loss) if loss <= value else (w, b, value)


def _several(
    network: ModuleNetwork, x: FloatArray, y: FloatArray, max_rounds: int
) -> tuple[ModuleNetwork, list[float], str]:
    w, v, b = network.weights.copy(), network.outputs.copy(), network.offset.copy()
    if w.size > _LARGEST:
        raise InvalidInputError(
            f"The hidden layer has {w.size} weights; with several outputs up to {_LARGEST} are "
            "taken. Polish the outputs one by one, or use fewer units."
        )

    def loss(w: FloatArray, v: FloatArray, b: FloatArray) -> float:
        return 0.5 * float(((np.maximum(x @ w.T, 0) @ v.T + b - y) ** 2).sum())

    history = [loss(w, v, b)]
    proven = "step limit reached"
    for _ in range(max_rounds):
        w = _hidden(x, y - b, w, v)
        hidden = np.maximum(x @ w.T, 0)
        design = np.column_stack([hidden, np.ones(len(x))]) if network.has_offset else hidden
        solved = np.linalg.lstsq(design, y, rcond=None)[0]
        trial = (solved[:-1].T, solved[-1]) if network.has_offset else (solved.T, b)
        if loss(w, *trial) <= loss(w, v, b):
            v, b = trial
        history.append(loss(w, v, b))
        if not history[-1] < history[-2] * (1 - _DECREASE):
            proven = (
                "hidden layer optimal in its cell and no flip helps, given the output layer; "
                "output layer optimal, given the hidden layer"
            )
            break
    better = ModuleNetwork(
        weights=w, outputs=v, offset=b, bias=network.bias, has_offset=network.has_offset
    )
    return better, history, proven


def _hidden(x: FloatArray, y: FloatArray, w: FloatArray, v: FloatArray) -> FloatArray:
    """The hidden layer for a fixed output layer: cell optimum, then flips that gain."""
    patterns = np.where(x @ w.T >= 0, 1.0, -1.0).T
    lengths = np.linalg.norm(x, axis=1)
    best = 0.5 * float(((np.maximum(x @ w.T, 0) @ v.T - y) ** 2).sum())
    for turn in range(50):
        trial, mu = _cell(x, y, patterns, v)
        f = np.maximum(x @ trial.T, 0) @ v.T
        value = 0.5 * float(((f - y) ** 2).sum())
        if value > best * (1 + 1e-12):
            break
        stop = not value < best * (1 - _DECREASE)
        w, best = trial, min(value, best)
        sizes = np.linalg.norm(w, axis=1)[:, None]
        tight = (np.abs(w @ x.T) <= 1e-9 * sizes * lengths) & (sizes > 0)
        gains = np.where(tight, mu - v.T @ (f - y).T, -np.inf)
        better = gains > 1e-9 * float(np.abs(f - y).max())
        if not better.any() or (stop and turn > 0):
            break
        patterns = np.where(better, -patterns, np.where(tight, patterns, np.sign(w @ x.T + 0.0)))
        patterns = np.where(patterns == 0, 1.0, patterns)
    return w


def _cell(
    x: FloatArray, y: FloatArray, patterns: NumpyArray, v: FloatArray
) -> tuple[FloatArray, FloatArray]:
    m, d = len(patterns), x.shape[1]
    active = (patterns > 0).astype(np.float64)
    # Row (k, i): Σ_j V_kj 1[s_ji] x_i·w_j.
    phi = np.einsum("kj,ji,id->kijd", v, active, x).reshape(-1, m * d)
    w, mu = cone_least_squares(phi, cone_of(x, patterns), y.T.ravel(), blocks=m)
    return w.reshape(m, d), mu.reshape(m, len(x))
