"""Files of arrays: what is written comes back, and nothing damaged ever does."""

import json
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from fishertope.core.errors import CorruptFileError, InvalidInputError, WriteFailedError
from fishertope.core.storage import inspect_file, load_arrays, save_arrays


def repeat(times: int) -> settings:
    """Each example overwrites the same file, so sharing the folder between them is harmless."""
    return settings(
        max_examples=times,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "sample.safetensors"
    rng = np.random.default_rng(0)
    save_arrays(
        path,
        {
            "rows": rng.standard_normal((5, 4)),
            "single": rng.standard_normal(3).astype(np.float32),
            "flags": np.array([True, False, True]),
            "empty": np.zeros((0, 7), dtype=np.int64),
            "scalar": np.array(3, dtype=np.int16),
        },
        {"seed": 7, "names": ["a", "é", "\N{GREEK SMALL LETTER NU}"], "loss": float("inf")},
        kind="sample",
    )
    return path


def test_round_trip_keeps_values_shapes_dtypes_and_facts(sample: Path) -> None:
    arrays, facts = load_arrays(sample, kind="sample")
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(arrays["rows"], rng.standard_normal((5, 4)))
    assert arrays["single"].dtype == np.float32
    assert arrays["flags"].tolist() == [True, False, True]
    assert arrays["empty"].shape == (0, 7)
    assert arrays["empty"].dtype == np.int64
    assert arrays["scalar"].shape == ()
    assert int(arrays["scalar"]) == 3
    assert facts == {"seed": 7, "names": ["a", "é", "ν"], "loss": "Infinity"}


@repeat(80)
@given(
    array=hnp.arrays(
        dtype=st.sampled_from(["?", "u1", "<i2", ">i4", "<i8", "<u8", "<f2", ">f4", "<f8"]),
        shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    ),
    transpose=st.booleans(),
)
def test_any_array_comes_back(tmp_path: Path, array: np.ndarray, transpose: bool) -> None:
    given_array = array.T if transpose else array
    path = tmp_path / "x.safetensors"
    save_arrays(path, {"x": given_array}, kind="x")
    for mapped in (False, True):
        back = load_arrays(path, kind="x", mapped=mapped)[0]["x"]
        assert back.dtype == given_array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(back, given_array)


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    arrays = {"b": np.arange(3), "a": np.ones(2, dtype=np.float32)}
    save_arrays(tmp_path / "1", arrays, {"x": 1, "y": 2}, kind="k")
    save_arrays(tmp_path / "2", dict(reversed(arrays.items())), {"y": 2, "x": 1}, kind="k")
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_the_safetensors_library_reads_ours_and_we_look_into_theirs(
    sample: Path, tmp_path: Path
) -> None:
    library = pytest.importorskip("safetensors.numpy")
    ours = load_arrays(sample)[0]
    theirs = library.load_file(sample)
    assert set(ours) == set(theirs)
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])
    other = tmp_path / "other.safetensors"
    library.save_file({"w": np.ones((2, 3), dtype=np.float32)}, other, {"origin": "elsewhere"})
    seen = inspect_file(other)
    assert seen["kind"] is None
    assert seen["facts"] == {"origin": "elsewhere"}
    assert seen["arrays"] == {"w": {"dtype": "float32", "shape": [2, 3]}}
    with pytest.raises(CorruptFileError, match="did not write"):
        load_arrays(other)


def test_mapped_arrays_are_read_only_and_equal(sample: Path) -> None:
    mapped, plain = load_arrays(sample, mapped=True)[0], load_arrays(sample)[0]
    assert not mapped["rows"].flags.writeable
    assert plain["rows"].flags.writeable
    np.testing.assert_array_equal(mapped["rows"], plain["rows"])


def test_another_kind_is_refused_by_name(sample: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"holds 'sample'; 'factorization' is taken"):
        load_arrays(sample, kind="factorization")


def test_inspect_reads_no_array(sample: Path) -> None:
    seen = inspect_file(sample)
    assert (seen["kind"], seen["format"], seen["bytes"]) == ("sample", 1, sample.stat().st_size)
    assert seen["arrays"]["rows"] == {"dtype": "float64", "shape": [5, 4]}
    data = bytearray(sample.read_bytes())
    data[-1] ^= 1  # an array's byte: the header is still sound
    sample.write_bytes(data)
    assert inspect_file(sample)["kind"] == "sample"


