"""The command line: it reads options, calls the library, and shows what came back."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
from typing import NoReturn

EXIT_FAILED = 1


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run ``fishertope``; ends the process with 0 (done), 1 (failed) or 2 (misuse).

    Errors that fishertope or the system raises on purpose are one message on stderr. Anything
    else is a defect of ours, and shows its traceback.
    """
    from ..core.errors import FishertopeError
    from ._app import command_for

    try:
        command_for(arguments)(args=arguments, prog_name="fishertope")
    except (FishertopeError, OSError) as error:
        from ._console import stderr

        stderr().print(
            f"Error: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        sys.exit(EXIT_FAILED)
    sys.exit(0)


def program() -> NoReturn:
    """:func:`main` as a process of its own.

    Its objects are not freed one by one when it ends: 50 ms after numpy and LLVM were loaded. A
    profiler, a debugger and threads that still run see the usual end.
    """
    _collect_later()
    try:
        main()
    except SystemExit as ended:
        watched = sys.gettrace() is not None or sys.getprofile() is not None
        if not watched and threading.active_count() == 1:
            _leave(ended)
        raise


def _collect_later() -> None:
    """Look for garbage only after 50,000 objects, once: what a start makes stays (20 ms)."""
    usual = gc.get_threshold()

    def first(phase: str, info: dict[str, int]) -> None:
        gc.callbacks.remove(first)
        gc.set_threshold(*usual)

    gc.callbacks.append(first)
    gc.set_threshold(50_000, *usual[1:])


def _leave(ended: SystemExit) -> None:
    """End the process now with that code; returns where only the usual end will do."""
    code = 0 if ended.code is None else ended.code
    if not isinstance(code, int):
        return
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # a reader that has gone: the usual end tells of it
        return
    os._exit(code)
