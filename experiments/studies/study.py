"""What a study is: units to run, a summary of their rows, and the rule of its verdict.

A study never asserts an outcome. It states the claim that it tests and the rule by which its
verdict follows from the numbers, runs, and reports whichever verdict comes out.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ...core.errors import InvalidInputError
from ...core.report import Column, Html, Table
from .claims import PAPERS
from .rows import Rows, canonical
from .statistics import Interval

Settings = Mapping[str, Any]
LEAST_SEEDS = 5
FEWEST_SEEDS = 3
"""What a study may state as its own least number: below it an interval says nothing."""


class Outcome(StrEnum):
    """The verdicts that there are; an opposite result is an answer too."""

    HOLDS = "holds"
    FAILS = "does not hold here"
    UNDECIDED = "cannot be tested at this size"


_OPEN = {
    Outcome.FAILS: "Missed",
    Outcome.UNDECIDED: "Not decided, as the interval contains the target",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One measured quantity against its target.

    Attributes
    ----------
    what : str
        The quantity, in words.
    measured : Interval
    target : str
        As the rule states it ("at least 0.05").
    outcome : Outcome
    format : str
        Format specification of the numbers.
    claim : int, optional
        Number of the paper's claim that it is about, where a study tests several: each then has
        the verdict of its own findings.
    """

    what: str
    measured: Interval
    target: str
    outcome: Outcome
    format: str = ".3f"
    claim: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A picture of a report with the sentence under it."""

    picture: Html
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the rows say.

    Attributes
    ----------
    outcome : Outcome
    reason : str
        One or two sentences with the numbers that decide; where a target was missed, why and
        what was tried.
    findings : sequence of Finding
    tables : sequence of Table
        The complete numbers, each with its interval.
    notes : sequence of str
        Limits and controls worth knowing.
    """

    outcome: Outcome
    reason: str
    findings: Sequence[Finding] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()

    @classmethod
    def of(
        cls,
        findings: Sequence[Finding],
        *,
        reason: str = "",
        tables: Sequence[Table] = (),
        notes: Sequence[str] = (),
    ) -> Summary:
        """The verdict of several findings: all must hold; one that fails decides."""
        outcome = joint_outcome(findings)
        said = reason or " ".join(
            f"{f.what}: {f.measured.text(f.format)}, target {f.target}." for f in findings
        )
        if reason:
            said += "".join(
                f" {_OPEN[f.outcome]}: {f.what}, {f.measured.text(f.format)}, target {f.target}."
                for f in findings
                if f.outcome is not Outcome.HOLDS
            )
        return cls(outcome=outcome, reason=said, findings=findings, tables=tables, notes=notes)

    def outcome_of(self, claim: int) -> Outcome:
        """The verdict on one claim: of its own findings if it has any, else of all."""
        own = [f for f in self.findings if f.claim == claim]
        return joint_outcome(own) if own else self.outcome

    def finding_table(self) -> Table:
        """The findings, one a row."""
        return Table(
            title="Measured against the rule",
            columns=[
                Column(name="measured", left=True),
                Column(name="mean [95 % interval]"),
                Column(name="target", left=True),
                Column(name="outcome", left=True),
            ],
            rows=[
                [f.what, f.measured.text(f.format), f.target, str(f.outcome)] for f in self.findings
            ],
        )


