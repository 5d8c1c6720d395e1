"""How the processes of a training hold its parameters: each all of them, or each a part.

``"ddp"``: parameters, gradients and optimizer state are replicated; gradients are summed.
``"fsdp"``: FSDP2 (``torch.distributed.fsdp.fully_shard``) splits all three along the first axis,
one group a block and one for the rest; a block's parameters are whole during its pass only.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn

from fishertope.core.errors import InvalidInputError
from fishertope.experiments.seq2seq.stack import BaseBlock, Stack

from . import processes

Parallel: TypeAlias = Literal["ddp", "fsdp"]


class Holding(Protocol):
    """Where a training's parameters are.

    Attributes
    ----------
    model
        The module to call.
    names
        Its parameters; those of a part are ``DTensor`` s.
    """

    model: nn.Module
    names: Mapping[str, nn.Parameter]

    def sum_gradients(self) -> None:
        """After the backward pass: gradients of the loss of all processes.

        A parameter that no process used keeps no gradient; one that only some used has zeros from
        the others.
        """
        ...

    def whole(self) -> Any:
        """A context in which the caller's model has the values of now; all processes enter it."""
        ...

    def gathered(self, tensor: Tensor) -> Tensor:
        """All of a tensor of which each process may hold a part; all processes call it."""
        ...

    def placed(self, like: Tensor, key: str, tensor: Tensor) -> Tensor:
        """What this process keeps of a whole tensor: optimizer state ``key`` of ``like``."""
        ...


def hold(model: nn.Module, parallel: Parallel, device: torch.device | str) -> Holding:
    """Take hold of a model's parameters for a training.

    Raises
    ------
    InvalidInputError
        An unknown name.
    """
    if parallel not in ("ddp", "fsdp"):
        raise InvalidInputError(f"parallel={parallel!r}; accepted are 'ddp' and 'fsdp'")
    if parallel == "ddp" or processes.ranks()[1] == 1:
        return Replica(model)
    return Shards(model, torch.device(device))


def used_somewhere(used: list[bool]) -> list[bool]:
    """Which of the parameters any process used."""
    return [count > 0 for count in processes.summed(*map(float, used))]


