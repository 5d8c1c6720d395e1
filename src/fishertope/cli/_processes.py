"""Commands that ``torchrun`` starts several times over: one speaks, and a failure is told once."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import FishertopeError, RankLostError, StoppedError

if TYPE_CHECKING:
    import torch

DeviceOption = Annotated[
    str, typer.Option(help="auto, cpu, cuda or cuda:N; in torchrun, cuda is LOCAL_RANK's GPU.")
]
ParallelOption = Annotated[
    str,
    typer.Option(
        help="In torchrun, what each process holds: ddp, all parameters; fsdp, a part of each."
    ),
]
_TOLD = "fishertope/failure"
_SECONDS = 5.0
"""So long a process that fails waits for process 0 to say the same, and to end first."""


@contextmanager
def together(device: str) -> Iterator[torch.device]:
    """The process group of a command, and the device of this process.

    An error that process 0 has too is shown by that one alone; all processes end with code 1.
    """
    from ..core.fisher.ranks import Ranks
    from ..experiments.text2text.processes import process_group

    shared = Ranks.of_environment()
    try:
        with process_group(device) as place:
            yield place
    except (FishertopeError, OSError) as error:
        if shared.world > 1 and _said_by_first(shared, error):
            sys.exit(1)
        raise


def _said_by_first(shared: Any, error: Exception) -> bool:
    """Whether process 0 shows this error; it lets the others know what it shows.

    torchrun ends all processes with SIGTERM when one has ended. Here it raises nothing, so that
    nothing is added to what process 0 says; and who follows process 0 waits for it, so that
    process 0 is not ended before it has spoken.
    """
    from ..core.fisher.ranks import meeting_point

    with suppress(RuntimeError), _sigterm_noted() as ended:  # a store that is gone tells nothing
        store = meeting_point(shared)
        if shared.rank == 0:
            store.set(_TOLD, str(error))
            return False
        if isinstance(error, StoppedError):
            ended.set()
        follows, until = False, time.monotonic() + _SECONDS
        while time.monotonic() < until and not (follows and ended.is_set()):
            if not follows and store.check([_TOLD]):
                said = store.get(_TOLD).decode(errors="replace")
                # One that lost the others, or was ended for it, has nothing to add.
                follows = said == str(error) or isinstance(error, RankLostError | StoppedError)
                if not follows:
                    break
            time.sleep(0.05)
        return follows
    return False


@contextmanager
def _sigterm_noted() -> Iterator[threading.Event]:
    """Set by SIGTERM, which has no other effect meanwhile (on the main thread)."""
    noted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = signal.signal(signal.SIGTERM, lambda *_: noted.set())
    try:
        yield noted
    finally:
        signal.signal(signal.SIGTERM, before)
