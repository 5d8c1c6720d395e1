"""The data's batches and the model's parameters: what is given, in the forms that are taken."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj

from ..backend import to_numpy
from ..errors import InvalidInputError
from ..model import ModelEngine, Site, sites_of
from ..types import Array

ParameterChoice = str | Sequence[str] | Callable[[str], bool] | None


def choose_parameters(
    sites: tuple[Site, ...], params: ParameterChoice
) -> tuple[Any, tuple[Site, ...]]:
    """Columns of θ and re-laid sites of the chosen parameters; ``None`` columns mean all.

    Raises
    ------
    InvalidInputError
        If nothing matches; the message lists the names.
    """
    if params is None:
        return None, sites
    if callable(params):
        chosen = [s for s in sites if params(s.name)]
    else:
        patterns = [params] if isinstance(params, str) else params
        if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
            raise InvalidInputError(
                f"params={params!r} was given; a name or glob pattern, a list of them, or a "
                "function of the name is accepted."
            )
        chosen = [s for s in sites if any(fnmatchcase(s.name, p) for p in patterns)]
    if not chosen:
        names = ", ".join(s.name for s in sites[:12]) + (", ..." if len(sites) > 12 else "")
        raise InvalidInputError(
            f"params={params!r} matches no parameter. The names are: {names}. Use these, glob "
            "patterns such as '*.weight', or a function of the name."
        )
    if len(chosen) == len(sites):
        return None, sites
    columns = np.concatenate([np.arange(s.start, s.stop) for s in chosen])
    return columns, sites_of({s.name: s.shape for s in chosen})


def split_batch(batch: Any) -> tuple[Any, Array | None]:
    """Inputs and labels of a batch: (x, y), [x], a mapping with or without "labels", or x alone.

    Raises
    ------
    InvalidInputError
        For a sequence of more than two things.
    """
    if isinstance(batch, Mapping):
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        return inputs, batch.get("labels")
    if isinstance(batch, list | tuple):
        if len(batch) not in (1, 2):
            raise InvalidInputError(
                f"A batch of {len(batch)} things was given; inputs, (inputs, labels) or a mapping "
                "by the names of the model's arguments is taken."
            )
        inputs, _ = split_batch(batch[0]) if isinstance(batch[0], Mapping) else (batch[0], None)
        return inputs, batch[1] if len(batch) == 2 else None
    return batch, None


def batched(data: Any, size: int) -> tuple[Iterator[Any], int]:
    """Batches of an array, of a mapping of arrays or of a pair (inputs, labels); or as they come.

    The second value is the number of examples, 0 where it is not known.
    """
    if not isinstance(size, int) or size < 1:
        raise InvalidInputError(f"batch_size={size!r} was given; a whole number >= 1 is accepted.")
    if is_array_api_obj(data):
        array: Array = data
        n = int(array.shape[0]) if array.ndim else 0
        return (array[i : i + size] for i in range(0, n, size)), n
    pair = isinstance(data, tuple) and len(data) == 2
    whole = list(data.values()) if isinstance(data, Mapping) else list(data) if pair else []
    flat: list[Any] = [y for x in whole for y in (x.values() if isinstance(x, Mapping) else [x])]
    if flat and all(is_array_api_obj(x) and getattr(x, "ndim", 0) for x in flat):
        lengths = {int(x.shape[0]) for x in flat}
        if len(lengths) > 1:
            raise InvalidInputError(
                f"Arrays of {sorted(lengths)} examples were given together; all must hold the "
                "same examples. (A tuple of two arrays is inputs and labels; give batches as a "
                "list.)"
            )
        n = lengths.pop()
        return (cut_examples(data, i, i + size) for i in range(0, n, size)), n
    if isinstance(data, Iterable) and not isinstance(data, str | bytes | Mapping):
        dataset = getattr(data, "dataset", data)
        return iter(data), len(dataset) if isinstance(dataset, Sized) else 0
    raise InvalidInputError(
        f"A {type(data).__name__} was given as data; an array of inputs, a mapping of arrays, a "
        "pair (inputs, labels) or an iterable of batches is taken."
    )


def cut_examples(data: Any, start: int, stop: int) -> Any:
    """Examples start:stop of an array, a mapping of arrays or a pair of these."""
    if isinstance(data, Mapping):
        return {key: cut_examples(value, start, stop) for key, value in data.items()}
    if isinstance(data, tuple):
        return tuple(cut_examples(value, start, stop) for value in data)
    return data[start:stop]


def examples_of(batch: Any) -> int:
    """How many examples a batch holds."""
    inputs, _ = split_batch(batch)
    first = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs
    return int(first.shape[0])


def model_digest(engine: ModelEngine) -> str:
    """SHA-256 by which files know their model.

    Of everything that its outputs depend on where the engine can tell (frozen parameters and
    buffers are not in θ), else of the bytes of θ.
    """
    whole = getattr(engine, "model_sha256", None)
    return digests(engine)["theta_sha256"] if whole is None else str(whole())


def digests(engine: ModelEngine) -> dict[str, str]:
    """``model_sha256`` of :func:`model_digest`, and ``theta_sha256`` of the bytes of θ.

    The latter can be taken again by whoever holds the parameters alone.
    """
    own = getattr(engine, "digests", None)
    if own is not None:
        return dict(own())
    theta = np.ascontiguousarray(to_numpy(engine.theta()))
    of_theta = hashlib.sha256(theta.reshape(-1).view(np.uint8).data).hexdigest()
    whole = getattr(engine, "model_sha256", None)
    of_model = of_theta if whole is None else str(whole())
    return {"model_sha256": of_model, "theta_sha256": of_theta}
