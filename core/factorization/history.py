"""What a solver writes down at each step, and the callback that may stop it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..status import Callback, StepInfo
from ..types import FloatArray, IntArray
from .problem import Ledger


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
        table = np.array(self.entries, dtype=np.float64).reshape(-1, 5)
        return History(
            loss=table[:, 0],
            residual=table[:, 1],
            products=table[:, 2],
            seconds=table[:, 3],
            phase=table[:, 4].astype(np.int64),
            phases=tuple(self.phases),
        )
