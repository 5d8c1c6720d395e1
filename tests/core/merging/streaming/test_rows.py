"""Gram sites merged by panels of rows: the numbers of the merge in memory, in less of it."""

import json

import numpy as np
import pytest

from fishertope.core.backend import thread_limit
from fishertope.core.errors import InvalidInputError
from fishertope.core.fisher import PrecisionTree
from fishertope.core.fisher.structures import Gram, Kronecker
from fishertope.core.merging import Anchor, Damping, MergeProblem, solve
from fishertope.core.merging.solvers import rows
from fishertope.core.merging.streaming import row_groups, structured
from fishertope.core.merging.streaming.residence import Residence
from fishertope.core.model import SiteLayout
from fishertope.core.storage.arrays import StoredArrays
from fishertope.core.storage.numbers import decode, encode
from fishertope.core.testing.tolerances import deviation, tolerance

from .gram_sites import LAYOUTS, SHAPES, gram, plan_of, trees


@pytest.fixture
def narrow(monkeypatch):
    """Panels of 128 rows, so that small sites have several."""
    monkeypatch.setattr(rows, "PANEL", 1)
    monkeypatch.setattr(rows, "LEAST_ROWS", 128)
    assert len(rows.panels((300, 13))) == 3


@pytest.fixture
def by_rows_only(monkeypatch):
    """No site may be solved whole."""

    def refuse(self):
        raise AssertionError(f"{self.key} is solved whole")

    monkeypatch.setattr(structured.WholeGroup, "_load", refuse)


def models_of(files, n=3, dtype=np.float64):
    return [files.model(k, SHAPES, dtype) for k in range(1, n + 1)]


def assert_same(files, out, exact):
    for name, values in files.read(out).items():
        np.testing.assert_array_equal(values, exact.params[name], err_msg=name)


@pytest.mark.parametrize("cut", [None, 1, 4])
def test_merging_check_39_gram_blocks_threads_and_shards_change_no_bit(
    files, digest, narrow, by_rows_only, cut
):
    models, precisions = models_of(files), trees(0)
    exact = solve(MergeProblem(sources=models, precisions=precisions, weights=[0.5] * 3))
    plan, seen = plan_of(files, models, precisions, cut=cut), set()
    for entries in (1, 7, 4096, 1 << 20):
        for workers in (1, 2):
            out = files.merge(plan, block_entries=entries, workers=workers)
            assert_same(files, out, exact)
            seen.add(tuple(sorted(digest(out).items())))
    assert len(seen) == 1
    assert_same(files, files.merge(plan, shard_bytes=9000, workers=3), exact)


def test_panels_of_their_own_size(files, by_rows_only):
    """Without any change of the panels: three of them, the last a short one."""
    shape = (900, 700)
    assert len(rows.panels((900, 701))) == 3
    layout = SiteLayout(weight="w", weight_shape=shape, bias="b", outputs="first")
    rng = np.random.default_rng(0)
    models = [{"w": rng.normal(size=shape), "b": rng.normal(size=900)} for _ in range(2)]
    precisions = [
        PrecisionTree(sites={"w": gram(rng, (900, 701))}, n_examples=1, layouts={"w": layout},
                      trace_errors={"w": 0.0}) for _ in models
    ]  # fmt: skip
    exact = solve(MergeProblem(sources=models, precisions=precisions, weights=[0.5] * 2))
    plan = plan_of(files, models, precisions)
    for entries, workers in ((1000, 2), (1 << 20, 1)):
        assert_same(files, files.merge(plan, block_entries=entries, workers=workers), exact)


def test_the_number_of_threads_changes_no_bit():
    rng, shape = np.random.default_rng(1), (700, 513)
    sources = [{"w": rng.normal(size=shape)} for _ in range(2)]
    precisions = [{"w": gram(rng, shape)} for _ in range(2)]
    found = []
    for threads in (1, 2):
        with thread_limit(threads):
            found.append(solve(MergeProblem(sources=sources, precisions=precisions)).params["w"])
    np.testing.assert_array_equal(*found)


