"""``fishertope merge``, ``verify`` and ``inspect`` as a user gives them."""

import json
import subprocess
import sys

import numpy as np
import pytest

from fishertope.cli import main
from fishertope.core.storage import save_arrays
from fishertope.core.storage.header import Place, encode


def write(path, tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    places, at = {}, 0
    for name, values in tensors.items():
        places[name] = Place(dtype="F32", shape=values.shape, start=at, stop=at + values.nbytes)
        at += values.nbytes
    data = b"".join(v.tobytes() for v in tensors.values())
    path.write_bytes(encode(places, {"format": "pt"}) + data)


@pytest.fixture
def room(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("abc"):
        rng = np.random.default_rng(seed)
        tensors = {"layers.0.w": rng.normal(size=(4, 3)), "layers.0.b": rng.normal(size=4)}
        write(tmp_path / name / "model.safetensors",
              {k: v.astype(np.float32) for k, v in tensors.items()})  # fmt: skip
        (tmp_path / name / "config.json").write_text("{}")
    return tmp_path


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def test_models_are_merged_verified_and_inspected(room, capsys):
    code, out, _ = run(capsys, "merge", "a", "b", "-w", "0.25,0.75", "-o", "merged", "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["tensors"] == 2
    assert facts["method"] == "linear"
    code, out, _ = run(capsys, "verify", "merged", "--finite", "--json")
    assert code == 0
    assert any("2 tensors of floats finite" in line for line in json.loads(out)["checked"])
    assert run(capsys, "inspect", "merged", "--json")[0] == 0
    for thing in ("a", "merged/merge_plan.yaml", "merged/model.safetensors"):
        code, out, _ = run(capsys, "inspect", thing)
        assert code == 0
        assert "checkpoint" in out or "plan" in out
    code, out, _ = run(capsys, "merge", "merged/merge_plan.yaml", "-o", "again", "-q")
    assert (code, out) == (0, "")
    left, right = (room / n / "model.safetensors" for n in ("merged", "again"))
    assert left.read_bytes() == right.read_bytes()
    left.write_bytes(left.read_bytes()[:-1] + b"\xff")
    code, _, err = run(capsys, "verify", "merged")
    assert code == 1
    assert "altered" in err


def test_methods_precisions_rules_and_a_dry_run(room, capsys):
    fisher = {"layers.0.w": np.ones((4, 3), np.float32), "layers.0.b": np.ones(4, np.float32)}
    write(room / "f.safetensors", fisher)
    code, out, _ = run(
        capsys, "merge", "a", "b", "-p", "f.safetensors", "-p", "f.safetensors", "-o", "x",
        "--dry-run", "--json",
    )  # fmt: skip
    assert code == 0
    assert json.loads(out)["method"] == "fisher"
    assert not (room / "x").exists()
    code, out, _ = run(
        capsys, "merge", "b", "c", "--base", "a", "-m", "ties", "--set", "density=0.5",
        "--site", "*.b=take:1", "--out-dtype", "bfloat16", "-o", "x", "--threads", "1",
    )  # fmt: skip
    assert code == 0
    assert "merged by ties" in out
    assert "take: rule take:1" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("a", "b", "-w", "1", "-o", "x"), 2, "2 numbers"),
        (("a", "b", "--set", "density", "-o", "x"), 2, "NAME=VALUE"),
        (("plan.yaml", "-w", "1", "-o", "x"), 2, "was given with a plan"),
        (("a", "plan.yaml", "-o", "x"), 2, "One plan"),
        (("a", "b", "--memory", "lots", "-o", "x"), 2, "500MB"),
        (("a", "nowhere", "-o", "x"), 1, "does not exist"),
        (("a", "b", "-m", "magic", "-o", "x"), 1, "checkpoints are merged by"),
        (("missing.yaml", "-o", "x"), 1, "No such file"),
        (("a", "b", "-o", "a"), 1, "no manifest.json"),
        (("a", "b", "-o", "x", "--backend", "reference", "--device", "cuda"), 1, "cuda"),
    ],
)
def test_mistakes_are_named_and_write_nothing(room, capsys, arguments, code, message):
    (room / "plan.yaml").write_text("method: linear\nsources: [a, b]\nparameters: {weight: 1}\n")
    before = sorted(p.name for p in room.iterdir())
    found, _, err = run(capsys, "merge", *arguments)
    assert found == code
    assert message in " ".join(err.split())
    assert sorted(p.name for p in room.iterdir()) == before


def test_inspect_knows_files_of_ours_from_checkpoints(room, capsys):
    save_arrays(room / "x.safetensors", {"w": np.zeros(2)}, kind="example")
    code, out, _ = run(capsys, "inspect", "x.safetensors")
    assert code == 0
    assert "example, complete" in out
    (room / "bad.yaml").write_text("merge_method: karcher")
    code, _, err = run(capsys, "inspect", "bad.yaml")
    assert code == 1
    assert "bad.yaml" in err


def test_the_merge_runs_without_torch(room):
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "from fishertope.cli import main\n"
        "main(['merge', 'a', 'b', '-o', 'x', '-q'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (room / "x" / "model.safetensors").is_file()


EVALUATE = """
import numpy as np
from pathlib import Path

def first(folder):
    path = Path(folder) / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return np.frombuffer(data[8 + length :], dtype=np.float32)[0]

def loss(folder, split):
    with Path("asked.txt").open("a") as file:
        file.write(split + "\\n")
    rng = np.random.default_rng(0 if split == "selection" else 1)
    a, b = (first(n) for n in "ab")
    wanted = 0.3 * a + 0.7 * b
    return (rng.normal(wanted, 0.01, size=50) - first(folder)) ** 2
"""


def test_merging_check_49_search_reports_on_a_split_that_did_not_choose(room, capsys, monkeypatch):
    (room / "my_task.py").write_text(EVALUATE)
    monkeypatch.syspath_prepend(str(room))
    options = ["--evaluate", "my_task:loss", "--minimise", "--points", "11", "--json"]
    code, out, _ = run(capsys, "search", "a", "b", "-o", "best", *options)
    assert code == 0
    found = json.loads(out)
    np.testing.assert_allclose(found["weights"], [0.3, 0.7])
    assert len(found["trials"]) == 11
    assert set(found["report"]) == {"merged", "source 0", "source 1", "isotropic (equal)"}
    assert all(d["high"] < 0 for d in found["differences"].values())
    asked = (room / "asked.txt").read_text().split()
    assert asked == ["selection"] * 11 + ["report"] * 4
    assert run(capsys, "verify", "best")[0] == 0
    assert not [p for p in room.iterdir() if "candidates" in p.name]
    code, _, err = run(capsys, "search", "a", "b", "-o", "best", *options)
    assert code == 1
    assert "there already" in err
    assert run(capsys, "search", "a", "b", "-o", "x", "--evaluate", "nothing")[0] == 2
