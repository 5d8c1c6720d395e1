"""Which tensors are merged and what becomes of the others: rules by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ..errors import InvalidInputError

ACTIONS = ("merge", "average", "take", "skip")
_SPECIAL = ("different", "integers", "without_precision", "mixed_dtypes")
_WHAT = "'merge', 'average', 'skip', 'take' (from the first source) or 'take:K' (from source K)"


@dataclass(frozen=True, slots=True)
class SiteAction:
    """What is done with a tensor.

    Attributes
    ----------
    kind : {"merge", "average", "take", "skip"}
        By the method; by the plain weighted mean; as source ``source`` has it; left out of the
        result.
    source : int
        For "take", counted from 0.
    """

    kind: str
    source: int = 0

    @classmethod
    def of(cls, text: str | SiteAction) -> SiteAction:
        """Read ``"merge"``, ``"average"``, ``"skip"``, ``"take"`` or ``"take:2"``.

        Raises
        ------
        InvalidInputError
            For anything else.

        Examples
        --------
        >>> SiteAction.of("take:2")
        SiteAction(kind='take', source=2)
        """
        if isinstance(text, SiteAction):
            return text
        kind, colon, number = str(text).partition(":")
        if kind in ACTIONS and not colon:
            return cls(kind)
        if kind == "take" and number.isdecimal():
            return cls("take", int(number))
        raise InvalidInputError(f"The site action {text!r} was given; accepted: {_WHAT}.")

    def __str__(self) -> str:
        return f"take:{self.source}" if self.kind == "take" else self.kind


@dataclass(frozen=True, slots=True)
class SitePolicy:
    """Rules by name, and what becomes of tensors that cannot be merged.

    Attributes
    ----------
    rules : tuple of (pattern, SiteAction)
        Shell patterns (``"classifier.*"``), case-sensitive; the first that matches a name counts;
        names that none matches are merged.
    different : SiteAction or None
        For tensors whose shapes differ between sources, or that a source lacks. ``None``: an error
        that names them, unless a rule of "take" or "skip" matches.
    integers : SiteAction or None
        For integer and bool tensors that are not equal in all sources (equal ones are copied).
        ``None``: an error. They are never averaged.
    without_precision : SiteAction
        For floating tensors for which no source brings a precision though precisions were given.
    mixed_dtypes : bool
        Merge floating tensors whose dtypes differ; the result has the first source's.

    Examples
    --------
    >>> policy = SitePolicy.of({"head.*": "take:0", "*.running_mean": "average"})
    >>> str(policy.action("head.weight")), str(policy.action("body.weight"))
    ('take:0', 'merge')
    """

    rules: tuple[tuple[str, SiteAction], ...] = ()
    different: SiteAction | None = None
    integers: SiteAction | None = None
    without_precision: SiteAction = SiteAction("average")
    mixed_dtypes: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (
            ("different", ("take", "skip")),
            ("integers", ("take", "skip")),
            ("without_precision", ("average", "take", "skip")),
        ):
            action = getattr(self, name)
            if action is not None and action.kind not in allowed:
                raise InvalidInputError(
                    f"{name}={str(action)!r} was given; {' or '.join(allowed)} is accepted."
                )

    @classmethod
    def of(cls, given: SitePolicy | Mapping[str, str | SiteAction] | None) -> SitePolicy:
        """From a policy, from {pattern: action}, or the default.

        Keys in angle brackets set what is not by name: ``"<different>"``, ``"<integers>"``,
        ``"<without precision>"``, and ``"<mixed dtypes>": "merge"``.

        Raises
        ------
        InvalidInputError
            For other types and actions.
        """
        if given is None:
            return cls()
        if isinstance(given, SitePolicy):
            return given
        if not isinstance(given, Mapping):
            raise InvalidInputError(
                f"sites of type {type(given).__name__} were given; a SitePolicy or a mapping from "
                f"name patterns to actions ({_WHAT}) is accepted."
            )
        special: dict[str, Any] = {}
        rules: list[tuple[str, SiteAction]] = []
        for pattern, action in given.items():
            if pattern.startswith("<"):
                key = pattern.strip("<>").replace(" ", "_")
                if key not in _SPECIAL:
                    raise InvalidInputError(
                        f"The site rule {pattern!r} was given; beside name patterns there are "
                        + ", ".join(f"'<{k.replace('_', ' ')}>'" for k in _SPECIAL)
                        + "."
                    )
                special[key] = SiteAction.of(action)
                if key == "mixed_dtypes":
                    special[key] = special[key].kind == "merge"
            else:
                rules.append((pattern, SiteAction.of(action)))
        return cls(tuple(rules), **special)

    def action(self, name: str) -> SiteAction:
        """What the rules say about a name."""
        return self.rule(name) or SiteAction("merge")

    def rule(self, name: str) -> SiteAction | None:
        """The first rule that matches, if one does."""
        for pattern, action in self.rules:
            if fnmatchcase(name, pattern):
                return action
        return None

    def to_dict(self) -> dict[str, str]:
        """The mapping that :meth:`of` reads."""
        out = {pattern: str(action) for pattern, action in self.rules}
        for key in ("different", "integers"):
            if (action := getattr(self, key)) is not None:
                out[f"<{key}>"] = str(action)
        out["<without precision>"] = str(self.without_precision)
        if self.mixed_dtypes:
            out["<mixed dtypes>"] = "merge"
        return out
