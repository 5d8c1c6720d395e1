"""Commands that ``torchrun`` starts several times over: one speaks, and a failure is told once."""

from __future__ import annotations

import sys
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
_SECONDS = 3.0
"""So long a process that fails waits for process 0 to say the same."""


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
    """Whether process 0 shows this error; it lets the others know what it shows."""
    from ..core.fisher.ranks import meeting_point

    with suppress(RuntimeError):  # a store that is gone tells nothing
        store = meeting_point(shared)
        if shared.rank == 0:
            store.set(_TOLD, str(error))
            return False
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end:
            if store.check([_TOLD]):
                said = store.get(_TOLD).decode(errors="replace")
                # One that lost the others, or was stopped for it (torchrun), has nothing to add.
                return said == str(error) or isinstance(error, RankLostError | StoppedError)
            time.sleep(0.05)
    return False
