"""Tracing a module: tangents and adjoints at the outputs of its blocks, by hooks.

Forward-mode tangents pass through the module once; a hook behind each block notes the tangent that
arrives and, where asked to, takes it away or puts another one in its place. Three such passes, and
one backward pass a row, give every contribution:

1. tangents of the parameters, taken away behind each block: the induced tangents u_bt;
2. tangents of the parameters, left alone: the whole tangents ḣ_bt and the total;
3. none of the parameters; a batch with a copy of the example for each position s, in which each
   block passes on ḣ_bs of that position alone: what arrives at (b', t) in copy s is the flow along
   the edge from s to t, for all blocks at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...core.backend import to_numpy
from ...core.errors import InvalidInputError
from ...core.model import unflatten
from ...core.model.tracing import EdgeFlow, TracedFlows
from ...core.types import FloatArray
from .blocks import BRANCH, find_blocks, stacks_of

# Called with the number of the cut and what the block returned; gives what is passed on.
_AtCut = Callable[[int, Tensor], Tensor]


def traced(
    engine: Any,
    inputs: Any,
    delta: Tensor,
    roots: Tensor,
    *,
    blocks: Mapping[str, str] | None = None,
    edges: bool = True,
) -> TracedFlows:
    """Contributions to U J δ for one example, block by block and position by position.

    Parameters
    ----------
    engine : ModuleEngine
    inputs
        One example, as a batch of one.
    delta : Tensor (p,)
    roots : Tensor (R, C)
        U.
    blocks
        See :func:`find_blocks`.
    edges : bool
        Also the flow along each edge; needs a batch of as many copies as there are positions.

    Raises
    ------
    InvalidInputError
        Several examples, or a model without known blocks.
    """
    cuts = find_blocks(engine.module, blocks)
    passes = _Passes(engine, inputs, cuts)
    with engine._quiet(), _plain_attention():
        names, adjoints = passes.adjoints(roots)
        kinds = [cuts[name.split("#")[0]] for name in names]
        tangents = unflatten(delta, engine.sites)
        induced, at_end = passes.tangents(tangents, cut=True)
        whole, z_dot = passes.tangents(tangents, cut=False)
        several = [n for n, x in zip(names, whole, strict=True) if len(x) != 1]
        if several:
            raise InvalidInputError(
                f"{several[0]!r} sees {len(whole[names.index(several[0])])} rows for one example; "
                "one each is taken. A model that reads an example several times has no one path."
            )
        stacks = stacks_of(names)
        stream = _stream(whole, kinds, stacks)
        flows = []
        # A module that is called twice tells not which stack a call belongs to.
        told = not any("#" in n and k == BRANCH for n, k in zip(names, kinds, strict=True))
        if edges and told:
            arriving = _arriving(passes, whole, stacks)
            flows = _flows(adjoints, stream, arriving, kinds, stacks)

    def product(values: list[Tensor]) -> list[FloatArray]:
        pairs = zip(adjoints, values, strict=True)
        return [to_numpy(_contract(a, v)) for a, v in pairs]

    return TracedFlows(
        blocks=names, stacks=stacks, induced=product(induced), passing=product(stream),
        readout=to_numpy(roots @ at_end), totals=to_numpy(roots @ z_dot), edges=flows,
    )  # fmt: skip


class _Passes:
    """Forward passes of one example, with something done behind each block."""

    def __init__(self, engine: Any, inputs: Any, cuts: Mapping[str, str]) -> None:
        self.engine, self.cuts = engine, cuts
        self.inputs = engine._moved(inputs)
        first = next(iter(self.inputs.values())) if isinstance(inputs, Mapping) else self.inputs
        if len(first) != 1:
            raise InvalidInputError(
                f"{len(first)} examples were given; one is traced at a time. Give a batch of one."
            )
        self.parameters = engine._parameters()

    def run(self, parameters: Mapping[str, Tensor], at_cut: _AtCut, copies: int = 1) -> Tensor:
        """Outputs z, with ``at_cut`` called behind each block, in the order of computation."""
        count = 0

        def hook(module: torch.nn.Module, args: Any, returned: Any) -> Any:
            nonlocal count
            tensor = returned if isinstance(returned, Tensor) else returned[0]
            new = at_cut(count, tensor)
            count += 1
            return new if isinstance(returned, Tensor) else (new, *returned[1:])

        submodules = dict(self.engine.module.named_modules())
        handles = [submodules[name].register_forward_hook(hook) for name in self.cuts]
        try:
            found: Tensor = self.engine._call(parameters, _repeated(self.inputs, copies))
            return found
        finally:
            for handle in handles:
                handle.remove()

    def adjoints(self, roots: Tensor) -> tuple[list[str], list[Tensor]]:
        """Names of the cuts in order, and ∂(Uz)/∂h_b (R, T_b, d) of each."""
        names: list[str] = []
        probes: list[Tensor] = []
        counts: dict[str, int] = {}

        def named(name: str) -> Callable[..., None]:
            def note(module: torch.nn.Module, args: Any, returned: Any) -> None:
                number = counts.get(name, 0)
                counts[name] = number + 1
                names.append(f"{name}#{number}" if number else name)

            return note

        def probe(number: int, h: Tensor) -> Tensor:
            probes.append(torch.zeros_like(h, requires_grad=True))
            return h + probes[-1]

        submodules = dict(self.engine.module.named_modules())
        handles = [submodules[n].register_forward_hook(named(n)) for n in self.cuts]
        try:
            with torch.enable_grad():
                z = self.run(self.parameters, probe)
        finally:
            for handle in handles:
                handle.remove()
        rows = []
        for u in roots:
            rows.append(
                torch.autograd.grad(
                    z,
                    probes,
                    u[None],
                    retain_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                )
            )
        return names, [torch.cat([row[b] for row in rows]) for b in range(len(probes))]

    def tangents(self, tangents: Mapping[str, Tensor], *, cut: bool) -> tuple[list[Tensor], Tensor]:
        """Tangents (1, T_b, d) behind each block, and of z (C,); with ``cut`` none goes further."""
        seen: list[Tensor] = []

        def note(number: int, h: Tensor) -> Tensor:
            primal, tangent = forward_ad.unpack_dual(h)
            seen.append(torch.zeros_like(primal) if tangent is None else tangent.clone())
            return primal.clone() if cut else h

        with torch.no_grad(), forward_ad.dual_level():
            dual = {n: forward_ad.make_dual(p, tangents[n]) for n, p in self.parameters.items()}
            z, z_dot = forward_ad.unpack_dual(self.run(dual, note))
            return seen, torch.zeros_like(z)[0] if z_dot is None else z_dot[0].clone()

    def replaced(self, injected: Sequence[Tensor | None], copies: int) -> list[Tensor | None]:
        """Tangents that arrive behind each block when every block passes ``injected`` on."""
        seen: list[Tensor | None] = []

        def swap(number: int, h: Tensor) -> Tensor:
            primal, tangent = forward_ad.unpack_dual(h)
            seen.append(None if tangent is None else tangent.clone())
            new = injected[number]
            return primal.clone() if new is None else forward_ad.make_dual(primal.clone(), new)

        with torch.no_grad(), forward_ad.dual_level():
            self.run(self.parameters, swap, copies)
        return seen


def _stream(whole: list[Tensor], kinds: list[str], stacks: list[str]) -> list[Tensor]:
    """ḣ of the residual stream behind each block: branches add to what was there before."""
    out: list[Tensor] = []
    last: dict[str, Tensor] = {}
    for tangent, kind, stack in zip(whole, kinds, stacks, strict=True):
        added = kind == BRANCH and stack in last and last[stack].shape == tangent.shape
        last[stack] = last[stack] + tangent if added else tangent
        out.append(last[stack])
    return out


def _arriving(
    passes: _Passes, whole: list[Tensor], stacks: list[str]
) -> dict[str, list[Tensor | None]]:
    """For each stack as source: tangents (S, T_b, d) behind each block, copy s from position s."""
    found = {}
    for source in dict.fromkeys(stacks):
        own = [b for b, stack in enumerate(stacks) if stack == source]
        lengths = {whole[b].shape[1] for b in own if whole[b].ndim == 3}
        if len(lengths) != 1 or any(whole[b].ndim != 3 for b in own):
            continue  # no common positions, so no edges between them
        S = lengths.pop()
        one = torch.eye(S, dtype=whole[0].dtype, device=whole[0].device)[:, :, None]
        injected = [one * whole[b] if b in own else None for b in range(len(stacks))]
        found[source] = passes.replaced(injected, S)
    return found


def _flows(
    adjoints: list[Tensor],
    stream: list[Tensor],
    arriving: Mapping[str, list[Tensor | None]],
    kinds: list[str],
    stacks: list[str],
) -> list[EdgeFlow]:
    flows = []
    for b, stack in enumerate(stacks):
        for source, tangents in arriving.items():
            before = [j for j in range(b) if stacks[j] == source]
            moved = tangents[b]
            if not before or moved is None or adjoints[b].ndim != 3:
                continue
            values = torch.einsum("rtd,std->rst", adjoints[b], moved)
            flows.append(
                EdgeFlow(source=before[-1], target=b, kind="transformed", values=to_numpy(values))
            )
        previous = [j for j in range(b) if stacks[j] == stack]
        if kinds[b] == BRANCH and previous and stream[previous[-1]].shape == stream[b].shape:
            passed = _contract(adjoints[b], stream[previous[-1]])
            flows.append(
                EdgeFlow(source=previous[-1], target=b, kind="residual", values=to_numpy(passed))
            )
    return flows


def _contract(adjoint: Tensor, tangent: Tensor) -> Tensor:
    """Σ over features (R, T): of (n, T, d), of (n, d) as one position, of (n, c, h, w) by pixel."""
    product = adjoint * tangent
    if product.ndim == 2:
        return product.sum(1, keepdim=True)
    if product.ndim == 3:
        return product.sum(2)
    return product.sum(1).flatten(1)


def _repeated(inputs: Any, copies: int) -> Any:
    if isinstance(inputs, Mapping):
        return {k: _repeated(v, copies) for k, v in inputs.items()}
    return inputs.expand(copies, *inputs.shape[1:])


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention in plain operations, which have forward-mode rules."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
