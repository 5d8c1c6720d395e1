"""Values of a plan that may differ from tensor to tensor.

A setting is a value; or a list of values that is interpolated from the first layer to the last; or
a list of ``{filter: part of a name, value: ...}`` of which the first that fits counts. The forms
and their meaning are those of mergekit's configuration files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any, TypeAlias

from ...errors import InvalidInputError

Setting: TypeAlias = Any
"""A number, bool or word; a list of them; or a list of filters."""

MAX_ENTRIES = 10_000
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|layer_module)\.(\d+)\.")
_WHAT = "a value, a list of values, or a list of {filter: ..., value: ...}"


def check_setting(where: str, setting: Setting, kind: type) -> Setting:
    """The setting in plain types, every value of ``kind``.

    Raises
    ------
    InvalidInputError
        For anything else, naming it.

    Examples
    --------
    >>> check_setting("t", [{"filter": "mlp", "value": [0, 1]}, {"value": "1e-1"}], float)
    [{'filter': 'mlp', 'value': [0.0, 1.0]}, {'filter': None, 'value': 0.1}]
    """
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, list | tuple):
        return _value(where, setting, kind)
    if not 0 < len(setting) <= MAX_ENTRIES:
        raise InvalidInputError(
            f"{where} was given as a list of {len(setting)}; 1 to {MAX_ENTRIES} entries are taken."
        )
    if not any(isinstance(e, Mapping) for e in setting):
        return [_value(where, e, kind) for e in setting]
    return [_conditional(where, e, kind) for e in setting]


def _conditional(where: str, entry: Any, kind: type) -> dict[str, Any]:
    if not isinstance(entry, Mapping) or not {"value"} <= set(entry) <= {"filter", "value"}:
        raise InvalidInputError(f"{where} has the entry {_short(entry)}; {_WHAT} is accepted.")
    name = entry.get("filter")
    if name is not None and not isinstance(name, str):
        raise InvalidInputError(f"{where} has the filter {_short(name)}; part of a name is taken.")
    value = entry["value"]
    if isinstance(value, list | tuple):
        if not 0 < len(value) <= MAX_ENTRIES:
            raise InvalidInputError(f"{where} has a list of {len(value)} values; 1 or more belong.")
        return {"filter": name, "value": [_value(where, v, kind) for v in value]}
    return {"filter": name, "value": _value(where, value, kind)}


def _value(where: str, value: Any, kind: type) -> Any:
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise InvalidInputError(f"{where}: {_short(value)} was given; true or false is accepted.")
    if kind is str:
        if isinstance(value, str):
            return value
        raise InvalidInputError(f"{where}: {_short(value)} was given; a word is accepted.")
    # YAML reads 1e-6 as a word.
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = float("nan")
        if isfinite(number):
            return number
    raise InvalidInputError(f"{where}: {_short(value)} was given; a finite number is accepted.")


def resolve(settings: Iterable[Setting], name: str, t: float) -> Any:
    """The value for one tensor: of the first setting that has one, or ``None``.

    Parameters
    ----------
    settings : iterable of checked settings, the most specific first
    name : str
    t : float
        Place of the tensor's layer, from 0 to 1.
    """
    for setting in settings:
        found = _at(setting, name, t)
        if found is not None:
            return found
    return None


def _at(setting: Setting, name: str, t: float) -> Any:
    if not isinstance(setting, list):
        return setting
    if setting and isinstance(setting[0], Mapping):
        for entry in setting:
            wanted = entry["filter"]
            if wanted is None or wanted == "*" or wanted in name:
                return _at(entry["value"], name, t)
        return None
    return _between(setting, t)


def _between(values: Sequence[Any], t: float) -> Any:
    place = t * (len(values) - 1)
    low = int(place)
    if not isinstance(values[0], float):
        return values[low]
    high = min(len(values) - 1, low + 1)
    return (1 - (place - low)) * values[low] + (place - low) * values[high]


def layer_places(names: Iterable[str], layers: int | None = None) -> dict[str, float]:
    """Place of every tensor's layer: 0 for the first and what is in no layer, 1 for the last.

    Parameters
    ----------
    names : iterable of str
    layers : int, optional
        Number of layers; by default one more than the largest number in the names.

    Examples
    --------
    >>> layer_places(["embed.weight", "model.layers.0.w", "model.layers.2.w", "model.layers.1.w"])
    {'embed.weight': 0.0, 'model.layers.0.w': 0.0, 'model.layers.2.w': 1.0, 'model.layers.1.w': 0.5}
    """
    numbers = {name: _LAYER.search(name) for name in names}
    found = {n: int(m.group(1)) for n, m in numbers.items() if m and len(m.group(1)) < 7}
    count = max(found.values(), default=0) + 1 if layers is None else layers
    return {
        n: (min(1.0, found[n] / (count - 1)) if count > 1 else 1.0) if n in found else 0.0
        for n in numbers
    }


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
