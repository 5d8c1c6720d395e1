"""Files and plans from untrusted hands, and checkpoints too large to be here."""

import copy
import json
import os
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from fishertope.core.errors import CorruptFileError, FishertopeError, InvalidInputError
from fishertope.core.merging.plans import MergePlan, parse_plan, plan_text
from fishertope.core.merging.streaming import Checkpoint, MergeOptions, estimate_merge
from fishertope.core.merging.streaming.prepare import prepare
from fishertope.core.storage.header import Place, encode

FUZZ = settings(
    max_examples=400, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
SMALL = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 70), st.floats(), st.text(max_size=5),
    st.sampled_from([2**31, 2**60, 2**63, -(2**63), 2**64, 10**400, "F32", "BF16", "BOOL", "Q9",
                     "../x", "/etc/passwd", "1e-6", "take:0", "ties", "\0", "!!python/x"]),
)  # fmt: skip
ODD = st.recursive(
    SMALL,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=6,
)
CHANGES = st.lists(st.tuples(st.lists(st.integers(0, 30), max_size=5), ODD), min_size=1, max_size=3)


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
    old = value[at] if at < len(value) else None
    return [*value[:at], changed(old, rest, new), *value[at + 1 :]]


def lying(path, change):
    """A copy of a file with another header."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    text = change(header)
    text = json.dumps(header).encode() if text is None else text
    place = path.with_name("lying.safetensors")
    place.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return place


def test_d4_headers_that_lie_are_refused_before_anything_is_written(files):
    good = files.write("good.safetensors", files.model(1))
    names = list(files.model(1))

    def entry(name, key, value):
        return lambda header: header[name].__setitem__(key, value)

    huge = 1 << 60
    lies = {
        "overlap": entry(names[1], "data_offsets", [0, 24 * 8 * 4]),
        "hole": lambda h: h.pop(names[0]) and None,
        "huge": entry(names[0], "shape", [huge // 4]),
        "huge offsets": entry(names[0], "data_offsets", [0, huge]),
        "negative": entry(names[0], "shape", [-37, -8]),
        "duplicate": lambda h: b'{"a":' + json.dumps(h[names[0]]).encode() + b',"a":'
        + json.dumps(h[names[0]]).encode() + b"}",
        "dtype": entry(names[0], "dtype", "Q7"),
        "no json": lambda h: b"{",
        "deep": lambda h: b"[" * 100_000,
    }  # fmt: skip
    for what, change in lies.items():
        bad = lying(good, change)
        with pytest.raises(CorruptFileError, match=r"damaged|not valid JSON"):
            files.merge({"method": "linear", "sources": [str(good), str(bad)],
                         "parameters": {"weight": 0.5}}, out=f"x-{what}")  # fmt: skip
        assert not list(files.folder.glob(f"*x-{what}*"))
    bad.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(CorruptFileError, match="promise a header of"):
        Checkpoint(bad)


@pytest.mark.parametrize(
    "name", ["../out.safetensors", "/etc/passwd", "a/b.safetensors", "a\\b.safetensors", "x.bin",
             "..", ".hidden.safetensors", "x\0.safetensors"],
)  # fmt: skip
def test_d4_a_path_in_a_shards_name_is_refused(files, name):
    folder = files.shards("s", files.model(1), 2)
    place = folder / "model.safetensors.index.json"
    index = json.loads(place.read_text())
    index["weight_map"]["scalar"] = name
    place.write_text(json.dumps(index))
    files.write("out.safetensors", files.model(1))
    with pytest.raises(CorruptFileError, match="inside the folder"):
        Checkpoint(folder)


def test_indices_that_do_not_fit_their_files_are_refused(files):
    folder = files.shards("s", files.model(1), 2)
    place = folder / "model.safetensors.index.json"
    index = json.loads(place.read_text())

    def tried(change):
        found = json.loads(json.dumps(index))
        change(found["weight_map"])
        place.write_text(json.dumps(found))
        return Checkpoint(folder)

    with pytest.raises(CorruptFileError, match="files lack"):
        tried(lambda m: m.__setitem__("ghost", "model-00001-of-00002.safetensors"))
    with pytest.raises(CorruptFileError, match="missing"):
        tried(lambda m: m.__setitem__("scalar", "model-00009-of-00002.safetensors"))
    assert tried(lambda m: m.pop("scalar")).unlisted == 1
    place.unlink()
    assert len(Checkpoint(folder).tensors) == len(files.model(1))  # shards alone
    files.write("s/more.safetensors", {"scalar": np.float32(1)})
    with pytest.raises(CorruptFileError, match="twice"):
        Checkpoint(folder)


def test_pickles_and_missing_paths_are_refused(files):
    (files.folder / "old").mkdir()
    (files.folder / "old" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    for path, word in (("old", "pickle"), ("nowhere", "does not exist"),
                       ("old/pytorch_model.bin", "could run code")):  # fmt: skip
        with pytest.raises(InvalidInputError, match=word):
            Checkpoint(files.folder / path)


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A pair of sound checkpoints, one of them sharded, and a plan for them."""
    from .conftest import Files

    files = Files(tmp_path_factory.mktemp("room"))
    a = files.write("a/model.safetensors", files.model(1), code="BF16")
    b = files.shards("b", files.model(2), 2, code="BF16")
    plan = {"method": "task_arithmetic", "base_model": str(a), "sources": [
        {"model": str(b), "parameters": {"weight": [{"filter": "mlp", "value": [0.1, 0.2]},
                                                    {"value": 0.3}]}}],
        "parameters": {"lambda": 0.5}, "sites": {"scalar": "take:0"}, "seed": 3}  # fmt: skip
    files.merge(plan)
    return files, plan


