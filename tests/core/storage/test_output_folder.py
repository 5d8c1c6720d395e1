"""Output folders: complete or absent, resumable, and never anybody else's."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fishertope.core.errors import (
    CorruptFileError,
    ForeignFolderError,
    InvalidInputError,
    ResultsExistError,
    WriteFailedError,
)
from fishertope.core.storage import OutputFolder, load_arrays, read_json, verify_folder, write_json


def run(path: Path, seed: int = 0, **options: object) -> None:
    with OutputFolder(path, command="test", settings={"seed": seed}, **options) as out:
        out.write_text("figures/note.txt", f"seed {seed}")
        out.save_arrays("x.safetensors", {"x": np.full(3, seed)}, kind="x")
        out.finish({"seed twice": 2 * seed}, seed=seed, backend="reference")


def tree(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


def test_a_finished_folder_says_how_it_came_about(tmp_path: Path) -> None:
    run(tmp_path / "a" / "out", seed=3)
    folder = tmp_path / "a" / "out"
    assert names(folder) == ["figures", "manifest.json", "results.json", "x.safetensors"]
    assert names(tmp_path / "a") == ["out"]
    found = read_json(folder / "results.json")
    assert found["results"] == {"seed twice": 6}
    facts = found["run"]
    assert (facts["command"], facts["seed"], facts["backend"]) == ("test", 3, "reference")
    assert facts["versions"]["numpy"] == np.__version__
    assert {"python", "fishertope"} <= set(facts["versions"])
    assert facts["wall_seconds"] >= 0
    assert facts["peak_memory_mib"] > 1
    assert isinstance(facts["threads"], dict)
    manifest = verify_folder(folder)
    assert set(manifest["files"]) == {"figures/note.txt", "results.json", "x.safetensors"}


def test_nothing_under_the_final_name_before_finish(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with OutputFolder(folder, command="test", settings={}) as out:
        out.write_text("note.txt", "x")
        assert not folder.exists()
    assert not folder.exists()
    assert names(tmp_path) == [".out.partial"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    run(tmp_path / "out")
    assert (tmp_path / "out" / "results.json").is_file()


def test_resume_finds_what_was_written(tmp_path: Path) -> None:
    folder = tmp_path / "out"

    def work(stop: bool) -> bool:
        with OutputFolder(folder, command="test", settings={"seed": 1, "pair": (1, 2)}) as out:
            resumed = out.resumed
            assert out.has("x.safetensors") is resumed
            if not resumed:
                out.save_arrays("x.safetensors", {"x": np.ones(2)}, kind="x")
            if stop:
                raise KeyboardInterrupt
            out.finish({}, seed=1, backend=None)
        return resumed

    with pytest.raises(KeyboardInterrupt):
        work(stop=True)
    assert work(stop=False)
    assert load_arrays(folder / "x.safetensors")[0]["x"].tolist() == [1.0, 1.0]
    assert names(tmp_path) == ["out"]


def test_a_run_without_anything_to_resume_leaves_no_trace(tmp_path: Path) -> None:
    def fail(resume: bool, write: bool) -> None:
        with OutputFolder(
            tmp_path / "out", command="test", settings={}, resume=resume, overwrite=True
        ) as out:
            if write:
                out.write_text("a", "a")
            raise ZeroDivisionError

    for resume, write in ((True, False), (False, True)):
        with pytest.raises(ZeroDivisionError):
            fail(resume, write)
        assert names(tmp_path) == []


def test_unfinished_work_with_other_settings(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with OutputFolder(folder, command="test", settings={"seed": 1}) as out:
        out.write_text("half.txt", "x")
    with pytest.raises(ResultsExistError, match=r"other settings \(seed: 1, now 2\)"):
        run(folder, seed=2)
    run(folder, seed=2, overwrite=True)
    assert "half.txt" not in names(folder)
    assert names(tmp_path) == ["out"]


def test_finished_results_are_replaced_only_when_asked(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    run(folder, seed=1)
    before = tree(folder)
    with pytest.raises(ResultsExistError, match="finished results of 'test'"):
        run(folder, seed=1)
    assert tree(folder) == before
    run(folder, seed=2, overwrite=True)
    assert read_json(folder / "results.json")["results"] == {"seed twice": 4}
    assert names(tmp_path) == ["out"]


def test_a_command_may_replace_only_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    run(folder, seed=1)
    other = {"command": "other", "settings": {}, "overwrite": "same command"}
    with (
        pytest.raises(ResultsExistError, match=r"results of 'test'\. Choose another folder\.$"),
        OutputFolder(folder, **other),
    ):
        pass
    run(folder, seed=2, overwrite="same command")
    assert read_json(folder / "results.json")["results"] == {"seed twice": 4}
    with OutputFolder(tmp_path / "half", command="test", settings={}) as out:
        out.write_text("a", "a")
    with (
        pytest.raises(ResultsExistError, match="unfinished"),
        OutputFolder(tmp_path / "half", **other),
    ):
        pass


def foreign_file(folder: Path) -> None:
    folder.write_text("mine")


def foreign_folder(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")


def foreign_manifest(folder: Path) -> None:
    folder.mkdir()
    (folder / "manifest.json").write_text('{"name": "web app"}')


def broken_manifest(folder: Path) -> None:
    folder.mkdir()
    (folder / "manifest.json").write_text('{"fishertope_results": 1, ')


def added_file(folder: Path) -> None:
    run(folder)
    (folder / "figures" / "my-notes.txt").write_text("mine")


def foreign_sibling(folder: Path) -> None:
    folder.with_name(".out.partial").mkdir()
    (folder.with_name(".out.partial") / "data").write_text("mine")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        foreign_file,
        foreign_folder,
        foreign_manifest,
        broken_manifest,
        added_file,
        foreign_sibling,
    ],
)
def test_anything_foreign_is_refused_and_untouched(tmp_path: Path, make, overwrite: bool) -> None:
    folder = tmp_path / "out"
    make(folder)
    before = tree(tmp_path)
    with pytest.raises(ForeignFolderError, match=r"[Cc]hoose another folder"):
        run(folder, overwrite=overwrite)
    assert tree(tmp_path) == before


def test_what_file_managers_drop_is_not_foreign(tmp_path: Path) -> None:
    run(tmp_path / "out")
    (tmp_path / "out" / ".DS_Store").write_text("")
    run(tmp_path / "out", seed=1, overwrite=True)
    assert names(tmp_path) == ["out"]


def test_a_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "real", target_is_directory=True)
    run(tmp_path / "link")
    assert (tmp_path / "disk" / "real" / "results.json").is_file()
    assert (tmp_path / "link").is_symlink()


def test_something_that_came_in_the_meantime_is_not_lost(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with OutputFolder(folder, command="test", settings={}) as out:
        out.write_text("a", "a")
        foreign_folder(folder)
        with pytest.raises(ForeignFolderError):
            out.finish({}, seed=0, backend=None)
    assert names(folder) == ["thesis.tex"]


def test_a_failed_rename_puts_the_old_results_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    run(folder, seed=1)
    before = tree(folder)
    real = os.rename

    def refuse(a: object, b: object) -> None:
        if Path(str(a)).name == ".out.partial":
            raise OSError(13, "Permission denied")
        real(a, b)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(WriteFailedError, match="Permission denied"):
        run(folder, seed=2, overwrite=True)
    assert tree(folder) == before


@pytest.mark.parametrize("moved", [False, True])
def test_recovery_when_killed_between_the_two_renames(tmp_path: Path, moved: bool) -> None:
    folder, aside = tmp_path / "out", tmp_path / ".out.replaced"
    run(folder, seed=1)
    os.rename(folder, aside)
    if moved:  # the new results arrived, the old were not deleted yet
        run(tmp_path / "new", seed=2)
        os.rename(tmp_path / "new", folder)
    with pytest.raises(ResultsExistError):
        run(folder, seed=3)
    assert read_json(folder / "results.json")["results"] == {"seed twice": 4 if moved else 2}
    assert names(tmp_path) == ["out"]


SCRIPT = """
import os, signal, sys
import numpy as np
from fishertope.core.storage import OutputFolder
folder, place = sys.argv[1:]
calls = 0
def killing(real, when):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == when:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
name, when = place.split(":")
setattr(os, name, killing(getattr(os, name), int(when)))
with OutputFolder(folder, command="test", settings={"seed": 5}, overwrite=True) as out:
    out.save_arrays("x.safetensors", {"x": np.arange(100.0)}, kind="x")
    out.write_text("note.txt", "done")
    out.finish({"v": 5}, seed=5, backend=None)