OPTIONS = {
    "plain": {},
    "odd structures": {"odd": True},
    "float32 factors": {"dtype": np.float32},
    "singular": {"rank": 4},
    "absolute": {"damping": (0.2, "absolute")},
    "relative": {"damping": (0.2, "relative_trace"), "odd": True},
    "factored": {"damping": (0.2, "factored"), "odd": True},
    "anchor": {"anchor": 0.3},
    "anchor and damping": {"anchor": 0.3, "damping": (0.1, "absolute"), "odd": True},
    "base of a singular sum": {"anchor": 0.0, "rank": 2},
    "a weight of 0": {"weights": [0.0, 0.3, 0.9]},
}


@pytest.mark.filterwarnings("ignore::fishertope.core.errors.ConvergenceWarning")
@pytest.mark.parametrize("what", sorted(OPTIONS))
def test_rows_are_those_of_memory_whatever_pulls(files, narrow, by_rows_only, what):
    options = dict(OPTIONS[what])
    damping, anchor = options.pop("damping", None), options.pop("anchor", None)
    weights = options.pop("weights", [0.5] * 3)
    models, precisions = models_of(files), trees(3, **options)
    base = files.model(0, SHAPES, np.float64)
    more = {"parameters": {}}
    problem = {}
    if damping is not None:
        more["parameters"] |= {"damping": damping[0], "damping_mode": damping[1]}
        problem["damping"] = Damping.of(damping)
    if anchor is not None:
        more["parameters"]["anchor"] = anchor
        more["base_model"] = str(files.write("base.safetensors", base))
        problem["anchor"] = Anchor(base, anchor)
    plan = plan_of(files, models, precisions, weights=weights, **more)
    if damping is not None:  # which couples no diagonal's coordinates, but is solved whole
        plan["sites"] = {"norm": "average"}
        problem["sites"] = {"norm": "average"}
    exact = solve(MergeProblem(sources=models, precisions=precisions, weights=weights, **problem))
    out = files.merge(plan, block_entries=77)
    merged = files.read(out)
    for name in SHAPES:
        if name == "norm":
            np.testing.assert_allclose(merged[name], exact.params[name], rtol=1e-14)
        else:
            np.testing.assert_array_equal(merged[name], exact.params[name], err_msg=name)


def test_rows_are_those_of_the_formula(files, narrow):
    """W = (Σ λ_i W_i A_i)(Σ λ_i A_i)⁻¹, from nothing of ours."""
    models, precisions = models_of(files), trees(5)
    weights = [0.2, 0.5, 1.1]
    merged = files.read(files.merge(plan_of(files, models, precisions, weights=weights)))
    for name, layout in LAYOUTS.items():
        top, bottom = 0.0, 0.0
        for w, model, tree in zip(weights, models, precisions, strict=True):
            A = tree[name].input_factor
            top, bottom = top + w * layout.join(model) @ A, bottom + w * A
        right = np.linalg.solve(bottom, top.T).T
        assert deviation(layout.join(merged), right) <= tolerance("identity").relative


@pytest.mark.parametrize("code", ["BF16", "F16"])
def test_rows_are_rounded_once(files, narrow, code):
    models = [{k: decode(encode(v.reshape(-1), code), code).reshape(v.shape) for k, v in m.items()}
              for m in models_of(files)]  # fmt: skip
    precisions = trees(1)
    exact = solve(MergeProblem(sources=models, precisions=precisions, weights=[0.5] * 3))
    plan = plan_of(files, models, precisions, code=code)
    merged = files.read(files.merge(plan, block_entries=100))
    for name in LAYOUTS:
        values = exact.params[name].reshape(-1)
        expected = decode(encode(values, code), code).reshape(SHAPES[name])
        np.testing.assert_array_equal(merged[name], expected)


