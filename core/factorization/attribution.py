"""How much each token of a text is needed for its response to a component."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..backend import to_numpy
from ..errors import InvalidInputError
from ..model import OutputDistribution, engine_for
from ..types import FloatArray
from .perturbation import component_direction, in_kind_of, scatter
from .result import Factorization


def token_attributions(
    model: Any,
    factorization: Factorization,
    component: int,
    example: Mapping[str, Any],
    *,
    mask: str = "attention_mask",
    output: OutputDistribution | None = None,
    outputs_of: Any = None,
    batch_size: int = 32,
) -> FloatArray:
    """The share of the response ‖U J g‖² that is lost when a token is hidden from all others.

    The token's entry of the attention mask is set to zero; U is kept as it is for the whole text,
    so that the change is one of the tangent, not of how sure the model is.

    Parameters
    ----------
    model, factorization, component
        As :func:`perturb`.
    example : mapping of arrays (1, T)
        With a mask of zeros and ones.
    mask : str
        Its name.
    output, outputs_of
        As :func:`per_example_fishers`.

    Returns
    -------
    float64 array (T,)
        1 − ‖U J(x without t) g‖²/‖U J(x) g‖²; 1 where nothing is left without the token, negative
        where the response is stronger without it. Zero where the mask was zero.

    Raises
    ------
    InvalidInputError
        No mask of that name, several examples, or components of another model.

    Notes
    -----
    Cost: one forward-mode pass over as many copies as there are tokens.
    """
    if mask not in example or len(example[mask]) != 1:
        raise InvalidInputError(
            f"An example with {', '.join(example)} was given; a batch of one example with "
            f"{mask!r} is taken."
        )
    options = {} if outputs_of is None else {"outputs_of": outputs_of}
    engine: Any = engine_for(model, output=output, **options)
    g = component_direction(factorization, component)
    delta = scatter(engine, factorization.sites, g)
    U = to_numpy(engine.output.fisher_root(engine.predict(example)))[0].astype(np.float64)
    seen = np.flatnonzero(to_numpy(example[mask])[0])
    whole = _response(engine, U, example, delta)[0]
    out = np.zeros(int(example[mask].shape[1]))
    for start in range(0, len(seen), batch_size):
        hidden = seen[start : start + batch_size]
        copies = {
            k: in_kind_of(v, np.repeat(to_numpy(v), len(hidden), axis=0))
            for k, v in example.items()
        }
        for row, t in enumerate(hidden):
            copies[mask][row, int(t)] = 0
        found = _response(engine, U, copies, delta)
        out[hidden] = 1.0 - found / whole if whole > 0 else 0.0
    return out


def _response(engine: Any, U: FloatArray, batch: Mapping[str, Any], delta: Any) -> FloatArray:
    moved = to_numpy(engine.jvp(batch, delta)).astype(np.float64)
    return np.asarray(np.square(moved @ U.T).sum(axis=1))