"""


KILLED_AT = ("fsync:1", "replace:1", "replace:2", "replace:4", "replace:5", "rename:1", "rename:2")


@pytest.mark.parametrize(
    ("place", "old_results"),
    # There is one rename when nothing is replaced.
    [(p, old) for old in (False, True) for p in KILLED_AT if old or p != "rename:2"],
)
def test_killed_anywhere_leaves_old_or_new_and_can_be_run_again(
    tmp_path: Path, place: str, old_results: bool
) -> None:
    folder = tmp_path / "out"
    if old_results:
        run(folder, seed=1)
    before = tree(folder) if old_results else {}
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    killed = subprocess.run([*command, place], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    if folder.exists():
        assert tree(folder) == before
    again = subprocess.run([*command, "rename:99"], check=False, timeout=60)
    assert again.returncode == 0
    assert verify_folder(folder)["settings"] == {"seed": 5}
    assert names(folder) == ["manifest.json", "note.txt", "results.json", "x.safetensors"]
    assert names(tmp_path) == ["out"]


def test_two_runs_do_not_write_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    script = (
        "import sys, time\n"
        "from fishertope.core.storage import OutputFolder\n"
        "with OutputFolder(sys.argv[1], command='test', settings={'seed': 0}) as out:\n"
        "    out.write_text('a', 'a')\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        for overwrite in (False, True):
            with pytest.raises(ResultsExistError, match="Another run is writing"):
                run(folder, seed=overwrite, overwrite=overwrite)
    finally:
        other.kill()
        other.communicate()
    time.sleep(0.01)
    run(folder)  # the lock went with the process


def test_a_read_only_place_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = tmp_path / "locked"
    parent.mkdir()
    if os.geteuid() == 0:  # permissions do not bind root, so the system's answer is played
        real = Path.mkdir

        def mkdir(self: Path, *args: object, **kwargs: object) -> None:
            if self.parent == parent:
                raise PermissionError(13, "Permission denied", str(self))
            real(self, *args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(Path, "mkdir", mkdir)
    else:
        parent.chmod(0o500)
    try:
        with pytest.raises(WriteFailedError, match=r"Permission denied.*Choose a folder"):
            run(parent / "out")
    finally:
        parent.chmod(0o700)


def test_a_file_in_the_way_of_the_parents(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteFailedError, match="could not be written"):
        run(tmp_path / "file" / "out")


@pytest.mark.parametrize(
    "name",
    ["/etc/x", "../x", "a/../../x", "", "results.json", "manifest.json", "a\\b", ".a.partial"],
)
def test_names_that_leave_the_folder_or_are_reserved(tmp_path: Path, name: str) -> None:
    with (
        OutputFolder(tmp_path / "out", command="test", settings={}) as out,
        pytest.raises(InvalidInputError, match="relative name inside the folder"),
    ):
        out.write_text(name, "x")


def test_no_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="give the name of a folder"):
        OutputFolder("/", command="test", settings={})


def test_verify_names_what_is_missing_or_altered(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    run(folder)
    (folder / "x.safetensors").unlink()
    (folder / "results.json").write_text("{}")
    with pytest.raises(
        CorruptFileError, match=r"results\.json was altered.*x\.safetensors is miss"
    ):
        verify_folder(folder)
    with pytest.raises(ForeignFolderError, match="does not exist"):
        verify_folder(tmp_path / "nothing")


def test_a_hostile_manifest_reads_nothing_outside(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    run(folder)
    manifest = read_json(folder / "manifest.json")
    manifest["files"]["../../../etc/hostname"] = {"bytes": 1, "sha256": "0"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptFileError, match="hostname is missing"):
        verify_folder(folder)


def test_json_helpers(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": np.int64(1), "b": [np.nan, -np.inf], "c": {"d": (True, None)}})
    assert read_json(path) == {"a": 1, "b": ["NaN", "-Infinity"], "c": {"d": [True, None]}}
    for text in ('{"a": 1, "a": 2}', "{", "NaN", "\ufeff{}"):
        path.write_text(text)
        with pytest.raises(CorruptFileError, match=r"x\.json"):
            read_json(path)
    path.write_bytes(b"\xff\xff")
    with pytest.raises(CorruptFileError):
        read_json(path)
