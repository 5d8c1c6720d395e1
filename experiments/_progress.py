"""Progress on the terminal for whatever takes longer than a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..core.status import StepInfo

if TYPE_CHECKING:
    from rich.console import Console

Advance = Callable[[int, int], None]
"""``advance(done, total)``."""


class Progress:
    """Named steps, each with a bar, its rate and the time left; silent without a console.

    Parameters
    ----------
    console : rich.console.Console or None

    Attributes
    ----------
    seconds : dict of str to float
        Wall time of each step that has ended, in order.
    """

    def __init__(self, console: Console | None) -> None:
        self.seconds: dict[str, float] = {}
        self._console = console
        self._bars: Any = None

    def __enter__(self) -> Progress:
        if self._console is not None:
            from rich.progress import (
                BarColumn,
                Progress as Bars,
                TaskProgressColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            self._bars = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TaskProgressColumn(show_speed=True),
                TimeElapsedColumn(),
                TextColumn("left:"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[detail]}", markup=False, style="dim"),
                console=self._console,
            )
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    @contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Advance]:
        """Time a step and show how far it is.

        Yields
        ------
        callable
            ``advance(done, total)``.
        """
        start = time.perf_counter()
        task = None if self._bars is None else self._bars.add_task(name, total=total, detail="")

        def advance(done: int, whole: int) -> None:
            if self._bars is not None:
                self._bars.update(task, completed=done, total=whole)

        yield advance
        self.seconds[name] = round(time.perf_counter() - start, 3)
        if self._bars is not None:
            whole = self._bars.tasks[task].total or 1
            self._bars.update(task, completed=whole, total=whole, detail="")

    @contextmanager
    def solver(self, name: str) -> Iterator[Callable[[StepInfo], None]]:
        """A step that a solver reports on: the bar is that of its current phase.

        Yields
        ------
        callable
            A callback for :func:`~fishertope.core.factorization.factorize`.
        """
        with self.step(name) as advance:

            def callback(info: StepInfo) -> None:
                advance(info.step, info.max_steps)
                if self._bars is not None:
                    detail = f"{info.phase}, relative loss {info.relative_loss:.4f}"
                    self._bars.update(self._bars.task_ids[-1], detail=detail)

            yield callback
