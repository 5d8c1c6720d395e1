"""``fishertope backends``: what there is, what it can do, and what is missing."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ._console import JsonOption, print_json, stdout

MarkdownOption = Annotated[bool, typer.Option(help="Print the kernels as a Markdown table.")]


def backends(json: JsonOption = False, markdown: MarkdownOption = False) -> None:
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

    if markdown:
        typer.echo(kernel_table())
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


def kernel_table() -> str:
    """Backends × kernels as Markdown, with the formula of each kernel, as in the README."""
    from ..core.backend import Kernel, registered_backends

    infos = sorted(registered_backends().values(), key=lambda i: (i.priority, i.name))
    head = ["interface", "kernel", "computes", *(f"`{i.name}`" for i in infos)]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for kernel in Kernel:
        offered = ["yes" if kernel in i.kernels else i.fallback or "no" for i in infos]
        formula = kernel.spec.formula.split(";  ")[0].split("; ")[0].replace("|", "\\|")
        cells = [kernel.spec.interface, f"`{kernel}`", formula, *offered]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
