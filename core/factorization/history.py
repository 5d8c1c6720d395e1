"""What a solver writes down at each step, and the callback that may stop it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from ..status import Callback, StepInfo
from ..types import Array, FloatArray, IntArray
from .problem import Ledger


class Keeper(Protocol):
    """Takes the states from which a run can go on (see ``checkpoint.Saver``)."""

    @property
    def found(self) -> Any:
        """The state that an earlier run left, or None."""
        ...

    def keep(self, stage: str, arrays: Mapping[str, Array], facts: Mapping[str, Any]) -> None:
        """Offer a state."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class History:
    """One entry a step, over all starts and phases.

    Attributes
    ----------
    loss : float64 array (s,)
        L after the step.
    residual : float64 array (s,)
        Relative gradient ‖∇_G‖/‖4(W̃∘B)ᵀA‖ before the step.
    products : float64 array (s,)
        Data products so far, in full-size equivalents.
    seconds : float64 array (s,)
        Wall time so far.
    phase : int64 array (s,)
        Index into ``phases``.
    phases : tuple of str
    """

    loss: FloatArray
    residual: FloatArray
    products: FloatArray
    seconds: FloatArray
    phase: IntArray
    phases: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.loss)

    def of(self, phase: str) -> FloatArray:
        """Losses of one phase, in order."""
        return np.asarray(self.loss[self.phase == self.phases.index(phase)])


@dataclass(slots=True)
class Recorder:
    """Collects the history of a run and asks the callback whether to go on."""

    ledger: Ledger
    total: float
    callback: Callback | None = None
    stopped: bool = False
    phases: list[str] = field(default_factory=list)
    entries: list[tuple[float, float, float, float, int]] = field(default_factory=list)
    step: int = 0
    max_steps: int = 0
    saver: Keeper | None = None

    @property
    def found(self) -> Any:
        """The state that an earlier run left (``checkpoint.State``), or None."""
        return None if self.saver is None else self.saver.found

    @property
    def done(self) -> Any:
        """The state with which an earlier run ended, or None."""
        return self.found if self.found is not None and self.found.stage == "done" else None

    def keep(self, stage: str, arrays: Mapping[str, Array], facts: Mapping[str, Any]) -> None:
        """Offer a state from which the run can go on."""
        if self.saver is not None and not self.stopped:
            self.saver.keep(stage, arrays, facts)

    def begin(self, phase: str, max_steps: int) -> None:
        """Open a phase of at most ``max_steps`` steps."""
        self.phases.append(phase)
        self.step, self.max_steps = 0, max_steps

    def __call__(self, loss: float, residual: float) -> bool:
        """Record a step; ``True`` means stop."""
        self.step += 1
        self.entries.append(
            (loss, residual, self.ledger.products, self.ledger.seconds(), len(self.phases) - 1)
        )
        if self.callback is not None and not self.stopped:
            info = StepInfo(
                phase=self.phases[-1],
                step=self.step,
                max_steps=self.max_steps,
                loss=loss,
                relative_loss=loss / self.total,
                residual=residual,
                products=self.ledger.products,
            )
            self.stopped = self.callback(info) is True
        return self.stopped

    def history(self) -> History:
        """The entries so far as arrays."""
        table = self.table()
        return History(
            loss=table[:, 0],
            residual=table[:, 1],
            products=table[:, 2],
            seconds=table[:, 3],
            phase=table[:, 4].astype(np.int64),
            phases=tuple(self.phases),
        )

    def table(self) -> FloatArray:
        """The entries (s, 5): loss, residual, products, seconds, number of the phase."""
        return np.array(self.entries, dtype=np.float64).reshape(-1, 5)

    def state(self) -> dict[str, Any]:
        """Where the run stands, without the entries."""
        return {
            "phases": list(self.phases),
            "step": self.step,
            "max_steps": self.max_steps,
            "products": self.ledger.products,
            "seconds": self.ledger.seconds(),
        }

    def restore(self, table: FloatArray, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state` and :meth:`table` were taken."""
        self.phases = [str(name) for name in state["phases"]]
        self.step, self.max_steps = int(state["step"]), int(state["max_steps"])
        self.ledger.products = float(state["products"])
        self.ledger.started = perf_counter() - float(state["seconds"])
        self.entries = [
            (float(a), float(b), float(c), float(d), int(e)) for a, b, c, d, e in table.tolist()
        ]
