"""Precisions on disk: diagonal and isotropic ones read by position, others whole when needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import CorruptFileError, InvalidInputError
from ...storage.numbers import FLOATS, stored_dtype
from ...types import NumpyArray
from .checkpoint import Checkpoint, Tensor

if TYPE_CHECKING:
    from ...fisher.precision import PrecisionTree


class PrecisionFile:
    """The precision of one source.

    Parameters
    ----------
    path : path
        What :meth:`PrecisionTree.save` wrote, or a safetensors file or folder of other making whose
        tensors are diagonal precisions under the names of the source's tensors.

    Raises
    ------
    InvalidInputError
        Another kind of file, or a path without safetensors.
    CorruptFileError
        A damaged one.

    Attributes
    ----------
    diagonals : dict of str to str
        Tensor of the source → tensor of this file.
    numbers : dict of str to float
        Tensor of the source → c of c I.
    others : dict of str to (kind, tensors of the source)
        Sites with another structure.
    order : list of str
        Tensors of the source in the order of the tree.
    facts : mapping
        How the precision was estimated, where that is known.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = Checkpoint(path)
        self.diagonals: dict[str, str] = {}
        self.numbers: dict[str, float] = {}
        self.others: dict[str, tuple[str, tuple[str, ...]]] = {}
        self.facts: Mapping[str, Any] = {}
        self.order: list[str] = []
        metadata = self.store.metadata[0] if self.store.metadata else {}
        kind = metadata.get("fishertope_kind")
        if kind is None:
            self.diagonals = {name: name for name in self.store.tensors}
            return
        from ...fisher.precision import KIND

        if kind == KIND:
            self._of_tree(metadata.get("facts", ""))
        else:
            raise InvalidInputError(
                f"{path} holds {kind!r}; a {KIND!r} is accepted (`fishertope estimate`), or a "
                "safetensors file whose tensors are diagonal precisions."
            )

    @property
    def names(self) -> frozenset[str]:
        """Tensors of the source for which there is a precision."""
        grouped = {name for _, names in self.others.values() for name in names}
        return frozenset(self.diagonals) | frozenset(self.numbers) | grouped

    @cached_property
    def tree(self) -> PrecisionTree:
        """The whole precision, in memory, every byte checked."""
        from ...fisher.precision import PrecisionTree

        return PrecisionTree.load(self.path)

    def tensor(self, name: str) -> Tensor | None:
        """Where the diagonal of a tensor lies; ``None`` for c I."""
        key = self.diagonals.get(name)
        return None if key is None else self.store.tensors[key]

    def place(self, name: str, start: int) -> tuple[int, int]:
        """Descriptor and byte of an entry of a diagonal."""
        return self.store.place(self.diagonals[name], start)

    def read(self, name: str, start: int, out: NumpyArray) -> None:
        """Entries of a diagonal, as they are stored."""
        self.store.read(self.diagonals[name], start, out)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Refuse a diagonal of another shape or of integers.

        Raises
        ------
        InvalidInputError
            Naming both.
        """
        tensor = self.tensor(name)
        if tensor is not None and (tensor.shape != shape or tensor.dtype not in FLOATS):
            raise InvalidInputError(
                f"{self.path}: the precision of {name!r} has the shape {tensor.shape} and dtype "
                f"{tensor.dtype}, its tensor the shape {shape}. Floats of the same shape are "
                "accepted; is it the precision of this model?"
            )

    def _of_tree(self, text: str) -> None:
        try:
            own = json.loads(text)
            self.facts = dict(own.get("facts", {}))
            for name, site in own["sites"].items():
                layout = own["layouts"][name]
                names = tuple(n for n in (layout["weight"], layout["bias"]) if n is not None)
                if not all(isinstance(n, str) for n in names):
                    raise TypeError("a layout without names")
                self.order += names
                whole = layout["outputs"] is None
                if whole and site["kind"] == "diagonal" and site["values"] in self.store.tensors:
                    self.diagonals[names[0]] = site["values"]
                elif whole and site["kind"] == "isotropic":
                    self.numbers[names[0]] = _number(site["scale"])
                else:
                    self.others[name] = (str(site["kind"]), names)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptFileError(
                f"{self.path}: its facts are not those of a precision tree ({error}). Write it "
                "again with PrecisionTree.save."
            ) from None


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise TypeError("an isotropic precision that is no number")
    if value < 0:
        raise ValueError("a negative precision")
    return float(value)


def diagonal_array(tensor: Tensor, entries: int) -> NumpyArray:
    """An empty array for so many entries as they are stored."""
    return np.empty(entries, dtype=stored_dtype(tensor.dtype))
