"""Models as named tensors, whatever they come as, and back again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj

from ..errors import ArrayTypeError, InvalidInputError
from ..types import Array, FloatArray

FLOATS = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """One model as named tensors.

    Attributes
    ----------
    arrays : mapping of str to array
        The tensors themselves, in the model's order; nothing is copied.
    template : object
        What was given; the merged model is made in its image.
    ties : mapping of str to str
        Names that share their memory with an earlier name, which they map to.
    """

    arrays: Mapping[str, Array]
    template: Any
    ties: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Any, number: int = 0) -> Source:
        """Read a mapping of arrays, a torch module, a dense network or a scikit-learn MLP.

        Raises
        ------
        InvalidInputError
            For other types, no tensors, or things in a mapping that are no arrays.
        """
        if isinstance(model, Source):
            return model
        arrays = _arrays_of(model, number)
        for name, x in arrays.items():
            if not is_array_api_obj(x):
                raise ArrayTypeError(
                    f"Source {number} has a {type(x).__name__} at {name!r}; arrays of NumPy or "
                    "torch are accepted. Use numpy.asarray(x), or leave the entry out."
                )
        if not arrays:
            raise InvalidInputError(f"Source {number} has no tensor; give at least one.")
        return cls(arrays, model, _ties(arrays))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(int(s) for s in self.arrays[name].shape)

    def dtype(self, name: str) -> str:
        """Name of a tensor's dtype, without its library ("float32", "bfloat16", "int64")."""
        return str(self.arrays[name].dtype).rpartition(".")[2]

    def floating(self, name: str) -> bool:
        """Whether a tensor holds floating-point numbers; complex ones are refused.

        Raises
        ------
        InvalidInputError
            For complex tensors.
        """
        dtype = self.dtype(name)
        if "complex" in dtype:
            raise InvalidInputError(
                f"{name!r} is of dtype {dtype}; real tensors are merged. Split it into its real "
                "and imaginary part first."
            )
        return dtype in FLOATS or dtype.startswith("float")


def _arrays_of(model: Any, number: int) -> dict[str, Array]:
    if isinstance(model, Mapping):
        return {_name(k, number): v for k, v in model.items()}
    from ..model.dense import DenseNetwork

    if isinstance(model, DenseNetwork):
        return _layered(model.weights, model.biases)
    if callable(getattr(model, "state_dict", None)):
        state = model.state_dict()
        return {k: v for k, v in state.items() if is_array_api_obj(v)}
    if hasattr(model, "coefs_") and hasattr(model, "intercepts_"):
        return _layered([W.T for W in model.coefs_], model.intercepts_)
    raise InvalidInputError(
        f"Source {number} is a {type(model).__module__}.{type(model).__qualname__}; a mapping from "
        "names to arrays, a torch.nn.Module, a DenseNetwork or a fitted scikit-learn MLP is "
        "accepted."
    )


def _name(key: Any, number: int) -> str:
    if not isinstance(key, str):
        raise InvalidInputError(
            f"Source {number} has the key {key!r}; tensors are found by names (str)."
        )
    return key


def _layered(weights: Sequence[Array], biases: Sequence[Array]) -> dict[str, Array]:
    out: dict[str, Array] = {}
    for i, (W, b) in enumerate(zip(weights, biases, strict=True)):
        out[f"layers.{i}.weight"], out[f"layers.{i}.bias"] = W, b
    return out


def _ties(arrays: Mapping[str, Array]) -> dict[str, str]:
    seen: dict[tuple[Any, ...], str] = {}
    ties: dict[str, str] = {}
    for name, x in arrays.items():
        if prod(x.shape) == 0:
            continue
        if isinstance(x, np.ndarray):
            place: tuple[Any, ...] = (x.__array_interface__["data"][0], x.strides)
        elif hasattr(x, "data_ptr"):
            place = (str(x.device), x.data_ptr(), tuple(x.stride()))
        else:
            continue
        key = (*place, tuple(x.shape), str(x.dtype))
        first = seen.setdefault(key, name)
        if first != name:
            ties[name] = first
    return ties


def read(x: Array, like: Array | None = None) -> Array:
    """A tensor as float64, in the library and on the device of ``like`` (default: its own)."""
    if hasattr(x, "detach"):
        x = x.detach()
        if like is None or not isinstance(like, np.ndarray):
            xp = array_namespace(x)
            device = None if like is None else like.device
            return xp.asarray(x, dtype=xp.float64, device=device)
        return np.asarray(x.to(array_namespace(x).float64).cpu())
    values = np.asarray(x, dtype=np.float64)
    if like is None or isinstance(like, np.ndarray):
        return values
    xp = array_namespace(like)
    return xp.asarray(np.ascontiguousarray(values).copy(), device=like.device)


def write(name: str, values: Array, like: Array) -> Array:
    """Float64 values in the library, dtype and on the device of ``like``; overflow is an error.

    Raises
    ------
    InvalidInputError
        If a finite value becomes infinite in the narrower dtype.
    """
    if hasattr(like, "detach"):
        xp = array_namespace(like)
        if isinstance(values, np.ndarray):
            values = xp.asarray(np.ascontiguousarray(values))
        out = xp.asarray(values, device=like.device).to(like.dtype)
        lost = bool((xp.isinf(out) & xp.isfinite(xp.asarray(values, device=like.device))).any())
    else:
        if hasattr(values, "detach"):
            values = np.asarray(values.detach().cpu())
        with np.errstate(over="ignore"):
            out = np.asarray(values).astype(like.dtype)
        lost = bool((np.isinf(out) & np.isfinite(values)).any())
    if lost:
        raise InvalidInputError(
            f"{name!r}: a merged value does not fit in {like.dtype}. Convert the sources to a "
            "wider dtype (float32) before merging."
        )
    return out


def model_like(template: Any, params: Mapping[str, Array]) -> Any:
    """A copy of a model with these tensors; tensors that are not among them keep their values.

    Mappings give a dict, modules a deep copy.

    Raises
    ------
    InvalidInputError
        If the template is of a kind that cannot be made anew.
    """
    if isinstance(template, Source):
        template = template.template
    if isinstance(template, Mapping):
        return {k: params.get(k, v) for k, v in template.items()}
    from ..model.dense import DenseNetwork

    if isinstance(template, DenseNetwork):
        weights, biases = _layers(params, len(template.weights))
        return DenseNetwork(weights, biases, template.activation)
    if callable(getattr(template, "load_state_dict", None)):
        copy = deepcopy(template)
        copy.load_state_dict(dict(params), strict=False)
        return copy
    if hasattr(template, "coefs_"):
        copy = deepcopy(template)
        weights, biases = _layers(params, len(template.coefs_))
        copy.coefs_ = [np.array(W.T) for W in weights]
        copy.intercepts_ = [np.array(b) for b in biases]
        return copy
    raise InvalidInputError(f"A {type(template).__name__} cannot be filled with merged tensors.")


def _layers(params: Mapping[str, Array], n: int) -> tuple[Sequence[Array], Sequence[Array]]:
    return (
        [params[f"layers.{i}.weight"] for i in range(n)],
        [params[f"layers.{i}.bias"] for i in range(n)],
    )


def flat_float(x: Any) -> FloatArray:
    """Any tensor as a flat float64 NumPy array."""
    return np.asarray(read(x, np.empty(0))).reshape(-1)
