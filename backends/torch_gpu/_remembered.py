"""What is kept of a module from one call to the next: digests of its bytes, and what was checked.

Nothing here is believed on trust. A digest is given again only while the very bits that it was made
from are found in the module, and a check counts only for modules that look the same in everything
that can be compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

# Copies of a module's bits, by which its digests are kept, take at most so many bytes.
COPY_BYTES = 16 << 20

Named = Sequence[tuple[str, Tensor]]
Look = tuple[Any, ...]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(slots=True, eq=False)
class _Kept:
    """Bits of a module, and digests of them."""

    heads: list[str]
    copies: list[Tensor]
    model: str = ""
    thetas: dict[tuple[str, ...], str] = field(default_factory=dict)


_DIGESTS: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()
_CHECKED: WeakKeyDictionary[nn.Module, list[Look]] = WeakKeyDictionary()
# So many looks of one module are remembered.
LOOKS = 8


def digests_of(module: nn.Module, names: Sequence[str] = ()) -> dict[str, str]:
    """SHA-256 of a module's bytes, hexadecimal.

    Returns
    -------
    dict
        ``model_sha256`` of all parameters and buffers with their names, dtypes and shapes;
        ``theta_sha256`` of the bytes of the parameters ``names``, one after the other, where
        there are any.
    """
    kept, named = _kept(module)
    if not kept.model:
        whole = hashlib.sha256()
        for head, (_, x) in zip(kept.heads, named, strict=True):
            whole.update(head.encode())
            whole.update(_bytes(x))
        kept.model = whole.hexdigest()
    key = tuple(names)
    if not key:
        return {"model_sha256": kept.model}
    if key not in kept.thetas:
        part, by_name = hashlib.sha256(), dict(named)
        for name in names:
            part.update(_bytes(by_name[name]))
        kept.thetas[key] = part.hexdigest()
    return {"model_sha256": kept.model, "theta_sha256": kept.thetas[key]}


def _kept(module: nn.Module) -> tuple[_Kept, Named]:
    """The digests of exactly these bits, none where they are new."""
    named = [(n, x.detach()) for n, x in (*module.named_parameters(), *module.named_buffers())]
    heads = [f"{n} {x.dtype} {tuple(x.shape)}" for n, x in named]
    found = _DIGESTS.get(module)
    if found is not None and found.heads == heads:
        same = zip(found.copies, named, strict=True)
        if all(copy.device == x.device and torch.equal(copy, _bits(x)) for copy, (_, x) in same):
            return found, named
    new = _Kept(heads, [])
    if sum(x.numel() * x.element_size() for _, x in named) <= COPY_BYTES:
        new.copies = [_bits(x).clone() for _, x in named]
        _DIGESTS[module] = new
    else:
        _DIGESTS.pop(module, None)
    return new, named


def _bits(x: Tensor) -> Tensor:
    """The entries as whole numbers, which are equal only where all bits are."""
    flat = x.contiguous().reshape(-1)
    for kind in (torch.int64, torch.int32, torch.int16):
        size = kind.itemsize
        if flat.numel() * flat.element_size() % size == 0 and flat.data_ptr() % size == 0:
            return flat.view(kind)
    return flat.view(torch.uint8)


def _bytes(x: Tensor) -> Any:
    return x.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def was_checked(module: nn.Module, look: Look | None) -> bool:
    """Whether :func:`remember_checked` was called for this module with the same look."""
    return look is not None and look in _CHECKED.get(module, ())


def remember_checked(module: nn.Module, look: Look | None) -> None:
    """A check of the module succeeded while it had this look."""
    if look is not None:
        looks = _CHECKED.setdefault(module, [])
        looks.append(look)
        del looks[:-LOOKS]


def look_of(module: nn.Module, names: Iterable[str], inputs: Any, reader: Any) -> Look | None:
    """Everything of a call that can be compared cheaply: submodules, flags, hooks, inputs.

    Parameters
    ----------
    module : nn.Module
    names : iterable of str
        The parameters whose gradients are told.
    inputs : Tensor or mapping
        Their names, dtypes and numbers of axes count.
    reader : callable
        What makes outputs z of what the module returns.

    Returns
    -------
    tuple or None
        ``None`` where something hangs on the module that may have a state of its own: hooks,
        methods and closures in place of plain functions.
    """
    given = inputs.items() if isinstance(inputs, Mapping) else [("", inputs)]
    kinds = tuple((k, getattr(x, "dtype", None), getattr(x, "ndim", None)) for k, x in given)
    look: list[Any] = [tuple(names), kinds, reader]
    first: dict[int, int] = {}  # parameters by their first place: tells which are the same one
    if not _is_plain(reader):
        return None
    for path, inner in module.named_modules():
        look += (path, type(inner))
        for key, x in vars(inner).items():
            if key == "_parameters":
                look += ((k, first.setdefault(id(v), len(first))) for k, v in x.items())
            elif x is None or isinstance(x, bool | int | float | str):
                look.append((key, x))
            elif key in _HOOKS:
                if x:
                    return None
            elif callable(x) and not isinstance(x, nn.Module):
                if not _is_plain(x):
                    return None
                look.append((key, x))
            elif not key.startswith("_"):
                look.append((key, id(x)))
    return tuple(look)


def _is_plain(x: Any) -> bool:
    """A class, or a function without variables of its own."""
    if isinstance(x, FunctionType):
        return x.__closure__ is None
    return isinstance(x, type | BuiltinFunctionType)
