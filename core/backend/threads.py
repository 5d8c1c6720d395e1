"""Thread counts, set on purpose in one place and written into results."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from threading import Lock
from typing import Any

from ..errors import InvalidInputError

ENVIRONMENT_VARIABLE = "FISHERTOPE_NUM_THREADS"

# Set for the block of a thread_limit only; None outside of one.
_LIMIT: ContextVar[int | None] = ContextVar("fishertope_thread_limit", default=None)


def current_threads() -> int:
    """Threads that a kernel may use here: those of the enclosing :func:`thread_limit`, if any."""
    limit = _LIMIT.get()
    return default_threads() if limit is None else limit


def default_threads() -> int:
    """Threads used unless told otherwise.

    ``FISHERTOPE_NUM_THREADS``; else ``OMP_NUM_THREADS``, which joblib sets in its workers so that
    they do not crowd each other; else the CPUs granted to the process.

    Raises
    ------
    InvalidInputError
        If the variable is set to something that is not a positive whole number.
    """
    text = os.environ.get(ENVIRONMENT_VARIABLE)
    if text is None:
        shared = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
        if shared.isdigit() and int(shared) >= 1:
            return int(shared)
        granted = getattr(os, "sched_getaffinity", None)
        return max(1, len(granted(0)) if granted else (os.cpu_count() or 1))
    if not text.isdigit() or int(text) < 1:
        raise InvalidInputError(
            f"{ENVIRONMENT_VARIABLE}={text!r} was given; a whole number >= 1 is accepted. "
            "Correct or unset it."
        )
    return int(text)


@contextmanager
def thread_limit(n: int | None = None) -> Iterator[int]:
    """Run a block with ``n`` threads in BLAS, OpenMP, numba and torch; restore on exit.

    Parameters
    ----------
    n : int, optional
        ``None`` means :func:`default_threads`.

    Yields
    ------
    int
        The number of threads in force.
    """
    from threadpoolctl import threadpool_limits

    count = default_threads() if n is None else n
    if count < 1:
        raise InvalidInputError(f"{count} threads were asked for; give a whole number >= 1.")
    numba, torch = sys.modules.get("numba"), sys.modules.get("torch")
    before_numba = numba.get_num_threads() if numba else 0
    before_torch = torch.get_num_threads() if torch else 0
    token = _LIMIT.set(count)
    limits = _beneath_serial_blas(lambda: threadpool_limits(limits=count))
    try:
        if numba:
            numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
        if torch:
            torch.set_num_threads(count)
        yield count
    finally:
        _LIMIT.reset(token)
        _beneath_serial_blas(limits.restore_original_limits)
        if numba:
            numba.set_num_threads(before_numba)
        if torch:
            torch.set_num_threads(before_torch)


@contextmanager
def serial_blas() -> Iterator[None]:
    """Run a block with one thread in BLAS, for code that splits its work over threads itself.

    BLAS's own threads wait for one another by spinning, which on shared CPUs can make a product
    tens of times slower. Blocks may nest and may run in several threads at once: the setting is
    the process's, is made by the first and undone by the last. Also a decorator.
    """
    global _serial_users, _serial_limit
    with _blas_lock():
        if _serial_users == 0:
            _serial_limit = _blas_pools().limit(limits=1, user_api="blas")
        _serial_users += 1
    try:
        yield
    finally:
        with _blas_lock():
            _serial_users -= 1
            if _serial_users == 0:
                _serial_limit.restore_original_limits()


def _beneath_serial_blas(change: Callable[[], Any]) -> Any:
    """Change thread counts as if no other thread were in :func:`serial_blas` just now.

    Otherwise the one thread of that moment would be saved as the count to restore.
    """
    global _serial_limit
    with _blas_lock():
        if _serial_users > 0:
            _serial_limit.restore_original_limits()
        try:
            return change()
        finally:
            if _serial_users > 0:
                _release_blas()
                _serial_limit = _blas_pools().limit(limits=1, user_api="blas")


# BLAS keeps one count for the whole process, so who has changed it is kept for the process too.
_BLAS_LOCK = Lock()
_serial_users = 0
_serial_limit: Any = None


@contextmanager
def _blas_lock() -> Iterator[None]:
    with _BLAS_LOCK:
        _release_blas()
        try:
            yield
        finally:
            _release_blas()


def _release_blas() -> None:
    """Let any thread set BLAS's count: the lock orders them.

    threadpoolctl (from 3.7) ignores all threads but the first that set it, until that one lets go.
    """
    for pool in _blas_pools().lib_controllers:
        clear = getattr(pool, "clear_controlling_thread", None)
        if clear is not None:
            clear(force=True)


def _blas_pools() -> Any:
    # SciPy and torch bring a BLAS of their own, and may be loaded later than NumPy's was found.
    return _pools_with(tuple(name in sys.modules for name in ("scipy.linalg", "torch")))


@cache
def _pools_with(loaded: tuple[bool, ...]) -> Any:
    # Looking for the libraries takes milliseconds, setting their threads microseconds.
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def thread_facts() -> dict[str, Any]:
    """Thread counts now in force, by library, as results record them."""
    from threadpoolctl import threadpool_info

    facts: dict[str, Any] = {
        pool["internal_api"]: pool["num_threads"] for pool in threadpool_info()
    }
    numba, torch = sys.modules.get("numba"), sys.modules.get("torch")
    if numba:
        facts["numba"] = int(numba.get_num_threads())
    if torch:
        facts["torch"] = int(torch.get_num_threads())
    return facts
