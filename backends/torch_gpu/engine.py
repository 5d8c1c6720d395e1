"""Engine of any ``torch.nn.Module`` by function transforms: exact rows, JVPs and VJPs.

The module is called functionally, in evaluation mode, one example at a time under ``vmap``, so that
examples cannot influence one another (no batch statistics). Parameters that are tied count once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from difflib import get_close_matches
from typing import Any
from warnings import warn

import torch
from torch.func import functional_call, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...core.errors import ConversionWarning, InvalidInputError
from ...core.fisher.reduction import FactoredProjection
from ...core.model import (
    Categorical,
    OutputDistribution,
    Site,
    SiteLayout,
    sites_of,
    unflatten,
)
from ...core.model.tracing import TracedFlows
from ._half import float32_copy, halves_of
from ._layer_terms import layouts_of
from ._remembered import digests_of

# Rows that are only squared and summed take at most this many bytes at a time.
ROW_BYTES = 64 << 20


OutputsOf = Callable[[Any, Any], torch.Tensor]
# Roots U (n, k, C), or how they follow from the outputs z (n, C), which saves a forward pass.
Roots = Any | Callable[[torch.Tensor], Any]


class ModuleEngine:
    """Derivatives of a module's outputs z (n, C) with respect to its named parameters.

    Parameters
    ----------
    module : torch.nn.Module
        Called as ``module(inputs)``, or ``module(**inputs)`` for dict batches; returns z (n, C), or
        an object with ``logits``.
    output : OutputDistribution, optional
        ``Categorical()`` unless told otherwise.
    outputs_of : callable, optional
        ``outputs_of(returned, inputs)`` turns what the module returns into z (n, C), for models
        that return something else.

    Notes
    -----
    Parameters that do not require gradients are left out, and rows of an embedding's
    ``padding_idx`` have none, as in training. Training mode, gradients and the random
    state are as before after every call. float16 and bfloat16 modules are differentiated in a
    float32 copy, made with the engine; :meth:`patch` moves both by δ, the module as far as its
    dtype tells.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        output: OutputDistribution | None = None,
        outputs_of: OutputsOf | None = None,
    ) -> None:
        halves = halves_of(module)
        # Where the user's module is in half precision, ``module`` is its float32 copy.
        self.given, self.module = module, float32_copy(module) if halves else module
        module = self.module
        self._copied = f"; in a float32 copy of {' and '.join(halves)}" if halves else ""
        self.explanation = f"functional: asked for by name{self._copied}"
        self._looped = False
        self._output: OutputDistribution = Categorical() if output is None else output
        self._outputs_of = outputs_of or _logits
        # named_parameters lists a tied parameter once, under its first name.
        self._names = [n for n, p in module.named_parameters() if p.requires_grad]
        parameters = dict(module.named_parameters())
        self._places = _places(module, {parameters[n]: n for n in self._names})
        if not self._names:
            raise InvalidInputError(
                f"No parameter of this {type(module).__name__} requires gradients; set "
                "requires_grad on those to differentiate."
            )
        dtypes = {parameters[n].dtype for n in self._names}
        if len(dtypes) > 1:
            raise InvalidInputError(
                f"Parameters of dtype {', '.join(sorted(str(d) for d in dtypes))} were given; all "
                "float32 or all float64 is taken. Use module.float() on a copy."
            )
        self._sites = sites_of({n: tuple(parameters[n].shape) for n in self._names})

    @property
    def sites(self) -> tuple[Site, ...]:
        """Parameters that require gradients, by their names in the module."""
        return self._sites

    @property
    def output(self) -> OutputDistribution:
        """What the outputs mean."""
        return self._output

    def theta(self) -> torch.Tensor:
        """The flat parameters (p,), a copy."""
        return torch.cat([p.reshape(-1) for p in self._parameters().values()])

    def model_sha256(self) -> str:
        """SHA-256 of all parameters and buffers of the module, the frozen ones included."""
        return digests_of(self.module)["model_sha256"]

    def digests(self) -> dict[str, str]:
        """SHA-256 of all parameters and buffers, the frozen ones included, and of θ alone."""
        return digests_of(self.module, self._names)

    def predict(self, inputs: Any) -> torch.Tensor:
        """Outputs z (n, C) of the batch."""
        with self._quiet(), torch.no_grad():
            return self._call(self._parameters(), self._moved(inputs))

    def hidden(self, inputs: Any, layer: str) -> torch.Tensor:
        """What a submodule returns for the batch (n, ...); the first of several things.

        Raises
        ------
        InvalidInputError
            No submodule of that name, or it was not called exactly once.
        """
        submodules = dict(self.module.named_modules())
        if layer not in submodules:
            near = ", ".join(get_close_matches(layer, submodules, n=4)) or ", ".join(
                list(submodules)[1:9]
            )
            raise InvalidInputError(
                f"layer={layer!r} was given; this {type(self.module).__name__} has no submodule of "
                f"that name. Near ones: {near}."
            )
        seen: list[torch.Tensor] = []

        def keep(module: torch.nn.Module, args: Any, returned: Any) -> None:
            seen.append(returned if isinstance(returned, torch.Tensor) else returned[0])

        handle = submodules[layer].register_forward_hook(keep)
        try:
            self.predict(inputs)
        finally:
            handle.remove()
        if len(seen) != 1:
            raise InvalidInputError(
                f"{layer!r} was called {len(seen)} times in one pass; a submodule that is called "
                "once is taken."
            )
        return seen[0].detach()

    @property
    def layouts(self) -> Mapping[str, SiteLayout]:
        """Layouts [W|b] of the weights of linear layers and convolutions."""
        return layouts_of(list(self.module.modules()), self._by_parameter())

    @property
    def tables(self) -> frozenset[str]:
        """Parameters of embeddings, of whose rows most examples use few."""
        names = self._by_parameter()
        layers = (m for m in self.module.modules() if isinstance(m, torch.nn.Embedding))
        owned = {p for m in layers for p in m.parameters(recurse=False)}
        return frozenset(n for p, n in names.items() if p in owned)

    def _by_parameter(self) -> dict[torch.Tensor, str]:
        parameters = dict(self.module.named_parameters())
        return {parameters[n]: n for n in self._names}

    def restricted(self, names: Iterable[str]) -> ModuleEngine:
        """An engine of the same module over some of the sites only, in their old order.

        Raises
        ------
        InvalidInputError
            For a name that is none of the sites'.
        """
        wanted = set(names)
        unknown = sorted(wanted - set(self._names))
        if unknown or not wanted:
            raise InvalidInputError(
                f"Sites {unknown or 'none'} were given; choose from {', '.join(self._names[:12])}."
            )
        new = copy(self)
        new._names = [n for n in self._names if n in wanted]
        new._sites = sites_of({s.name: s.shape for s in self._sites if s.name in wanted})
        return new

    def rows(self, inputs: Any, roots: Any) -> torch.Tensor:
        """Rows U_i J_i (n, k, p): k reverse passes an example, all examples at once.

        Where the module cannot be mapped over examples they are taken one by one, with a warning.
        """
        inputs = self._moved(inputs)
        U = self._tensor(roots)
        if not self._looped:
            try:
                return self._mapped_rows(inputs, U)
            except RuntimeError as error:
                reason = str(error).strip().split("\n")[0][:120]
            looped = self._looped_rows(inputs, U)  # an error of the model itself comes again here
            warn(
                f"{type(self.module).__name__} cannot be mapped over examples ({reason}); they are "
                "differentiated one by one, which is slower.",
                ConversionWarning,
                stacklevel=2,
            )
            self._looped = True
            return looped
        return self._looped_rows(inputs, U)

    def diagonal(self, inputs: Any, roots: Any) -> torch.Tensor:
        """Σ_k (U_i J_i)∘² for each example (n, p)."""
        U = self._tensor(roots)
        out = U.new_zeros(len(U), self._sites[-1].stop)
        for part, batch in self._pieces(self._moved(inputs), U):
            out[part] = self.rows(batch, U[part]).square_().sum(1)
        return out

    def diagonal_sum(self, inputs: Any, roots: Roots) -> tuple[torch.Tensor, torch.Tensor]:
        """Σ_i Σ_k (U_i J_i)∘² (p,) and its sums over each site for each example (n, sites).

        A bounded number of rows at a time. ``roots`` may be a function of the outputs z.
        """
        U = self._tensor(roots(self.predict(inputs)) if callable(roots) else roots)
        out = U.new_zeros(self._sites[-1].stop)
        traces = U.new_zeros(len(U), len(self._sites))
        for part, batch in self._pieces(self._moved(inputs), U):
            squares = self.rows(batch, U[part]).square_().sum(1)
            out += squares.sum(0)
            for i, site in enumerate(self._sites):
                traces[part, i] = squares[:, site.start : site.stop].sum(1)
        return out, traces

    def projected(self, inputs: Any, roots: Any, projection: Any, key: int) -> torch.Tensor:
        """Rows times a random projection (n, k, d), a bounded number of rows at a time.

        Raises
        ------
        InvalidInputError
            For a factored projection, which needs the layers' inputs.
        """
        if isinstance(projection, FactoredProjection):
            raise InvalidInputError(
                f"FactoredProjection was given, but the gradients of this "
                f"{type(self.module).__name__} are not taken from its layers "
                f"({self.explanation}). Use RandomProjection({projection.dim})."
            )
        U = self._tensor(roots)
        sketch = projection.sketch(key)
        out = U.new_zeros(len(U), U.shape[1], projection.dim)
        for part, batch in self._pieces(self._moved(inputs), U):
            rows = self.rows(batch, U[part])
            sketch.add(out[part].view(-1, projection.dim), rows.reshape(-1, rows.shape[2]), 0)
        return out

    def traced(self, inputs: Any, delta: Any, roots: Any, **options: Any) -> TracedFlows:
        """Contributions to U J δ of one example, by block and position; see ``tracing.traced``."""
        from .tracing import traced

        return traced(self, inputs, self._tensor(delta), self._tensor(roots), **options)

    def _pieces(self, inputs: Any, U: torch.Tensor) -> Iterator[tuple[slice, Any]]:
        row = max(1, U.shape[1] * self._sites[-1].stop * U.element_size())
        size = max(1, ROW_BYTES // row)
        for start in range(0, len(U), size):
            part = slice(start, start + size)
            yield part, examples_at(inputs, part)

    def _looped_rows(self, inputs: Any, U: torch.Tensor) -> torch.Tensor:
        out = U.new_zeros(len(U), U.shape[1], self._sites[-1].stop)
        with self._quiet():
            for i in range(len(U)):
                one = examples_at(inputs, slice(i, i + 1))
                leaves = {n: p.clone().requires_grad_() for n, p in self._parameters().items()}
                with torch.enable_grad():
                    z = self._call(leaves, one)
                for j in range(U.shape[1]):
                    found = torch.autograd.grad(
                        z, list(leaves.values()), U[i, j][None], retain_graph=True,
                        allow_unused=True,
                    )  # fmt: skip
                    for site, g in zip(self._sites, found, strict=True):
                        if g is not None:
                            out[i, j, site.start : site.stop] = g.reshape(-1)
        return out

    def _mapped_rows(self, inputs: Any, U: torch.Tensor) -> torch.Tensor:
        with self._quiet():
            parameters = self._parameters()

            def one(example: Any, root: torch.Tensor) -> torch.Tensor:
                back = vjp(lambda q: self._call(q, _batch_of_one(example))[0], parameters)[1]
                (parts,) = vmap(back)(root)
                return torch.cat([parts[n].reshape(len(root), -1) for n in self._names], dim=1)

            # The fused attention kernels have no batching rule, their plain form has.
            with sdpa_kernel(SDPBackend.MATH):
                return vmap(one)(inputs, U).detach()

    def jvp(self, inputs: Any, direction: Any) -> torch.Tensor:
        """J_i δ (n, C): one forward-mode pass."""
        inputs = self._moved(inputs)
        # Fused attention has no forward-mode rule, its plain form has.
        with self._quiet(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            tangents = unflatten(self._tensor(direction), self._sites)
            parameters = self._parameters()
            return jvp(lambda q: self._call(q, inputs), (parameters,), (dict(tangents),))[1]

    def vjp(self, inputs: Any, cotangents: Any) -> torch.Tensor:
        """Σ_i J_iᵀ u_i (p,): one reverse pass."""
        inputs = self._moved(inputs)
        with self._quiet():
            back = vjp(lambda q: self._call(q, inputs), self._parameters())[1]
            (parts,) = back(self._tensor(cotangents))
            return torch.cat([parts[n].reshape(-1) for n in self._names]).detach()

    @contextmanager
    def patch(self, delta: Any) -> Iterator[None]:
        """θ + δ inside the block, in the module itself; the original bits on every exit."""
        parts = unflatten(self._tensor(delta), self._sites)
        names = set(self._names)
        # The module's and its copy's parameters; those that both have, once.
        moved = {
            p: n for m in (self.module, self.given) for n, p in m.named_parameters() if n in names
        }
        before = {p: p.detach().clone() for p in moved}
        try:
            with torch.no_grad():
                for p, n in moved.items():
                    p.add_(parts[n])
            yield
        finally:
            with torch.no_grad():
                for p, old in before.items():
                    p.copy_(old)

    def _parameters(self) -> dict[str, torch.Tensor]:
        parameters = dict(self.module.named_parameters())
        return {n: parameters[n].detach() for n in self._names}

    def _call(self, parameters: Mapping[str, torch.Tensor], inputs: Any) -> torch.Tensor:
        args, kwargs = ((), inputs) if isinstance(inputs, Mapping) else ((inputs,), {})
        # With ties found by functional_call itself, a module that is used twice keeps the tensor
        # that was put in place of its parameter.
        values = {place: p for n, p in parameters.items() for place in self._places[n]}
        returned = functional_call(self.module, values, args, dict(kwargs), tie_weights=False)
        return self._read(returned, inputs)

    def _read(self, returned: Any, inputs: Any) -> torch.Tensor:
        """Outputs z (n, C) from what the module returned."""
        z = self._outputs_of(returned, inputs)
        if z.ndim != 2:
            raise InvalidInputError(
                f"The module returned outputs of shape {tuple(z.shape)}; (n, C) is taken. Give "
                "outputs_of=, a function of what the module returns and its inputs to z (n, C)."
            )
        return z

    def _tensor(self, x: Any) -> torch.Tensor:
        like = self.module.get_parameter(self._names[0])
        return torch.as_tensor(x, dtype=like.dtype, device=like.device)

    def _moved(self, inputs: Any) -> Any:
        """The batch on the module's device; floats in its dtype, finite."""
        if isinstance(inputs, Mapping):
            return {k: self._moved(v) for k, v in inputs.items()}
        x = torch.as_tensor(inputs)
        like = self.module.get_parameter(self._names[0])
        if not x.is_floating_point():
            return x.to(like.device)
        # Both ends of a range are NaN where any entry is.
        if x.numel() and not all(torch.isfinite(end) for end in torch.aminmax(x)):
            raise InvalidInputError("The inputs hold NaN or infinite entries; drop or fill them.")
        return x.to(device=like.device, dtype=like.dtype)

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Evaluation mode and an untouched random state; every mode as before on exit."""
        modes = [(m, m.training) for m in self.module.modules()]
        self.module.eval()
        try:
            with torch.random.fork_rng(devices=_cuda_devices(self.module)):
                yield
        finally:
            for m, training in modes:
                m.training = training


def _places(module: torch.nn.Module, names: Mapping[torch.Tensor, str]) -> dict[str, list[str]]:
    """Where each parameter stands, by its name: several places if it is tied, each module once."""
    found: dict[str, list[str]] = {name: [] for name in names.values()}
    for path, inner in module.named_modules():
        for attribute, parameter in inner.named_parameters(recurse=False, remove_duplicate=False):
            if parameter in names:
                found[names[parameter]].append(f"{path}.{attribute}" if path else attribute)
    return found


def _logits(returned: Any, inputs: Any) -> torch.Tensor:
    return returned if isinstance(returned, torch.Tensor) else returned.logits


def _batch_of_one(example: Any) -> Any:
    if isinstance(example, Mapping):
        return {k: v.unsqueeze(0) for k, v in example.items()}
    return example.unsqueeze(0)


def examples_at(inputs: Any, part: slice) -> Any:
    """The examples of a slice."""
    if isinstance(inputs, Mapping):
        return {k: v[part] for k, v in inputs.items()}
    return inputs[part]


def _cuda_devices(module: torch.nn.Module) -> list[torch.device]:
    return list({p.device for p in module.parameters() if p.device.type == "cuda"})
