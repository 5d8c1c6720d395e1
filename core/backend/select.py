"""The rule that chooses a backend, and the door through which arrays enter it."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ArrayTypeError, KernelUnsupported
from ..types import Array, Device
from .convert import check_device, like, to_backend
from .info import Backend, BackendInfo
from .kernel import Kernel
from .registry import get_backend, registered_backends

BackendChoice = str | Backend


def select_backend(
    *arrays: Array, backend: BackendChoice = "auto", kernel: Kernel | None = None
) -> Backend:
    """The backend that an entry function will use for these arrays.

    ==================  =======================================================================
    ``backend``         choice
    ==================  =======================================================================
    a ``Backend``       that one
    a name              that one, or :class:`BackendNotFound` / :class:`BackendUnavailable`
    ``"auto"``          by the arrays' type: the installed backend of highest priority that
                        takes all of them and has ``kernel`` (torch tensors: "torch"; NumPy
                        arrays: "numba", then "reference"); never moves data, never looks at
                        sizes
    ==================  =======================================================================

    Parameters
    ----------
    *arrays : array
        Arrays that decide under "auto".
    backend : str or Backend
    kernel : Kernel, optional
        What the backend must offer.

    Raises
    ------
    ArrayTypeError
        "auto" with no array, with lists, or with arrays of several libraries.
    KernelUnsupported
        If the backend has no such kernel and no fallback.

    Examples
    --------
    >>> import numpy as np
    >>> select_backend(np.zeros(3)).name in {"numba", "reference"}
    True
    >>> select_backend(np.zeros(3), backend="reference").name
    'reference'
    """
    if isinstance(backend, Backend):
        chosen = backend
    elif backend != "auto":
        chosen = get_backend(backend)
    else:
        chosen = get_backend(_auto(arrays, kernel).name)
    if kernel is not None:
        chosen.raw(kernel)
    return chosen


def _auto(arrays: tuple[Array, ...], kernel: Kernel | None) -> BackendInfo:
    takers = [i for i in registered_backends().values() if all(i.takes(a) for a in arrays)]
    if not arrays or not takers:
        given = ", ".join(f"{type(a).__module__}.{type(a).__qualname__}" for a in arrays) or "none"
        raise ArrayTypeError(
            f"backend='auto' goes by the arrays' type; given: {given}. Give arrays of one library "
            "that has a registered backend (NumPy or torch), or name a backend."
        )
    ready = [
        i
        for i in takers
        if i.installed and (kernel is None or kernel in i.kernels or i.fallback is not None)
    ]
    if not ready:
        if kernel is not None and any(i.installed for i in takers):
            raise KernelUnsupported(
                f"No installed backend for these arrays has the kernel {str(kernel)!r}. "
                "Install another backend (pip install 'fishertope[torch]'), or convert the arrays."
            )
        return max(takers, key=lambda i: i.priority)  # loading it says what is missing
    return max(ready, key=lambda i: i.priority)


@dataclass(frozen=True, slots=True)
class Door:
    """A backend with the arrays that came in, and the way back to the caller's kind.

    Attributes
    ----------
    backend : Backend
    arrays : tuple of array
        The inputs as arrays of the backend, on the chosen device.
    template : array
        The caller's first array: results go back to its library and device.
    """

    backend: Backend
    arrays: tuple[Array, ...]
    template: Array

    def out(self, x: Array) -> Array:
        """``x`` as the caller's kind of array."""
        return like(x, self.template)


def enter(
    *arrays: Array,
    backend: BackendChoice = "auto",
    device: Device = None,
    kernel: Kernel | None = None,
) -> Door:
    """Choose a backend and convert the arrays once.

    Raises
    ------
    ArrayTypeError, BackendNotFound, BackendUnavailable, KernelUnsupported
        As :func:`select_backend` and :func:`to_backend`.
    """
    chosen = select_backend(*arrays, backend=backend, kernel=kernel)
    check_device(chosen, device)
    return Door(chosen, tuple(to_backend(a, chosen, device=device) for a in arrays), arrays[0])
