"""``fishertope backends``: what there is, what it can do, and what is missing."""

from __future__ import annotations

from typing import Any

from ._console import JsonOption, print_json, stdout


def backends(json: JsonOption = False) -> None:
    """Show the backends, what each offers, and why one is not available."""
    from ..core.backend import BackendInfo, Kernel, registered_backends
    from ..core.report import Column, Table

    infos = sorted(registered_backends().values(), key=lambda i: (-i.priority, i.name))

    def facts(info: BackendInfo) -> dict[str, Any]:
        missing = info.missing()
        return {
            "installed": info.installed,
            "missing": list(missing),
            "devices": list(info.devices),
            "dtypes": list(info.dtypes),
            "kernels": sorted(str(k) for k in info.kernels),
            "fallback": info.fallback,
        }

    if json:
        print_json({info.name: facts(info) for info in infos})
        return

    def state(info: BackendInfo) -> str:
        if info.installed:
            return "installed"
        wish = f"'fishertope[{info.extra}]'" if info.extra else " ".join(info.missing())
        return f"needs {', '.join(info.missing())}: pip install {wish}"

    def offers(info: BackendInfo, kernel: Kernel) -> str:
        if kernel in info.kernels:
            return "yes"
        return f"through {info.fallback}" if info.fallback else "no"

    overview = Table(
        title="Backends",
        columns=[
            Column(name=n, left=True) for n in ("backend", "state", "arrays", "devices", "dtypes")
        ],
        rows=[
            [
                info.name,
                state(info),
                ", ".join(f"{module}.{name}" for module, name in info.array_types),
                ", ".join(info.devices),
                ", ".join(info.dtypes),
            ]
            for info in infos
        ],
    )
    kernels = Table(
        title="Kernels",
        columns=[
            Column(name=n, left=True) for n in ("interface", "kernel", *(i.name for i in infos))
        ],
        rows=[
            [kernel.spec.interface, str(kernel), *(offers(info, kernel) for info in infos)]
            for kernel in Kernel
        ],
    )
    console = stdout()
    console.print(overview)
    console.print(kernels)
