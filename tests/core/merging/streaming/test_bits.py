"""The numbers of a streamed merge: the same however it is cut, and right to the last bit."""

import os

import numpy as np
import pytest

from fishertope.core.backend import available_backends
from fishertope.core.errors import InvalidInputError
from fishertope.core.merging import merge
from fishertope.core.storage.numbers import decode, encode, stored_dtype

METHODS = {
    "linear": {"parameters": {"weight": 0.4}},
    "task_arithmetic": {"parameters": {"weight": 0.6, "lambda": 0.9}},
    "ties": {"parameters": {"weight": 0.7, "density": 0.3}},
    "dare_linear": {"parameters": {"weight": 0.7, "density": 0.4}},
    "dare_ties": {"parameters": {"weight": 0.7, "density": 0.4}},
    "della": {"parameters": {"weight": 0.7, "density": 0.4, "epsilon": 0.1}},
    "breadcrumbs": {"parameters": {"weight": 0.7, "density": 0.5, "gamma": 0.1}},
    "model_stock": {},
    "fisher": {"parameters": {"weight": 0.5, "floor": 1e-3}},
}


def written(files, code, n=3, seed=0):
    """Plain plans of every method over the same sources, base and precisions."""
    paths = [files.write(f"{code}-{i}.safetensors", files.model(seed + i), code=code)
             for i in range(n + 1)]  # fmt: skip
    rng = np.random.default_rng(5)
    fishers = []
    for i in range(n):
        tensors = {k: rng.random(v.shape, dtype=np.float32) ** 4 for k, v in files.model(0).items()}
        fishers.append(files.write(f"{code}-f{i}.safetensors", tensors))
    return paths, fishers


def plan_for(method, paths, fishers):
    base = {} if method in ("linear", "fisher") else {"base_model": str(paths[0])}
    sources = [{"model": str(p)} for p in paths[1:]]
    if method == "fisher":
        for entry, f in zip(sources, fishers, strict=True):
            entry["precision"] = str(f)
    return {"method": method, "sources": sources, **base, **METHODS[method]}


