"""Four floors, no arrow back up: the import graph of the sources, read without running them."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# A package may import from its own floor and from the floors after it.
FLOORS = (
    ("fishertope",),
    ("fishertope.experiments",),
    ("fishertope.theory", "fishertope.backends"),
    ("fishertope.core",),
)
ROOMS = (
    ("report", "testing"),
    ("merging", "factorization"),
    ("fisher", "zonotope", "model"),
    ("storage", "backend", "status"),
    ("errors", "lazy", "types", "display"),
)
HOMES = {
    "src/fishertope": "fishertope",
    "core": "fishertope.core",
    "backends": "fishertope.backends",
    "theory": "fishertope.theory",
    "experiments": "fishertope.experiments",
}


def modules():
    for home, package in HOMES.items():
        for path in (ROOT / home).rglob("*.py"):
            if "__pycache__" in path.parts:
                continue
            inside = path.relative_to(ROOT / home).with_suffix("").parts
            if inside[-1] == "__init__":
                yield ".".join([package, *inside[:-1]]), True, path
            else:
                yield ".".join([package, *inside]), False, path


def imports(name, is_package, path):
    """Absolute names of everything of ours that a module imports, also inside functions."""
    here = name.split(".") if is_package else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            target = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            if target.startswith("fishertope"):
                yield from (f"{target}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("fishertope"))


def floor(name):
    best = max(
        (
            package
            for level in FLOORS
            for package in level
            if (name + ".").startswith(package + ".")
        ),
        key=len,
    )
    return next(i for i, level in enumerate(FLOORS) if best in level)


def room(name):
    part = name.split(".")[2]
    return next(i for i, level in enumerate(ROOMS) if part in level)


def violations(graph):
    bad = []
    for source, target in graph:
        if floor(target) < floor(source):
            bad.append(f"{source} -> {target}: up a floor")
        in_core = all(n.startswith("fishertope.core.") for n in (source, target))
        if in_core and target.count(".") >= 2 and room(target) < room(source):
            bad.append(f"{source} -> {target}: up a room inside core")
    return bad


def graph():
    return [
        (name, target)
        for name, is_package, path in modules()
        for target in imports(name, is_package, path)
    ]


def test_no_import_goes_up():
    assert not violations(graph())


def test_the_check_sees_what_it_should():
    assert len(graph()) > 100
    assert violations([("fishertope.core.fisher.labels", "fishertope.backends.numba_cpu")])
    assert violations([("fishertope.core.backend.info", "fishertope.core.fisher.per_example")])
    assert violations([("fishertope.theory.greedy", "fishertope.experiments.demo")])
    assert not violations([("fishertope.theory.greedy", "fishertope.core.zonotope.pattern")])