def test_cut_short_anywhere(sample: Path) -> None:
    data = sample.read_bytes()
    for length in range(len(data)):
        sample.write_bytes(data[:length])
        with pytest.raises(CorruptFileError, match="Restore it") as caught:
            load_arrays(sample)
        assert str(sample) in str(caught.value)


def test_appended_bytes(sample: Path) -> None:
    sample.write_bytes(sample.read_bytes() + b"\0")
    with pytest.raises(CorruptFileError, match="appended"):
        load_arrays(sample)


def test_every_byte_is_protected(sample: Path) -> None:
    data = sample.read_bytes()
    for position in range(len(data)):
        altered = bytearray(data)
        altered[position] ^= 1 << (position % 8)
        sample.write_bytes(altered)
        with pytest.raises(CorruptFileError):
            load_arrays(sample)


@repeat(400)
@given(st.data())
def test_any_alteration_is_noticed(sample: Path, data: st.DataObject) -> None:
    original = sample.read_bytes()
    altered = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(altered) - 1))
        altered[place] = data.draw(st.integers(0, 255))
    try:
        sample.write_bytes(altered)
        if bytes(altered) == original:
            load_arrays(sample)
        else:
            with pytest.raises(CorruptFileError):
                load_arrays(sample)
    finally:
        sample.write_bytes(original)


@repeat(200)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "noise.safetensors"
    path.write_bytes(data)
    for read in (load_arrays, inspect_file):
        try:
            read(path)
        except CorruptFileError:
            continue
        assert read is inspect_file  # an empty foreign file can be sound


