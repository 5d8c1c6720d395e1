"""Small checkpoints on disk, of every dtype, with and without shards."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from fishertope.core.merging.plans import MergePlan, PlanSource
from fishertope.core.merging.streaming import Checkpoint, MergeOptions, merge_checkpoints
from fishertope.core.storage.header import DTYPES, ITEM_BYTES, Place, encode
from fishertope.core.storage.numbers import decode, encode as rounded, stored_dtype

CODES = {np.dtype(v): k for k, v in DTYPES.items()}
SHAPES = {
    "model.embed_tokens.weight": (37, 8), "model.layers.0.mlp.weight": (24, 8),
    "model.layers.0.norm.weight": (8,), "model.layers.1.mlp.weight": (24, 8),
    "model.layers.1.attn.weight": (8, 8), "scalar": (), "empty": (0, 4),
}  # fmt: skip


class Files:
    """Writes, reads and merges checkpoints below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0

    def write(self, path, tensors, *, code=None, metadata=None):
        """One file; floats as ``code`` where one is given."""
        path = self.folder / path
        path.parent.mkdir(parents=True, exist_ok=True)
        places, data, at = {}, [], 0
        for name, values in tensors.items():
            values = np.asarray(values)
            if code is not None and values.dtype.kind == "f":
                here, stored = code, rounded(values.astype(np.float64).reshape(-1), code)
            else:
                here, stored = CODES[values.dtype], values.reshape(-1)
            stop = at + stored.size * ITEM_BYTES[here]
            places[name] = Place(dtype=here, shape=values.shape, start=at, stop=stop)
            data.append(np.ascontiguousarray(stored).tobytes())
            at = stop
        about = {"format": "pt"} if metadata is None else metadata
        path.write_bytes(encode(places, about) + b"".join(data))
        return path

    def shards(self, path, tensors, parts, **options):
        """A folder of so many files with an index."""
        names = list(tensors)
        index = {}
        for i in range(parts):
            file = f"model-{i + 1:05d}-of-{parts:05d}.safetensors"
            mine = {n: tensors[n] for n in names[i::parts]}
            self.write(Path(path) / file, mine, **options)
            index |= dict.fromkeys(mine, file)
        text = json.dumps({"metadata": {"total_size": 1, "made_by": "test"}, "weight_map": index})
        (self.folder / path / "model.safetensors.index.json").write_text(text)
        return self.folder / path

    def read(self, path):
        """All tensors as float64 or as they are stored."""
        with Checkpoint(path) as found:
            out = {}
            for name, tensor in found.tensors.items():
                stored = np.empty(tensor.size, dtype=stored_dtype(tensor.dtype))
                found.read(name, 0, stored)
                floats = tensor.dtype in ("F16", "BF16", "F32", "F64")
                values = decode(stored, tensor.dtype) if floats else stored
                out[name] = values.reshape(tensor.shape)
            return out

    def merge(self, plan, *, out=None, **options):
        """Merge, and give the folder; a plan may be plain values."""
        self.count += 1
        target = self.folder / (out or f"out-{self.count}")
        plan = plan if isinstance(plan, MergePlan) else MergePlan.of(plan)
        watch = options.pop("watch", None)
        settings = MergeOptions(**{"fsync": False, "workers": 2, **options})
        merge_checkpoints(plan, target, options=settings, watch=watch)
        return target

    @staticmethod
    def model(seed, shapes=None, dtype=np.float32):
        """Random tensors, near to those of the other seeds."""
        common, own = np.random.default_rng(99), np.random.default_rng(seed)
        return {
            n: np.asarray(common.normal(size=s) + 0.1 * own.normal(size=s), dtype=dtype)
            for n, s in (shapes or SHAPES).items()
        }


def digest(folder):
    """SHA-256 of every file of weights."""
    found = sorted(folder.rglob("*.safetensors"))
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in found}  # fmt: skip


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


@pytest.fixture(name="digest")
def digest_fixture():
    return digest


@pytest.fixture
def source():
    return lambda path, **own: PlanSource(model=str(path), **own)
