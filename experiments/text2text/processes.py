"""The processes of one training: their group, who writes, and what they tell each other.

``torchrun`` starts them. Outside of it every function here is the one of a single process, which
tells nobody anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from fishertope.core import errors
from fishertope.core.errors import FishertopeError, InvalidInputError, RankLostError
from fishertope.core.fisher import ranks as core_ranks

_PATIENCE = timedelta(days=7)
"""A process may score for hours while others wait. One that died is noticed at once: its
connections are closed, and ``torchrun`` ends the others."""
_BUCKET = 2**22
"""Numbers of gradients that travel in one message."""


@contextmanager
def process_group(device: torch.device | str = "auto") -> Iterator[torch.device]:
    """Open the group that ``torchrun`` announces, for the length of the block.

    Gloo for arrays on the CPU, NCCL for those on GPUs. Without ``torchrun``, or with a group that
    is there already, nothing is opened. The group is closed after an error too.

    Parameters
    ----------
    device
        ``"cuda"`` is the GPU with the number LOCAL_RANK; ``"auto"`` takes it where there is one.

    Yields
    ------
    torch.device
        Where this process is to compute.

    Raises
    ------
    InvalidInputError
        No such device, or RANK and WORLD_SIZE that do not fit.
    RankLostError
        Another process ended.

    Examples
    --------
    >>> with process_group("cpu") as device:
    ...     print(device, ranks())
    cpu (0, 1)
    """
    shared, place = core_ranks.Ranks.of_environment(), computing_device(device)
    backend = "gloo"
    if place.type == "cuda":
        torch.cuda.set_device(place)
        backend = "cpu:gloo,cuda:nccl"
    with core_ranks.process_group(shared, backend=backend, timeout=_PATIENCE):
        yield place


def computing_device(device: torch.device | str = "auto") -> torch.device:
    """The device of this process; ``"cuda"`` without a number has that of LOCAL_RANK.

    Raises
    ------
    InvalidInputError
        No such device here.
    """
    import os

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        found = torch.device(("cuda" if there else "cpu") if str(device) == "auto" else device)
    except RuntimeError:
        found = torch.device("meta")
    local = os.environ.get("LOCAL_RANK", "0")
    number = found.index if found.index is not None else int(local) if local.isdigit() else 0
    if found.type not in ("cpu", "cuda") or (found.type == "cuda" and number >= there):
        raise InvalidInputError(
            f"device {str(device)!r} was given to the process with LOCAL_RANK={local}; this "
            f"machine has {there} CUDA devices. Accepted are auto, cpu, cuda and cuda:N; start at "
            "most one process a GPU."
        )
    return torch.device("cuda", number) if found.type == "cuda" else found


def ranks() -> tuple[int, int]:
    """Number of this process and of all, (0, 1) outside torch.distributed."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _meeting_place() -> torch.device:
    """Where numbers must lie to be told to other processes."""
    import torch.distributed as dist

    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


@contextmanager
def explained() -> Iterator[None]:
    """Errors of connections say which process lost the others.

    Raises
    ------
    RankLostError
        In place of what torch.distributed raises; other errors pass.
    """
    try:
        yield
    except RuntimeError as error:
        rank, world = ranks()
        if world == 1 or isinstance(error, FishertopeError) or not _of_a_connection(error):
            raise
        reason = str(error).strip().split("\n")[0][:200]
        raise RankLostError(
            f"Process {rank} of {world} lost the others ({reason}). One was killed or failed; "
            "start all of them again with torchrun."
        ) from error


def _of_a_connection(error: RuntimeError) -> bool:
    import torch.distributed as dist

    text = str(error)
    return isinstance(error, dist.DistError) or any(
        word in text for word in ("gloo", "NCCL", "Connection closed", "Connection reset")
    )


def summed(*values: float) -> list[float]:
    """Each value summed over the processes, in float64."""
    import torch.distributed as dist

    if ranks()[1] == 1:
        return list(values)
    numbers = torch.tensor(values, dtype=torch.float64, device=_meeting_place())
    with explained():
        dist.all_reduce(numbers)
    return [float(v) for v in numbers]


def summed_tensor(tensor: Tensor) -> Tensor:
    """A tensor summed over the processes, on its device."""
    import torch.distributed as dist

    if ranks()[1] > 1:
        with explained():
            dist.all_reduce(tensor)
    return tensor


def sum_in_place(tensors: Sequence[Tensor]) -> None:
    """Sum each tensor over the processes, many in one message.

    All processes give tensors of the same shapes, dtypes and order.
    """
    import torch.distributed as dist

    def send(bucket: Sequence[Tensor]) -> None:
        flat = torch.cat([t.reshape(-1) for t in bucket])
        with explained():
            dist.all_reduce(flat)
        for own, whole in zip(bucket, torch.split(flat, [t.numel() for t in bucket]), strict=True):
            own.copy_(whole.view_as(own))

    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(t.numel() for t in bucket) + tensor.numel() > _BUCKET
        if bucket and (full or tensor.dtype != bucket[0].dtype):
            send(bucket)
            bucket = []
        bucket.append(tensor)
    if bucket:
        send(bucket)


def copy_of_first(tensor: Tensor) -> None:
    """Overwrite a tensor with that of process 0."""
    import torch.distributed as dist

    if ranks()[1] > 1:
        there = tensor.to(_meeting_place())
        with explained():
            dist.broadcast(there, 0)
        if there is not tensor:
            tensor.copy_(there)


def gathered(value: Any) -> list[Any]:
    """What each process gives (anything JSON can say), in their order; known to all."""
    import torch.distributed as dist

    world = ranks()[1]
    if world == 1:
        return [value]
    text = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = [0.0] * world
    sizes[ranks()[0]] = float(len(text))
    lengths = [int(n) for n in summed(*sizes)]
    place = _meeting_place()
    own = torch.zeros(max(lengths), dtype=torch.uint8, device=place)
    own[: len(text)] = text.to(place)
    parts = [torch.empty_like(own) for _ in lengths]
    with explained():
        dist.all_gather(parts, own)
    return [
        json.loads(bytes(part[:n].cpu().tolist())) for part, n in zip(parts, lengths, strict=True)
    ]


def first(action: Callable[[], Any]) -> Any:
    """Let process 0 alone act, while the others wait; all have its result, or raise its error.

    Parameters
    ----------
    action
        Returns what JSON can say (floats that are not finite included).

    Raises
    ------
    FishertopeError
        What ``action`` raised, of the same class in every process. Other errors of process 0 are
        a RankLostError in the others.
    """
    rank, world = ranks()
    if world == 1:
        return action()
    said: dict[str, Any] = {}
    failure: Exception | None = None
    if rank == 0:
        try:
            said = {"value": action()}
        except Exception as error:
            failure = error
            said = {"error": type(error).__name__, "message": str(error)}
    said = gathered(said)[0]
    if failure is not None:
        raise failure
    if "error" in said:
        kind = getattr(errors, said["error"], None)
        if isinstance(kind, type) and issubclass(kind, FishertopeError):
            raise kind(said["message"])
        raise RankLostError(f"Process 0 of {world} failed: {said['error']}: {said['message']}")
    return said["value"]


def check_agreement(value: str, what: str) -> None:
    """Every process must have the same value.

    Raises
    ------
    InvalidInputError
        In all of them.
    """
    found = gathered(value)
    odd = [str(i) for i, given in enumerate(found) if given != found[0]]
    if odd:
        raise InvalidInputError(
            f"process {', '.join(odd)} of {len(found)} has another {what} than process 0; all "
            "processes must call with the same model, data and options (the same seed)"
        )
