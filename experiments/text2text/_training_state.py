"""What a checkpoint holds: the same for every number of processes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from fishertope.core.errors import CorruptFileError
from fishertope.core.storage import load_arrays, save_arrays

from .parallel import Holding
from .processes import copy_of_first, first, ranks

KIND = "training checkpoint"


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the dropout masks of one step of one process."""
    words = np.random.SeedSequence([seed, step, rank]).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the values of all parameters, by name."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def newest(folder: Path) -> Path | None:
    """The checkpoint with the largest step."""
    found = sorted(folder.glob("checkpoint-*.safetensors"))
    return found[-1] if found else None


def save(
    folder: Path, step: int, holding: Holding, optimizer: torch.optim.Optimizer,
    scheduler: LambdaLR | None, facts: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write whole parameters, whole optimizer state and facts atomically; older ones go after.

    Every process calls it, process 0 writes. The file does not tell how many processes there
    were, nor how they held the parameters.
    """
    arrays: dict[str, NDArray[Any]] = {}
    steps = {}
    writes = ranks()[0] == 0

    def keep(key: str, tensor: Tensor) -> None:
        whole = holding.gathered(tensor)
        if writes:
            arrays[key] = whole.detach().cpu().numpy()

    for name, parameter in holding.names.items():
        keep(f"parameter.{name}", parameter)
    for number, (name, parameter) in enumerate(holding.names.items()):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                keep(f"optimizer.{number}.{key}", value)
            else:
                steps[f"{name}.{key}"] = value
    whole = {**facts, "optimizer": steps}
    if scheduler is not None:
        whole["scheduler"] = scheduler.last_epoch

    def write() -> None:
        path = folder / f"checkpoint-{step:09d}.safetensors"
        save_arrays(path, arrays, whole, kind=KIND)
        for old in folder.glob("checkpoint-*.safetensors"):
            if old.name < path.name:
                old.unlink()

    first(write)


def load(
    path: Path, holding: Holding, optimizer: torch.optim.Optimizer, scheduler: LambdaLR | None
) -> dict[str, Any]:
    """Put a checkpoint's values in place and return its facts.

    Process 0 reads, and tells the others one array after the other; nothing is changed unless the
    whole file is of this model.

    Raises
    ------
    CorruptFileError
        If the file is damaged or of another model.
    """
    arrays: dict[str, NDArray[Any]] = {}

    def read() -> dict[str, Any]:
        found, facts = load_arrays(path, kind=KIND)
        try:
            arrays.update(_checked(found, holding))
            needed = {k: int(facts[k]) for k in ("step", "tokens")}
            if scheduler is not None:
                needed["scheduler"] = int(facts["scheduler"])
            return {
                **needed, "seconds": float(facts["seconds"]), "stream": dict(facts["stream"]),
                "arrays": [[k, v.dtype.str, list(v.shape)] for k, v in arrays.items()],
            }  # fmt: skip
        except (LookupError, TypeError, ValueError) as exc:
            raise CorruptFileError(
                f"{path}: not a checkpoint of this model ({exc}); delete it to begin anew"
            ) from exc

    facts = dict(first(read))
    parameters = list(holding.names.values())
    with torch.no_grad():
        for key, dtype, shape in facts.pop("arrays"):
            tensor = torch.from_numpy(arrays.pop(key, np.empty(shape, np.dtype(dtype))))
            copy_of_first(tensor)
            kind, name = key.split(".", 1)
            if kind == "parameter":
                own = holding.names[name]
                own.copy_(holding.placed(own, "value", tensor))
            else:
                number, entry = name.split(".", 1)
                own = parameters[int(number)]
                optimizer.state[own][entry] = holding.placed(own, entry, tensor)
    if scheduler is not None:
        scheduler.last_epoch = facts.pop("scheduler")
        for group, base, factor in zip(
            optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
        ):
            group["lr"] = base * factor(scheduler.last_epoch)
    return facts


def _checked(found: Mapping[str, NDArray[Any]], holding: Holding) -> dict[str, NDArray[Any]]:
    """The arrays, parameters first.

    Raises
    ------
    ValueError
        They are not those of the model.
    """
    shapes = {f"parameter.{n}": tuple(p.shape) for n, p in holding.names.items()}
    wrong = [k for k, shape in shapes.items() if k not in found or found[k].shape != shape]
    if wrong:
        raise ValueError(f"{len(wrong)} parameters are missing or have another shape: {wrong[0]}")
    sizes = list(shapes.values())
    for key in found.keys() - shapes.keys():
        kind, number, entry = (*key.split(".", 2), "", "")[:3]
        if kind != "optimizer" or not number.isdigit() or int(number) >= len(sizes) or not entry:
            raise ValueError(f"{key} belongs to no parameter")
    return {k: found[k] for k in (*shapes, *sorted(found.keys() - shapes.keys()))}