class Replica:
    """Every process holds all of the caller's model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names: Mapping[str, nn.Parameter] = dict(model.named_parameters())

    def sum_gradients(self) -> None:
        """As :class:`Holding` says."""
        if processes.ranks()[1] == 1:
            return
        own = list(self.names.values())
        anywhere = used_somewhere([p.grad is not None for p in own])
        chosen = [p for p, used in zip(own, anywhere, strict=True) if used]
        for parameter in chosen:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        processes.sum_in_place([p.grad for p in chosen if p.grad is not None])

    @contextmanager
    def whole(self) -> Iterator[None]:
        """As :class:`Holding` says."""
        yield

    def gathered(self, tensor: Tensor) -> Tensor:
        """As :class:`Holding` says."""
        return tensor

    def placed(self, like: Tensor, key: str, tensor: Tensor) -> Tensor:
        """As :class:`Holding` says; Adam's and Adafactor's step counts stay on the CPU."""
        return tensor if key == "step" else tensor.to(like.device)


class Shards:
    """Every process holds a part of each parameter.

    The caller's model is copied; between two :meth:`whole` blocks it holds no values, so that no
    process has the memory of a whole model but during those.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        self._callers = dict(model.named_parameters())
        self.model = _with_same_values(model)
        # fully_shard takes no numbers without an axis: those stay replicated.
        single = {p for p in self.model.parameters() if p.ndim == 0}
        mesh = init_device_mesh(device.type, (processes.ranks()[1],))
        with processes.explained():
            for module in [*_groups(self.model), self.model]:
                module.register_forward_hook(_own_memory)
                fully_shard(module, mesh=mesh, ignored_params=single)
        self.names: Mapping[str, nn.Parameter] = dict(self.model.named_parameters())
        names = {id(p): name for name, p in self.names.items()}
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # sums, no means
                module.set_force_sum_reduction_for_comms(True)
                # A parameter may be unused by some processes: nobody must wait for those.
                module.set_reduce_scatter_unused_params(True)
                owned = [
                    (owner, key, names[id(p)])
                    for owner in module.modules()
                    for key, p in owner.named_parameters(recurse=False)
                ]
                module.register_forward_pre_hook(partial(self._watch, owned))
        self._watched: set[int] = set()
        self._used: set[str] = set()
        self._empty()

    def _watch(self, owned: list[tuple[nn.Module, str, str]], *_: Any) -> None:
        """Note which parameters get a gradient here; hooks go to the whole ones, once each."""
        for owner, key, name in owned:
            parameter = getattr(owner, key)
            if _is_part(parameter) or not parameter.requires_grad or id(parameter) in self._watched:
                continue
            self._watched.add(id(parameter))
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: self._used.add(name))

    def sum_gradients(self) -> None:
        """As :class:`Holding` says; FSDP2 has summed those of parts during the backward pass."""
        anywhere = used_somewhere([name in self._used for name in self.names])
        self._used.clear()
        replicated = []
        for (_, parameter), used in zip(self.names.items(), anywhere, strict=True):
            if not used:
                parameter.grad = None
            elif parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if used and not _is_part(parameter):
                replicated.append(cast(Tensor, parameter.grad))
        processes.sum_in_place(replicated)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """As :class:`Holding` says."""
        with torch.no_grad():
            for name, parameter in self._callers.items():
                parameter.data = self.gathered(self.names[name]).detach().clone()
        yield
        self._empty()

    def _empty(self) -> None:
        for parameter in self._callers.values():
            parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)

    def give_back(self) -> None:
        """Leave the values of now in the caller's model, for good."""
        with self.whole():
            self._callers = {}  # nothing is emptied when the block ends

    def gathered(self, tensor: Tensor) -> Tensor:
        """As :class:`Holding` says."""
        if not _is_part(tensor):
            return tensor
        with processes.explained():
            return cast(Tensor, cast(Any, tensor.detach()).full_tensor())

    def placed(self, like: Tensor, key: str, tensor: Tensor) -> Tensor:
        """As :class:`Holding` says.

        State of the parameter's shape is split like it, and so are row statistics; the column
        statistics of a matrix are replicated.
        """
        from torch.distributed.tensor import distribute_tensor

        if key == "step":
            return tensor
        there = tensor.to(like.device)
        if not _is_part(like) or (key == "col_var" and like.ndim == 2):
            return there
        part = cast(Any, like)
        # Every process has the whole tensor: it takes its part and sends nothing.
        return distribute_tensor(there, part.device_mesh, part.placements, src_data_rank=None)


def _is_part(tensor: Tensor) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def _own_memory(module: nn.Module, given: Any, out: Any) -> Any:
    """An output that is no view: writing into one would lose the hooks of FSDP2."""
    return out.clone() if isinstance(out, Tensor) and out._base is not None else out


def _with_same_values(model: nn.Module) -> nn.Module:
    """A copy of the modules whose parameters are new but share the values' memory."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in model.parameters()
    }
    for module in model.modules():  # what an earlier pass left cannot be copied with its graph
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach()
    return copy.deepcopy(model, memo)


def _groups(model: nn.Module) -> list[nn.Module]:
    """Modules whose parameters are whole during their own pass only, inner ones first.

    Blocks that are passed once and share no parameter with anything outside. A block's position
    table is read by the stack, outside the block's pass.
    """
    everywhere = _uses(model)
    found: list[nn.Module] = []
    for stack in model.modules():
        if not isinstance(stack, Stack) or type(stack).forward is not Stack.forward:
            continue  # it may call parts of a block
        if stack.depth != len(stack.blocks):
            continue
        for block in stack.blocks:
            if any(everywhere[key] != count for key, count in _uses(block).items()):
                continue
            if isinstance(block, BaseBlock) and block.position is not None:
                found.append(block.position)
            found.append(block)
    return found


def _uses(module: nn.Module) -> Counter[int]:
    """Under how many names each parameter is there."""
    return Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
