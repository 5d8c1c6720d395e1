"""Modules in float16 or bfloat16: differentiated in a float32 copy, the module itself untouched."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ...core.errors import InvalidInputError

HALF = (torch.float16, torch.bfloat16)


def halves_of(module: nn.Module) -> list[str]:
    """Which half dtypes the parameters that require gradients have, by name; empty for none."""
    found = {p.dtype for p in module.parameters() if p.requires_grad} & set(HALF)
    return sorted(str(dtype).removeprefix("torch.") for dtype in found)


def float32_copy(module: nn.Module) -> nn.Module:
    """The same module with float32 in place of every half parameter and buffer.

    Ties and ``requires_grad`` stay. Tensors of other dtypes are the module's own.

    Raises
    ------
    InvalidInputError
        The module cannot be copied.
    """
    memo: dict[int, Tensor] = {}
    for p in module.parameters():
        if p.dtype in HALF:
            memo[id(p)] = nn.Parameter(p.detach().float(), requires_grad=p.requires_grad)
        else:
            memo[id(p)] = p
    for b in module.buffers():
        memo[id(b)] = b.float() if b.dtype in HALF else b
    try:
        return copy.deepcopy(module, memo)
    except (TypeError, RuntimeError, AttributeError) as error:
        raise InvalidInputError(
            f"This {type(module).__name__} has parameters of dtype {', '.join(halves_of(module))}, "
            f"which are differentiated in float32, and it cannot be copied for that ({error}). "
            "Give module.float()."
        ) from error