def test_merging_check_1_equal_sources_come_back_bit_for_bit(files, narrow):
    model = files.model(3, SHAPES, np.float64)
    for values in model.values():
        values.reshape(-1)[::5] = -0.0
    merged = files.read(files.merge(plan_of(files, [model] * 3, trees(0))))
    for name, values in model.items():
        np.testing.assert_array_equal(merged[name], values)
        np.testing.assert_array_equal(np.signbit(merged[name]), np.signbit(values))


def test_one_reading_makes_k_results_equal_to_k_merges(files, narrow, by_rows_only):
    models, precisions = models_of(files), trees(2)
    grid = [[1.0, 0.0, 0.0], [0.25, 0.75, 0.1], [0.0, 0.5, 0.5]]
    many = files.merge(plan_of(files, models, precisions, grid=grid), block_entries=50)
    for k, row in enumerate(grid):
        single = files.merge(plan_of(files, models, precisions, weights=row))
        assert (many / f"result-{k:03d}" / "model.safetensors").read_bytes() == (
            single / "model.safetensors"
        ).read_bytes()
        assert_same(
            files, single, solve(MergeProblem(sources=models, precisions=precisions, weights=row))
        )


def test_rows_beside_sites_that_are_solved_whole(files, narrow, digest, monkeypatch):
    """BLAS has one thread for rows and all of them for other sites: never both at a time."""
    models, precisions, rng = models_of(files), [], np.random.default_rng(0)
    for tree in trees(4):
        b, a = (gram(rng, (1, s)).input_factor for s in (260, 12))
        sites = {**tree, "conv.weight": Kronecker(b, a)}
        precisions.append(
            PrecisionTree(sites=sites, n_examples=5, layouts=LAYOUTS,
                          trace_errors=dict.fromkeys(sites, 0.1))
        )  # fmt: skip
    for n in (1, 2):
        exact = solve(MergeProblem(sources=models[:n], precisions=precisions[:n],
                                   weights=[0.5] * n))  # fmt: skip
        plan = plan_of(files, models[:n], precisions[:n])
        for entries in (33, 1 << 20):
            assert_same(files, files.merge(plan, block_entries=entries, workers=3), exact)


@pytest.mark.parametrize("room", [1, None])
def test_one_site_at_a_time_where_there_is_no_room(files, narrow, digest, monkeypatch, room):
    models, precisions = models_of(files), trees(0)
    plan = plan_of(files, models, precisions)
    inside, most, load, drop = set(), [0], row_groups.RowGroup._load, row_groups.RowGroup._drop

    def entering(self):
        inside.add(self.key)
        most[0] = max(most[0], len(inside))
        load(self)

    def leaving(self):
        inside.remove(self.key)
        drop(self)

    monkeypatch.setattr(row_groups.RowGroup, "_load", entering)
    monkeypatch.setattr(row_groups.RowGroup, "_drop", leaving)
    if room is not None:
        monkeypatch.setattr(Residence, "room", property(lambda self: room, lambda self, v: None),
                            raising=False)  # fmt: skip
    out = files.merge(plan, block_entries=20, workers=4)
    assert not inside
    assert most[0] == 1 or room is None
    exact = solve(MergeProblem(sources=models, precisions=precisions, weights=[0.5] * 3))
    assert_same(files, out, exact)


def test_every_array_is_read_once_and_never_the_whole_file(files, narrow, monkeypatch):
    models, precisions = models_of(files), trees(0)
    plan, seen, read = plan_of(files, models, precisions), [], StoredArrays.read

    def reading(self, key, **options):
        if "file" in options:  # else it opens the file and asks itself
            seen.append((self.path.name, key))
        return read(self, key, **options)

    monkeypatch.setattr(StoredArrays, "read", reading)
    monkeypatch.setattr(PrecisionTree, "load", None)
    files.merge(plan, block_entries=40, workers=1)
    wanted = [(f"p{k}.safetensors", f"{name}/input_factor") for name in LAYOUTS for k in range(3)]
    assert sorted(seen) == sorted(wanted)


