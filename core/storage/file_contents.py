"""Frozen contents of a foreign file, kept in one checked file of ours without loss."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, Self

from ..errors import CorruptFileError
from ..types import NumpyArray
from .arrays import load_arrays, save_arrays


class FileContents:
    """Base of frozen dataclasses of ``arrays`` and facts (JSON values) that check themselves.

    A subclass names its ``stored_as`` (the kind written into the file) and what it
    ``holds`` (for messages); its ``__post_init__`` refuses values that do not fit together.
    """

    __slots__ = ()
    stored_as: ClassVar[str]
    holds: ClassVar[str]
    arrays: Mapping[str, NumpyArray]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one checked safetensors file that :meth:`load` reads back without loss."""
        facts = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "arrays"}  # type: ignore[arg-type]
        save_arrays(path, dict(self.arrays), facts, kind=self.stored_as)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote.

        Raises
        ------
        CorruptFileError, InvalidInputError
            Altered, or a file of another kind.
        """
        arrays, facts = load_arrays(path, kind=cls.stored_as)
        contents: Mapping[str, Any] = {"arrays": arrays, **facts}
        try:
            return cls(**contents)
        except (LookupError, TypeError, ValueError) as error:
            raise CorruptFileError(f"{path} holds no {cls.holds} ({error}).") from None
