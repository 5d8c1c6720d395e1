"""Files from untrusted hands: only our errors, no code, no memory that their size does not justify.

Damage is resealed wherever a hostile writer could do so: every checksum that the files carry is
made to fit the damage, so that nothing is refused just because a sum is wrong.
"""

import copy
import hashlib
import json
import shutil
import struct
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from fishertope.cli._inspect import facts_of
from fishertope.core.errors import FishertopeError
from fishertope.core.factorization import Factorization, LowRankNPEFF, factorize
from fishertope.core.fisher import (
    DiagonalFishers,
    FisherStore,
    LowRankFishers,
    PrecisionTree,
    TopK,
    estimate_precision,
    per_example_fishers,
    save_fishers,
)
from fishertope.core.fisher.structures import SiteLayout
from fishertope.core.model import DenseNetwork

from ..fisher.structures.test_structures import cases as structure_cases

# JSON takes up to about thirty times its bytes as Python objects ("[[],[],..."), hashing 256 KiB.
OBJECTS_A_BYTE, BUFFERS = 40, 2 << 20
CODE_EVENTS = ("exec", "compile", "import", "os.system", "os.exec", "subprocess.Popen",
               "pickle.find_class", "socket.connect")  # fmt: skip
_watch: dict[str, list | None] = {"seen": None}


def _hook(event, _):
    if _watch["seen"] is not None and event in CODE_EVENTS:
        _watch["seen"].append(event)


sys.addaudithook(_hook)


def watched(load, path):
    """``load(path)`` under guard: True when it was taken, False when refused."""
    files = [path] if path.is_file() else [p for p in path.iterdir() if p.is_file()]
    size = sum(p.stat().st_size for p in files)
    seen: list[str] = []
    _watch["seen"] = seen
    tracemalloc.start()
    try:
        load(path)
        taken = True
    except (FishertopeError, FileNotFoundError):
        taken = False
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        _watch["seen"] = None
    assert not seen, f"reading ran {seen}"
    assert peak <= OBJECTS_A_BYTE * size + BUFFERS, f"{peak} bytes for a file of {size}"
    return taken


def network():
    rng = np.random.default_rng(0)
    return DenseNetwork([rng.normal(size=(3, 4))], [np.zeros(3)])


def load_store(path):
    store = FisherStore.open(path)
    found = store.load()
    assert len(found) == len(store)
    facts_of(path)


def load_precision(path):
    tree = PrecisionTree.load(path)
    repr(tree)
    for precision in tree.values():
        assert np.isfinite(precision.trace())
    facts_of(path)


STRUCTURES = ("gram", "kronecker", "ekfac", "block", "lowrank+diagonal", "masked", "scaled", "sum")


def load_factorization(path):
    repr(Factorization.load(path))
    facts_of(path)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """One sound file of each kind, and what reads it."""
    folder = tmp_path_factory.mktemp("originals")
    x = np.random.default_rng(1).normal(size=(6, 4))
    rows = per_example_fishers(network(), x)
    assert isinstance(rows, LowRankFishers)
    save_fishers(folder / "rows", rows, shard_examples=4)
    top = per_example_fishers(network(), x, kind="diagonal", reduce=TopK(3))
    assert isinstance(top, DiagonalFishers)
    save_fishers(folder / "sparse", top, shard_examples=4)
    save_fishers(folder / "diagonal", per_example_fishers(network(), x, kind="diagonal"))
    estimate_precision(network(), x).save(folder / "diag.safetensors")
    estimate_precision(network(), x, structure="isotropic").save(folder / "iso.safetensors")
    for name, (precision, _) in structure_cases().items():
        if name in STRUCTURES:
            layout = SiteLayout(weight="w", weight_shape=(3, 3), bias="b", outputs="first")
            tree = PrecisionTree(
                sites={"w": precision}, layouts={"w": layout}, n_examples=2, trace_errors={"w": 0.1}
            )
            tree.save(folder / f"{name}.safetensors")
    factorize(rows, LowRankNPEFF(2), on_failure="return").save(folder / "f.safetensors")
    readers = {
        "rows": load_store, "sparse": load_store, "diagonal": load_store,
        "diag.safetensors": load_precision, "iso.safetensors": load_precision,
        "f.safetensors": load_factorization,
        **{f"{name}.safetensors": load_precision for name in STRUCTURES},
    }  # fmt: skip
    for name, load in readers.items():
        load(folder / name)  # imports what is imported when used
    return folder, readers


