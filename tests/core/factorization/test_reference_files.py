"""npeff_ref's HDF5 files: all five kinds, both spellings, hostile values, no loss on the way."""

import numpy as np
import pytest

h5py = pytest.importorskip("h5py", reason="HDF5 needs the hdf5 extra")

from fishertope.core.errors import CorruptFileError, InvalidInputError  # noqa: E402
from fishertope.core.factorization import Factorization, read_reference  # noqa: E402
from fishertope.core.factorization.reference_files import ReferenceDecomposition  # noqa: E402
from fishertope.core.fisher import FisherStore, RandomProjection, save_fishers  # noqa: E402
from fishertope.core.fisher.reference_files import ReferenceFishers  # noqa: E402
from fishertope.core.model import sites_of  # noqa: E402

N, C, K, P, R = 6, 3, 7, 20, 4


def chosen(rng, sizes):
    """Distinct indices within each vector of the given sizes."""
    return np.concatenate([rng.choice(P, size=s, replace=False) for s in sizes] or [[]])


def write_lrm(path, *, width="i4", **changes):
    rng = np.random.default_rng(0)
    sizes = np.array([rng.multinomial(K - (i % 2), np.ones(C) / C) for i in range(N)])
    indices = np.zeros((N, K), dtype="i4")
    for i in range(N):
        indices[i, : sizes[i].sum()] = chosen(rng, sizes[i])
    data = {
        "labels": rng.integers(C, size=N).astype("i4"),
        "logits": rng.normal(size=(N, C + 2)).astype("f4"),
        "values": rng.normal(size=(N, K)).astype("f4"),
        "col_offsets": np.hstack([np.zeros((N, 1)), np.cumsum(sizes, axis=1)]).astype("i4"),
        "row_indices": indices,
        "pef_frobenius_norms": rng.uniform(1, 2, size=N).astype("f4"),
    }
    _write(path, "data", data | changes.pop("data", {}), changes, width,
           {"n_classes": C, "n_parameters": P})  # fmt: skip
    return data


def write_lvrm(path, *, width="i4", **changes):
    rng = np.random.default_rng(1)
    ranks = np.array([2, 1, 3, 0, 1, 2])
    sizes = np.concatenate([rng.multinomial(K, np.ones(k) / k) if k else [] for k in ranks])
    sizes = sizes.astype("i4")
    indices, start = np.zeros((N, K), dtype="i4"), 0
    for i, k in enumerate(ranks):
        own = sizes[start : start + k]
        indices[i, : own.sum()] = chosen(rng, own)
        start += k
    data = {
        "labels": rng.integers(C, size=N).astype("i4"),
        "logits": rng.normal(size=(N, 9)).astype("f4"),
        "values": rng.normal(size=(N, K)).astype("f4"),
        "row_indices": indices, "ranks": ranks.astype("i4"), "col_sizes": sizes,
        "pef_frobenius_norms": rng.uniform(1, 2, size=N).astype("f4"),
    }  # fmt: skip
    _write(path, "data", data | changes.pop("data", {}), changes, width,
           {"n_classes": 9, "n_parameters": P, "min_prob_class": 0.01})  # fmt: skip
    return data


def write_diagonal(path, *, spelling="predicted_logits", width="i4", **changes):
    rng = np.random.default_rng(2)
    indices = np.stack([rng.choice(P, size=K, replace=False) for _ in range(N)]).astype("i4")
    data = {
        "labels": rng.integers(C, size=N).astype("i4"),
        spelling: rng.normal(size=(N, C)).astype("f4"),
        "dense_fisher_norms": rng.uniform(1, 2, size=N).astype("f4"),
        "fisher/values": rng.uniform(size=(N, K)).astype("f4"),
        "fisher/indices": indices,
    }
    _write(path, "data", data | changes.pop("data", {}), changes, width, {})
    with h5py.File(path, "a") as file:
        if "attributes" not in changes:
            file["data/fisher"].attrs.create("dense_fisher_size", P, dtype=width)
    return data


