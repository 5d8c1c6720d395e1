"""What the baselines are fitted to: gradients of the model's own answer, and its activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...backend import to_numpy
from ...errors import InvalidInputError
from ...fisher.draws import Draws
from ...fisher.labels import LabelRoots
from ...model import DenseEngine, OutputDistribution, engine_for
from ...types import Array, FloatArray

POSITIONS = ("first", "last", "mean")


@dataclass(frozen=True, slots=True)
class AnswerLabels:
    """One row an example: ∇log p(ŷ|x) with ŷ the model's own likeliest answer.

    Given to :func:`per_example_fishers` as ``labels=``, its rows are the gradients that gradient
    clustering works on; the matrices that they make are not Fishers.

    Examples
    --------
    >>> import numpy as np
    >>> from fishertope import DenseNetwork, per_example_fishers
    >>> net = DenseNetwork([np.array([[1.0, 2.0], [0.0, 1.0]])], [np.zeros(2)])
    >>> per_example_fishers(net, np.eye(2), labels=AnswerLabels()).ranks.tolist()
    [1, 1]
    """

    @property
    def name(self) -> str:
        """How results call it."""
        return "the model's answer"

    def facts(self) -> dict[str, Any]:
        """Options."""
        return {"labels": self.name}

    def roots(
        self, output: OutputDistribution, z: Array, draws: Draws, targets: Array | None = None
    ) -> LabelRoots:
        """U (n, 1, C): the score at the mode."""
        n = int(z.shape[0])
        values = output.score(z, output.mode(z))[:, None, :]
        return LabelRoots(values=values, counts=np.ones(n, dtype=np.int64), kept=np.ones(n))


def activations(
    model: Any,
    inputs: Any,
    *,
    layer: str | None = None,
    position: str = "last",
    batch_size: int = 64,
    outputs_of: Any = None,
) -> FloatArray:
    """Activations (n, d) of a layer, one vector an example.

    Parameters
    ----------
    model : DenseNetwork, scikit-learn MLP, torch.nn.Module, or engine
    inputs : array (n, ...) or mapping of arrays
    layer : str, optional
        Name of a submodule, whose first output is taken; for dense networks the number of a hidden
        layer ("0", ...). By default the last hidden layer of a dense network; for a module it must
        be given.
    position : {"first", "last", "mean"}
        Of outputs (n, T, d): the first position, the last one that ``attention_mask`` keeps, or the
        mean over those that it keeps.

    Raises
    ------
    InvalidInputError
        Unknown layers or positions, or a model without layers that can be read.
    """
    if position not in POSITIONS:
        raise InvalidInputError(
            f"position={position!r} was given; accepted: {', '.join(POSITIONS)}."
        )
    options = {} if outputs_of is None else {"outputs_of": outputs_of}
    engine: Any = engine_for(model, **options)
    if not isinstance(engine, DenseEngine) and layer is None:
        raise InvalidInputError(
            "layer= was not given; name the submodule whose outputs are wanted (model."
            "named_modules() lists them)."
        )
    if not hasattr(engine, "hidden"):
        raise InvalidInputError(
            f"A {type(engine).__name__} tells no activations; give a dense network or a "
            "torch.nn.Module."
        )
    first = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs
    parts = []
    for start in range(0, len(first), batch_size):
        batch = _cut(inputs, start, start + batch_size)
        found = np.asarray(to_numpy(engine.hidden(batch, layer)), dtype=np.float64)
        parts.append(_at(found, position, batch))
    return np.concatenate(parts)


def _cut(inputs: Any, start: int, stop: int) -> Any:
    if isinstance(inputs, Mapping):
        return {k: v[start:stop] for k, v in inputs.items()}
    return inputs[start:stop]


def _at(found: FloatArray, position: str, batch: Any) -> FloatArray:
    """(n, d) of (n, T, d)."""
    if found.ndim == 2:
        return found
    if found.ndim != 3:
        raise InvalidInputError(
            f"The layer gives outputs of shape {found.shape}; (n, d) or (n, T, d) is taken."
        )
    mask = np.ones((len(found), int(found.shape[1])))
    if isinstance(batch, Mapping) and "attention_mask" in batch:
        given = np.asarray(to_numpy(batch["attention_mask"]), dtype=np.float64)
        mask = given if given.shape == mask.shape else mask
    if position == "first":
        return found[:, 0]
    if position == "mean":
        weights = mask / np.maximum(mask.sum(axis=1, keepdims=True), 1.0)
        return np.asarray(np.einsum("ntd,nt->nd", found, weights))
    last = (mask * np.arange(1, int(found.shape[1]) + 1)).argmax(axis=1)
    return np.asarray(found[np.arange(len(found)), last])
