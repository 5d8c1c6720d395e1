"""The command line: exit codes, one clean message, and JSON that is JSON."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fishertope.cli import main
from fishertope.core.backend import Kernel, registered_backends
from fishertope.core.storage import OutputFolder, save_arrays


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    code = ended.value.code
    assert isinstance(code, int)
    return code, out, err


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def arrays_file(tmp_path: Path) -> Path:
    path = tmp_path / "x.safetensors"
    save_arrays(path, {"rows": np.zeros((2, 3))}, {"seed": 5, "odd": "[red]<b>"}, kind="example")
    return path


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--version")
    assert code == 0
    assert out.startswith("fishertope ")


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for command in ("demo", "backends", "inspect"):
        assert command in out


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("demo", "--backend", "nonsense"),
        ("demo", "--components", "0"),
        ("demo", "--seed", "x"),
        ("demo", "--threads", "0"),
        ("inspect",),
        ("inspect", "no-such-file"),
        ("--nonsense",),
    ],
)
def test_misuse_ends_with_2(capsys: pytest.CaptureFixture[str], arguments: tuple) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    assert err


def test_an_unknown_backend_is_told_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = run(capsys, "demo", "--backend", "nonsense")
    for name in ("nonsense", "auto", "reference", "numba", "torch"):
        assert name in err


def test_backends_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "backends")
    assert code == 0
    for name in (*registered_backends(), *(str(k) for k in Kernel)):
        assert name in out
    code, out, _ = run(capsys, "backends", "--json")
    found = json.loads(out)
    assert code == 0
    assert set(found) == set(registered_backends())
    assert found["reference"]["installed"] is True
    assert found["reference"]["kernels"] == sorted(str(k) for k in Kernel)


def test_a_missing_package_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fishertope.core.backend import BackendInfo

    monkeypatch.setattr(
        BackendInfo, "missing", lambda self: ("torch",) if self.name == "torch" else ()
    )
    code, out, _ = run(capsys, "backends")
    assert code == 0
    assert "needs torch: pip install 'fishertope[torch]'" in out


def test_inspect_a_file(capsys: pytest.CaptureFixture[str], arrays_file: Path) -> None:
    code, out, _ = run(capsys, "inspect", arrays_file)
    assert code == 0
    for text in ("example, complete and unaltered", "rows", "float64", "2 × 3", "[red]<b>"):
        assert text in out
    code, out, _ = run(capsys, "inspect", arrays_file, "--json")
    assert json.loads(out)["facts"] == {"seed": 5, "odd": "[red]<b>"}


@pytest.mark.parametrize("where", ["cut", "array", "header"])
def test_a_damaged_file_fails_with_one_message(
    capsys: pytest.CaptureFixture[str], arrays_file: Path, where: str
) -> None:
    data = bytearray(arrays_file.read_bytes())
    if where == "cut":
        data = data[:-1]
    else:
        data[-1 if where == "array" else 60] ^= 1
    arrays_file.write_bytes(data)
    code, out, err = run(capsys, "inspect", arrays_file)
    assert code == 1
    assert out == ""
    assert err.startswith("Error: ")
    assert "Traceback" not in err
    assert "estore it from a copy" in err or "restore it" in err


def test_inspect_a_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with OutputFolder(folder, command="test", settings={"seed": 4}) as out_folder:
        out_folder.write_text("note.txt", "x")
        out_folder.finish({}, seed=4, backend=None)
    code, out, _ = run(capsys, "inspect", folder)
    assert code == 0
    for text in ("results of 'test', complete and unaltered", "note.txt", "seed"):
        assert text in out
    (folder / "note.txt").write_text("y")
    code, _, err = run(capsys, "inspect", folder)
    assert code == 1
    assert "note.txt was altered" in err
    code, _, err = run(capsys, "inspect", tmp_path)
    assert code == 1
    assert "no manifest.json of fishertope" in err.replace("\n", " ")


def test_help_is_light_and_the_module_runs() -> None:
    code = (
        "import sys\n"
        "from fishertope.cli import main\n"
        "try:\n"
        "    main(['demo', '--help'])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "heavy = {'torch', 'numba', 'sklearn', 'scipy', 'matplotlib', 'cvxpy', 'networkx'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-m", "fishertope", "--version"],
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("fishertope ")