def write_low_rank_fit(path, *, width="i4", **changes):
    rng = np.random.default_rng(3)
    data = {
        "W": rng.uniform(size=(N, R)).astype("f4"), "G": rng.normal(size=(R, 8)).astype("f4"),
        "new_to_old_col_indices": np.sort(rng.choice(P, size=8, replace=False)).astype("i4"),
    }  # fmt: skip
    _write(path, "data", data | changes.pop("data", {}), changes, width,
           {"n_classes": C, "n_parameters": P})  # fmt: skip
    with h5py.File(path, "a") as file:
        losses = file.create_group("losses")
        losses.attrs.create("log_loss_frequency", 10, dtype=width)
        losses["G_only"] = np.array([9.0, 8.0], dtype="f4")
        losses["joint"] = np.array([7.0, 6.0, 5.0], dtype="f4")
    return data


def write_diagonal_fit(path, *, sparse=False, width="i4", **changes):
    rng = np.random.default_rng(4)
    H = (rng.uniform(size=(R, 8)) * (rng.random((R, 8)) < 0.5)).astype("f4")
    data = {
        "W": rng.uniform(size=(N, R)).astype("f4"),
        "reduce_kept_indices": np.sort(rng.choice(P, size=8, replace=False)).astype("i4"),
    }
    if sparse:
        rows, columns = np.nonzero(H)
        data |= {
            "H/values": H[rows, columns], "H/column_indices": columns.astype("i4"),
            "H/row_indices": np.searchsorted(rows, np.arange(R + 1)).astype("i8"),
        }  # fmt: skip
    else:
        data["H"] = H
    _write(path, "data", data | changes.pop("data", {}), changes, width, {})
    with h5py.File(path, "a") as file:
        kept = file["data/reduce_kept_indices"]
        kept.attrs["full_dense_size"] = np.array([P]) if sparse else np.int32(P)
        if sparse and "attributes" not in changes:
            file["data/H"].attrs["shape"] = np.array([R, 8], dtype=width)
    return data | {"H_dense": H}


def _write(path, group, data, changes, width, attributes):
    with h5py.File(path, "w") as file:
        file.create_group(group)
        for name, value in data.items():
            if value is not None:
                file[f"{group}/{name}"] = value
        for name, value in (attributes | changes.get("attributes", {})).items():
            if value is not None:
                whole = isinstance(value, int)
                file[group].attrs.create(name, value, dtype=width if whole else None)


KINDS = {
    "lrm": write_lrm, "lvrm": write_lvrm, "diagonal": write_diagonal,
    "diagonal, other spelling": lambda p, **o: write_diagonal(p, spelling="logits", **o),
    "low-rank fit": write_low_rank_fit, "diagonal fit": write_diagonal_fit,
    "sparse diagonal fit": lambda p, **o: write_diagonal_fit(p, sparse=True, **o),
}  # fmt: skip


@pytest.mark.parametrize("width", ["i4", "i8", "u2"])
@pytest.mark.parametrize("kind", KINDS)
def test_c7_every_kind_is_read_and_kept_without_loss(tmp_path, kind, width):
    data = KINDS[kind](tmp_path / "x.h5", width=width)
    found = read_reference(tmp_path / "x.h5")
    spellings = {
        "row_indices": "indices", "fisher/indices": "indices", "fisher/values": "values",
        "predicted_logits": "logits", "pef_frobenius_norms": "norms",
        "dense_fisher_norms": "norms", "W": "coefficients", "G": "components", "H": "components",
        "new_to_old_col_indices": "columns", "reduce_kept_indices": "columns",
        "H/values": "values", "H/column_indices": "column_indices", "H/row_indices": "row_offsets",
    }  # fmt: skip
    for name, value in data.items():
        if name == "H_dense":
            np.testing.assert_array_equal(found.components(), value)
            continue
        if kind.startswith("diagonal, other") and name == "logits":
            name = "logits"
        stored = found.arrays[spellings.get(name, name)]
        np.testing.assert_array_equal(stored, value)
        assert stored.dtype == (value.dtype if value.dtype.kind == "f" else np.int64)
    assert found.n_parameters == P
    found.save(tmp_path / "x.safetensors")
    again = type(found).load(tmp_path / "x.safetensors")
    assert set(again.arrays) == set(found.arrays)
    for name, value in found.arrays.items():
        assert again.arrays[name].dtype == value.dtype
        assert again.arrays[name].tobytes() == value.tobytes()
    for name in ("kind", "n_parameters", "n_classes"):
        assert getattr(again, name, None) == getattr(found, name, None)
    assert repr(again) == repr(found)


