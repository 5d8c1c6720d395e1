"""What a merge reads: checkpoints and adapters on a base, by position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InvalidInputError
from ...storage.header import DTYPES
from ...storage.numbers import FLOATS, decode, stored_dtype
from ...types import FloatArray, NumpyArray
from .adapter import Adapter, is_adapter
from .checkpoint import Checkpoint, Tensor

_NAMES = {"BF16": "bfloat16", "C64": "complex64"}


class Input:
    """One source as the engine and the decisions see it; nothing is read before it is asked for.

    Parameters
    ----------
    store : Checkpoint or Adapter
    ties : mapping of str to str
        Names that this source may lack, and the tensor that stands for each (tied weights).
    """

    def __init__(self, store: Checkpoint | Adapter, ties: Mapping[str, str] | None = None) -> None:
        self.store = store
        self.tensors: dict[str, Tensor] = dict(store.tensors)
        self.alias: dict[str, str] = {}
        for name, stand_in in (ties or {}).items():
            if name not in self.tensors and stand_in in self.tensors:
                self.tensors[name] = self.tensors[stand_in]
                self.alias[name] = stand_in
        self.ties: dict[str, str] = {}
        self.template = None

    @classmethod
    def open(cls, path: Path, base: Path | None, ties: Mapping[str, str] | None = None) -> Input:
        """Open a checkpoint, or an adapter on ``base``.

        Raises
        ------
        InvalidInputError
            An adapter without a base, or what :class:`Checkpoint` refuses.
        """
        if not is_adapter(path):
            return cls(Checkpoint(path), ties)
        if base is None:
            raise InvalidInputError(
                f"{path} is a LoRA adapter; its base checkpoint is needed too. Write "
                "'base: FOLDER' for this source, or 'base_model' for all."
            )
        return cls(Adapter(path, Checkpoint(base)), ties)

    @property
    def path(self) -> Path:
        """What was opened."""
        return self.store.path

    @property
    def arrays(self) -> Mapping[str, Any]:
        """Tensors by name, for the decisions: read when they are looked at."""
        return _Lazy(self)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self.tensors[name].shape

    def dtype(self, name: str) -> str:
        """Name of a tensor's dtype ("bfloat16")."""
        code = self.tensors[name].dtype
        return DTYPES[code].name if code in DTYPES else _NAMES.get(code, code.lower())

    def floating(self, name: str) -> bool:
        """Whether a tensor is merged as numbers.

        Raises
        ------
        InvalidInputError
            8-bit floats and complex numbers.
        """
        code = self.tensors[name].dtype
        if code not in FLOATS and code not in DTYPES:
            raise InvalidInputError(
                f"{name!r} of {self.path} is of dtype {code}, which is not merged; convert it, or "
                'take it from one source: sites={"' + name + '": "take:0"}'
            )
        return code in FLOATS

    def stored(self, name: str) -> bool:
        """Whether the entries lie in a file as they are."""
        store = self.store
        return isinstance(store, Checkpoint) or not (
            name in store.updates or name in store.replaced
        )

    def read(self, name: str, start: int, out: NumpyArray) -> None:
        """Entries as they are stored; only where :meth:`stored`."""
        store = self.store if isinstance(self.store, Checkpoint) else self.store.base
        store.read(self.alias.get(name, name), start, out)

    def place(self, name: str, start: int) -> tuple[int, int]:
        """Descriptor and byte of an entry; only where :meth:`stored`."""
        store = self.store if isinstance(self.store, Checkpoint) else self.store.base
        return store.place(self.alias.get(name, name), start)

    def values(self, name: str, start: int, stop: int) -> FloatArray:
        """Entries as float64."""
        name = self.alias.get(name, name)
        if isinstance(self.store, Adapter):
            return self.store.values(name, start, stop)
        code = self.tensors[name].dtype
        stored = np.empty(stop - start, dtype=stored_dtype(code))
        self.store.read(name, start, stored)
        return decode(stored, code)


class _Lazy(Mapping[str, Any]):
    def __init__(self, source: Input) -> None:
        self._source = source

    def __contains__(self, name: object) -> bool:
        return name in self._source.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._source.tensors)

    def __len__(self) -> int:
        return len(self._source.tensors)

    def __getitem__(self, name: str) -> NumpyArray:
        tensor = self._source.tensors[name]
        out = np.empty(tensor.size, dtype=stored_dtype(tensor.dtype))
        self._source.read(name, 0, out)
        return out.reshape(tensor.shape)
