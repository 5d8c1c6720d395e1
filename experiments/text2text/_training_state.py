"""What a checkpoint holds, and what processes of one run tell each other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from fishertope.core.errors import CorruptFileError
from fishertope.core.storage import load_arrays, save_arrays

KIND = "training checkpoint"


def ranks() -> tuple[int, int]:
    """Number of this process and of all, (0, 1) outside torch.distributed."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def summed(*values: float) -> list[float]:
    """Each value summed over the processes."""
    import torch.distributed as dist

    if ranks()[1] == 1:
        return list(values)
    numbers = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(numbers)
    return [float(v) for v in numbers]


def sum_gradients(gradients: list[Tensor]) -> None:
    """Sum each gradient over the processes, in place, in one message."""
    import torch.distributed as dist

    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    parts = torch.split(flat, [g.numel() for g in gradients])
    for own, whole in zip(gradients, parts, strict=True):
        own.copy_(whole.view_as(own))


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the dropout masks of one step of one process."""
    words = np.random.SeedSequence([seed, step, rank]).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the values of all parameters, by name."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def newest(folder: Path) -> Path | None:
    """The checkpoint with the largest step."""
    found = sorted(folder.glob("checkpoint-*.safetensors"))
    return found[-1] if found else None


def save(
    folder: Path, step: int, names: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer,
    scheduler: LambdaLR | None, facts: Mapping[str, Any],
) -> Path:  # fmt: skip
    """Write parameters, optimizer state and facts atomically; older checkpoints go afterwards."""
    arrays = {f"parameter.{n}": p.detach().cpu().numpy() for n, p in names.items()}
    steps = {}
    for number, (name, parameter) in enumerate(names.items()):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                arrays[f"optimizer.{number}.{key}"] = value.detach().cpu().numpy()
            else:
                steps[f"{name}.{key}"] = value
    whole = {**facts, "optimizer": steps}
    if scheduler is not None:
        whole["scheduler"] = scheduler.last_epoch
    path = folder / f"checkpoint-{step:09d}.safetensors"
    save_arrays(path, arrays, whole, kind=KIND)
    for old in folder.glob("checkpoint-*.safetensors"):
        if old.name < path.name:
            old.unlink()
    return path


def load(
    path: Path, names: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer,
    scheduler: LambdaLR | None,
) -> dict[str, Any]:  # fmt: skip
    """Put a checkpoint's values in place and return its facts.

    Raises
    ------
    CorruptFileError
        If the file is damaged or of another model.
    """
    arrays, facts = load_arrays(path, kind=KIND)
    try:
        with torch.no_grad():
            for number, (name, parameter) in enumerate(names.items()):
                parameter.copy_(torch.from_numpy(arrays.pop(f"parameter.{name}")))
                prefix = f"optimizer.{number}."
                keys = [k for k in arrays if k.startswith(prefix)]
                held = {k.removeprefix(prefix): torch.from_numpy(arrays.pop(k)) for k in keys}
                if held:
                    optimizer.state[parameter] = {
                        k: v if k == "step" else v.to(parameter.device) for k, v in held.items()
                    }
        if arrays:
            raise ValueError(f"{len(arrays)} arrays of no parameter, {next(iter(arrays))} first")
        if scheduler is not None:
            scheduler.last_epoch = int(facts["scheduler"])
            for group, base, factor in zip(
                optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
            ):
                group["lr"] = base * factor(scheduler.last_epoch)
        return {
            "step": int(facts["step"]), "tokens": int(facts["tokens"]),
            "seconds": float(facts["seconds"]), "stream": dict(facts["stream"]),
        }  # fmt: skip
    except (LookupError, TypeError, ValueError, RuntimeError) as exc:
        raise CorruptFileError(
            f"{path}: not a checkpoint of this model ({exc}); delete it to begin anew"
        ) from exc