def dense_rows(data, kind):
    """Rows over all parameters, entry by entry."""
    rows = []
    for i in range(N):
        if kind == "lrm":
            ends = data["col_offsets"][i]
        else:
            ranks = data["ranks"]
            first = int(ranks[:i].sum())
            own = data["col_sizes"][first : first + ranks[i]]
            ends = np.concatenate([[0], np.cumsum(own)])
        for c in range(len(ends) - 1):
            row = np.zeros(P, dtype="f4")
            for j in range(ends[c], ends[c + 1]):
                row[data["row_indices"][i, j]] = data["values"][i, j]
            rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("kind", ["lrm", "lvrm"])
def test_c7_rows_go_through_our_store_without_loss(tmp_path, kind):
    data = KINDS[kind](tmp_path / "x.h5")
    found = read_reference(tmp_path / "x.h5")
    assert isinstance(found, ReferenceFishers)
    expected = dense_rows(data, kind)
    sites = sites_of({"w": (4, 4), "b": (4,)})
    whole = found.fishers(columns="all", sites=sites)
    assert whole.rows.tobytes() == expected.tobytes()
    np.testing.assert_array_equal(whole.norms, data["pef_frobenius_norms"].astype(float))
    ranks = data["ranks"] if kind == "lvrm" else np.full(N, C)
    np.testing.assert_array_equal(whole.ranks, ranks)
    columns = found.columns()
    used = found.fishers()
    assert used.rows.tobytes() == np.ascontiguousarray(expected[:, columns]).tobytes()
    counts = (expected != 0).sum(0)
    np.testing.assert_array_equal(found.columns(min_count=3), np.flatnonzero(counts >= 3))
    some = found.fishers(columns=columns[::-1])
    np.testing.assert_array_equal(some.rows, expected[:, columns[::-1]])
    save_fishers(tmp_path / "store", used, shard_examples=4)
    back = FisherStore.open(tmp_path / "store").load()
    for name in ("rows", "offsets", "norms"):
        assert getattr(back, name).tobytes() == getattr(used, name).tobytes()
    assert back.facts["n_parameters"] == P


def test_c7_diagonals_go_through_our_store_without_loss(tmp_path):
    data = write_diagonal(tmp_path / "x.h5")
    found = read_reference(tmp_path / "x.h5")
    expected = np.zeros((N, P), dtype="f4")
    for i in range(N):
        expected[i, data["fisher/indices"][i]] = data["fisher/values"][i]
    fishers = found.fishers(columns="all")
    np.testing.assert_array_equal(fishers.values.toarray(), expected)
    save_fishers(tmp_path / "store", fishers, shard_examples=4)
    back = FisherStore.open(tmp_path / "store").load()
    np.testing.assert_array_equal(back.values.toarray(), expected)
    assert back.values.dtype == np.float32


def test_projected_rows_are_the_projection_of_the_rows(tmp_path):
    data = write_lrm(tmp_path / "x.h5")
    found = read_reference(tmp_path / "x.h5")
    projection = RandomProjection(5, "gaussian")
    small = found.fishers(reduce=projection, seed=3)
    from fishertope.core.fisher import draws_of

    expected = np.zeros((N * C, 5), dtype="f4")
    projection.sketch(draws_of(3).key).add(expected, dense_rows(data, "lrm"), 0)
    np.testing.assert_allclose(small.rows, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["low-rank fit", "diagonal fit", "sparse diagonal fit"])
