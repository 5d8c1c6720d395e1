"""Engine of modules made of common layers: activations and output gradients only.

One forward pass keeps the input of every call of a layer, one backward pass a root gives the
gradients at the layers' outputs; the gradient of each example follows from the two without another
pass. The first batch is checked against ordinary backpropagation, so that a parameter used behind
the layers' back is noticed instead of being left out; once for a module that looks the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast
from warnings import warn

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from ...core.errors import ConversionWarning, InvalidInputError
from ...core.model import LayerTerm, OutputDistribution, SiteLayout, unflatten
from ._layer_calls import Call, Passes, Unsupported, chosen
from ._layer_rules import Grads, LayerRule, TableRows, rule_of
from ._layer_terms import Terms, masks_in
from ._projecting import Projecting
from ._remembered import look_of, remember_checked, was_checked
from ._squares import SquareSums, summed
from .engine import ModuleEngine, OutputsOf, Roots, examples_at


class HooksEngine(ModuleEngine):
    """Derivatives of a module from its layers' inputs and output gradients.

    Parameters
    ----------
    module, output, outputs_of
        See :class:`ModuleEngine`.
    strict : bool
        Raise where the layers do not tell the gradients, instead of going over to function
        transforms with a warning.

    Raises
    ------
    InvalidInputError
        With ``strict``: if a parameter belongs to a layer without a rule, or the first batch shows
        that gradients do not come from the layers' calls alone, or mix examples.

    Notes
    -----
    Layers: Linear over vectors and sequences, Conv1d, Conv2d, Embedding, LayerNorm, RMSNorm,
    GroupNorm, BatchNorm (evaluation mode), and the Conv1D and RMSNorm layers of transformers.
    Tied parameters add the gradients of all their uses. Cost of k rows an example: one forward pass
    and k backward passes to the activations, and one product a layer and row.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        output: OutputDistribution | None = None,
        outputs_of: OutputsOf | None = None,
        strict: bool = True,
    ) -> None:
        super().__init__(module, output=output, outputs_of=outputs_of)
        self._strict = strict
        self._judge()

    def _judge(self) -> None:
        """Whether the layers of the chosen parameters have rules."""
        self._trusted = False
        self._work: Projecting | None = None
        self._refusal = why_not_hooks(self.module, self._names)
        self.explanation = f"hooks: every parameter belongs to a layer with a rule{self._copied}"
        if self._refusal:
            self.explanation = f"functional: {self._refusal}{self._copied}"
            if self._strict:
                self._give_up(self._refusal)

    def restricted(self, names: Iterable[str]) -> HooksEngine:
        """An engine over some of the sites; the choice between the two ways is made anew."""
        new = cast(HooksEngine, super().restricted(names))
        new._judge()
        return new

    def rows(self, inputs: Any, roots: Any) -> Tensor:
        """Rows U_i J_i (n, k, p)."""
        U = self._tensor(roots)
        out = U.new_zeros(len(U), U.shape[1], self._sites[-1].stop)

        def add(j: int, grads: Iterable[tuple[str, int, Tensor]]) -> None:
            for name, start, g in grads:
                site = self._by_name[name]
                part = out[start : start + len(g), j, site.start : site.stop]
                part += g.reshape(len(g), -1)

        if self._each_root(inputs, U, add):
            return out
        return super().rows(inputs, U)

    def diagonal(self, inputs: Any, roots: Any) -> Tensor:
        """Σ_k (U_i J_i)∘² for each example (n, p); no more than one root's rows are formed."""
        U = self._tensor(roots)
        out = U.new_zeros(len(U), self._sites[-1].stop)

        def add(j: int, grads: Iterable[tuple[str, int, Tensor]]) -> None:
            for name, start, g in summed(grads):
                site = self._by_name[name]
                out[start : start + len(g), site.start : site.stop] += g.reshape(len(g), -1) ** 2

        if self._each_root(inputs, U, add):
            return out
        return super().diagonal(inputs, U)

    def diagonal_sum(self, inputs: Any, roots: Roots) -> tuple[Tensor, Tensor]:
        """Σ_i Σ_k (U_i J_i)∘² (p,), and its sums over each site for each example (n, sites).

        In blocks of few examples; a table of embeddings is not formed. ``roots`` may be a function
        of the outputs z: then one forward pass serves both.
        """
        found = self._squares(inputs, roots)
        if found is None:
            return super().diagonal_sum(inputs, roots)
        sums, norms = found
        like = next(iter(norms.values()))
        out = like.new_zeros(self._sites[-1].stop)
        traces = like.new_zeros(len(like), len(self._sites))
        for number, site in enumerate(self._sites):
            total = sums.get(site.name)
            view = out[site.start : site.stop].view(site.shape)
            if isinstance(total, TableRows):
                view[total.rows] = total.values
            elif total is not None:
                view.copy_(total)
            if total is not None:
                traces[:, number] = norms[site.name]
        return out, traces

    def squares(self, inputs: Any, roots: Roots) -> tuple[dict[str, Any], Grads]:
        """What :meth:`diagonal_sum` gives, by parameter; of tables of embeddings the used rows.

        Returns
        -------
        sums : dict of str to Tensor, or to (rows (u,), values (u, d)) for a table
        norms : dict of str to Tensor (n,)
        """
        found = self._squares(inputs, roots)
        if found is not None:
            sums, norms = found
            return {n: _as_pair(x) for n, x in sums.items()}, norms
        total, traces = super().diagonal_sum(inputs, roots)
        by_site = unflatten(total, self._sites)
        return dict(by_site), {s.name: traces[:, k] for k, s in enumerate(self._sites)}

    def _squares(
        self, inputs: Any, roots: Roots
    ) -> tuple[dict[str, Tensor | TableRows], Grads] | None:
        """Sums and norms, or ``None`` where the layers do not tell them."""
        if not self._refusal:
            try:
                with self._recorded(self._moved(inputs), roots) as (calls, passes):
                    squares = SquareSums(self._site_names, calls)
                    for _, deltas in passes:
                        squares.add(calls, deltas)
                    sums, norms = squares.finish()
                    if not norms:  # no root: zeros, of the batch's length
                        norms[self._names[0]] = passes.z.new_zeros(len(passes.z))
                return sums, norms
            except Unsupported as refusal:
                self._give_up(str(refusal))
        return None

    def projected(self, inputs: Any, roots: Any, projection: Any, key: int) -> Tensor:
        """Rows times a random projection (n, k, d), layer by layer; no whole row is formed."""
        U = self._tensor(roots)
        out = U.new_zeros(U.shape[1], len(U), projection.dim)
        if not self._refusal:
            try:
                with self._recorded(self._moved(inputs), U) as (calls, passes):
                    work = self._projecting(projection, key)
                    for first, deltas in passes:
                        for call, delta in zip(calls, deltas, strict=True):
                            if delta is None:
                                continue
                            for j in range(len(delta)):
                                work.add(self._site_names, out[first + j], call, delta[j])
                return out.transpose(0, 1).contiguous()
            except Unsupported as refusal:
                self._give_up(str(refusal))
        return super().projected(inputs, U, projection, key)

    def _projecting(self, projection: Any, key: int) -> Projecting:
        """What is drawn for a projection, kept from one batch to the next."""
        work = self._work
        if work is None or (work.projection, work.key) != (projection, key):
            work = self._work = Projecting(self.sites, projection, key)
        return work

    @property
    def shows_layers(self) -> bool:
        """Whether :meth:`layer_terms` works: not where function transforms are used."""
        return not self._refusal

    def layer_terms(
        self,
        inputs: Any,
        roots: Roots | None,
        layouts: Mapping[str, SiteLayout],
        visit: Callable[[LayerTerm], None],
    ) -> tuple[dict[str, Any], Grads]:
        """Inputs and output gradients of the sites in ``layouts``, squares of the others.

        Raises
        ------
        InvalidInputError
            Where the layers do not tell the gradients of this batch.
        """
        moved = self._moved(inputs)
        covered = {p for layout in layouts.values() for p in layout.parameters}
        try:
            with self._recorded(moved, roots) as (calls, passes):
                rest = {p: n for p, n in self._site_names.items() if n not in covered}
                squares = SquareSums(rest, calls)
                terms = Terms(calls, self._site_names, layouts, masks_in(moved))
                if roots is None:
                    for site in terms.sites:
                        visit(terms.of(site, None, first=True))
                    return {}, {}
                for first, deltas in passes:
                    with torch.no_grad():
                        for site in terms.sites:
                            visit(terms.of(site, deltas, first=first == 0))
                        squares.add(calls, deltas)
                sums, norms = squares.finish()
                return {n: _as_pair(x) for n, x in sums.items()}, norms
        except Unsupported as refusal:
            reason = str(refusal)
        raise InvalidInputError(
            f"This structure is made from the layers' inputs and output gradients, but of this "
            f"{type(self.module).__name__} {reason}. Choose 'diagonal', 'block' or "
            "'lowrank+diagonal' with engine='functional', or leave the parameter out with params=."
        )

    def _each_root(
        self,
        inputs: Any,
        U: Tensor,
        add: Callable[[int, Iterable[tuple[str, int, Tensor]]], None],
    ) -> bool:
        """Hand the gradients of one root after another to ``add``; ``False`` where refused."""
        if self._refusal:
            return False
        try:
            with self._recorded(self._moved(inputs), U) as (calls, passes):
                for first, deltas in passes:
                    k = next((len(d) for d in deltas if d is not None), 0)
                    for j in range(k):
                        add(first + j, self._grads(calls, deltas, j))
        except Unsupported as refusal:
            self._give_up(str(refusal))
            return False
        return True

    def _grads(
        self, calls: Sequence[Call], deltas: Sequence[Tensor | None], j: int
    ) -> Iterator[tuple[str, int, Tensor]]:
        for call, delta in zip(calls, deltas, strict=True):
            if delta is not None:
                found = call.rule.per_example(call.layer, call.ready(), delta[j])
                for name, g in chosen(self._site_names, call.layer, found):
                    yield name, 0, g

    @contextmanager
    def _recorded(self, inputs: Any, roots: Roots | None) -> Iterator[tuple[list[Call], Passes]]:
        """Forward pass with the layers' calls, and the output gradients of one root or more."""
        given = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs
        n = len(given)
        if roots is not None and not callable(roots) and len(roots) != n:
            raise InvalidInputError(
                f"Roots of {len(roots)} examples were given for a batch of {n}; one each."
            )
        with self._quiet(), torch.enable_grad():
            self._check_once(inputs, n)
            calls, z = self._forward(inputs, n)
            if roots is None:
                U = z.new_zeros(n, 0, z.shape[1])
            else:
                U = self._tensor(roots(z.detach()) if callable(roots) else roots)
            yield calls, Passes(calls, z, U)

    def _check_once(self, inputs: Any, n: int) -> None:
        """Check the first batch, unless this was done when the module looked the same."""
        if self._trusted:
            return
        look = look_of(self.module, self._names, inputs, self._outputs_of)
        if was_checked(self.module, look):
            self._trusted = True
            return
        # Two examples tell as much as all: what is missing, and what mixes them.
        calls, z = self._forward(examples_at(inputs, slice(0, 2)), min(n, 2))
        if z.requires_grad:
            self._check_first(calls, z)
            # A single example cannot show whether a batch is mixed.
            self._trusted = z.shape[0] > 1
        if self._trusted:
            remember_checked(self.module, look)

    def _forward(self, inputs: Any, n: int) -> tuple[list[Call], Tensor]:
        """Outputs z (n, C), and every call of a layer with chosen parameters."""
        handles: list[Any] = []
        calls: list[Call] = []

        def keep(layer: nn.Module, args: Any, result: Any) -> None:
            calls.append(self._call_of(layer, args, result, n))

        def widen(layer: nn.Module, args: Any) -> Any:
            # One row of positions for all examples becomes one row each.
            if isinstance(layer, nn.Embedding) and args and args[0].shape[0] == 1 < n:
                return (args[0].expand(n, *args[0].shape[1:]),)
            return None

        try:
            for layer in self._layers():
                handles.append(layer.register_forward_pre_hook(widen))
                handles.append(layer.register_forward_hook(keep))
            # The parameters are the module's own: nothing has to be put in their place.
            args, kwargs = ((), inputs) if isinstance(inputs, Mapping) else ((inputs,), {})
            return calls, self._read(self.module(*args, **kwargs), inputs)
        finally:
            for handle in handles:
                handle.remove()

    def _call_of(self, layer: nn.Module, args: Any, result: Any, n: int) -> Call:
        name, rule = self._known[layer]
        x = args[0] if args else None
        if not isinstance(x, Tensor) or not isinstance(result, Tensor):
            raise Unsupported(f"{name!r} is called with something else than one tensor")
        if x.shape[0] != n or result.shape[0] != n:
            raise Unsupported(
                f"{name!r} is called with an input of shape {tuple(x.shape)}, whose first axis is "
                f"not the {n} examples"
            )
        edge = get_gradient_edge(result)
        return Call(layer, name, rule, x.detach(), x._version, edge, tuple(result.shape))

    def _check_first(self, calls: list[Call], z: Tensor) -> None:
        """Compare with backpropagation: every gradient found, and none of another example's."""
        generator = torch.Generator(device=z.device).manual_seed(0)
        u = torch.zeros_like(z)
        u[0] = torch.randn(z.shape[1], generator=generator, device=z.device, dtype=z.dtype)
        attached = self._attached()
        edges = [c.edge for c in calls]
        found = torch.autograd.grad(
            z, [*edges, *attached.values()], u, retain_graph=True, allow_unused=True
        )
        deltas, truth = found[: len(edges)], found[len(edges) :]
        sums: Grads = {}
        with torch.no_grad():
            for call, delta in zip(calls, deltas, strict=True):
                if delta is None:
                    continue
                if bool((delta[1:] != 0).any()):
                    raise Unsupported(f"{call.name!r} mixes the examples of a batch")
                one = call.rule.per_example(call.layer, call.ready()[:1], delta[:1])
                for name, g in chosen(self._site_names, call.layer, one):
                    sums[name] = sums[name] + g[0] if name in sums else g[0]
        close = 1e-8 if z.dtype == torch.float64 else 1e-3
        for name, true in zip(attached, truth, strict=True):
            if true is None:
                continue
            # The largest entry without arrays of absolute values.
            low, high = torch.aminmax(true)
            scale = max(-float(low), float(high))
            off = true if name not in sums else sums[name].reshape(true.shape).sub_(true)
            low, high = torch.aminmax(off)
            if not max(-float(low), float(high)) <= close * scale + close * 1e-6:
                raise Unsupported(f"{name!r} is also used outside the calls of its layer")

    def _attached(self) -> dict[str, Tensor]:
        """The chosen parameters themselves, which record gradients."""
        parameters = dict(self.module.named_parameters())
        return {n: parameters[n] for n in self._names}

    def _layers(self) -> list[nn.Module]:
        """Layers with chosen parameters, and what is known of them."""
        attached = self._attached()
        self._site_names = {p: n for n, p in attached.items()}
        self._by_name = {s.name: s for s in self._sites}
        self._known: dict[nn.Module, tuple[str, LayerRule]] = {}
        for name, layer in self.module.named_modules():
            own = list(layer.parameters(recurse=False))
            if any(p in self._site_names for p in own):
                rule = rule_of(layer)
                if rule is None:
                    raise Unsupported(f"{name!r} ({type(layer).__name__}) has no rule")
                self._known[layer] = (name, rule)
        return list(self._known)

    def _give_up(self, reason: str) -> None:
        self._refusal = reason
        self.explanation = f"functional: {reason}{self._copied}"
        if self._strict:
            raise InvalidInputError(
                f"engine='hooks' was asked for this {type(self.module).__name__}, but {reason}. "
                "Use engine='functional', or leave the parameter out with params=."
            )
        warn(
            f"{type(self.module).__name__}: {reason}; function transforms are used, which is "
            "slower.",
            ConversionWarning,
            stacklevel=4,
        )


