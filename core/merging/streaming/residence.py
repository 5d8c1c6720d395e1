"""Who may hold the factors of a site in memory, and who may use all threads of BLAS."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Residence:
    """Room for the sites that workers hold at the same time.

    Blocks are handed out site by site, and a site leaves with its last block. So whoever waits
    here waits for blocks that others have begun, and never for one that nobody has.

    Attributes
    ----------
    room : int or None
        Bytes of all sites together; a single site is always let in. ``None``: any number.
    """

    def __init__(self) -> None:
        self.room: int | None = None
        self._used = 0
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._sharing = 0
        self._alone = False

    def enter(self, size: int) -> None:
        """Wait until there is room.

        Raises
        ------
        BaseException
            That of another site, which will never leave.
        """
        with self._changed:
            while self._used and self.room is not None and self._used + size > self.room:
                if self._error is not None:
                    raise self._error
                self._changed.wait()
            self._used += size

    def leave(self, size: int) -> None:
        """Make room for others."""
        with self._changed:
            self._used -= size
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Let nobody wait any longer."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Work on one thread of BLAS, beside others that do.

        The number of its threads is the process's and decides last bits, so that work on all of
        them (:meth:`alone`) is not done at the same time.
        """
        from ..solvers.rows import one_thread

        with self._changed:
            while self._alone:
                self._changed.wait()
            self._sharing += 1
        try:
            with one_thread():
                yield
        finally:
            with self._changed:
                self._sharing -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Work on all threads of BLAS."""
        with self._changed:
            while self._alone or self._sharing:
                self._changed.wait()
            self._alone = True
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()
