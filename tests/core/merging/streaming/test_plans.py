"""Plans: read, written, resolved; mergekit's files give what mergekit's formulas say.

The formulas are written down here from the papers and from mergekit 0.1.5's behaviour, and were
compared with mergekit itself by benchmarks/mergekit_compat.py.
"""

import json

import numpy as np
import pytest
import yaml

from fishertope.core.errors import InvalidInputError
from fishertope.core.merging.plans import FAMILIES, MergePlan, load_plan, parse_plan, save_plan
from fishertope.core.merging.plans.settings import check_setting, layer_places, resolve

LAYERS = {
    "model.embed_tokens.weight": (13, 4), "model.norm.weight": (4,),
    **{f"model.layers.{i}.{p}.weight": (6, 4) for i in range(3) for p in ("self_attn.q", "mlp.up")},
}  # fmt: skip
PLACES = {0: 0.0, 1: 0.5, 2: 1.0}


def at(name):
    part = name.split(".")
    return PLACES[int(part[2])] if part[1] == "layers" else 0.0


@pytest.fixture
def room(files):
    models = [files.model(i, LAYERS) for i in range(4)]
    paths = [str(files.write(f"{i}/model.safetensors", m)) for i, m in enumerate(models)]
    return files, [{k: v.astype(np.float64) for k, v in m.items()} for m in models], paths


def merged(files, text):
    (files.folder / "plan.yaml").write_text(text if isinstance(text, str) else yaml.safe_dump(text))
    return files.read(files.merge(load_plan(files.folder / "plan.yaml")))


def close(found, right):
    assert set(found) == set(right)
    for name, values in right.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-6, err_msg=name)


def test_d3_linear(room):
    files, x, paths = room
    plan = {"merge_method": "linear", "dtype": "float32", "models": [
        {"model": paths[1], "parameters": {"weight": 0.3}},
        {"model": paths[2], "parameters": {"weight": [0.2, 0.9]}},
        {"model": paths[3], "parameters": {"weight": [{"filter": "mlp", "value": "1e-1"},
                                                      {"value": 0.0}]}}]}  # fmt: skip
    right = {}
    for name in LAYERS:
        w = np.array([0.3, 0.2 + 0.7 * at(name), 0.1 if "mlp" in name else 0.0])
        right[name] = sum(v * m[name] for v, m in zip(w / w.sum(), x[1:], strict=True))
    close(merged(files, plan), right)
    plan["parameters"] = {"normalize": False}
    close(merged(files, plan), {n: v * (0.5 + 0.7 * at(n) + (0.1 if "mlp" in n else 0.0))
                                for n, v in right.items()})  # fmt: skip


def test_d3_slerp_with_the_usual_filters_and_gradients(room):
    files, x, paths = room
    text = f"""
slices:
  - sources:
      - model: {paths[0]}
        layer_range: [0, 3]
      - model: {paths[1]}
        layer_range: [0, 3]
merge_method: slerp
base_model: {paths[0]}
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
dtype: float32
"""
    right = {}
    for name in LAYERS:
        a, b = x[0][name], x[1][name]
        grid = {"self_attn": [0, 0.5, 0.3, 0.7, 1], "mlp": [1, 0.5, 0.7, 0.3, 0]}
        values = next((v for k, v in grid.items() if k in name), [0.5])
        t = np.interp(at(name) * (len(values) - 1), np.arange(len(values)), values)
        cosine = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
        phi = np.arccos(np.clip(cosine, -1, 1))
        if abs(cosine) > 0.9995:
            right[name] = (1 - t) * a + t * b
        else:
            right[name] = (np.sin((1 - t) * phi) * a + np.sin(t * phi) * b) / np.sin(phi)
    close(merged(files, text), right)


def trimmed(delta, density):
    kept = max(1, int(density * delta.size))
    order = np.argsort(-np.abs(delta).reshape(-1), kind="stable")[:kept]
    mask = np.zeros(delta.size)
    mask[order] = 1
    return delta * mask.reshape(delta.shape)


def elected(deltas, weights):
    weighted = [w * d for w, d in zip(weights, deltas, strict=True)]
    sign = np.where(sum(weighted) >= 0, 1.0, -1.0)
    agree = [np.sign(d) == sign for d in weighted]
    total = sum(d * m for d, m in zip(weighted, agree, strict=True))
    return total, sum(w * m for w, m in zip(weights, agree, strict=True))


