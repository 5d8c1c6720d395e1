"""Reading a one-hidden-layer ReLU network out of whatever holds one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import ArrayTypeError, InvalidInputError
from ..core.types import Array, FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShallowNetwork:
    """f(x) = Σ_j a_j (w_j·x)_+ + b for one output.

    Attributes
    ----------
    weights : array (m, d)
        With ``bias`` the last column is the hidden bias.
    outputs : array (m,)
        a_j of any sign and size.
    offset : float
        b; 0 where there is none.
    bias : bool
        Whether rows x are to get a constant column before they meet ``weights``.
    has_offset : bool
        Whether b is a parameter.
    """

    weights: FloatArray
    outputs: FloatArray
    offset: float = 0.0
    bias: bool = False
    has_offset: bool = False

    def rows(self, inputs: Array) -> FloatArray:
        """Inputs as ``weights`` takes them.

        Raises
        ------
        InvalidInputError
            A number of columns that does not fit.
        """
        x = np.asarray(inputs, dtype=np.float64)
        if x.ndim == 2 and self.bias:
            x = np.column_stack([x, np.ones(len(x))])
        if x.ndim != 2 or x.shape[1] != self.weights.shape[1] or not np.isfinite(x).all():
            due = self.weights.shape[1] - int(self.bias)
            raise InvalidInputError(
                f"Inputs of shape {np.shape(inputs)} were given; (n, {due}), finite, is due."
            )
        return x

    def predict(self, inputs: Array) -> FloatArray:
        """The output of every row."""
        hidden = np.maximum(self.rows(inputs) @ self.weights.T, 0)
        return np.asarray(hidden @ self.outputs + self.offset)


def as_shallow(network: Any, *, signs: Array | None = None) -> ShallowNetwork:
    """The network held by ``network``.

    Parameters
    ----------
    network : object
        A pair (weights (m, d), outputs (m,)) or a triple with the output's offset; anything with
        ``weights`` and ``outputs`` or ``signs`` (results of this package; for a ``ReluSolution``
        give ``signs``); a fitted scikit-learn ``MLPRegressor`` with one hidden ReLU layer; a
        ``torch.nn.Module`` whose parameters are two linear layers with a ReLU between them.
    signs : array (m,), optional

    Raises
    ------
    ArrayTypeError
        Something else, or more than one output.
    """
    if isinstance(network, ShallowNetwork):
        return network
    if isinstance(network, tuple | list) and len(network) in (2, 3):
        return _of_arrays(*network)
    for name in ("outputs", "signs"):
        if hasattr(network, "weights") and hasattr(network, name):
            return _of_arrays(getattr(network, "weights"), getattr(network, name))  # noqa: B009
    if hasattr(network, "weights") and signs is not None:
        return _of_arrays(getattr(network, "weights"), signs)  # noqa: B009
    if hasattr(network, "coefs_") and hasattr(network, "intercepts_"):
        return _of_sklearn(network)
    if hasattr(network, "named_modules"):
        from .modules import read_module

        read = read_module(network)
        if read.outputs.shape[0] != 1:
            raise ArrayTypeError(
                f"The module has {read.outputs.shape[0]} outputs; one is taken here. polish takes "
                "several."
            )
        return ShallowNetwork(
            weights=read.weights,
            outputs=read.outputs[0],
            offset=float(read.offset[0]),
            bias=read.bias,
            has_offset=read.has_offset,
        )
    raise ArrayTypeError(
        f"A {type(network).__name__} was given; accepted: (weights, outputs), a result of this "
        "package (a ReluSolution with signs=), a fitted MLPRegressor with one hidden ReLU layer, a "
        "torch module of Linear, ReLU, Linear."
    )


def _of_arrays(weights: Array, outputs: Array, offset: float | None = None) -> ShallowNetwork:
    w, a = np.asarray(weights, dtype=np.float64), np.asarray(outputs, dtype=np.float64)
    if w.ndim != 2 or a.shape != (len(w),) or not (np.isfinite(w).all() and np.isfinite(a).all()):
        raise InvalidInputError(
            f"Weights of shape {w.shape} and outputs of shape {a.shape} were given; (m, d) and "
            "(m,), finite, are due."
        )
    return ShallowNetwork(
        weights=w, outputs=a, offset=float(offset or 0.0), has_offset=offset is not None
    )


def _of_sklearn(model: Any) -> ShallowNetwork:
    if len(model.coefs_) != 2 or model.activation != "relu" or model.coefs_[1].shape[1] != 1:
        raise ArrayTypeError(
            "A scikit-learn network with other than one hidden layer, ReLU and one output was "
            "given; that is what is taken."
        )
    weights = np.column_stack([model.coefs_[0].T, model.intercepts_[0]])
    return ShallowNetwork(
        weights=weights.astype(np.float64),
        outputs=model.coefs_[1][:, 0].astype(np.float64),
        offset=float(model.intercepts_[1][0]),
        bias=True,
        has_offset=True,
    )
