"""What is known of a backend without importing it, and a loaded backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ..errors import BackendUnavailable, KernelUnsupported
from .kernel import Kernel


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendInfo:
    """Facts about a backend that cost no import.

    Attributes
    ----------
    name : str
        What users write in ``backend=``.
    target : str
        ``"module:attribute"`` of a ``Mapping[Kernel, Callable]``; imported on first use.
    requires : tuple of str
        Top-level modules that must be importable; looked up, never imported, to answer
        "is it installed?".
    array_types : tuple of (module, class)
        Array classes that the kernels take and return.
    namespace : str
        Module of the array-API namespace of those arrays.
    devices, dtypes : tuple of str
        What the kernels accept.
    kernels : frozenset of Kernel
        What the backend offers; any subset is fine.
    half_bits : bool
        Whether the raw merging kernels also take sources as checkpoints store them: float16, and
        bfloat16 as its bits in uint16; and ``out=``, an array for the merged entries. Such a
        kernel may have an attribute ``from_files``: the same from file to file.
    fallback : str or None
        Backend that stands in for the kernels not offered (arrays are converted there and back).
    extra : str or None
        pip extra to name when a required module is missing.
    priority : int
        Among the backends that take an array type, "auto" prefers the highest.
    """

    name: str
    target: str
    requires: tuple[str, ...] = ()
    array_types: tuple[tuple[str, str], ...] = (("numpy", "ndarray"),)
    namespace: str = "array_api_compat.numpy"
    devices: tuple[str, ...] = ("cpu",)
    dtypes: tuple[str, ...] = ("float32", "float64")
    kernels: frozenset[Kernel] = field(default_factory=lambda: frozenset(Kernel))
    half_bits: bool = False
    fallback: str | None = None
    extra: str | None = None
    priority: int = 0

    def missing(self) -> tuple[str, ...]:
        """Names of required modules that are not installed."""
        return tuple(name for name in self.requires if find_spec(name) is None)

    @property
    def installed(self) -> bool:
        """Whether everything that the backend requires can be imported."""
        return not self.missing()

    def takes(self, array: Any) -> bool:
        """Whether ``array`` is of one of :attr:`array_types`, told without an import."""
        return self.takes_class(type(array))

    def takes_class(self, kind: type) -> bool:
        """Whether arrays of this class are taken."""
        names = {(c.__module__.split(".")[0], c.__qualname__) for c in kind.__mro__}
        return any((module.split(".")[0], cls) in names for module, cls in self.array_types)

    def load(self) -> Backend:
        """Import the kernels.

        Raises
        ------
        BackendUnavailable
            If a required module is missing.
        """
        missing = self.missing()
        if missing:
            wish = f"'fishertope[{self.extra}]'" if self.extra else " ".join(missing)
            raise BackendUnavailable(
                f"The backend {self.name!r} needs {', '.join(missing)}, which is not installed. "
                f"Install it with: pip install {wish}"
            )
        module, _, attribute = self.target.partition(":")
        kernels = getattr(import_module(module), attribute)
        return Backend(info=self, kernels={Kernel(k): f for k, f in dict(kernels).items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """A loaded backend: its facts and its kernels.

    ``backend[kernel]`` is the guarded callable, which refuses arrays of another library, of
    unsupported dtypes, of wrong shapes and with NaN or infinite entries. ``backend.raw(kernel)``
    skips those checks; core uses it inside loops whose inputs were checked once at the door.
    """

    info: BackendInfo
    kernels: Mapping[Kernel, Callable[..., Any]]

    @property
    def name(self) -> str:
        """The name users write."""
        return self.info.name

    @property
    def xp(self) -> Any:
        """The array-API namespace of the backend's arrays."""
        return import_module(self.info.namespace)

    def __contains__(self, kernel: Kernel) -> bool:
        return kernel in self.kernels

    def __getitem__(self, kernel: Kernel) -> Callable[..., Any]:
        from .guard import Guarded

        return Guarded(self, Kernel(kernel))

    def raw(self, kernel: Kernel) -> Callable[..., Any]:
        """The kernel itself, without checks.

        Raises
        ------
        KernelUnsupported
            If neither the backend nor its declared fallback has it.
        """
        kernel = Kernel(kernel)
        if kernel in self.kernels:
            return self.kernels[kernel]
        if self.info.fallback is not None:
            from .convert import Converted

            return Converted(self.info, self.info.fallback, kernel)
        have = ", ".join(sorted(self.kernels)) or "none"
        raise KernelUnsupported(
            f"The backend {self.name!r} has no kernel {str(kernel)!r} (it has: {have}) and "
            "declares no fallback. Choose another backend, or set BackendInfo.fallback='reference'."
        )