def joint_outcome(findings: Sequence[Finding]) -> Outcome:
    """One that fails decides, then one that is undecided."""
    outcomes = {f.outcome for f in findings}
    order = (Outcome.FAILS, Outcome.UNDECIDED, Outcome.HOLDS)
    return next(o for o in order if o in outcomes)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A claim, the units that test it, and how their rows become a verdict.

    Attributes
    ----------
    id : str
        "npeff-e1": the paper, a hyphen, the rest.
    title : str
    claims : tuple of int
        Numbers of the paper's claims that it tests (``claims.py``).
    question : str
        What is tried, in plain words, with sizes.
    rule : str
        By which the verdict follows from the numbers.
    history : str
        How rule and sizes came about: what had been looked at when they were fixed. Shown with
        the rule; a rule that was fixed blind says so. Empty where it was not recorded.
    units : callable
        ``units(quick)``: the settings of every unit, JSON values with a ``"seed"``.
    unit : callable
        ``unit(settings)``: a pure function, JSON values out. Importable from its module, so that
        joblib's workers find it.
    summarise : callable
        ``summarise(rows)`` over the rows of all units.
    figures : callable, optional
        ``figures(rows)``.
    version : int
        Raised whenever the code of a unit changes what it gives: older rows then no longer count.
    needs : tuple of str
        Modules beyond the required packages ("torch", "sklearn"). With "torch" among them its
        generator is seeded by the unit's settings before each unit.
    quick_seconds, full_minutes : float
        CPU time of ``--quick`` and of the full study, about.
    seeded : bool
        False for exact computations without any draw, and where the sample is not the seeds but the
        conditions (variants, say); otherwise the full study must have at least ``least_seeds``
        seeds for each of its conditions.
    least_seeds : int
        Five, unless a unit is so dear that the study says it makes do with three or four.
    partial : bool
        Whether ``summarise`` copes with missing units. The pages then show what there is, and
        what is missing.
    pictured : bool
        Whether the pages of the documents show the figures.

    Raises
    ------
    InvalidInputError
        For an unknown paper or claim, an id that does not start with its paper, or fewer than
        three seeds.
    """

    id: str
    title: str
    claims: tuple[int, ...]
    question: str
    rule: str
    units: Callable[[bool], Sequence[Settings]]
    unit: Callable[[Settings], Mapping[str, Any]]
    summarise: Callable[[Rows], Summary]
    figures: Callable[[Rows], Sequence[Figure]] = field(default=lambda rows: ())
    history: str = ""
    version: int = 1
    needs: tuple[str, ...] = ()
    quick_seconds: float = 30.0
    full_minutes: float = 5.0
    seeded: bool = True
    least_seeds: int = LEAST_SEEDS
    partial: bool = False
    pictured: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", self.id) or self.paper not in PAPERS:
            raise InvalidInputError(
                f"The study id {self.id!r} was given; one of {', '.join(PAPERS)}, a hyphen and a "
                "name in lower-case letters and digits are taken (npeff-e1)."
            )
        last = len(PAPERS[self.paper].claims)
        if not self.claims or not all(1 <= c <= last for c in self.claims):
            raise InvalidInputError(
                f"{self.id}: claims={self.claims} was given; {self.paper} has claims 1 to {last}."
            )

        if self.least_seeds < FEWEST_SEEDS:
            raise InvalidInputError(
                f"{self.id}: least_seeds={self.least_seeds} was given; {FEWEST_SEEDS} or more are "
                "accepted."
            )

    @property
    def paper(self) -> str:
        """Which paper: the first part of the id."""
        return self.id.split("-")[0]

    def checked_units(self, quick: bool) -> list[Settings]:
        """The units, each only once, with seeds enough for intervals.

        Raises
        ------
        InvalidInputError
            No unit, a unit twice, or a full study with fewer seeds of a condition than
            ``least_seeds``.
        """
        found = list(self.units(quick))
        texts = [canonical(s) for s in found]
        if not found or len(set(texts)) < len(texts):
            raise InvalidInputError(f"{self.id}: there is no unit, or one is given twice.")
        if self.seeded and not quick:
            rest = Counter(canonical({k: v for k, v in s.items() if k != "seed"}) for s in found)
            if min(rest.values()) < self.least_seeds or any("seed" not in s for s in found):
                raise InvalidInputError(
                    f"{self.id}: every condition of a full study needs {self.least_seeds} seeds or "
                    "more."
                )
        return found


def grid(seeds: Iterable[int], **axes: Iterable[Any]) -> list[dict[str, Any]]:
    """Settings for every combination of the axes and every seed; seeds vary fastest.

    Examples
    --------
    >>> grid(range(2), n=[100])
    [{'n': 100, 'seed': 0}, {'n': 100, 'seed': 1}]
    """
    names = [*axes, "seed"]
    return [
        dict(zip(names, values, strict=True))
        for values in itertools.product(*axes.values(), list(seeds))
    ]


def decide(
    what: str,
    measured: Interval,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    format: str = ".3f",
    claim: int | None = None,
) -> Finding:
    """A finding that holds if the whole interval is on the target's side, fails if none of it is.

    In between, the size does not decide it.

    Examples
    --------
    >>> from .statistics import t_interval
    >>> str(decide("AUROC", t_interval([0.95, 0.97, 0.96, 0.96, 0.95]), at_least=0.9).outcome)
    'holds'
    """
    if (at_least is None) == (at_most is None):
        raise InvalidInputError("Give either at_least or at_most.")
    low, high = measured.low, measured.high
    if at_least is not None:
        holds, fails, target = low >= at_least, high < at_least, f"at least {at_least:.4g}"
    else:
        assert at_most is not None
        holds, fails, target = high <= at_most, low > at_most, f"at most {at_most:.4g}"
    outcome = Outcome.HOLDS if holds else Outcome.FAILS if fails else Outcome.UNDECIDED
    return Finding(
        what=what, measured=measured, target=target, outcome=outcome, format=format, claim=claim
    )
