"""Compiled loops run on several threads, each over its own range of the first axis.

The loops release the GIL, so plain threads do. Numba's own parallel loops would bring one of its
threading layers: the one that is always there ends the process when two Python threads enter it,
the OpenMP one when the process was forked.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ...core.backend.threads import current_threads

# Entries to write or read that keep one thread busy for about a millisecond. Starting a second one
# takes a fifth of that.
_GRAIN = 1 << 21


def split(loop: Callable[..., None], n: int, *args: Any, work: int) -> None:
    """Call ``loop(start, stop, *args)`` on ranges that cover ``range(n)``.

    Parameters
    ----------
    loop : callable
        Compiled loop, or a function that runs several of them, whose result for one index does
        not depend on the others.
    n : int
        Length of the first axis.
    *args
        Passed on.
    work : int
        Entries touched in all; decides how many threads are worth it.
    """
    threads = min(n, work // _GRAIN)
    threads = min(threads, current_threads()) if threads > 1 else 1
    if threads == 1:
        loop(0, n, *args)
        return
    bounds = [n * t // threads for t in range(threads + 1)]
    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(loop, bounds[t], bounds[t + 1], *args) for t in range(1, threads)]
        loop(bounds[0], bounds[1], *args)
        for other in others:
            other.result()
