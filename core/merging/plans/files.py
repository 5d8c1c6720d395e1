"""Plans as YAML files: of our own form, or mergekit's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ...errors import InvalidInputError
from ...storage.atomic import write_text
from .mergekit import from_mergekit
from .plan import MergePlan

MAX_BYTES = 1 << 20
MAX_DEPTH = 20


def load_plan(path: str | os.PathLike[str]) -> MergePlan:
    """Read a plan; a file with ``merge_method`` is read as mergekit's.

    Parameters
    ----------
    path : path
        YAML. Paths inside it are relative to the current folder.

    Raises
    ------
    InvalidInputError
        Not such a plan; the message begins with the file's name.
    FileNotFoundError
        No such file.
    """
    place = Path(path)
    if place.is_dir():
        raise InvalidInputError(f"{place} is a folder; the YAML file of a plan is accepted.")
    with place.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    try:
        return parse_plan(data)
    except InvalidInputError as error:
        raise InvalidInputError(f"{place}: {error}") from None


def parse_plan(data: bytes | str) -> MergePlan:
    """A plan from YAML text.

    Raises
    ------
    InvalidInputError
        See :func:`load_plan`.

    Examples
    --------
    >>> plan = parse_plan('''
    ... merge_method: linear
    ... models:
    ...   - model: ./a
    ...     parameters: {weight: 1.0}
    ...   - model: ./b
    ...     parameters: {weight: [0.2, 0.8]}
    ... dtype: float32
    ... ''')
    >>> plan.method, plan.out_dtype, plan.sources[1].parameters
    ('linear', 'float32', {'weight': [0.2, 0.8]})
    """
    found = read_yaml(data)
    if isinstance(found, dict) and "merge_method" in found:
        return from_mergekit(found)
    return MergePlan.of(found)


def save_plan(plan: MergePlan, path: str | os.PathLike[str]) -> None:
    """Write a plan as YAML, atomically.

    Raises
    ------
    WriteFailedError
        If the system refuses.
    """
    write_text(path, plan_text(plan))


def plan_text(plan: MergePlan) -> str:
    """The YAML of a plan."""
    import yaml

    text: str = yaml.safe_dump(plan.to_dict(), sort_keys=False, allow_unicode=True)
    return text


def read_yaml(data: bytes | str) -> Any:
    """Plain values of untrusted YAML: no objects, no references, no repeated keys, not too deep.

    Raises
    ------
    InvalidInputError
        For anything else.
    """
    import yaml

    size = len(data)
    if size > MAX_BYTES:
        raise InvalidInputError(f"more than {MAX_BYTES} bytes were given, too long for a plan.")
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        found = yaml.load(text, Loader=_loader())
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InvalidInputError(f"not the YAML of a plan ({reason}). Correct the file.") from None
    return _plain(found, 0)


def _plain(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise InvalidInputError(f"a plan nested deeper than {MAX_DEPTH} levels was given.")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_plain(v, depth + 1) for v in value]
    if isinstance(value, dict):
        odd = [k for k in value if not isinstance(k, str)]
        if odd:
            raise InvalidInputError(f"the key {str(odd[0])[:40]!r} is no word; quote it.")
        return {k: _plain(v, depth + 1) for k, v in value.items()}
    raise InvalidInputError(f"{str(value)[:40]!r} is a {type(value).__name__}; quote it.")


def _loader() -> Any:
    """PyYAML's safe loader, narrowed."""
    import yaml

    class Narrow(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                raise yaml.YAMLError("references (*name) are not accepted in plans")
            self.depth += 1
            if self.depth > 2 * MAX_DEPTH:
                raise yaml.YAMLError(f"nested deeper than {MAX_DEPTH} levels")
            try:
                return super().compose_node(parent, index)
            finally:
                self.depth -= 1

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            found = super().construct_mapping(node, deep=deep)
            if len(found) != len(node.value):
                raise yaml.YAMLError("a key occurs twice")
            return found

    return Narrow