@pytest.mark.parametrize("layout", ["a.weight", "t.weight"])
def test_nonfinite_entries_of_rows(files, narrow, layout):
    models, precisions = models_of(files), trees(0)
    bad = LAYOUTS[layout].bias
    models[1][bad][200] = np.nan
    plan = plan_of(files, models, precisions)
    with pytest.raises(InvalidInputError, match=f"'{bad}' of source 1.*first at 200"):
        files.merge(plan, out="bad")
    assert not (files.folder / "bad").exists()
    for policy in ("skip", "propagate"):
        exact = solve(MergeProblem(sources=models, precisions=precisions, weights=[0.5] * 3,
                                   nonfinite=policy))  # fmt: skip
        out = files.merge({**plan, "nonfinite": policy}, block_entries=64)
        for name, values in files.read(out).items():
            np.testing.assert_array_equal(values, exact.params[name], err_msg=name)


def test_directions_without_precision_are_refused_where_asked(files, narrow):
    models, precisions = models_of(files), trees(0, rank=2)
    with pytest.raises(InvalidInputError, match=r"'(a|t|conv|z)\.weight'.*no precision determines"):
        files.merge({**plan_of(files, models, precisions), "fallback": "error"}, out="none")
    assert not (files.folder / "none").exists()


def test_a_precision_of_another_shape_is_refused_at_once(files):
    models, precisions = models_of(files), trees(0)
    for model in models:
        model["z.weight"] = np.ones((141, 11))
    with pytest.raises(InvalidInputError, match=r"p0.*'z.weight'.*\(140, 11\).*\(141, 11\)"):
        files.merge(plan_of(files, models, precisions), out="other")
    assert not list(files.folder.glob("*other*"))


def test_a_site_whose_bias_goes_another_way_is_refused(files):
    models, precisions = models_of(files), trees(0)
    plan = {**plan_of(files, models, precisions), "sites": {"a.bias": "take:0"}}
    with pytest.raises(InvalidInputError, match=r"'a.weight' and 'a.bias' share a precision"):
        files.merge(plan)


def test_plain_diagonals_are_damped_too(files):
    """A file of another program's is no tree, and its sites are its tensors."""
    models = [{"w": np.array([1.0, 2.0])}, {"w": np.array([3.0, 5.0])}]
    marks = [{"w": np.array([1.0, 0.0])}, {"w": np.array([2.0, 4.0])}]
    sources = [
        {"model": str(files.write(f"{k}.safetensors", m)),
         "precision": str(files.write(f"f{k}.safetensors", f))}
        for k, (m, f) in enumerate(zip(models, marks, strict=True))
    ]  # fmt: skip
    plan = {"method": "fisher", "sources": sources,
            "parameters": {"weight": 0.5, "damping": 1.0, "damping_mode": "absolute"}}  # fmt: skip
    merged = files.read(files.merge(plan))["w"]
    f, x = (np.array([m["w"] for m in kind]) for kind in (marks, models))
    expected = (0.5 * (f * x).sum(0) + x.mean(0)) / (0.5 * f.sum(0) + 1.0)
    np.testing.assert_allclose(merged, expected, rtol=1e-15)


def test_the_residual_of_memory_is_that_of_the_rows(files, narrow):
    models, precisions = models_of(files), trees(0)
    out = files.merge(plan_of(files, models, precisions), block_entries=99)
    found = json.loads((out / "results.json").read_text())["results"]["solved_sites"]
    assert {s["name"] for s in found} == set(LAYOUTS)
    assert all(s["solver"] == "cholesky" and 0 <= s["residual"] < 1e-13 for s in found)
    assert isinstance(precisions[0]["a.weight"], Gram)
