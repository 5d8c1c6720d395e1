"""A backend that somebody else packaged: found through its entry point, judged by the contract."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "fishertope_sorted"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the plug-in, without network."""
    folder = tmp_path_factory.mktemp("plugin")
    source, target = folder / "source", folder / "site"
    shutil.copytree(SOURCE, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    pip += ["--no-build-isolation", "--disable-pip-version-check", "--target", str(target)]
    done = subprocess.run([*pip, str(source)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return target


def run(code: str, *folders: Path) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a new interpreter that sees the plug-in's folder."""
    path = os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_it_is_discovered_and_auto_does_not_care(site: Path) -> None:
    done = run(
        "import numpy as np\n"
        "from fishertope.core.backend import *\n"
        "assert 'sorted' in available_backends()\n"
        "assert select_backend(np.zeros(2)).name != 'sorted'\n"
        "assert select_backend(np.zeros(2), kernel=Kernel.ZONOTOPE_SUPPORT).name != 'sorted'\n"
        "assert select_backend(np.zeros(2), backend='sorted').name == 'sorted'\n",
        site,
    )
    assert done.returncode == 0, done.stderr


def test_one_kernel_is_its_own_and_the_others_are_borrowed(site: Path) -> None:
    done = run(
        "import numpy as np\n"
        "from fishertope.core.backend import *\n"
        "backend = get_backend('sorted')\n"
        "own = backend.raw(Kernel.ZONOTOPE_SUPPORT)\n"
        "assert own.__module__ == 'fishertope_sorted.kernels'\n"
        "assert set(backend.kernels) == {Kernel.ZONOTOPE_SUPPORT}\n"
        "lent = backend.raw(Kernel.SIGN_PATTERNS)\n"
        "assert lent.fallback == 'reference'\n"
        "x = np.array([[1.0, 2.0], [-1.0, 0.5]])\n"
        "assert backend[Kernel.ZONOTOPE_SUPPORT](x, x).tolist() == [5.0, 1.25]\n"
        "assert backend[Kernel.SIGN_PATTERNS](x, x).tolist() == [[1, 0], [0, 1]]\n",
        site,
    )
    assert done.returncode == 0, done.stderr


def test_it_passes_the_contract(site: Path) -> None:
    code = (
        "from fishertope.core.testing import check_backend\n"
        "if __name__ == '__main__':\n"
        "    report = check_backend('sorted')\n"
        "    print(report, sum(i.startswith('zonotope_support/') for i in report.passed))\n"
    )
    done = run(code, site)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ContractReport('sorted', passed=")
    assert int(done.stdout.split()[-1]) >= 18


def test_without_the_package_it_is_not_there() -> None:
    done = run("from fishertope.core.backend import get_backend; get_backend('sorted')")
    assert done.returncode == 1
    assert "BackendNotFound: There is no backend 'sorted'" in done.stderr


def test_a_package_that_takes_a_name_of_ours_is_refused(site: Path, tmp_path: Path) -> None:
    greedy = tmp_path / "site"
    shutil.copytree(site, greedy)
    module = greedy / "fishertope_sorted" / "__init__.py"
    module.write_text(module.read_text().replace('name="sorted"', 'name="reference"'))
    done = run("from fishertope.core.backend import get_backend; get_backend('reference')", greedy)
    assert done.returncode == 1
    assert "registers the backend name 'reference', which is taken" in done.stderr
