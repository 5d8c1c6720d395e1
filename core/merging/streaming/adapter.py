"""LoRA adapter folders as sources: the base checkpoint plus its exact low-rank update.

W = W_0 + s B A, with s = α/r, or α/√r for rank-stabilised adapters (Hu et al. 2021,
arXiv:2106.09685; Kalajdzievski 2023, arXiv:2312.03732).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CorruptFileError, InvalidInputError
from ...storage.atomic import read_json
from ...storage.numbers import FLOATS, decode, stored_dtype
from ...types import FloatArray
from .checkpoint import Checkpoint, Tensor

CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_LORA = re.compile(r"(.*)\.lora_(embedding_)?([AB])(?:\.default)?(?:\.weight)?")
# Variants of LoRA whose update is not s B A.
_OTHERS = ("use_dora", "use_qalora", "lora_bias", "layer_replication", "megatron_config")


def is_adapter(path: Path) -> bool:
    """Whether a folder looks like an adapter."""
    return path.is_dir() and (path / CONFIG).is_file()


class Adapter:
    """A base checkpoint with a LoRA adapter on it; its tensors are those of the base.

    Parameters
    ----------
    path : path
        A folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
    base : Checkpoint

    Raises
    ------
    InvalidInputError
        Other kinds of adapters; tensors that the base lacks or whose shapes do not fit.
    CorruptFileError
        A damaged configuration or file.
    """

    def __init__(self, path: Path, base: Checkpoint) -> None:
        self.path, self.base = path, base
        self.config = _read_config(path)
        self.weights = Checkpoint(path / _WEIGHTS)
        self.tensors: dict[str, Tensor] = dict(base.tensors)
        self.replaced: dict[str, str] = {}
        pairs: dict[str, dict[str, str]] = {}
        for name in self.weights.tensors:
            found = _LORA.fullmatch(name)
            if found is None:
                self._replace(name)
                continue
            module, embedding, factor = found.groups()
            entry = pairs.setdefault(_bare(module), {"embedding": embedding or ""})
            entry[factor] = name
        self.updates = {}
        for module, pair in sorted(pairs.items()):
            self.updates[f"{module}.weight"] = self._update(module, pair)

    def fingerprint(self) -> list[list[Any]]:
        """Of the adapter's file and settings, and of the base."""
        text = json.dumps(self.config, sort_keys=True).encode()
        settings = [[CONFIG, hashlib.sha256(text).hexdigest()]]
        return [*self.weights.fingerprint(), *settings, *self.base.fingerprint()]

    def values(self, name: str, start: int, stop: int) -> FloatArray:
        """Entries ``start:stop`` of the flattened tensor, as float64.

        Each entry's sum over the rank runs in one order, so that cutting changes nothing.
        """
        if name in self.replaced:
            return _values(self.weights, self.replaced[name], start, stop)
        out = _values(self.base, name, start, stop)
        if name in self.updates and stop > start:
            A, B, scale, transposed = self.updates[name]
            width = self.tensors[name].shape[1]
            first, last = start // width, -(-stop // width)
            left, right = (A.T, B.T) if transposed else (B, A)
            delta = np.zeros((last - first, width))
            for k in range(len(right)):
                delta += left[first:last, k, None] * right[k]
            skip = start - first * width
            out += scale * delta.reshape(-1)[skip : skip + stop - start]
        return out

    def close(self) -> None:
        """Close the files."""
        self.weights.close()
        self.base.close()

    def _replace(self, name: str) -> None:
        """A tensor that the adapter stores whole (``modules_to_save``)."""
        target = _bare(name).replace(".modules_to_save.", ".").replace(".default.", ".")
        place = self.weights.tensors[name]
        if target not in self.tensors:
            raise InvalidInputError(
                f"{self.path} holds {name!r}, and its base {self.base.path} has no tensor "
                f"{target!r}. LoRA weights and whole tensors of the base are accepted; give the "
                "base that the adapter was trained on."
            )
        if place.shape != self.tensors[target].shape or place.dtype not in FLOATS:
            raise InvalidInputError(
                f"{self.path}: {name!r} has the shape {place.shape} ({place.dtype}); the base has "
                f"{self.tensors[target].shape}. Give the base that the adapter was trained on."
            )
        self.replaced[target] = name

    def _update(
        self, module: str, pair: Mapping[str, str]
    ) -> tuple[FloatArray, FloatArray, float, bool]:
        """A (r, in), B (out, r), the scale, and whether the weight is stored (in, out)."""
        if "A" not in pair or "B" not in pair:
            raise CorruptFileError(
                f"{self.path}: module {module!r} has only one of lora_A and lora_B. Save the "
                "adapter again."
            )
        A, B = (self._matrix(pair[f]) for f in "AB")
        transposed = bool(self.config.get("fan_in_fan_out", False)) and not pair["embedding"]
        if pair["embedding"]:
            # Embedding weights (tokens, width) get (B A)ᵀ with A (r, tokens), B (width, r).
            A, B = B.T, A.T
        place = self.tensors.get(f"{module}.weight")
        wanted = (A.shape[1], B.shape[0]) if transposed else (B.shape[0], A.shape[1])
        if A.shape[0] != B.shape[1] or place is None or place.shape != wanted:
            given = "no such tensor" if place is None else f"the shape {place.shape}"
            raise InvalidInputError(
                f"{self.path}: the adapter of {module!r} is for a weight of shape {wanted} and "
                f"rank {A.shape[0]}; the base {self.base.path} has {given}. Give the base that "
                "the adapter was trained on."
            )
        rank = int(_for_module(self.config.get("rank_pattern"), module, self.config["r"]))
        alpha = float(_for_module(self.config.get("alpha_pattern"), module, self._alpha()))
        if rank != A.shape[0]:
            raise InvalidInputError(
                f"{self.path}: the adapter of {module!r} has rank {A.shape[0]}, but its "
                f"configuration says {rank}. Restore {CONFIG}."
            )
        scale = alpha / sqrt(rank) if self.config.get("use_rslora") else alpha / rank
        return A, B, scale, transposed

    def _alpha(self) -> float:
        return float(self.config.get("lora_alpha", self.config["r"]))

    def _matrix(self, name: str) -> FloatArray:
        place = self.weights.tensors[name]
        if len(place.shape) != 2 or place.dtype not in FLOATS:
            raise InvalidInputError(
                f"{self.path}: {name!r} has the shape {place.shape} ({place.dtype}); matrices of "
                "floats are accepted (adapters of Linear and Embedding layers)."
            )
        return _values(self.weights, name, 0, prod(place.shape)).reshape(place.shape)


