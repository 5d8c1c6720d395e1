"""Small archives made here stand for the fetched ones: every loader runs without a network."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from fishertope.experiments.data import _sources

Files = dict[str, bytes]


def tar_of(files: Files, mode: str = "w:gz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv(_sources.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def place(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bytes], Path]:
    """Put bytes into the cache as a source's archive, and pin their hash."""

    def put(name: str, data: bytes) -> Path:
        entry = _sources.SOURCES[name]
        pinned = replace(entry, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        sources = MappingProxyType({**_sources.SOURCES, name: pinned})
        monkeypatch.setattr(_sources, "SOURCES", sources)
        cache.mkdir(exist_ok=True)
        path = cache / entry.file
        path.write_bytes(data)
        return path

    return put
