"""Long runs: a bar with the time left, and a message when somebody ends them."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..core.errors import StoppedError
from ..core.status import Callback, StepInfo

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def ending_with(message: str) -> Iterator[None]:
    """SIGTERM (``kill``, a scheduler, ``torchrun`` after another process died) raises our error.

    Raises
    ------
    StoppedError
        With the name of the signal and ``message``; files that were half written are removed on
        the way. Ctrl-C ends in the same way.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the cleaning up
        raise StoppedError(f"Stopped by {signal.Signals(number).name}. {message}")

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if main else None
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedError(f"Stopped by Ctrl-C. {message}") from None
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def bar(console: Console | None, what: str, unit: str = "examples") -> Iterator[Callback]:
    """A callback that shows ``unit`` done, rate and time left; silent without a console.

    On a terminal a bar; otherwise a line every 30 seconds. Shards that an earlier run has written
    count neither for the rate nor for the time left.
    """
    if console is None:
        yield lambda info: None
        return
    state = _State(unit)
    if not console.is_terminal:

        def line(info: StepInfo) -> None:
            if state.due(30.0):
                console.print(f"{what}: {state.text(info)}", markup=False, highlight=False)

        yield line
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns: list[Any] = [
        TextColumn(what, markup=False), BarColumn(bar_width=24), MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
    ]  # fmt: skip
    with Progress(*columns, console=console) as bars:
        task = bars.add_task(what, total=None, detail="")

        def advance(info: StepInfo) -> None:
            bars.update(
                task, completed=info.step, total=info.max_steps or None, detail=state.text(info)
            )

        yield advance


def only_first() -> bool:
    """Whether this process is the one of a ``torchrun`` that speaks and writes single files.

    Raises
    ------
    InvalidInputError
        RANK and WORLD_SIZE that do not fit.
    """
    from ..core.fisher.ranks import Ranks

    return Ranks.of_environment().rank == 0


class _State:
    """Rate and time left since the first report."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._first: tuple[int, float] | None = None
        self._last = time.monotonic()

    def due(self, seconds: float) -> bool:
        if time.monotonic() - self._last < seconds:
            return False
        self._last = time.monotonic()
        return True

    def text(self, info: StepInfo) -> str:
        now = time.monotonic()
        if self._first is None:
            self._first = (info.step, now)
        done, since = info.step - self._first[0], now - self._first[1]
        rate = done / since if since > 0 else 0.0
        known = f" of {info.max_steps}" if info.max_steps else ""
        if rate <= 0:
            return f"{info.step}{known} {self._unit}"
        left = f", {clock((info.max_steps - info.step) / rate)} left" if info.max_steps else ""
        return f"{info.step}{known} {self._unit}, {rate:.3g} a second{left}"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    Examples
    --------
    >>> clock(3725), clock(61.2)
    ('1:02:05', '1:01')
    """
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, last = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{last:02}" if hours else f"{minutes}:{last:02}"
