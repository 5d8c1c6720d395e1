"""Merge models: the one entry for every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..backend import BackendChoice, current_threads, select_backend, to_backend
from ..errors import InvalidInputError
from ..types import Array, Device
from .anchors import Anchor, Damping
from .groups import Tree
from .inputs import check_weights
from .methods import Method, Request, method_of
from .provenance import check_trees, precision_trees
from .sites import SitePolicy
from .solution import MergeSolution
from .solvers.options import Solver, solver_of
from .sources import Source, read


def merge(
    sources: Sequence[Any],
    precisions: Sequence[Mapping[str, Any]] | None = None,
    *,
    method: str | Method = "quadratic",
    weights: Sequence[float] | None = None,
    anchor: Any = None,
    damping: Damping | float | tuple[float, Any] | None = None,
    solver: Solver | str = "auto",
    sites: SitePolicy | Mapping[str, str] | None = None,
    backend: BackendChoice = "auto",
    device: Device = None,
    seed: int = 0,
    nonfinite: str = "error",
    fallback: str = "mean",
    deterministic: bool = False,
    check_models: bool = True,
    **options: Any,
) -> MergeSolution:
    """Merge models into one.

    Parameters
    ----------
    sources : sequence of models
        Mappings from names to arrays (NumPy or torch, such as state dicts), torch modules, dense
        networks, scikit-learn MLPs; of one architecture up to what ``sites`` says. Source 0 is the
        target: the result has its dtypes and, where a rule says so, its head.
    precisions : sequence of PrecisionTree or mapping, optional
        One a source: from :func:`estimate_precision`, or {name: Precision or array}; arrays are
        diagonals.
    method : str or method object
        "quadratic" (these precisions as they are), "isotropic", "fisher", "regmean", "regmean++",
        "mats", "gradient_matching", "df_merge", "ota", "wudi", "uniform_soup", "wise_ft",
        "task_arithmetic", "model_stock", "ties", "dare", "della", "breadcrumbs", "slerp". Options
        of the method are further keywords (``merge(..., method="ties", density=0.2)``).
    weights : sequence of float, optional
        λ, one a source, ≥ 0 (of either sign for methods on differences); 1/n each by default.
    anchor : model or Anchor, optional
        θ_0: the base model of methods on differences; with a precision, a further term of the
        objective. Directions that nothing determines stay at θ_0.
    damping : float, (float, mode) or Damping, optional
        ρ of the quadratic methods; see :class:`Damping`. None by default: choose it for structures
        beyond the diagonal, an under-damped merge can be far worse than averaging.
    solver : str or solver object
        "auto" says in each site's report what it chose and why; see :class:`Auto`.
    sites : SitePolicy or mapping of name pattern to action, optional
        ``{"head.*": "take:0", "*.running_mean": "average", "old.*": "skip"}``.
    backend : str or Backend
        "auto" computes in the arrays' own library; "torch" with ``device="cuda"`` on a GPU, and
        "numba" or "reference" in NumPy. Results come back in source 0's library and device.
    device : optional
    seed : int
        Of the random drops; every entry's draw depends on it and on the tensor's name only.
    nonfinite : {"error", "skip", "propagate"}
    fallback : {"mean", "error"}
        Directions without precision and without an anchor: see :class:`MergeProblem`.
    deterministic : bool
        The order of the sources does not change a bit of the result.
    check_models : bool
        Refuse precisions that were estimated for other parameters than the source's (by hash).
    **options
        Of the method.

    Returns
    -------
    MergeSolution

    Raises
    ------
    InvalidInputError
        Anything that does not fit, with the tensors and sources in the message.
    SolveFailedError
        An iterative solver that did not converge.

    Notes
    -----
    Everything is computed in float64 in delta form, so that equal sources come back bit for bit.
    Memory: the tensors of one group, its precisions, and the result. Cost by structure:
    docs/merging.md.

    Examples
    --------
    >>> a, b = {"w": np.array([1.0, 0.0])}, {"w": np.array([3.0, 4.0])}
    >>> merge([a, b]).params["w"]
    array([2., 2.])
    >>> fishers = [{"w": np.array([3.0, 1.0])}, {"w": np.array([1.0, 1.0])}]
    >>> merge([a, b], fishers, method="fisher").params["w"]
    array([1.5, 2. ])
    >>> merge([a, b], anchor={"w": np.zeros(2)}, method="task_arithmetic").params["w"]
    array([2., 2.])
    """
    if isinstance(sources, Mapping) or not isinstance(sources, Sequence) or not sources:
        raise InvalidInputError(
            f"sources of type {type(sources).__name__} were given; a sequence of at least one "
            "model is accepted."
        )
    chosen = method_of(method, options)
    read_sources = tuple(Source.of(m, i) for i, m in enumerate(sources))
    like, name = _like(read_sources, backend, device)
    trees = None
    clipped = 0
    if precisions is not None:
        trees, clipped = precision_trees(precisions, len(read_sources))
        check_trees(trees, read_sources, check_models=check_models)
    request = Request(
        sources=read_sources,
        precisions=trees,
        weights=check_weights(weights, len(read_sources), signed=chosen.signed_weights),
        anchor=_anchor(anchor),
        damping=Damping.of(damping),
        solver=solver_of(solver),
        sites=SitePolicy.of(sites),
        nonfinite=nonfinite,
        fallback=fallback,
        deterministic=deterministic,
        seed=seed,
        like=like,
        backend=backend,
    )
    found = chosen.run(request)
    facts: dict[str, Any] = {
        **found.facts, "backend": _backend_name(like, name), "threads": current_threads(),
        "clipped_precisions": clipped, "sites": request.sites.to_dict(), "options": repr(chosen),
    }  # fmt: skip
    return replace(found, facts=facts)


def _anchor(given: Any) -> Anchor | None:
    if given is None or isinstance(given, Anchor):
        return given
    return Anchor(given)


def _like(sources: Sequence[Source], backend: BackendChoice, device: Device) -> tuple[Array, str]:
    """An array of the library and device of the computation, and the backend's name.

    Raises
    ------
    ArrayTypeError
        Under "auto", for sources of several libraries.
    """
    firsts = [next(iter(s.arrays.values())) for s in sources]
    chosen = select_backend(*firsts, backend=backend)
    example = read(firsts[0])
    if backend == "auto" and device is None:
        return example.reshape(-1)[:0], chosen.name
    return to_backend(np.zeros(0), chosen, device=device), chosen.name


def _backend_name(like: Array, name: str) -> str:
    return name if isinstance(like, np.ndarray) else f"{name} on {like.device}"


__all__ = ["Tree", "merge"]