@pytest.mark.parametrize("normalize", [False, True])
def test_d3_task_arithmetic(room, normalize):
    files, x, paths = room
    weights = (0.6, -0.2, 0.5)
    plan = {"merge_method": "task_arithmetic", "base_model": paths[0], "dtype": "float32",
            "parameters": {"normalize": normalize, "lambda": 0.8}, "models": [
        {"model": paths[0]},
        *({"model": p, "parameters": {"weight": w}}
          for p, w in zip(paths[1:], weights, strict=True))]}  # fmt: skip
    right = {}
    for name in LAYERS:
        total = sum(w * (m[name] - x[0][name]) for w, m in zip(weights, x[1:], strict=True))
        right[name] = x[0][name] + 0.8 * total / (sum(weights) if normalize else 1.0)
    close(merged(files, plan), right)


@pytest.mark.parametrize("normalize", [False, True])
def test_d3_ties(room, normalize):
    files, x, paths = room
    weights, densities = (0.5, 0.8, 0.4), (0.3, 0.6, 1.0)
    plan = {"merge_method": "ties", "base_model": paths[0], "dtype": "float32",
            "parameters": {"normalize": normalize, "int8_mask": True}, "models": [
        {"model": p, "parameters": {"weight": w, "density": d}}
        for p, w, d in zip(paths[1:], weights, densities, strict=True)]}  # fmt: skip
    right = {}
    for name in LAYERS:
        deltas = [(m[name].astype(np.float32) - x[0][name].astype(np.float32)).astype(np.float64)
                  for m in x[1:]]  # fmt: skip
        deltas = [trimmed(d, k) for d, k in zip(deltas, densities, strict=True)]
        total, divisor = elected(deltas, weights)
        if normalize:
            total = total / np.where(divisor == 0, 1, divisor)
        right[name] = x[0][name] + total
    close(merged(files, plan), right)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_d3_dare_with_given_masks(room, method):
    files, x, paths = room
    weights, rng = (0.5, 0.7), np.random.default_rng(4)
    masks = [{n: rng.random(s) < 0.4 for n, s in LAYERS.items()} for _ in weights]
    places = [files.write(f"mask-{i}.safetensors", m) for i, m in enumerate(masks)]
    plan = MergePlan.of({"method": method, "base_model": paths[0], "sources": [
        {"model": p, "mask": str(m), "parameters": {"weight": w, "density": 0.4}}
        for p, m, w in zip(paths[1:3], places, weights, strict=True)]})  # fmt: skip
    right = {}
    for name in LAYERS:
        deltas = []
        for m, mask in zip(x[1:3], masks, strict=True):
            d = m[name] - x[0][name]
            kept = d * mask[name]
            deltas.append(kept * np.abs(d).sum() / np.abs(kept).sum())
        if method == "dare_ties":
            total, _ = elected(deltas, weights)
        else:
            total = sum(w * d for w, d in zip(weights, deltas, strict=True))
        right[name] = x[0][name] + total
    close(files.read(files.merge(plan)), right)


def test_dare_keeps_about_its_density_and_depends_on_the_seed_alone(files):
    shapes = {"w": (300, 200)}
    base = {"w": np.zeros((300, 200), np.float32)}
    stem = files.write("base.safetensors", base)
    one = files.write("one.safetensors", {"w": np.ones((300, 200), np.float32)})
    plan = {"method": "dare_linear", "base_model": str(stem), "sources": [str(one)],
            "parameters": {"weight": 1.0, "density": 0.3, "rescale": False}}  # fmt: skip
    first = files.read(files.merge(plan))["w"]
    assert abs(first.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / first.size)
    again = files.read(files.merge({**plan, "seed": 0}, block_entries=777))["w"]
    assert np.array_equal(first, again)
    other = files.read(files.merge({**plan, "seed": 1}))["w"]
    assert not np.array_equal(first, other)
    assert set(shapes) == set(base)
    whole = files.read(files.merge({**plan, "parameters": {"weight": 1.0, "density": 0.3}}))["w"]
    np.testing.assert_allclose(whole.sum(), first.size, rtol=1e-6)  # the L1 norm is kept


@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
def test_d3_breadcrumbs(room, method):
    files, x, paths = room
    weights, density, gamma = (0.5, 0.8), 0.5, 0.1
    plan = {"merge_method": method, "base_model": paths[0], "dtype": "float32", "models": [
        {"model": p, "parameters": {"weight": w, "density": density, "gamma": gamma}}
        for p, w in zip(paths[1:3], weights, strict=True)]}  # fmt: skip
    right = {}
    for name in LAYERS:
        deltas = []
        for m in x[1:3]:
            d = (m[name].astype(np.float32) - x[0][name].astype(np.float32)).astype(np.float64)
            keep, top = int(density * d.size), int(gamma * d.size)
            low = max(0, d.size - keep - top)
            order = np.argsort(np.abs(d).reshape(-1), kind="stable")[low : low + keep]
            mask = np.zeros(d.size)
            mask[order] = 1
            deltas.append(d * mask.reshape(d.shape))
        if method == "breadcrumbs_ties":
            total, _ = elected(deltas, weights)
        else:
            total = sum(w * d for w, d in zip(weights, deltas, strict=True))
        right[name] = x[0][name] + total
    close(merged(files, plan), right)


