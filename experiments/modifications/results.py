"""What the rows of a run say of each variant, ready for tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...core.types import FloatArray
from ..studies import Row, Rows, holm
from .paper import paper_row
from .registry import VARIANTS, Variant
from .statistics import Comparison, Prior, common_prior, compare

ALPHA = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One variant over its seeds.

    Attributes
    ----------
    variant : Variant
    losses : dict
        Early loss by seed, of the runs that finished.
    diverged : int
    parameters : int
        Counted.
    closed_form : int or None
        ``None`` in rows from before it was recorded.
    flops : int
        Of a training step.
    seconds : float
        Of a step of one thread, median over seeds.
    against : Comparison or None
        Loss minus vanilla's, with variances drawn together; ``None`` for vanilla itself.
    welch_p : float
        Of Welch's test on the variant's own variances.
    p, corrected_p : float
        Of ``against``, and by Holm's correction over all variants.
    corrected_welch_p : float
    """

    variant: Variant
    losses: dict[int, float]
    diverged: int
    parameters: int
    closed_form: int | None
    flops: int
    seconds: float
    against: Comparison | None = None
    welch_p: float = float("nan")
    corrected_p: float = float("nan")
    corrected_welch_p: float = float("nan")

    @property
    def values(self) -> FloatArray:
        """Losses, in the order of the seeds."""
        return np.array([self.losses[s] for s in sorted(self.losses)])

    @property
    def mean(self) -> float:
        """Mean loss; NaN without a finished run."""
        return float(self.values.mean()) if self.losses else float("nan")

    @property
    def sd(self) -> float:
        """Standard deviation over seeds; NaN of one."""
        return float(self.values.std(ddof=1)) if len(self.losses) > 1 else float("nan")

    @property
    def delta(self) -> float:
        """Mean loss minus vanilla's; NaN for vanilla."""
        return float("nan") if self.against is None else self.against.interval.mean

    @property
    def verdict(self) -> str:
        """One of "better", "worse", "–" (the corrected test finds nothing) and "diverged"."""
        if not self.losses:
            return "diverged"
        if self.against is None or not self.corrected_p < ALPHA:
            return "–"
        return "better" if self.delta < 0 else "worse"

    @property
    def paper_delta(self) -> float:
        """The paper's early loss minus its vanilla's (Table 2's own baseline for positions)."""
        row, base = paper_row(self.variant.name), paper_row("vanilla")
        assert row is not None, "every variant has a row"
        assert base is not None, "so has vanilla"
        return row.early - (2.194 if self.variant.group == "positions" else base.early)


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All variants that have rows, in the registry's order, vanilla first if it is there.

    Attributes
    ----------
    by_name : dict
    prior : Prior or None
        The common variance over seeds; ``None`` without two seeds of anything.
    """

    by_name: dict[str, Result]
    prior: Prior | None

    @property
    def variants(self) -> list[Result]:
        """All but vanilla."""
        return [r for name, r in self.by_name.items() if name != "vanilla"]

    @property
    def compared(self) -> list[Result]:
        """Those with a loss to compare."""
        return [r for r in self.variants if r.against is not None]

    @property
    def missing(self) -> list[str]:
        """Variants of the registry without any row."""
        return [name for name in VARIANTS if name not in self.by_name]

    def losses(self) -> Mapping[str, Mapping[int, float]]:
        """By variant and seed."""
        return {name: r.losses for name, r in self.by_name.items()}


def results_of(rows: Rows, loss: str = "early") -> Results:
    """The results of rows that have a ``variant`` and a ``seed``.

    Parameters
    ----------
    loss : str
        Which loss of the rows is compared.
    """
    plain = {
        name: _plain(variant, own, loss)
        for name, variant in VARIANTS.items()
        if (own := rows.where(variant=name))
    }
    samples = [r.values for r in plain.values()]
    prior = common_prior(samples) if any(len(s) > 1 for s in samples) else None
    base = plain.get("vanilla")
    if base is None or not base.losses:
        return Results(by_name=plain, prior=prior)
    return Results(by_name=_compared(plain, base, prior), prior=prior)


def _plain(variant: Variant, rows: Rows, loss: str) -> Result:
    finished = [r for r in rows if r["status"] == "finished" and r[loss] is not None]
    last: Row = rows[-1]
    return Result(
        variant=variant,
        losses={int(r["seed"]): float(r[loss]) for r in finished},
        diverged=sum(r["status"] == "diverged" for r in rows),
        parameters=int(last["parameters"]),
        closed_form=next((r["closed_form"] for r in rows if "closed_form" in r.result), None),
        flops=int(last["flops"]),
        seconds=float(np.median([r["seconds_per_step"] for r in rows])),
    )


def _compared(plain: Mapping[str, Result], base: Result, prior: Prior | None) -> dict[str, Result]:
    from dataclasses import replace

    others = [n for n, r in plain.items() if n != "vanilla" and r.losses]
    own = {n: compare(plain[n].values, base.values, prior) for n in others}
    welch = {n: compare(plain[n].values, base.values).p for n in others}
    corrected = dict(zip(others, holm([own[n].p for n in others]), strict=True))
    corrected_welch = dict(zip(others, holm([welch[n] for n in others]), strict=True))
    return {
        n: replace(r, against=own[n], welch_p=welch[n], corrected_p=float(corrected[n]),
                   corrected_welch_p=float(corrected_welch[n])) if n in own else r
        for n, r in plain.items()
    }  # fmt: skip