def test_c7_decompositions_become_ours(tmp_path, kind):
    data = KINDS[kind](tmp_path / "x.h5")
    found = read_reference(tmp_path / "x.h5")
    assert isinstance(found, ReferenceDecomposition)
    sites = sites_of({"w": (4, 4), "b": (4,)})
    ours = found.factorization(sites)
    low_rank = kind == "low-rank fit"
    G = data["G"] if low_rank else data["H_dense"]
    columns = data["new_to_old_col_indices" if low_rank else "reduce_kept_indices"]
    np.testing.assert_allclose(np.linalg.norm(ours.components, axis=1), 1.0, rtol=1e-6)
    for i in range(N):
        if low_rank:
            theirs = np.einsum("k,ka,kb->ab", data["W"][i], G, G)
            own = np.einsum("k,ka,kb->ab", ours.coefficients[i], ours.components, ours.components)
            full = np.zeros((P, P))
            full[np.ix_(columns, columns)] = theirs
        else:
            own = ours.coefficients[i] @ ours.components
            full = np.zeros(P)
            full[columns] = data["W"][i] @ G
        np.testing.assert_allclose(own, full, rtol=1e-4, atol=1e-5)
    ours.save(tmp_path / "f.safetensors")
    back = Factorization.load(tmp_path / "f.safetensors")
    np.testing.assert_array_equal(back.components, ours.components)
    if low_rank:
        assert ours.history.phases == ("G only", "joint")
        assert ours.history.of("joint").tolist() == [7.0, 6.0, 5.0]


def test_sites_of_another_model_are_refused(tmp_path):
    write_lrm(tmp_path / "x.h5")
    write_low_rank_fit(tmp_path / "y.h5")
    other = sites_of({"w": (4, 4)})
    for call in (
        lambda: read_reference(tmp_path / "x.h5").fishers(columns="all", sites=other),
        lambda: read_reference(tmp_path / "y.h5").factorization(other),
    ):
        with pytest.raises(InvalidInputError, match="has 20"):
            call()
    with pytest.raises(InvalidInputError, match="dense_bytes"):
        read_reference(tmp_path / "x.h5").fishers(dense_bytes=10)