def why_not_hooks(module: nn.Module, names: Sequence[str]) -> str:
    """The first reason why the hooks engine cannot differentiate these parameters, or ""."""
    parameters = dict(module.named_parameters())
    chosen = {parameters[n] for n in names}
    for name, layer in module.named_modules():
        own = [p for p in layer.parameters(recurse=False) if p in chosen]
        if own and rule_of(layer) is None:
            return f"{name or 'the module itself'!r} ({type(layer).__name__}) has no rule"
    return ""


def module_engine(
    module: nn.Module,
    *,
    output: OutputDistribution | None = None,
    outputs_of: OutputsOf | None = None,
    engine: str = "auto",
) -> ModuleEngine:
    """The engine of a module: hooks where every parameter allows it, else function transforms.

    Parameters
    ----------
    module, output, outputs_of
        See :class:`ModuleEngine`.
    engine : {"auto", "hooks", "functional"}
        "auto" explains its choice in ``explanation``.

    Raises
    ------
    InvalidInputError
        For another name, or "hooks" where the layers do not allow it.
    """
    if engine == "functional":
        return ModuleEngine(module, output=output, outputs_of=outputs_of)
    if engine == "hooks":
        return HooksEngine(module, output=output, outputs_of=outputs_of)
    if engine != "auto":
        raise InvalidInputError(
            f"engine={engine!r} was given; accepted: 'auto', 'hooks', 'functional'."
        )
    return HooksEngine(module, output=output, outputs_of=outputs_of, strict=False)


def _as_pair(x: Tensor | TableRows) -> Any:
    return (x.rows, x.values) if isinstance(x, TableRows) else x