def _values(checkpoint: Checkpoint, name: str, start: int, stop: int) -> FloatArray:
    code = checkpoint.tensors[name].dtype
    stored = np.empty(stop - start, dtype=stored_dtype(code))
    checkpoint.read(name, start, stored)
    return decode(stored, code)


def _bare(name: str) -> str:
    return name.removeprefix(_PREFIX)


def _for_module(pattern: Any, module: str, default: Any) -> Any:
    """The entry of ``rank_pattern`` or ``alpha_pattern`` whose key ends the module's name."""
    for key, value in (pattern or {}).items():
        if isinstance(key, str) and (module == key or module.endswith("." + key)):
            return value
        try:
            if re.fullmatch(rf"(.*\.)?({key})", module):
                return value
        except re.error:
            continue
    return default


def _read_config(path: Path) -> dict[str, Any]:
    found = read_json(path / CONFIG)
    if not isinstance(found, dict):
        raise CorruptFileError(f"{path / CONFIG} is no JSON object. Save the adapter again.")
    kind = found.get("peft_type")
    if kind != "LORA":
        raise InvalidInputError(
            f"{path} is an adapter of type {kind!r}; LORA is accepted. Merge it into its base "
            "first (peft's merge_and_unload)."
        )
    odd = [key for key in _OTHERS if found.get(key)]
    if odd or found.get("bias", "none") != "none":
        what = odd[0] if odd else f"bias={found['bias']!r}"
        raise InvalidInputError(
            f"{path} is a LoRA variant ({what}) whose update is not s·B·A. Merge it into its base "
            "first (peft's merge_and_unload)."
        )
    numbers = {"r": found.get("r"), "lora_alpha": found.get("lora_alpha", found.get("r"))}
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**31:
            raise CorruptFileError(f"{path / CONFIG}: {key}={value!r}; a number > 0 is accepted.")
    for key in ("rank_pattern", "alpha_pattern"):
        entries = found.get(key) or {}
        sound = isinstance(entries, dict) and all(
            isinstance(v, int | float) and not isinstance(v, bool) and 0 < v < 2**31
            for v in entries.values()
        )
        if not sound:
            raise CorruptFileError(f"{path / CONFIG}: {key} does not map names to numbers > 0.")
    return found