SMALL = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 40), st.floats(allow_nan=False), st.text(max_size=4),
    st.sampled_from([2**31, 2**40, 2**59, 2**62, 2**63, -(2**63), 2**64, 10**400, 1e308, "F64",
                     "BOOL", "I64", "U8", "__reduce__", "../../etc/passwd", "NaN", "Infinity",
                     "cos\nsystem\n(S'false'\ntR."]),
)  # fmt: skip
ODD = st.recursive(
    SMALL,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=6,
)
NESTED = st.integers(1, 3000).map(lambda depth: "[" * depth + "]" * depth)
CHANGES = st.lists(st.tuples(st.lists(st.integers(0, 30), max_size=6), ODD), min_size=1, max_size=3)
FUZZ = settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def changed(value, path, new):
    """``value`` with the entry that a path of numbers leads to replaced, added or removed."""
    if not path or not isinstance(value, dict | list):
        return new
    key, *rest = path
    if isinstance(value, dict):
        names = [*sorted(value), "added"]
        name = names[key % len(names)]
        if not rest and new is None:
            return {k: v for k, v in value.items() if k != name}
        return {**value, name: changed(value.get(name), rest, new)}
    at = key % (len(value) + 1)
    return [
        *value[:at],
        changed(value[at] if at < len(value) else None, rest, new),
        *value[at + 1 :],
    ]


def split_file(data):
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def sealed(header, body, facts=None):
    """A file whose checksums all fit, as far as they can."""
    header = copy.deepcopy(header)
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if isinstance(metadata, dict):
        if facts is not None:
            metadata["facts"] = facts if isinstance(facts, str) else json.dumps(facts)
        sums = {}
        for name, entry in header.items():
            offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
            if name != "__metadata__":
                fits = isinstance(offsets, list) and all(
                    isinstance(o, int) and 0 <= o < 2**31 for o in offsets
                )
                part = body[slice(*offsets[:2])] if fits and len(offsets) > 1 else b""
                sums[name] = hashlib.sha256(part).hexdigest()
        if "sha256" in metadata:
            metadata["sha256"] = json.dumps(sums)
        if "header_sha256" in metadata:
            metadata["header_sha256"] = "0" * 64
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    start = struct.pack("<Q", len(text))
    if isinstance(metadata, dict) and "header_sha256" in metadata:
        digest = hashlib.sha256(start + text).hexdigest()
        text = text.replace(b"0" * 64, digest.encode())
    return start + text + body


def hostile_copy(folder, name):
    """A fresh copy of a store, or a place for a file."""
    target = folder.parent / f"hostile-{name}"
    if (folder / name).is_dir() and not target.exists():
        shutil.copytree(folder / name, target)
    return target


@pytest.mark.parametrize("name", ["rows", "sparse", "diagonal"])
@FUZZ
@given(changes=CHANGES, nested=st.one_of(st.none(), NESTED))
def test_b9_manifests(originals, name, changes, nested):
    folder, readers = originals
    target = hostile_copy(folder, name)
    manifest = json.loads((folder / name / "manifest.json").read_text())
    for path, new in changes:
        manifest = changed(manifest, path, new)
    text = json.dumps(manifest)
    if nested is not None:
        text = text.replace('"versions": {', f'"versions": {{"deep": {nested}, ', 1)
    (target / "manifest.json").write_text(text)
    watched(readers[name], target)


