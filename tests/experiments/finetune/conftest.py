"""A small archive made here stands for the fetched one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from fishertope.experiments.data import _sources

from ..data.conftest import tar_of

GOOD, BAD = ("good", "fine", "great", "lovely"), ("bad", "poor", "awful", "broken")
FILLER = ("the", "food", "film", "phone", "was", "it", "is", "here", "today", "really")


def sentences(part: str, n: int = 240) -> bytes:
    """Sentences whose one word of opinion decides the label."""
    rng = np.random.default_rng(len(part))
    rows = []
    for i in range(n):
        words = [str(w) for w in rng.choice(FILLER, 6)]
        words.insert(int(rng.integers(7)), str(rng.choice(GOOD if i % 2 else BAD)))
        rows.append({"text": f"{' '.join(words)} {part} {i}", "class": i % 2})
    return json.dumps(rows).encode()


@pytest.fixture(scope="module")
def opinions() -> bytes:
    return tar_of(
        {f"package/test/fixtures/{p}.json": sentences(p) for p in ("amazon", "imdb", "yelp")}
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opinions: bytes) -> Path:
    """A cache folder that holds the sentences and nothing else."""
    entry = replace(
        _sources.SOURCES["sentiment"],
        size=len(opinions),
        sha256=hashlib.sha256(opinions).hexdigest(),
    )
    monkeypatch.setattr(
        _sources, "SOURCES", MappingProxyType({**_sources.SOURCES, "sentiment": entry})
    )
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / entry.file).write_bytes(opinions)
    monkeypatch.setenv(_sources.CACHE_VARIABLE, str(folder))
    return folder
