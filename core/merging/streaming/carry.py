"""Configuration, tokenizer and other small files that belong to a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import CorruptFileError, InvalidInputError
from ...storage.atomic import read_json
from .checkpoint import INDEX_SUFFIX, Checkpoint

TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
SETTINGS = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json",
)  # fmt: skip
MAX_BYTES = 256 << 20
# Their names are taken by our own records; weights are what is merged.
_OURS = frozenset({"manifest.json", "results.json", "run.json", "lock", "README.md"})
_TORCH = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


def carried_files(target: Checkpoint, tokenizer: Path | None) -> dict[str, Path]:
    """Name in the result → file, of what is copied from the target's folder.

    Raises
    ------
    InvalidInputError
        A tokenizer folder that has no tokenizer file.
    """
    folder = target.folder
    found: dict[str, Path] = {}
    if target.path.is_dir():
        for name in (*SETTINGS, *TOKENIZER, "1_Pooling/config.json"):
            place = folder / name
            if place.is_file() and place.stat().st_size <= MAX_BYTES:
                found[name] = place
    if tokenizer is not None:
        source = tokenizer if tokenizer.is_dir() else tokenizer.parent
        theirs = {n: source / n for n in TOKENIZER if (source / n).is_file()}
        if not theirs:
            raise InvalidInputError(
                f"tokenizer: {tokenizer} has no tokenizer file ({', '.join(TOKENIZER[:4])}, ...). "
                "Give the folder of a tokenizer, or leave it out."
            )
        found = {n: p for n, p in found.items() if n not in TOKENIZER} | theirs
    return {n: p for n, p in found.items() if n not in _OURS and not n.endswith(INDEX_SUFFIX)}


def config_text(place: Path, codes: set[str]) -> bytes:
    """A config.json with the dtype that the result's weights now have; else its own bytes."""
    data = place.read_bytes()
    if len(codes) != 1:
        return data
    try:
        config: Any = read_json(place)
    except CorruptFileError:
        return data
    wanted = _TORCH.get(next(iter(codes)))
    keys = [k for k in ("dtype", "torch_dtype") if isinstance(config, dict) and k in config]
    if wanted is None or not keys or all(config[k] == wanted for k in keys):
        return data
    config |= dict.fromkeys(keys, wanted)
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
