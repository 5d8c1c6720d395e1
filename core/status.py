"""How a solver ended, and what it reports while it runs."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """Outcome of an iterative solver; :attr:`message` says what it means and what to do.

    Examples
    --------
    >>> Status.CONVERGED.ok, Status.MAX_STEPS.ok
    (True, False)
    """

    CONVERGED = "converged"
    MAX_STEPS = "max_steps"
    STOPPED = "stopped"
    STALLED = "stalled"
    DIVERGED = "diverged"

    @property
    def message(self) -> str:
        """One sentence for people."""
        return _MESSAGES[self]

    @property
    def ok(self) -> bool:
        """Whether the stopping rule held."""
        return self is Status.CONVERGED


_MESSAGES = {
    Status.CONVERGED: "The stopping rule held.",
    Status.MAX_STEPS: "The step limit was reached first; raise max_steps or loosen tol.",
    Status.STOPPED: "The callback asked to stop; the result is the last accepted step.",
    Status.STALLED: "No step lowered the loss any more at this precision; try float64.",
    Status.DIVERGED: "The loss grew without bound; lower the step size or use solver='pals'.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInfo:
    """What a callback sees after a step.

    Attributes
    ----------
    phase : str
        Which part of the work this is, in words ("start 2 of 4", "solve").
    step, max_steps : int
        Steps done and the most there may be in this phase.
    loss : float
        The objective after the step.
    relative_loss : float
        ``loss`` divided by the value of the objective at zero.
    residual : float
        The quantity that the stopping rule watches.
    products : float
        Data products so far, in full-size equivalents.
    """

    phase: str
    step: int
    max_steps: int
    loss: float
    relative_loss: float
    residual: float
    products: float


Callback = Callable[[StepInfo], bool | None]
"""Called after each step; returning ``True`` stops the solver with ``Status.STOPPED``."""
