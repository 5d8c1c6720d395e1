"""What happens to every tensor of the sources, decided before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from ..errors import InvalidInputError
from .sites import SiteAction, SitePolicy
from .sources import Source, read

MOST_NAMED = 8


@dataclass(frozen=True, slots=True)
class Decision:
    """What is done with one tensor.

    Attributes
    ----------
    name : str
    kind : {"merge", "average", "take", "skip", "tie"}
    source : int
        Whose tensor is taken, or gives the dtype of the result.
    why : str
    tied_to : str
        For "tie": the name whose merged tensor this name shares.
    """

    name: str
    kind: str
    source: int = 0
    why: str = ""
    tied_to: str = ""


def decide(
    sources: Sequence[Source],
    policy: SitePolicy,
    *,
    covered: Sequence[frozenset[str]] | None = None,
    active: Sequence[bool] | None = None,
) -> dict[str, Decision]:
    """A decision for every name of every source, in the order of source 0, then of the others.

    Parameters
    ----------
    sources : sequence of Source
    policy : SitePolicy
    covered : sequence of sets of str, optional
        Parameters for which each source brings a precision; ``None`` where no method needs one.
    active : sequence of bool, optional
        Whether a source has a weight; only these must bring precisions.

    Raises
    ------
    InvalidInputError
        Tensors that differ where no rule says what to do; the message names them and the sources.
    """
    names = list(sources[0].arrays)
    names += [n for s in sources[1:] for n in s.arrays if n not in sources[0].arrays]
    names = list(dict.fromkeys(names))
    problems: list[str] = []
    out: dict[str, Decision] = {}
    for name in names:
        try:
            out[name] = _decide_one(name, sources, policy, covered, active)
        except InvalidInputError as error:
            problems.append(str(error))
    if problems:
        shown = "\n".join(f"  - {p}" for p in problems[:MOST_NAMED])
        more = f"\n  and {len(problems) - MOST_NAMED} more" if len(problems) > MOST_NAMED else ""
        raise InvalidInputError(
            f"{len(problems)} tensors cannot be merged:\n{shown}{more}\n"
            'Give a rule for them, such as sites={"head.*": "take:0"} or {"<different>": "take"}.'
        )
    return out


def _decide_one(
    name: str,
    sources: Sequence[Source],
    policy: SitePolicy,
    covered: Sequence[frozenset[str]] | None,
    active: Sequence[bool] | None,
) -> Decision:
    rule = policy.rule(name)
    have = [i for i, s in enumerate(sources) if name in s.arrays]
    first = have[0]
    if rule is not None and rule.kind in ("take", "skip"):
        return _taken(name, rule, sources, f"rule {rule}")
    odd = _difference(name, sources, have)
    if odd:
        if policy.different is None:
            raise InvalidInputError(odd)
        action = policy.different
        if action.kind == "take" and action.source not in have:
            action = SiteAction("take", first)
        return _taken(name, action, sources, f"{odd} (policy {policy.different})")
    tied = {s.ties.get(name) for s in sources}
    if len(tied) == 1 and None not in tied:
        return Decision(name, "tie", 0, "shares its memory in every source", str(tied.pop()))
    floating = [sources[i].floating(name) for i in have]
    if not all(floating):
        return _integers(name, sources, policy, rule, any(floating))
    dtypes = [s.dtype(name) for s in sources]
    if len(set(dtypes)) > 1 and not policy.mixed_dtypes:
        raise InvalidInputError(
            f"{name!r} is {', '.join(f'{d} in source {i}' for i, d in enumerate(dtypes))}; convert "
            'them, or allow it with {"<mixed dtypes>": "merge"} (the result has source 0\'s)'
        )
    if prod(sources[0].shape(name)) == 0:
        return Decision(name, "take", 0, "has no entry")
    if rule is not None and rule.kind == "average":
        return Decision(name, "average", 0, "rule average")
    return _by_precision(name, policy, covered, active)


def _taken(name: str, action: SiteAction, sources: Sequence[Source], why: str) -> Decision:
    if action.kind == "skip":
        return Decision(name, "skip", 0, why)
    if action.source >= len(sources) or name not in sources[action.source].arrays:
        raise InvalidInputError(
            f"{name!r} shall be taken from source {action.source}, which has no such tensor"
        )
    return Decision(name, "take", action.source, why)


def _difference(name: str, sources: Sequence[Source], have: Sequence[int]) -> str:
    missing = [i for i in range(len(sources)) if i not in have]
    if missing:
        return f"{name!r} is missing in source {', '.join(map(str, missing))}"
    shapes = [s.shape(name) for s in sources]
    if len(set(shapes)) > 1:
        each = ", ".join(f"{s} in source {i}" for i, s in enumerate(shapes))
        return f"{name!r} has the shape {each}"
    return ""


def _integers(
    name: str,
    sources: Sequence[Source],
    policy: SitePolicy,
    rule: SiteAction | None,
    mixed: bool,
) -> Decision:
    dtypes = ", ".join(f"{s.dtype(name)} in source {i}" for i, s in enumerate(sources))
    if mixed:
        raise InvalidInputError(f"{name!r} is {dtypes}: integers and floats are not merged")
    if rule is not None and rule.kind == "average":
        raise InvalidInputError(f"{name!r} is {dtypes}: integers are never averaged")
    like = np.empty(0)
    reference = read(sources[0].arrays[name], like)
    if all(np.array_equal(read(s.arrays[name], like), reference) for s in sources[1:]):
        return Decision(name, "take", 0, "the same integers in every source")
    if policy.integers is None:
        raise InvalidInputError(
            f"{name!r} holds integers ({dtypes}) that differ; they are never averaged: say "
            '{"<integers>": "take:0"}'
        )
    return _taken(name, policy.integers, sources, f"integers that differ ({policy.integers})")


def _by_precision(
    name: str,
    policy: SitePolicy,
    covered: Sequence[frozenset[str]] | None,
    active: Sequence[bool] | None,
) -> Decision:
    if covered is None:
        return Decision(name, "merge")
    needed = [i for i in range(len(covered)) if active is None or active[i]]
    lacking = [i for i in needed if name not in covered[i]]
    if not lacking:
        return Decision(name, "merge")
    if all(name not in c for c in covered):
        action = policy.without_precision
        return Decision(name, action.kind, action.source, f"no precision ({action})")
    raise InvalidInputError(
        f"{name!r} has a precision for some sources, but none for source "
        f"{', '.join(map(str, lacking))}"
    )


def check_covered(
    precisions: Sequence[Mapping[str, object]],
    parameters: Sequence[frozenset[str]],
    sources: Sequence[Source],
) -> None:
    """Refuse precisions of parameters that their source does not have.

    Raises
    ------
    InvalidInputError
        Naming them.
    """
    for i, names in enumerate(parameters):
        unknown = sorted(n for n in names if n not in sources[i].arrays)
        if unknown:
            raise InvalidInputError(
                f"Precision {i} is for {', '.join(map(repr, unknown[:MOST_NAMED]))}, which source "
                f"{i} does not have. Give the precisions in the order of their sources, under the "
                "names of the sources' tensors."
            )
