"""The public contract of a backend: checks that any backend, ours or a plug-in's, must pass.

Run them all at once with :func:`check_backend`, or one by one in a test suite::

    @pytest.mark.parametrize(("name", "check"), backend_checks("mine"))
    def test_contract(name, check):
        check()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..backend import Backend, BackendInfo, Kernel, registered_backends
from ..backend.convert import check_device
from ..errors import BackendNotFound
from ..types import Device
from .checks import BACKEND_CHECKS, KERNEL_CHECKS, ContractViolation, Subject

Check = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractReport:
    """What :func:`check_backend` found.

    Attributes
    ----------
    backend : str
    passed : tuple of str
        Ids of the checks that held.
    expected_failures : tuple of str
        Ids of those that failed as announced.
    """

    backend: str
    passed: tuple[str, ...]
    expected_failures: tuple[str, ...]

    def __repr__(self) -> str:
        return (
            f"ContractReport({self.backend!r}, passed={len(self.passed)}, "
            f"expected_failures={len(self.expected_failures)})"
        )


def backend_checks(
    backend: str | Backend | BackendInfo, *, device: Device = None
) -> tuple[tuple[str, Check], ...]:
    """Checks of every kernel that ``backend`` offers or borrows, as pairs (id, check).

    Nothing is loaded until a check is called, so the ids of a backend that is not installed can
    be listed too. A check raises an error if it fails and returns ``None`` otherwise.

    Parameters
    ----------
    backend : str, Backend or BackendInfo
        The name of a registered backend, or one that need not be registered.
    device : optional
        Where the arrays of the checks lie, for backends with several devices.

    Raises
    ------
    BackendNotFound
        If no backend has that name.
    """
    info = _info(backend)
    given = backend if isinstance(backend, Backend) else info
    kernels = list(Kernel) if info.fallback else [k for k in Kernel if k in info.kernels]
    made: list[tuple[str, Check]] = []
    for kernel in kernels:
        for name, check in KERNEL_CHECKS.items():
            for dtype in info.dtypes:
                run = partial(_run, given, device, check, kernel=kernel, dtype=dtype)
                made.append((f"{kernel}/{name}[{dtype}]", run))
    for name, whole_check in BACKEND_CHECKS.items():
        made.append((name, partial(_run, given, device, whole_check)))
    return tuple(made)


def check_backend(
    backend: str | Backend | BackendInfo,
    *,
    device: Device = None,
    expected_failures: Mapping[str, str] | None = None,
) -> ContractReport:
    """Run every check and report; the way for a plug-in to test itself.

    Parameters
    ----------
    backend, device
        As in :func:`backend_checks`.
    expected_failures : mapping of str to str, optional
        Ids of checks that are known to fail, each with its reason. One that passes after all is
        an error too: take it off the list.

    Raises
    ------
    ContractViolation
        If a check fails that was expected to hold, or the other way round, or if an id in
        ``expected_failures`` belongs to no check.

    Examples
    --------
    >>> check_backend("reference")  # doctest: +SKIP
    ContractReport('reference', passed=200, expected_failures=0)
    """
    announced = dict(expected_failures or {})
    passed: list[str] = []
    failed: list[str] = []
    complaints: list[str] = []
    for name, check in backend_checks(backend, device=device):
        known = announced.pop(name, None)
        try:
            check()
        except Exception as error:  # whatever a foreign kernel raises is a finding
            if known is None:
                complaints.append(f"{name}: {type(error).__name__}: {error}")
            failed.append(name)
        else:
            if known is not None:
                complaints.append(f"{name}: passes, but was expected to fail ({known})")
            passed.append(name)
    complaints += [f"{name}: there is no such check" for name in announced]
    label = _info(backend).name
    if complaints:
        raise ContractViolation(
            f"The backend {label!r} breaks {len(complaints)} of its promises:\n"
            + "\n".join(f"- {c}" for c in complaints)
        )
    return ContractReport(backend=label, passed=tuple(passed), expected_failures=tuple(failed))


def _info(backend: str | Backend | BackendInfo) -> BackendInfo:
    if isinstance(backend, BackendInfo):
        return backend
    if isinstance(backend, Backend):
        return backend.info
    known = registered_backends()
    if backend not in known:
        raise BackendNotFound(
            f"There is no backend {backend!r}. Registered: {', '.join(sorted(known))}. Use one of "
            "these, or give its BackendInfo."
        )
    return known[backend]


def _run(
    given: Backend | BackendInfo, device: Device, check: Callable[..., None], **options: Any
) -> None:
    loaded = given.load() if isinstance(given, BackendInfo) else given
    check_device(loaded, device)
    check(Subject(loaded, device), **options)
