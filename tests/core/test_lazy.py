"""Packages that import their names when these are asked for."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from fishertope.core.lazy import declared

PACKAGES = (
    "fishertope", "fishertope.core.fisher", "fishertope.core.merging",
    "fishertope.core.merging.methods", "fishertope.core.merging.search",
    "fishertope.core.merging.streaming",
)  # fmt: skip


@pytest.mark.parametrize("package", PACKAGES)
def test_every_declared_name_is_there_and_no_module_hides_it(package):
    module = import_module(package)
    names = declared(Path(module.__file__).read_text(encoding="utf-8"))
    assert names
    modules = {p.stem for p in Path(module.__file__).parent.glob("*.py")}
    for name in names:
        assert getattr(module, name) is not None
        assert name in dir(module)
        assert name not in modules
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing


def test_a_merge_imports_no_numba_scipy_or_models():
    code = (
        "import sys; import fishertope.core.merging.streaming as s; s.merge_checkpoints; "
        "print(sorted({'numba', 'scipy', 'torch', 'fishertope.core.model'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