@pytest.mark.parametrize("name", ["rows", "sparse", "diagonal"])
@FUZZ
@given(
    changes=CHANGES, values=st.lists(SMALL.filter(lambda v: isinstance(v, int | float)), max_size=3)
)
def test_b9_shards_that_agree_with_their_manifest(originals, name, changes, values):
    folder, readers = originals
    target = hostile_copy(folder, name)
    manifest = json.loads((folder / name / "manifest.json").read_text())
    header, body = split_file((folder / name / "shard-000000.safetensors").read_bytes())
    for path, new in changes if len(values) != 1 else []:
        header = changed(header, path, new)
    for at, value in enumerate(values):
        number = int(min(max(value, -(2**62)), 2**62))
        body = body[: 8 * at] + struct.pack("<q", number) + body[8 * at + 8 :]
    data = sealed(header, body)
    (target / "shard-000000.safetensors").write_bytes(data)
    manifest["shards"][0] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (target / "manifest.json").write_text(json.dumps(manifest))
    watched(readers[name], target)


@pytest.mark.parametrize(
    "name",
    ["diag.safetensors", "iso.safetensors", "f.safetensors"]
    + [f"{name}.safetensors" for name in STRUCTURES],
)
@FUZZ
@given(changes=CHANGES, inside=st.booleans(), nested=st.one_of(st.none(), NESTED))
def test_b9_single_files(originals, name, changes, inside, nested):
    folder, readers = originals
    header, body = split_file((folder / name).read_bytes())
    facts = json.loads(header["__metadata__"]["facts"])
    for path, new in changes:
        if inside:
            facts = changed(facts, path, new)
        else:
            header = changed(header, path, new)
    target = hostile_copy(folder, name)
    target.write_bytes(sealed(header, body, facts if nested is None else nested))
    watched(readers[name], target)


@FUZZ
@given(data=st.binary(max_size=200), length=st.one_of(st.none(), st.integers(0, 2**64 - 1)))
def test_b9_bytes_of_any_kind(originals, data, length):
    folder, readers = originals
    target = folder.parent / "any.safetensors"
    target.write_bytes((b"" if length is None else struct.pack("<Q", length)) + data)
    assert not watched(readers["diag.safetensors"], target)


def test_b9_the_guard_itself_notices(tmp_path):
    (tmp_path / "x").write_bytes(b"0" * 10)
    with pytest.raises(AssertionError, match="bytes for a file of 10"):
        watched(lambda path: np.zeros(1 << 20), tmp_path / "x")
    with pytest.raises(AssertionError, match="reading ran"):
        watched(lambda path: eval("1 + 1"), tmp_path / "x")  # what is to be noticed


def edited(folder: Path, source: Path, change):
    """A copy of a store whose first shard holds other arrays, with sums that fit."""
    from fishertope.core.storage import load_arrays, save_arrays

    shutil.copytree(source, folder)
    place = folder / "shard-000000.safetensors"
    arrays, facts = load_arrays(place)
    arrays = change({k: np.array(v) for k, v in arrays.items()})
    manifest = json.loads((folder / "manifest.json").read_text())
    save_arrays(place, arrays, facts, kind=manifest["kind"])
    data = place.read_bytes()
    manifest["shards"][0] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return folder, manifest


def test_b9_shards_that_do_not_fit_together(originals, tmp_path):
    folder, _ = originals
    sparse, _ = originals[0] / "sparse", None

    def widened(arrays):
        return {**arrays, "width": arrays["width"] + 1}

    def dense(arrays):
        return {"values": np.ones((4, int(arrays["width"][0])))}

    for number, change in enumerate((widened, dense)):
        spoiled, manifest = edited(tmp_path / str(number), sparse, change)
        manifest["identity"]["sites"] = []  # nothing then says how wide the rows are
        (spoiled / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(FishertopeError, match="shard"):
            FisherStore.open(spoiled).load()
    empty = tmp_path / "empty"
    shutil.copytree(folder / "rows", empty)
    manifest = json.loads((empty / "manifest.json").read_text())
    manifest["shards"], manifest["facts"]["n"] = [], 0
    (empty / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FishertopeError):
        FisherStore.open(empty).load()