def test_a_model_with_an_adapter_in_mergekits_form(files):
    plan = parse_plan("""
merge_method: task_arithmetic
base_model: base
models:
  - model: base+adapter
    parameters: {weight: 1}
  - model: {model: {path: base}, lora: {path: other}}
    parameters: {weight: 1}
""")
    assert [(s.model, s.base) for s in plan.sources] == [("adapter", "base"), ("other", "base")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merge_method": "karcher"}, "nearest here is 'linear'"),
        ({"merge_method": "passthrough"}, "read are linear"),
        ({"tokenizer": {"source": "union"}}, "'tokenizer' is not read"),
        ({"tokenizer_source": "union"}, "union builds a new vocabulary"),
        ({"chat_template": "auto"}, "'chat_template' is not read"),
        ({"modules": {"x": {}}}, "'modules' is not read"),
        ({"speed": 1}, "'speed' is not read"),
        ({"parameters": {"sharpness": 1}}, "'sharpness'"),
        ({"models": None, "slices": [{}, {}]}, "Stack layers with mergekit"),
        ({"models": [{"model": "a", "parameters": {"weight": "much"}}]}, "'much' was given"),
        ({"models": [{"model": "a"}]}, "needs the parameter 'weight'"),
        ({"dtype": "int8"}, "'int8' was given"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(change, message):
    plan = {"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": 1}}]}
    given = {k: v for k, v in {**plan, **change}.items() if v is not None}
    with pytest.raises(InvalidInputError, match=message):
        parse_plan(json.dumps(given))


def test_plans_are_written_and_read_back(tmp_path):
    plan = MergePlan.of({
        "method": "ties", "base_model": "b", "seed": 5, "out_dtype": "bfloat16",
        "sources": [{"model": "m", "parameters": {"density": [{"filter": "mlp", "value": [0.1, 1]},
                                                              {"value": 0.2}]}}],
        "parameters": {"weight": 1}, "sites": {"head.*": "take:0"}, "nonfinite": "skip",
        "ties": {"lm_head.weight": "embed"}, "grid": [[0.5], [1.0]]})  # fmt: skip
    save_plan(plan, tmp_path / "p.yaml")
    assert load_plan(tmp_path / "p.yaml") == plan
    assert MergePlan.of(plan.to_dict()) == plan


@pytest.mark.parametrize("method", sorted(FAMILIES))
def test_every_family_names_its_missing_parts(method):
    kind = FAMILIES[method]
    plan = {"method": method, "sources": ["a"] * max(1, kind.least), "base_model": "b"}
    if kind.base == "must":
        with pytest.raises(InvalidInputError, match="needs a base_model"):
            MergePlan.of({k: v for k, v in plan.items() if k != "base_model"})
    if kind.precisions:
        with pytest.raises(InvalidInputError, match="fishertope estimate"):
            MergePlan.of(plan)
        plan["sources"] = [{"model": "a", "precision": "p"}]
    with pytest.raises(InvalidInputError, match="nonsense"):
        MergePlan.of({**plan, "parameters": {"nonsense": 1}})
    with pytest.raises(InvalidInputError):
        MergePlan.of({**plan, "sources": []})


def test_settings_go_from_the_most_specific_to_the_default():
    first = check_setting("x", [{"filter": "mlp", "value": 1}], float)
    second = check_setting("x", [0, 10], float)
    assert resolve([first, second], "a.mlp.w", 0.5) == 1.0
    assert resolve([first, second], "a.attn.w", 0.25) == 2.5
    assert resolve([first], "a.attn.w", 0.25) is None
    assert layer_places(["h.3.w", "h.0.w"], 7) == {"h.3.w": 0.5, "h.0.w": 0.0}


def test_a_filter_that_fits_nothing_is_named(room):
    files, _, paths = room
    weight = [{"filter": "mlp", "value": 1}]
    model = {"model": paths[0], "parameters": {"weight": weight}}
    plan = {"merge_method": "linear", "dtype": "float32", "models": [model]}
    with pytest.raises(InvalidInputError, match="no filter fits"):
        merged(files, plan)