def only_our_errors(run):
    """Whether it went through; anything but an error of ours fails the test."""
    try:
        run()
    except (FishertopeError, FileNotFoundError):
        return False
    return True


@FUZZ
@given(changes=CHANGES)
def test_d4_fuzzed_headers_give_only_our_errors(room, changes):
    files, plan = room
    data = (files.folder / "a" / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    for path, new in changes:
        header = changed(header, path, new)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    (files.folder / "fuzz").mkdir(exist_ok=True)
    place = files.folder / "fuzz" / "model.safetensors"
    place.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    bad = {**plan, "sources": [{**plan["sources"][0], "model": str(place)}]}
    only_our_errors(lambda: opened(files, bad))


@FUZZ
@given(at=st.integers(0, 2**20), bits=st.integers(1, 255), cut=st.integers(0, 200))
def test_d4_damaged_bytes_give_only_our_errors(room, at, bits, cut):
    files, plan = room
    data = bytearray((files.folder / "a" / "model.safetensors").read_bytes())
    length = 8 + struct.unpack("<Q", data[:8])[0]
    data[at % length] ^= bits
    (files.folder / "flip").mkdir(exist_ok=True)
    place = files.folder / "flip" / "model.safetensors"
    place.write_bytes(data[: len(data) - (cut if cut > 100 else 0)])
    bad = {**plan, "sources": [{**plan["sources"][0], "model": str(place)}]}
    only_our_errors(lambda: opened(files, bad))


@FUZZ
@given(changes=CHANGES)
def test_d4_fuzzed_indices_give_only_our_errors(room, changes):
    files, plan = room
    index = json.loads((files.folder / "b" / "model.safetensors.index.json").read_text())
    for path, new in changes:
        index = changed(index, path, new)
    folder = files.folder / "fuzzed-index"
    if not folder.exists():
        folder.mkdir()
        for shard in (files.folder / "b").glob("*.safetensors"):
            os.link(shard, folder / shard.name)
    text = json.dumps(index).encode("utf-8", "surrogatepass")
    (folder / "model.safetensors.index.json").write_bytes(text)
    bad = {**plan, "sources": [{**plan["sources"][0], "model": str(folder)}]}
    only_our_errors(lambda: opened(files, bad))


@FUZZ
@given(changes=CHANGES)
def test_d4_fuzzed_plans_give_only_our_errors(room, changes):
    files, plan = room
    found = copy.deepcopy(plan)
    for path, new in changes:
        found = changed(found, path, new)

    def run():
        again = parse_plan(plan_text(MergePlan.of(found)))
        assert again == MergePlan.of(found)
        opened(files, again)

    only_our_errors(run)


MERGEKIT = {
    "merge_method": "dare_ties", "base_model": "BASE", "dtype": "float32",
    "models": [
        {"model": "BASE"}, {"model": "MODEL", "parameters": {"weight": 0.5, "density": 0.4}}
    ],
    "parameters": {"int8_mask": True, "normalize": [{"filter": "mlp", "value": True},
                                                    {"value": False}]},
    "tokenizer_source": "base",
}  # fmt: skip


@FUZZ
@given(changes=CHANGES)
def test_d4_fuzzed_mergekit_files_give_only_our_errors(changes):
    found = copy.deepcopy(MERGEKIT)
    for path, new in changes:
        found = changed(found, path, new)
    text = json.dumps(found)  # JSON is YAML
    only_our_errors(lambda: parse_plan(text.encode("utf-8", "surrogatepass")))


@FUZZ
@given(text=st.one_of(st.text(max_size=200), st.binary(max_size=200)))
def test_d4_anything_at_all_as_a_plan_gives_only_our_errors(text):
    only_our_errors(lambda: parse_plan(text))


@pytest.mark.parametrize(
    "text",
    ["a: &x [1]\nb: *x", "!!python/object/apply:os.system ['echo']", "method: linear\nmethod: ties",
     "[" * 5000, "{a: 2020-01-01}", "? [1, 2]\n: 3", "x" * 2_000_000, "1: 2", "\x00", "- 1\n b"],
)  # fmt: skip
def test_d4_yaml_that_is_no_plan(text):
    with pytest.raises(InvalidInputError):
        parse_plan(text)


def opened(files, plan):
    plan = plan if isinstance(plan, MergePlan) else MergePlan.of(plan)
    before = sorted(p.name for p in files.folder.iterdir())
    try:
        prepare(plan, MergeOptions().kernels()).close()
    finally:
        assert sorted(p.name for p in files.folder.iterdir()) == before


def test_d5_a_seven_billion_parameter_pair_is_estimated_from_its_headers(files):
    shapes = {"model.embed_tokens.weight": (32000, 4096), "lm_head.weight": (32000, 4096)}
    for i in range(32):
        head = f"model.layers.{i}"
        shapes |= {f"{head}.self_attn.{p}_proj.weight": (4096, 4096) for p in "qkvo"}
        shapes |= {f"{head}.mlp.{p}_proj.weight": (11008, 4096) for p in ("gate", "up")}
        shapes |= {f"{head}.mlp.down_proj.weight": (4096, 11008)}
        shapes |= {f"{head}.{n}.weight": (4096,) for n in ("input_norm", "post_norm")}
    for name in "ab":
        sparse(files, name, shapes, 4)
    plan = {"method": "linear", "sources": [str(files.folder / n) for n in "ab"],
            "parameters": {"weight": 0.5}}  # fmt: skip
    found = estimate_merge(
        MergePlan.of(plan), files.folder / "out", options=MergeOptions(workers=2)
    )
    parameters = sum(int(np.prod(s)) for s in shapes.values())
    assert found["parameters"] == parameters > 6.7e9
    assert found["bytes_read"] == 4 * parameters
    assert 0 <= found["bytes_written"] - 2 * parameters < 1e6
    assert found["seconds"] > 0
    assert not (files.folder / "out").exists()
    assert sorted(p.name for p in files.folder.iterdir()) == ["a", "b"]


def sparse(files, name, shapes, parts):
    """Shards whose headers are real and whose data take no room on the disk."""
    names, index = list(shapes), {}
    (files.folder / name).mkdir()
    for i in range(parts):
        places, at = {}, 0
        for tensor in names[i::parts]:
            stop = at + 2 * int(np.prod(shapes[tensor]))
            places[tensor] = Place(dtype="BF16", shape=shapes[tensor], start=at, stop=stop)
            at = stop
        file = f"model-{i + 1:05d}-of-{parts:05d}.safetensors"
        index |= dict.fromkeys(places, file)
        with (files.folder / name / file).open("wb") as out:
            out.write(header := encode(places, {"format": "pt"}))
            out.truncate(len(header) + at)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (files.folder / name / "model.safetensors.index.json").write_text(text)
