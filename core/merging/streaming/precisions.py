"""Precisions on disk: diagonal and isotropic ones read by position, others site by site."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InvalidInputError
from ...storage.numbers import FLOATS, decode, stored_dtype
from ...types import NumpyArray
from .checkpoint import Checkpoint, Tensor

if TYPE_CHECKING:
    from ...fisher.precision_file import StoredPrecisions
    from ...fisher.structures import Precision, SiteLayout
    from ...fisher.structures.storing import Outline


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
        self._keys: dict[str, str] = {}
        self._stored: StoredPrecisions | None = None
        metadata = self.store.metadata[0] if self.store.metadata else {}
        kind = metadata.get("fishertope_kind")
        if kind is None:
            self.diagonals = {name: name for name in self.store.tensors}
            self._keys = dict(self.diagonals)
            return
        from ...fisher.precision_file import KIND

        if kind == KIND:
            self._of_tree()
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

    def key(self, name: str) -> str:
        """The site that a tensor of the source belongs to.

        Raises
        ------
        InvalidInputError
            If there is no precision for it.
        """
        if name not in self._keys:
            raise InvalidInputError(f"{self.path} has no precision for {name!r}.")
        return self._keys[name]

    def layout(self, key: str) -> SiteLayout:
        """How the tensors of a site make up what its precision acts on."""
        if self._stored is not None:
            return self._stored.layouts[key]
        from ...fisher.structures import SiteLayout

        return SiteLayout(weight=key, weight_shape=self.store.tensors[key].shape)

    def outline(self, key: str) -> Outline:
        """What is known of a site's precision without reading it."""
        if self._stored is not None:
            return self._stored.sites[key]
        from ...fisher.structures.storing import Outline

        return Outline(kind="diagonal", shape=self.store.tensors[key].shape, arrays=(key,))

    def site(self, key: str) -> Precision:
        """The precision of one site, in memory, every byte of it checked; nothing else is read.

        Raises
        ------
        CorruptFileError
            Naming the site, if its arrays were altered or are no precision's.
        InvalidInputError
            For a diagonal of another program's that is negative or not finite.
        """
        if self._stored is not None:
            return self._stored.site(key)
        from ...fisher.structures import Diagonal

        tensor = self.store.tensors[key]
        values = diagonal_array(tensor, tensor.size)
        self.read(key, 0, values)
        try:
            return Diagonal(decode(values, tensor.dtype).reshape(tensor.shape))
        except InvalidInputError as error:
            raise InvalidInputError(f"{self.path}: the precision of {key!r}: {error}") from None

    def trace_error(self, key: str) -> float:
        """Standard error of a site's trace; NaN where that is not known."""
        return float("nan") if self._stored is None else self._stored.trace_errors[key]

    def entries(self, key: str) -> tuple[int, int]:
        """Entries and bytes of all arrays of a site."""
        found = [self.store.tensors[name] for name in self.outline(key).arrays]
        return sum(t.size for t in found), sum(t.bytes for t in found)

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

    def _of_tree(self) -> None:
        from ...fisher.precision_file import StoredPrecisions

        if len(self.store.shards) != 1:
            raise InvalidInputError(
                f"{self.path} has {len(self.store.shards)} files; a precision tree is one file. "
                "Give its path."
            )
        stored = self._stored = StoredPrecisions.open(self.store.shards[0])
        self.facts = stored.facts
        for key, site in stored.sites.items():
            layout = stored.layouts[key]
            names = layout.parameters
            self.order += names
            self._keys |= dict.fromkeys(names, key)
            whole = layout.outputs is None
            if whole and site.kind == "diagonal":
                self.diagonals[names[0]] = site.arrays[0]
            elif whole and site.kind == "isotropic":
                self.numbers[names[0]] = self._scale(key)
            else:
                self.others[key] = (site.kind, names)

    def _scale(self, key: str) -> float:
        assert self._stored is not None
        found: Any = self._stored.site(key)
        return float(found.scale)


def diagonal_array(tensor: Tensor, entries: int) -> NumpyArray:
    """An empty array for so many entries as they are stored."""
    return np.empty(entries, dtype=stored_dtype(tensor.dtype))
