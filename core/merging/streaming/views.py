"""Whole tensors seen in chunks of a fixed size, for statistics, finiteness and hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import InvalidInputError
from ...storage.numbers import decode
from ...types import FloatArray
from ..site_view import SiteView
from ..statistics import CHUNK, Chunks, squared_norm
from .checkpoint import Tensor
from .inputs import Input
from .precisions import PrecisionFile, diagonal_array
from .recipes import Site

_HASHED = 1 << 19


@dataclass(frozen=True, slots=True, eq=False)
class StreamView(SiteView):
    """A site's view whose magnitudes read one source and the base only."""

    site: Site

    def magnitudes(self, i: int) -> Chunks:
        """Chunks (c,) of abs(x_i − x_0); the base is the site's first source."""
        site = self.site
        base, source = site.sources[0], site.sources[i + 1]

        def chunks() -> Iterator[FloatArray]:
            for at in range(0, site.size, CHUNK):
                stop = min(site.size, at + CHUNK)
                x = source.values(site.name, at, stop)
                yield np.abs(x - base.values(site.name, at, stop))

        return chunks


def view_of(site: Site, shape: tuple[int, ...], *, based: bool) -> StreamView:
    """The view of a site; with ``based`` its first source is the base."""

    def read() -> Iterator[tuple[FloatArray, FloatArray | None]]:
        for at in range(0, site.size, CHUNK):
            x = site.values(at, min(site.size, at + CHUNK))
            if site.nonfinite == "error" and not np.isfinite(x).all():
                site.refuse_nonfinite(at, min(site.size, at + CHUNK))
            yield (x[1:], x[0]) if based else (x, None)

    return StreamView(name=site.name, shape=shape, read=read, site=site)


def is_finite(source: Input, name: str) -> bool:
    """Whether a tensor has no NaN and no infinity."""
    size = source.tensors[name].size
    return all(
        bool(np.isfinite(source.values(name, at, min(size, at + CHUNK))).all())
        for at in range(0, size, CHUNK)
    )


def floored_norm(precision: PrecisionFile, sizes: Sequence[tuple[str, int]], floor: float) -> float:
    """‖max(F, floor)‖_2 over the tensors that are merged."""
    total = 0.0
    for name, size in sizes:
        tensor = precision.tensor(name)
        if tensor is None:
            total += size * max(precision.numbers.get(name, 0.0), floor) ** 2
            continue
        total += squared_norm(_floored(precision, tensor, name, floor))
    return float(np.sqrt(total))


def _floored(precision: PrecisionFile, tensor: Tensor, name: str, floor: float) -> Chunks:
    """Chunks of max(F, floor)."""

    def chunks() -> Iterator[FloatArray]:
        for at in range(0, tensor.size, CHUNK):
            stored = diagonal_array(tensor, min(tensor.size, at + CHUNK) - at)
            precision.read(name, at, stored)
            yield np.maximum(decode(stored, tensor.dtype), floor)

    return chunks


def check_model(precision: PrecisionFile, source: Input, number: int) -> None:
    """Refuse a precision that was estimated for other parameters than the source's.

    The hash that the precision carries is that of the parameters one after another, in the order
    and dtype of the engine that estimated it; the orders and dtypes in question are tried.

    Raises
    ------
    InvalidInputError
        If none gives the hash.
    """
    wanted = precision.facts.get("theta_sha256", precision.facts.get("model_sha256"))
    if not isinstance(wanted, str):
        return
    everything = [n for n in source.tensors if source.floating(n)]
    own = [n for n in precision.order if n in source.tensors]
    chosen = set(own)
    for names in (everything, own, [n for n in source.tensors if n in chosen]):
        for dtype in (np.float32, np.float64):
            if _digest(source, names, np.dtype(dtype)) == wanted:
                return
    raise InvalidInputError(
        f"{precision.path} was estimated for other parameters than those of source {number} "
        f"({source.path}): their hash is {wanted[:12]}…. Give each source its own precision, "
        "estimate it again, or skip this check (--no-check-models) if the model was only converted."
    )


def _digest(source: Input, names: Sequence[str], dtype: np.dtype[np.floating]) -> str:
    digest = hashlib.sha256()
    for name in names:
        size = source.tensors[name].size
        for at in range(0, size, _HASHED):
            values = source.values(name, at, min(size, at + _HASHED)).astype(dtype)
            digest.update(values.view(np.uint8).data)
    return digest.hexdigest()
