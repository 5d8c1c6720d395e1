"""Precisions as they are handed in, and whether they belong to the sources."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj

from ..backend import to_numpy
from ..errors import InvalidInputError
from ..fisher.structures import Diagonal, Precision
from .groups import Tree, layouts_of
from .sources import Source

NEGATIVE_TOLERANCE = 1e-10
"""Negative entries of a diagonal down to this share of its largest are rounding and become 0."""

# Facts that must agree, or sums of the precisions mean nothing.
_UNITS = ("normalisation", "token_normalisation", "per")


def precision_trees(given: Sequence[Mapping[str, Any]], n: int) -> tuple[tuple[Tree, ...], int]:
    """Trees of structures, and how many tiny negative entries were set to 0.

    Raises
    ------
    InvalidInputError
        Another number of trees than sources, or entries that are no precisions.
    """
    if isinstance(given, Mapping) or not isinstance(given, Sequence) or len(given) != n:
        size = len(given) if isinstance(given, Sequence) else type(given).__name__
        raise InvalidInputError(
            f"{size} precisions were given for {n} sources; a sequence with one for each, in the "
            "same order, is accepted."
        )
    clipped = 0
    trees: list[Tree] = []
    for i, tree in enumerate(given):
        if not isinstance(tree, Mapping):
            raise InvalidInputError(
                f"Precision {i} is a {type(tree).__name__}; a PrecisionTree or a mapping from "
                "tensor names to precisions or arrays is accepted."
            )
        if all(isinstance(p, Precision) for p in tree.values()):
            trees.append(tree)
            continue
        own: dict[str, Precision] = {}
        for name, p in tree.items():
            own[name], count = _precision(name, i, p)
            clipped += count
        trees.append(own)
    return tuple(trees), clipped


def _precision(name: str, i: int, p: Any) -> tuple[Precision, int]:
    if isinstance(p, Precision):
        return p, 0
    if not is_array_api_obj(p):
        raise InvalidInputError(
            f"The precision of {name!r} in source {i} is a {type(p).__name__}; a Precision, or an "
            "array of the tensor's shape for a diagonal, is accepted."
        )
    given: Any = p
    xp: Any = array_namespace(given)
    f = xp.astype(given.detach() if hasattr(given, "detach") else given, xp.float64)
    top = float(xp.max(f)) if int(np.prod(tuple(f.shape))) else 0.0
    tiny = (f < 0) & (f >= -NEGATIVE_TOLERANCE * max(top, 0.0))
    count = int(xp.sum(xp.astype(tiny, xp.int64)))
    if count:
        f = xp.where(tiny, xp.zeros_like(f), f)
    try:
        return Diagonal(f), count
    except InvalidInputError as error:
        raise InvalidInputError(f"{name!r} of source {i}: {error}") from None


def check_trees(trees: Sequence[Tree], sources: Sequence[Source], *, check_models: bool) -> None:
    """Refuse precisions of other models, or in different units.

    Raises
    ------
    InvalidInputError
        Naming the source, or the two units.
    """
    for key in _UNITS:
        units = {str(getattr(t, "facts", {}).get(key)) for t in trees} - {"None"}
        if len(units) > 1:
            raise InvalidInputError(
                f"The precisions differ in {key!r}: {', '.join(sorted(units))}. Estimate all of "
                "them in one way, or scale them to one unit first (tree.scaled(factor))."
            )
    if not check_models:
        return
    for i, (tree, source) in enumerate(zip(trees, sources, strict=True)):
        facts = getattr(tree, "facts", {})
        wanted = facts.get("theta_sha256", facts.get("model_sha256"))
        if wanted is None:
            continue
        if wanted not in _digests(tree, source):
            raise InvalidInputError(
                f"Precision {i} was estimated for other parameters than those of source {i} (their "
                f"hash is {str(wanted)[:12]}…). Give the precisions in the order of the sources, "
                "estimate it again, or pass check_models=False if the model was only converted."
            )


def _digests(tree: Tree, source: Source) -> set[str]:
    """Hashes of the source's parameters, by the ways in which engines lay them out."""
    own = [p for layout in layouts_of(tree).values() for p in layout.parameters]
    chosen = set(own)
    by_model = [n for n in source.arrays if n in chosen]
    everything = [n for n in source.arrays if source.floating(n) and n not in source.ties]
    found: set[str] = set()
    for names in (own, by_model, everything):
        for dtype in (None, np.float32, np.float64):
            h = hashlib.sha256()
            arrays = []
            for n in names:
                if n not in source.arrays:
                    break
                x: Any = source.arrays[n]
                if hasattr(x, "detach"):
                    xp = array_namespace(x)
                    wide = source.dtype(n) == "bfloat16" or dtype is not None
                    x = (
                        x.detach().to(xp.float64 if dtype is np.float64 else xp.float32)
                        if wide
                        else x
                    )
                x = to_numpy(x)
                arrays.append(np.ascontiguousarray(x if dtype is None else x.astype(dtype)))
            else:
                if len({a.dtype for a in arrays}) <= 1:
                    for a in arrays:
                        h.update(a.tobytes())
                    found.add(h.hexdigest())
    return found
