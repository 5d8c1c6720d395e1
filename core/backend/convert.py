"""Conversion at the door: in once, out once, never inside a loop and never silently."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import ArrayTypeError
from ..types import Array, Device, NumpyArray
from .info import Backend, BackendInfo
from .kernel import Kernel
from .registry import get_backend, registered_backends

_NUMPY = "array_api_compat.numpy"


def to_numpy(x: Array) -> NumpyArray:
    """``x`` as a NumPy array on the CPU (no copy where the library allows it).

    Raises
    ------
    ArrayTypeError
        If ``x`` is not an array of NumPy or of a registered backend.
    """
    if isinstance(x, np.ndarray):
        return x
    info = _info_of(x)
    if info is None:
        raise ArrayTypeError(
            f"A {type(x).__module__}.{type(x).__qualname__} was given; an array of NumPy or of a "
            "registered backend is taken. Use numpy.asarray(x) first."
        )
    if hasattr(x, "detach"):
        x = x.detach()
    if hasattr(x, "cpu"):
        x = x.cpu()
    return np.asarray(x)


def to_backend(x: Array, backend: Backend | str, *, device: Device = None) -> Array:
    """``x`` as an array of ``backend``, on ``device`` (``None``: where it is, else the CPU).

    Parameters
    ----------
    x : array
        Array of NumPy or of any registered backend, float32, float64 or integer.
    backend : Backend or str
    device : optional
        For torch: "cpu", "cuda", "cuda:1", ...

    Raises
    ------
    ArrayTypeError
        If ``x`` is not such an array, or the backend does not run on ``device``.
    """
    backend = get_backend(backend) if isinstance(backend, str) else backend
    check_device(backend, device)
    if backend.info.takes(x):
        return x if device is None else backend.xp.asarray(x, device=device)
    array = to_numpy(x)
    # torch refuses negative strides, and warns that it cannot keep an array that is mapped from a
    # file read-only.
    backwards = any(step < 0 for step in array.strides)
    if (backwards or not array.flags.writeable) and backend.info.namespace != _NUMPY:
        array = array.copy()
    return backend.xp.asarray(array, device="cpu" if device is None else device)


def check_device(backend: Backend, device: Device) -> None:
    """Refuse a device that the backend does not run on.

    Raises
    ------
    ArrayTypeError
        Naming the devices that it does run on.
    """
    if device is None:
        return
    kind = str(device).split(":")[0]
    if kind not in backend.info.devices:
        raise ArrayTypeError(
            f"device={str(device)!r} was given; the backend {backend.name!r} runs on "
            f"{', '.join(backend.info.devices)}. Choose one of these, or backend='torch'."
        )
    if kind == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ArrayTypeError(
                f"device={str(device)!r} was given, but torch sees no CUDA device. Use "
                "device='cpu', or install a CUDA build of torch on a machine with a GPU."
            )


def like(x: Array, template: Array) -> Array:
    """``x`` as an array of the library and device of ``template``; the dtype is kept."""
    if isinstance(template, np.ndarray):
        return to_numpy(x)
    info = _info_of(template)
    if info is None:
        raise ArrayTypeError(f"{type(template).__name__} is not an array of a registered backend.")
    return to_backend(x, info.name, device=getattr(template, "device", None))


def _info_of(x: Any) -> BackendInfo | None:
    kind: Any = type(x)
    return _info_of_class(kind, tuple(sys.path))


@lru_cache(maxsize=256)
def _info_of_class(kind: type, path: tuple[str, ...]) -> BackendInfo | None:
    """Looked up once, not with every array; which packages are on ``path`` may change it."""
    for info in registered_backends().values():
        if info.takes_class(kind):
            return info
    return None


@dataclass(frozen=True, slots=True)
class Converted:
    """A kernel lent by a fallback backend: arrays go over and the results come back; picklable."""

    info: BackendInfo
    fallback: str
    kernel: Kernel

    def __call__(self, *arrays: Array, **options: Any) -> Any:
        """Run the fallback's kernel on converted arrays."""
        lender = get_backend(self.fallback)
        result = lender.raw(self.kernel)(*(to_backend(a, lender) for a in arrays), **options)
        template = arrays[0]
        if isinstance(result, tuple):
            return tuple(like(r, template) for r in result)
        return like(result, template)