OFFSETS = np.tile(np.array([0, 2, 4, 6], dtype="i4"), (N, 1))
HOSTILE = {
    "index beyond p": ("lrm", {"row_indices": np.full((N, K), P, dtype="i4")}),
    "negative index": ("lrm", {"row_indices": np.full((N, K), -1, dtype="i4")}),
    "index twice": ("lrm", {"row_indices": np.zeros((N, K), dtype="i4"), "col_offsets": OFFSETS}),
    "offsets fall": ("lrm", {"col_offsets": OFFSETS[:, [0, 2, 1, 3]]}),
    "offsets start late": ("lrm", {"col_offsets": OFFSETS + 1}),
    "offsets beyond K": ("lrm", {"col_offsets": OFFSETS * 2}),
    "offsets of other classes": ("lrm", {"col_offsets": OFFSETS[:, :3]}),
    "NaN values": ("lrm", {"values": np.full((N, K), np.nan, dtype="f4")}),
    "infinite logits": ("lrm", {"logits": np.full((N, 3), np.inf, dtype="f4")}),
    "negative norms": ("lrm", {"pef_frobenius_norms": -np.ones(N, dtype="f4")}),
    "labels of others": ("lrm", {"labels": np.zeros(N + 1, dtype="i4")}),
    "texts as values": ("lrm", {"values": np.array([b"x" * 4] * N)}),
    "no labels": ("lrm", {"labels": None}),
    "huge ranks": ("lvrm", {"ranks": np.full(N, 2**31 - 1, dtype="i4")}),
    "negative ranks": ("lvrm", {"ranks": np.full(N, -1, dtype="i4")}),
    "sizes beyond K": ("lvrm", {"col_sizes": np.full(9, K + 1, dtype="i4")}),
    "too few sizes": ("lvrm", {"col_sizes": np.ones(8, dtype="i4")}),
    "many small sizes": ("lvrm", {"col_sizes": np.full(9, K, dtype="i4")}),
    "negative diagonal": ("diagonal", {"fisher/values": -np.ones((N, K), dtype="f4")}),
    "diagonal index beyond p": ("diagonal", {"fisher/indices": np.full((N, K), P + 9, dtype="i4")}),
    "G of others": ("low-rank fit", {"G": np.ones((R + 1, 8), dtype="f4")}),
    "negative W": ("low-rank fit", {"W": -np.ones((N, R), dtype="f4")}),
    "column twice": ("low-rank fit", {"new_to_old_col_indices": np.zeros(8, dtype="i4")}),
    "column beyond p": ("low-rank fit", {"new_to_old_col_indices": np.arange(15, 23)}),
    "negative H": ("diagonal fit", {"H": -np.ones((R, 8), dtype="f4")}),
    "rows fall": ("sparse diagonal fit", {"H/row_indices": np.array([0, 5, 3, 6, 9])}),
    "H column beyond m": ("sparse diagonal fit", {"H/column_indices": np.full(16, 8)}),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_c7_hostile_values_are_refused(tmp_path, what):
    kind, data = HOSTILE[what]
    KINDS[kind](tmp_path / "x.h5", data=data)
    with pytest.raises(CorruptFileError):
        read_reference(tmp_path / "x.h5")


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("lrm", {"n_parameters": None}),
        ("lrm", {"n_parameters": 0}),
        ("lrm", {"n_classes": 4}),
        ("lrm", {"n_parameters": "many"}),
        ("lvrm", {"min_prob_class": float("nan")}),
        ("diagonal", {}),
        ("sparse diagonal fit", {}),
    ],
)
def test_c7_hostile_attributes_are_refused(tmp_path, kind, attributes):
    KINDS[kind](tmp_path / "x.h5", attributes=attributes)
    with pytest.raises(CorruptFileError):
        read_reference(tmp_path / "x.h5")


def test_c7_files_that_reach_outside_or_pretend_are_refused(tmp_path):
    secret = tmp_path / "secret.h5"
    data = write_lrm(secret)
    for trick in ("external link", "soft link", "virtual", "external data", "empty", "bomb"):
        path = tmp_path / f"{trick}.h5"
        write_lrm(path, data={"values": None})
        with h5py.File(path, "a") as file:
            if trick == "external link":
                file["data/values"] = h5py.ExternalLink(str(secret), "data/values")
            elif trick == "soft link":
                file["data/values"] = h5py.SoftLink("/data/logits")
            elif trick == "virtual":
                layout = h5py.VirtualLayout((N, K), dtype="f4")
                layout[:] = h5py.VirtualSource(str(secret), "data/values", (N, K))
                file.create_virtual_dataset("data/values", layout)
            elif trick == "external data":
                outside = tmp_path / "raw.bin"
                outside.write_bytes(data["values"].tobytes())
                file.create_dataset(
                    "data/values", (N, K), "f4", external=[(str(outside), 0, N * K * 4)]
                )
            elif trick == "empty":
                file.create_dataset("data/values", (N, 2**40), "f4", chunks=(1, 1024))
            else:
                file.create_dataset(
                    "data/values", data=np.zeros((N, 2**21), "f4"), compression="gzip",
                    compression_opts=9,
                )  # fmt: skip
        with pytest.raises(CorruptFileError):
            read_reference(path)


def test_c7_damaged_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "x.h5"
    write_lrm(path)
    whole = path.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptFileError):
            read_reference(path)
    with h5py.File(path, "w") as file:
        file["data/other"] = np.ones(3)
    with pytest.raises(CorruptFileError, match="none of"):
        read_reference(path)
    with pytest.raises(FileNotFoundError):
        read_reference(tmp_path / "nowhere.h5")