@pytest.mark.parametrize("code", ["BF16", "F32"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_merging_check_39_blocks_threads_and_shards_change_no_bit(files, digest, method, code):
    paths, fishers = written(files, code)
    plan = plan_for(method, paths, fishers)
    whole = digest(files.merge(plan, workers=1, block_entries=1 << 20))
    for entries, workers in ((1, 1), (7, 3), (4096, 2)):
        if entries == 1 and method not in ("linear", "ties"):
            entries = 13  # one entry a block takes long, and two methods have shown it
        assert digest(files.merge(plan, workers=workers, block_entries=entries)) == whole
    cut = [str(files.shards(f"cut-{i}", files.model(i), 3, code=code)) for i in (1, 2, 3)]
    sharded = {
        **plan,
        "sources": [{**s, "model": c} for s, c in zip(plan["sources"], cut, strict=True)],
    }
    kept, moved = files.read(files.merge(plan)), files.read(files.merge(sharded))
    assert list(kept) == list(files.model(0))
    assert set(kept) == set(moved)
    for name, values in kept.items():
        np.testing.assert_array_equal(values, moved[name])
    again = digest(files.merge(plan, shard_bytes=600))
    assert len(again) > 1  # the result's own files change no number either
    resharded = files.read(files.folder / f"out-{files.count}")
    for name, values in kept.items():
        np.testing.assert_array_equal(values, resharded[name])


@pytest.mark.parametrize("dtype", ["F32", "F64"])
@pytest.mark.parametrize(
    ("method", "memory", "options"),
    [
        ("linear", "isotropic", {}),
        ("fisher", "fisher", {"floor": 0.0, "normalize": False}),
        ("model_stock", "model_stock", {}),
        ("ties", "ties", {"density": 0.3}),
        ("breadcrumbs", "breadcrumbs", {"density": 0.5, "outliers": 0.1}),
        ("dare_linear", "dare", {"density": 0.4, "rescale": False}),
    ],
)
def test_merging_check_39_streaming_is_in_memory(files, method, memory, options, dtype):
    kind = {"F32": np.float32, "F64": np.float64}[dtype]
    shapes = {k: v for k, v in written_shapes().items() if 0 not in v}
    models = [files.model(i, shapes, kind) for i in range(4)]
    rng = np.random.default_rng(5)
    fishers = [{k: rng.random(v) ** 4 for k, v in shapes.items()} for _ in range(3)]
    paths = [files.write(f"{i}.safetensors", m) for i, m in enumerate(models)]
    marks = [files.write(f"f{i}.safetensors", f) for i, f in enumerate(fishers)]
    plan = plan_for(method, paths, marks)
    plan["parameters"] = {"weight": 0.5} if method != "model_stock" else {}
    if method in ("ties", "breadcrumbs", "dare_linear"):
        plan["parameters"] |= {"density": options["density"], "rescale": False}
    if method == "breadcrumbs":
        plan["parameters"]["gamma"] = options["outliers"]
    streamed = files.read(files.merge(plan, block_entries=29))
    based = {} if "base_model" not in plan else {"anchor": models[0]}
    exact = merge(
        models[1:], fishers if method == "fisher" else None, method=memory,
        weights=[0.5] * 3, **based, **options,
    )  # fmt: skip
    for name, values in streamed.items():
        expected = exact.params[name].astype(np.float64)
        if method == "model_stock" and dtype == "F64":
            # The kernel adds differences to the base one by one, the method their sum.
            np.testing.assert_allclose(values, expected, rtol=1e-13, atol=1e-15)
        else:
            np.testing.assert_array_equal(values, expected, err_msg=name)


def written_shapes():
    return {
        "model.embed_tokens.weight": (37, 8), "model.layers.0.mlp.weight": (24, 8),
        "model.layers.0.norm.weight": (8,), "model.layers.1.mlp.weight": (24, 8),
    }  # fmt: skip


@pytest.mark.parametrize("code", ["BF16", "F16"])
@pytest.mark.parametrize("n", [2, 3, 8])
def test_merging_check_44_half_precision_is_rounded_once_to_nearest_even(files, code, n):
    rng = np.random.default_rng(n)
    size = 300_000
    models = [{"w": rng.normal(size=size)} for _ in range(n)]
    weights = rng.random(n)
    weights /= weights.sum()
    fishers = [{"w": rng.random(size).astype(np.float32)} for _ in range(n)]
    paths = [files.write(f"{i}.safetensors", m, code=code) for i, m in enumerate(models)]
    marks = [files.write(f"f{i}.safetensors", f) for i, f in enumerate(fishers)]
    x = np.array([files.read(p)["w"] for p in paths])
    f = weights[:, None] * np.array([m["w"].astype(np.float64) for m in fishers])
    right = {"linear": weights @ x, "fisher": (f * x).sum(axis=0) / f.sum(axis=0)}
    for method, values in right.items():
        plan = plan_for(method, [paths[0], *paths], marks)
        plan["parameters"] = {}
        for entry, w in zip(plan["sources"], weights, strict=True):
            entry["parameters"] = {"weight": float(w)}
        merged = files.read(files.merge(plan))["w"]
        wrong = merged != decode(encode(values, code), code)
        assert wrong.mean() < 1e-4, f"{method}: {wrong.sum()} of {size}"
        spacing = np.abs(values) * (2.0**-7 if code == "BF16" else 2.0**-10)
        assert np.all(np.abs(merged - values) <= 0.51 * spacing + 1e-7)


def test_merging_check_44_bfloat16_rounding_is_that_of_exact_arithmetic():
    rng = np.random.default_rng(0)
    x = rng.normal(size=20_000) * np.exp2(rng.integers(-140, 128, size=20_000))
    bits = encode(x, "BF16").astype(np.int64)
    with np.errstate(all="ignore"):
        near = [decode(np.clip(bits + k, 0, 0xFFFF).astype(np.uint16), "BF16") for k in (-1, 0, 1)]
    inside = np.isfinite(near[2]) & (near[1] != 0)
    for other in (near[0], near[2]):
        assert np.all(np.abs(near[1] - x)[inside] <= np.abs(other - x)[inside])
    assert inside.mean() > 0.8
    ties = decode(np.arange(0x3F80, 0x3F90, dtype=np.uint16), "BF16")
    middle = (ties[:-1] + ties[1:]) / 2
    assert not np.any(encode(middle, "BF16") & 1)
    # A hair above the middle must go up, though float32 would round it to the middle first.
    assert np.array_equal(encode(middle + 1e-12, "BF16"), np.arange(0x3F81, 0x3F90))


def test_merging_check_44_overflow_of_float16_is_an_error(files):
    paths = [files.write(f"{i}.safetensors", {"w": np.array([60000.0])}, code="F16")
             for i in range(2)]  # fmt: skip
    plan = {"method": "linear", "sources": [str(p) for p in paths],
            "parameters": {"weight": 1.0, "normalize": False}}  # fmt: skip
    with pytest.raises(ValueError, match="does not fit in F16"):
        files.merge(plan, out="over")
    assert not (files.folder / "over").exists()
    assert files.read(files.merge({**plan, "out_dtype": "float32"}))["w"] == [120000.0]


def ulps(a, b, code):
    """Distance in units of the last place."""
    kind = {2: np.int16, 4: np.int32, 8: np.int64}[stored_dtype(code).itemsize]

    def ordered(x):
        bits = encode(x, code).view(kind).astype(np.int64)
        return np.where(bits < 0, np.int64(np.iinfo(kind).min) - bits, bits)

    return np.abs(ordered(a) - ordered(b)).max(initial=0)


@pytest.mark.parametrize("code", ["BF16", "F32"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_merging_check_45_backends_agree_to_two_ulp_and_repeat(files, digest, method, code):
    paths, fishers = written(files, code, seed=20)
    plan = plan_for(method, paths, fishers)
    expected = files.read(files.merge(plan, backend="reference"))
    devices = [(name, None) for name in available_backends() if name != "reference"]
    if "torch" in available_backends():
        import torch

        devices += [("torch", "cuda")] if torch.cuda.is_available() else []
    for backend, device in devices:
        out = files.merge(plan, backend=backend, device=device)
        assert digest(out) == digest(files.merge(plan, backend=backend, device=device))
        for name, values in files.read(out).items():
            apart = ulps(values, expected[name], code)
            assert apart <= (8 if device == "cuda" else 2), f"{backend} {device} {name}: {apart}"


@pytest.mark.parametrize("code", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_merging_checks_1_and_2_equal_sources_come_back_bit_for_bit(files, method, code):
    model = files.model(3, dtype=np.float64)
    for values in model.values():
        values.reshape(-1)[::5] = -0.0
    paths = [files.write(f"{i}.safetensors", model, code=code) for i in range(4)]
    _, fishers = written(files, "F32")
    expected = files.read(paths[0])
    backends = available_backends() if method in ("linear", "fisher") else ("numba",)
    # Two models have loops of their own.
    for backend, n in [(b, 3) for b in backends] + [("numba", 2)]:
        plan = plan_for(method, paths[: n + 1], fishers[:n])
        for name, values in files.read(files.merge(plan, backend=backend)).items():
            np.testing.assert_array_equal(values, expected[name])
            np.testing.assert_array_equal(np.signbit(values), np.signbit(expected[name]))


def test_merging_check_3_corners_of_fisher_are_the_sources_and_hold_no_nan(files):
    paths, fishers = written(files, "BF16", n=2)
    zero = {k: np.zeros(v.shape, dtype=np.float32) for k, v in files.model(0).items()}
    nothing = files.write("zero.safetensors", zero)
    for k in range(2):
        plan = plan_for("fisher", [paths[0], *paths[1:]], [fishers[0], fishers[1]])
        plan["parameters"] = {}
        for i, entry in enumerate(plan["sources"]):
            entry["parameters"] = {"weight": float(i == k)}
        corner = files.read(files.merge(plan))
        for name, values in files.read(paths[1 + k]).items():
            np.testing.assert_array_equal(corner[name], values)
        plan["sources"][k]["precision"] = str(nothing)
        assert all(np.isfinite(v).all() for v in files.read(files.merge(plan)).values())


def test_one_reading_makes_k_results_equal_to_k_merges(files):
    paths, fishers = written(files, "BF16", n=2)
    for method in ("linear", "fisher", "ties"):
        plan = plan_for(method, paths, fishers)
        grid = [[1.0, 0.0], [0.25, 0.75], [0.5, 0.5]]
        many = files.merge({**plan, "grid": grid})
        for k, row in enumerate(grid):
            one = {**plan, "sources": [dict(s) for s in plan["sources"]]}
            one["parameters"] = {n: v for n, v in plan["parameters"].items() if n != "weight"}
            for entry, w in zip(one["sources"], row, strict=True):
                entry["parameters"] = {"weight": w}
            single = files.merge(one)
            name = "model.safetensors"
            left, right = (
                (many / f"result-{k:03d}" / name).read_bytes(),
                (single / name).read_bytes(),
            )
            assert left == right, (method, k)


def test_out_dtype_and_mixed_dtypes(files):
    a = files.write("a.safetensors", files.model(1), code="BF16")
    b = files.write("b.safetensors", files.model(2), code="F32")
    plan = {"method": "linear", "sources": [str(a), str(b)], "parameters": {"weight": 0.5}}
    with pytest.raises(ValueError, match="mixed dtypes"):
        files.merge(plan)
    merged = files.read(files.merge({**plan, "out_dtype": "float64"}))
    x, y = files.read(a), files.read(b)
    for name, values in merged.items():
        np.testing.assert_allclose(values, (x[name] + y[name]) / 2, rtol=1e-15)
    assert os.path.getsize(files.folder / f"out-{files.count}" / "model.safetensors") > 8 * sum(
        v.size for v in x.values()
    )


@pytest.mark.parametrize("method", ["linear", "fisher"])
def test_a_pair_from_file_to_file_has_the_same_bits(files, digest, method, monkeypatch):
    from fishertope.core.merging.streaming import recipes

    paths, fishers = written(files, "BF16", n=2)
    plan = plan_for(method, paths, fishers)
    kind = recipes.Linear if method == "linear" else recipes.Diagonal
    went, through = [], kind.through
    monkeypatch.setattr(
        kind, "through", lambda self, *a: went.append(through(self, *a)) or went[-1]
    )
    monkeypatch.setattr(recipes, "THROUGH", 64)
    expected = digest(files.merge(plan, checksums=True))
    assert not went  # checksums are made of what Python sees
    assert digest(files.merge(plan, checksums=False, fsync=False)) == expected
    assert digest(files.merge(plan, checksums=False, block_entries=50, workers=3)) == expected
    if any(went):  # where llvmlite has what is needed
        assert all(went)
    # An entry that is not finite is found by the careful way, and named.
    bad = files.model(1)
    bad["model.layers.1.attn.weight"][3, 1] = np.inf
    broken = files.write("broken.safetensors", bad, code="BF16")
    plan["sources"][0]["model"] = str(broken)
    with pytest.raises(InvalidInputError, match=r"layers\.1\.attn\.weight.*source 0.*25 of 64"):
        files.merge(plan, checksums=False, fsync=False)
