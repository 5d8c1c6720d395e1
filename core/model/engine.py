"""The model seam: whatever needs a network goes through a :class:`ModelEngine`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

from ..errors import EngineNotFound, InvalidInputError
from ..types import Array
from .outputs import OutputDistribution
from .sites import Site


@runtime_checkable
class ModelEngine(Protocol):
    """Derivatives of a network's output distribution with respect to its named parameters.

    θ ∈ R^p is the flat vector of the sites, z = z(x; θ) ∈ R^C the output's natural or mean
    parameters (logits for a categorical), J_i = ∂z(x_i)/∂θ ∈ R^{C×p}.
    """

    @property
    def sites(self) -> tuple[Site, ...]:
        """Named parameters in the order of θ."""
        ...

    @property
    def output(self) -> OutputDistribution:
        """What the outputs z mean."""
        ...

    def theta(self) -> Array:
        """The flat parameters (p,)."""
        ...

    def predict(self, inputs: Any) -> Array:
        """Outputs z (n, C)."""
        ...

    def rows(self, inputs: Any, roots: Array) -> Array:
        """Rows U_i J_i (n, k, p) for roots U (n, k, C)."""
        ...

    def jvp(self, inputs: Any, direction: Array) -> Array:
        """J_i δ (n, C) for a direction δ (p,)."""
        ...

    def vjp(self, inputs: Any, cotangents: Array) -> Array:
        """Σ_i J_iᵀ u_i (p,) for cotangents u (n, C)."""
        ...

    def patch(self, delta: Array) -> AbstractContextManager[None]:
        """θ + δ inside the block; the original θ, bit for bit, on every exit."""
        ...


# (module, class) of a model -> "module:function" that wraps it; looked up along the MRO by name,
# so that no library is imported to recognise its models.
_ENGINES: dict[tuple[str, str], str] = {
    ("fishertope.core.model.dense", "DenseNetwork"): "fishertope.core.model.dense:DenseEngine",
    (
        "sklearn.neural_network._multilayer_perceptron",
        "BaseMultilayerPerceptron",
    ): "fishertope.core.model.dense:engine_from_sklearn",
    ("torch.nn.modules.module", "Module"): "fishertope.backends.torch_gpu.hooks:module_engine",
}


def register_engine(module: str, qualname: str, target: str) -> None:
    """Teach fishertope a type of model.

    Parameters
    ----------
    module, qualname : str
        Where the model's class is defined; subclasses are recognised too.
    target : str
        ``"module:callable"``; called as ``callable(model, output=..., **options)``.
    """
    _ENGINES[module, qualname] = target


def engine_for(model: Any, *, output: OutputDistribution | None = None, **options: Any) -> Any:
    """Wrap ``model`` in the engine registered for its type (an engine is returned as it is).

    Raises
    ------
    EngineNotFound
        If no engine is registered for the type; the message lists those that are.
    InvalidInputError
        If an engine is given together with an output distribution or options that it has not.
    """
    if isinstance(model, ModelEngine):
        if options or (output is not None and output != model.output):
            raise InvalidInputError(
                f"An engine with {model.output!r} was given together with output={output!r}"
                f"{''.join(f', {name}={value!r}' for name, value in options.items())}; an engine "
                "has its own. Make the engine with these, or give the model itself."
            )
        return model
    for cls in type(model).__mro__:
        target = _ENGINES.get((cls.__module__, cls.__qualname__))
        if target is not None:
            module, _, attribute = target.partition(":")
            make: Callable[..., Any] = getattr(import_module(module), attribute)
            return make(model, output=output, **options)
    known = ", ".join(f"{m.split('.')[0]}'s {c}" for m, c in _ENGINES)
    raise EngineNotFound(
        f"A {type(model).__module__}.{type(model).__qualname__} was given; engines are registered "
        f"for {known}. Give one of these, an object with the methods of "
        "fishertope.core.model.ModelEngine, or add yours with register_engine."
    )
