"""How parameters lie in the matrix that a precision acts on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from array_api_compat import array_namespace

from ..errors import InvalidInputError
from ..types import Array

OUTPUTS = ("first", "last")


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteLayout:
    """One parameter as it is, or a layer's weight and bias as one matrix [W|b].

    Attributes
    ----------
    weight : str
        Name of the parameter.
    weight_shape : tuple of int
        Its shape in the model.
    bias : str or None
        The parameter (o,) that is the last column of the matrix.
    outputs : {None, "first", "last"}
        ``None``: the weight as it is. Else which of its axes counts the outputs o: the first of
        Linear and of convolutions (o, ...), the last of transformers' Conv1D (i, o). All other
        axes together, row-major, are the columns.

    Raises
    ------
    InvalidInputError
        A bias without a matrix, or another place of the outputs.

    Examples
    --------
    >>> layout = SiteLayout(weight="w", weight_shape=(3, 2), bias="b", outputs="first")
    >>> layout.shape
    (3, 3)
    >>> layout.join({"w": np.ones((3, 2)), "b": np.zeros(3)})[0]
    array([1., 1., 0.])
    """

    weight: str
    weight_shape: tuple[int, ...]
    bias: str | None = None
    outputs: str | None = None

    def __post_init__(self) -> None:
        if self.outputs is None and self.bias is not None:
            raise InvalidInputError(
                f"{self.bias!r} was given as the bias of {self.weight!r}, which is no matrix; say "
                f"which axis counts the outputs: {', '.join(OUTPUTS)}."
            )
        if self.outputs is not None and (
            self.outputs not in OUTPUTS or len(self.weight_shape) < 2 or self.bias == self.weight
        ):
            raise InvalidInputError(
                f"outputs={self.outputs!r} was given for {self.weight!r} of shape "
                f"{self.weight_shape}; None, or one of {', '.join(OUTPUTS)} and at least two axes, "
                "is accepted."
            )

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters that the matrix is made of."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix (o, i) or (o, i+1), or of the weight itself."""
        if self.outputs is None:
            return self.weight_shape
        o = self.weight_shape[0 if self.outputs == "first" else -1]
        i = prod(self.weight_shape) // o if o else 0
        return o, i + (self.bias is not None)

    def join(self, parameters: Mapping[str, Array]) -> Array:
        """The matrix (*lead, *shape) of parameters (*lead, ...) by name.

        Raises
        ------
        InvalidInputError
            If one is missing or has another shape.
        """
        for name, shape in self.shapes.items():
            found = tuple(getattr(parameters.get(name), "shape", ()))
            if name not in parameters or found[len(found) - len(shape) :] != shape:
                raise InvalidInputError(
                    f"{name!r} of shape {found if name in parameters else 'none'} was given; "
                    f"{shape} is accepted."
                )
        w = parameters[self.weight]
        if self.outputs is None:
            return w
        xp = array_namespace(w)
        k = len(self.weight_shape)
        lead = tuple(w.shape[: w.ndim - k])
        o, i = self.shape[0], self.shape[1] - (self.bias is not None)
        if self.outputs == "last":
            w = xp.matrix_transpose(xp.reshape(w, (*lead, i, o)))
        matrix = xp.reshape(w, (*lead, o, i))
        if self.bias is None:
            return matrix
        return xp.concat([matrix, parameters[self.bias][..., None]], axis=-1)

    def split(self, matrix: Array) -> dict[str, Array]:
        """The parameters by name of a matrix (*lead, *shape): the inverse of :meth:`join`."""
        if tuple(matrix.shape[matrix.ndim - len(self.shape) :]) != self.shape:
            raise InvalidInputError(
                f"A matrix of shape {tuple(matrix.shape)} was given for {self.weight!r}; "
                f"(..., {', '.join(map(str, self.shape))}) is accepted."
            )
        if self.outputs is None:
            return {self.weight: matrix}
        xp = array_namespace(matrix)
        lead = tuple(matrix.shape[:-2])
        i = self.shape[1] - (self.bias is not None)
        w = matrix[..., :i]
        if self.outputs == "last":
            w = xp.matrix_transpose(w)
        found = {self.weight: xp.reshape(w, (*lead, *self.weight_shape))}
        if self.bias is not None:
            found[self.bias] = matrix[..., i]
        return found

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters by name."""
        found = {self.weight: self.weight_shape}
        if self.bias is not None:
            found[self.bias] = (self.shape[0],)
        return found

    def orders(self, perms: Mapping[int, Sequence[int]]) -> dict[int, Sequence[int]]:
        """Orders of the matrix's axes for orders of the weight's axes; the bias goes along.

        Raises
        ------
        InvalidInputError
            If an axis does not exist or an order is no permutation of it.
        """
        for axis, order in perms.items():
            n = self.weight_shape[axis] if 0 <= axis < len(self.weight_shape) else -1
            if not np.array_equal(np.sort(np.asarray(order)), np.arange(n)):
                raise InvalidInputError(
                    f"The order of axis {axis} of {self.weight!r} {self.weight_shape} is no "
                    "permutation of its positions."
                )
        if self.outputs is None:
            return dict(perms)
        out_axis = 0 if self.outputs == "first" else len(self.weight_shape) - 1
        found: dict[int, Sequence[int]] = {}
        if out_axis in perms:
            found[0] = perms[out_axis]
        others = [k for k in range(len(self.weight_shape)) if k != out_axis]
        if any(k in perms for k in others):
            extents = [self.weight_shape[k] for k in others]
            places = np.arange(prod(extents)).reshape(extents)
            for at, k in enumerate(others):
                if k in perms:
                    places = np.take(places, np.asarray(perms[k]), axis=at)
            columns = places.ravel()
            if self.bias is not None:
                columns = np.append(columns, columns.size)
            found[1] = columns.tolist()
        return found
