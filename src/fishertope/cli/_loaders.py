"""Python loaders ``module:function`` for models and data that are in no file of a known form."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from array_api_compat import is_array_api_obj

from ..core.errors import InvalidInputError


def is_loader(given: str) -> bool:
    """Whether an argument names a function rather than a path."""
    return bool(re.fullmatch(r"[\w.]+:\w+", given)) and not Path(given).exists()


def call_loader(given: str) -> Any:
    """What ``module:function`` returns when called without arguments.

    Raises
    ------
    InvalidInputError
        As :func:`function_of`.
    """
    return function_of(given)()


def function_of(given: str) -> Any:
    """The function ``module:function``.

    The module is looked for in the current folder first, as ``python -m`` does.

    Raises
    ------
    InvalidInputError
        No such module or function, or it is no function.
    """
    module, _, name = given.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(error.name + ".")):
            raise  # the module is there, and lacks something itself
        raise InvalidInputError(
            f"{given} was given, and there is no module {error.name!r} in {here} or among the "
            "installed packages. Give module:function, where module.py is in the current folder."
        ) from None
    if not callable(found):
        what = "no such name" if found is None else f"a {type(found).__name__}"
        raise InvalidInputError(
            f"{given} was given; {module} has {what} as {name!r}. A function is taken: without "
            "arguments, returning the model or the data; for a search, of a folder and a split."
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedBatches:
    """Batches that a loader streams, known to a store by the loader's name.

    Attributes
    ----------
    batches : iterable
    data_sha256 : str
    """

    batches: Iterable[Any]
    data_sha256: str

    @property
    def dataset(self) -> Any:
        """What has a length, where there is one."""
        found = getattr(self.batches, "dataset", self.batches)
        return found if isinstance(found, Sized) else self.batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def loaded_data(given: str) -> Any:
    """Data of a loader: arrays as they are, streams with a name."""
    data = call_loader(given)
    arrays = data if isinstance(data, tuple) else (data,)
    if all(is_array_api_obj(x) or isinstance(x, dict) for x in arrays):
        return data
    if not isinstance(data, Iterable) or isinstance(data, str | bytes):
        raise InvalidInputError(
            f"{given} returned a {type(data).__name__}; an array, a mapping of arrays, a pair "
            "(inputs, labels) or an iterable of batches is taken."
        )
    return LoadedBatches(batches=data, data_sha256=f"loader {given}")