def _raw(entries: object, data: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def _entry(dtype: object = "F64", shape: object = (1,), offsets: object = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HOSTILE = {
    "header of 2^60 bytes": (struct.pack("<Q", 2**60) + b"{}", "promise a header"),
    "header of 2^64-1 bytes": (b"\xff" * 8 + b"{}", "promise a header"),
    "array of 2^60 bytes": (_raw({"x": _entry(shape=[2**57], offsets=[0, 2**60])}), "describes"),
    "extents that overflow": (
        _raw({"x": _entry(shape=[2**62, 2**62, 0], offsets=[0, 0])}),
        "shape",
    ),
    "extent beyond int64": (_raw({"x": _entry(shape=[2**70, 0], offsets=[0, 0])}), "shape"),
    "negative extent": (_raw({"x": _entry(shape=[-1], offsets=[0, 8])}, b"\0" * 8), "shape"),
    "negative offset": (_raw({"x": _entry(offsets=[-8, 0])}, b"\0" * 8), "offsets"),
    "offsets backwards": (_raw({"x": _entry(offsets=[8, 0])}, b"\0" * 8), "offsets"),
    "boolean extent": (_raw({"x": _entry(shape=[True])}, b"\0" * 8), "shape"),
    "float extent": (_raw({"x": _entry(shape=[1.0])}, b"\0" * 8), "shape"),
    "too many axes": (_raw({"x": _entry(shape=[1] * 65)}, b"\0" * 8), "shape"),
    "size unlike shape": (_raw({"x": _entry(shape=[2])}, b"\0" * 8), "needs 16 bytes"),
    "unknown dtype": (_raw({"x": _entry(dtype="BF16", shape=[4])}, b"\0" * 8), "dtype"),
    "dtype not a word": (_raw({"x": _entry(dtype=["F64"])}, b"\0" * 8), "dtype"),
    "overlap": (
        _raw({"x": _entry(), "y": _entry(dtype="U8", shape=[4], offsets=[4, 8])}, b"\0" * 8),
        "overlaps",
    ),
    "hole": (
        _raw({"x": _entry(), "y": _entry(offsets=[16, 24])}, b"\0" * 24),
        "hole",
    ),
    "name twice": (
        _raw(b'{"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"x":{}}'),
        "twice",
    ),
    "key twice in an entry": (
        _raw(b'{"x":{"dtype":"U8","dtype":"I8","shape":[0],"data_offsets":[0,0]}}'),
        "twice",
    ),
    "missing field": (_raw({"x": {"dtype": "F64", "shape": [1]}}, b"\0" * 8), "entry"),
    "extra field": (_raw({"x": _entry() | {"code": "x"}}, b"\0" * 8), "entry"),
    "not an object": (_raw([1, 2]), "not a JSON object"),
    "not JSON": (_raw(b"{nope}"), "not valid JSON"),
    "not a number": (_raw(b'{"x": NaN}'), "not valid JSON"),
    "not UTF-8": (_raw(b'{"\xff\xfe": 1}'), "not valid JSON"),
    "endless nesting": (_raw(b'{"x":' * 200_000), "not valid JSON"),
    "endless integer": (_raw(b'{"x":' + b"9" * 10_000 + b"}"), "not valid JSON"),
    "metadata not strings": (_raw({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata a list": (_raw({"__metadata__": []}), "__metadata__"),
    "empty file": (b"", "0 bytes"),
    "no checksum": (_raw({"__metadata__": {"fishertope_format": "1"}}), "SHA-256"),
    "lone surrogate": (_raw({"__metadata__": {"\ud800": "\udfff"}}), "did not write"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_are_refused_without_allocating(tmp_path: Path, case: str) -> None:
    data, message = HOSTILE[case]
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptFileError, match=message) as caught:
            load_arrays(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000 + len(str(path))
    assert peak < 40 * len(data) + 2**20


def _resealed(path: Path, change: dict[str, str]) -> None:
    """A file of ours whose metadata were altered by someone who mends the checksum."""
    from hashlib import sha256

    from fishertope.core.storage.header import encode, read_header

    with path.open("rb") as file:
        header = read_header(file, "x")
        data = file.read()
    metadata = {**header.metadata, **change, "header_sha256": "0" * 64}
    digest = sha256(encode(header.places, metadata)).hexdigest()
    path.write_bytes(encode(header.places, metadata | {"header_sha256": digest}) + data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fishertope_format": "2"}, "format version '2'"),
        ({"facts": "[]"}, "not JSON objects"),
        ({"facts": "{"}, "facts"),
        ({"facts": '{"a":"\ud800"}'}, "facts"),
        ({"sha256": "{}"}, "checksums"),
        ({"sha256": '{"rows":1,"single":2,"flags":3,"empty":4,"scalar":5}'}, "do not match"),
    ],
)
def test_resealed_metadata(sample: Path, change: dict[str, str], message: str) -> None:
    _resealed(sample, change)
    with pytest.raises(CorruptFileError, match=message):
        load_arrays(sample)


def test_truth_values_other_than_0_and_1(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    strange = np.array([2], dtype=np.uint8).view(np.bool_)
    save_arrays(path, {"b": strange}, kind="b")
    with pytest.raises(CorruptFileError, match="truth values"):
        load_arrays(path)


@pytest.mark.parametrize(
    ("arrays", "facts", "message"),
    [
        ({"x": [1, 2]}, {}, "a list was given"),
        ({"x": np.array(["a"])}, {}, "dtype <U1"),
        ({"x": np.array([1 + 2j])}, {}, "dtype complex128"),
        ({"x": np.array([object()])}, {}, "dtype object"),
        ({"__metadata__": np.zeros(1)}, {}, "another name"),
        ({}, {"f": object()}, "cannot be written as JSON"),
        ({}, {"f": {(1, 2): 3}}, "as a key"),
    ],
)
def test_what_cannot_be_stored_leaves_nothing(
    tmp_path: Path, arrays: dict, facts: dict, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        save_arrays(tmp_path / "x.safetensors", arrays, facts, kind="x")
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WriteFailedError, match=r"No such file or directory.*Choose a folder"):
        save_arrays(tmp_path / "no" / "x.safetensors", {}, kind="x")
    with pytest.raises(FileNotFoundError):
        load_arrays(tmp_path / "x.safetensors")


def test_a_failed_replacement_keeps_the_old_file(
    sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sample.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteFailedError, match="No space left"):
        save_arrays(sample, {"x": np.ones(3)}, kind="sample")
    assert sample.read_bytes() == before
    assert [p.name for p in sample.parent.iterdir()] == [sample.name]
