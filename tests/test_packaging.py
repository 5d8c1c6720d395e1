"""The house: what is installed is what is on disk, and nothing heavy is loaded on import."""

import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

import fishertope

ROOT = Path(__file__).resolve().parents[1]
HOMES = {
    "fishertope": "src/fishertope",
    "fishertope.core": "core",
    "fishertope.backends": "backends",
    "fishertope.theory": "theory",
    "fishertope.experiments": "experiments",
}


def packages_on_disk():
    found = {}
    for name, home in HOMES.items():
        for init in (ROOT / home).rglob("__init__.py"):
            folder = init.parent
            inside = folder.relative_to(ROOT / home).parts
            found[".".join([name, *inside])] = folder
    return found


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def run(code, cwd):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True
    ).stdout


def test_every_package_on_disk_is_declared():
    declared = set(project()["tool"]["setuptools"]["packages"])
    assert declared == set(packages_on_disk())


def test_every_module_on_disk_is_installed():
    invisible = []
    for package, folder in packages_on_disk().items():
        for module in folder.glob("*.py"):
            name = package if module.stem == "__init__" else f"{package}.{module.stem}"
            if find_spec(name) is None:
                invisible.append(name)
    assert not invisible, f"run `make install` again: {invisible} are new since the last install"


def test_no_source_folder_is_a_top_level_package(tmp_path):
    code = (
        "from importlib.util import find_spec as f;"
        "print([n for n in ('core', 'backends', 'theory', 'experiments') if f(n)])"
    )
    assert run(code, tmp_path).strip() == "[]"


HEAVY = ("torch", "numba", "cvxpy", "networkx", "scipy.optimize", "joblib", "matplotlib")


@pytest.mark.parametrize("statement", ["import fishertope", "import fishertope.core.merging"])
def test_importing_loads_nothing_heavy(tmp_path, statement):
    if find_spec(statement.split()[1]) is None:
        pytest.skip(f"{statement.split()[1]} does not exist yet")
    code = f"import sys; {statement}; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert run(code, tmp_path).strip() == "[]"


def test_public_names_are_exactly_those_that_are_imported():
    public = {n for n in dir(fishertope) if not n.startswith("_")}
    modules = {"core", "backends", "theory", "experiments", "cli", "sklearn"}
    assert public - modules == set(fishertope.__all__) - {"__version__"}
    assert list(fishertope.__all__) == sorted(fishertope.__all__)


def test_version_is_stated_once():
    assert fishertope.__version__ == project()["project"]["version"]
    assert f"version: {fishertope.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{fishertope.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_no_file_is_longer_than_a_person_reads():
    long = {
        str(path.relative_to(ROOT)): lines
        for home in [*HOMES.values(), "tests", "benchmarks"]
        for path in (ROOT / home).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 500
    }
    assert not long
