"""What is refused, what is copied, and what the result looks like to other readers."""

import json

import numpy as np
import pytest

from fishertope.core.errors import CorruptFileError, FishertopeError, InvalidInputError
from fishertope.core.fisher import PrecisionTree
from fishertope.core.fisher.structures import Diagonal, Gram, Isotropic, Kronecker
from fishertope.core.merging import MergeProblem, solve
from fishertope.core.model.layout import SiteLayout


def pair(files, a=None, b=None, **options):
    a = files.write("a.safetensors", files.model(1) if a is None else a, **options)
    b = files.write("b.safetensors", files.model(2) if b is None else b, **options)
    return {"method": "linear", "sources": [str(a), str(b)], "parameters": {"weight": 0.5}}


def without(model, *names):
    return {k: v for k, v in model.items() if k not in names}


def test_merging_check_31_keys_shapes_dtypes_and_their_order(files):
    model = files.model(2)
    with pytest.raises(InvalidInputError, match=r"'scalar' is missing in source 1"):
        files.merge(pair(files, b=without(model, "scalar")))
    with pytest.raises(InvalidInputError, match=r"'more' is missing in source 0"):
        files.merge(pair(files, b={**model, "more": np.zeros(2, np.float32)}))
    odd = {**model, "scalar": np.zeros(3, np.float32)}
    with pytest.raises(InvalidInputError, match=r"'scalar' has the shape \(\) in source 0"):
        files.merge(pair(files, b=odd))
    with pytest.raises(InvalidInputError, match="integers and floats are not merged"):
        files.merge(pair(files, b={**model, "scalar": np.int64(1)}))
    straight = files.read(files.merge(pair(files)))
    turned = files.read(files.merge(pair(files, b=dict(reversed(model.items())))))
    assert list(straight) == list(turned)
    for name, values in straight.items():
        np.testing.assert_array_equal(values, turned[name])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", ["linear", "fisher", "ties", "slerp", "task_arithmetic"])
def test_merging_check_32_not_finite_parameters(files, method, value):
    good, bad = files.model(1), files.model(2)
    bad["model.layers.0.mlp.weight"][3, 4] = value
    plan = pair(files, good, bad)
    base = files.write("base.safetensors", files.model(0))
    marks = {k: np.ones(v.shape, np.float32) for k, v in good.items()}
    precision = str(files.write("f.safetensors", marks))
    plan |= {"method": method}
    if method == "fisher":
        plan["sources"] = [{"model": m, "precision": precision} for m in plan["sources"]]
    elif method != "linear":
        plan["base_model"] = str(base)
    if method == "slerp":
        plan |= {"parameters": {"t": 0.5}, "sources": plan["sources"][1:]}
    with pytest.raises(InvalidInputError, match=r"model.layers.0.mlp.weight' of source \d"):
        files.merge(plan, out="refused")
    assert not (files.folder / "refused").exists()
    if method == "slerp":
        with pytest.raises(InvalidInputError, match="no angle"):
            files.merge({**plan, "nonfinite": "propagate"})
        return
    spread = files.read(files.merge({**plan, "nonfinite": "propagate"}))
    assert not np.isfinite(spread["model.layers.0.mlp.weight"]).all() or method == "ties"
    out = files.merge({**plan, "nonfinite": "skip"})
    merged = files.read(out)
    assert all(np.isfinite(v).all() for v in merged.values())
    if method in ("linear", "fisher"):
        expected = good["model.layers.0.mlp.weight"]
        np.testing.assert_array_equal(merged["model.layers.0.mlp.weight"], expected)
    notes = json.loads((out / "results.json").read_text())["results"]["notes"]
    assert any("source 1 left out" in n for n in notes)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("code", ["F32", "BF16"])
def test_merging_checks_32_and_33_precisions_not_finite_or_negative(files, value, code):
    plan = pair(files, code=code)
    marks = {k: np.ones(v.shape, np.float32) for k, v in files.model(1).items()}
    good = files.write("good.safetensors", marks)
    marks["model.layers.1.attn.weight"][0, 1] = value
    bad = files.write("bad.safetensors", marks)
    plan |= {"method": "fisher", "sources": [
        {"model": plan["sources"][0], "precision": str(good)},
        {"model": plan["sources"][1], "precision": str(bad)},
    ]}  # fmt: skip
    with pytest.raises(InvalidInputError, match=r"attn.weight' for source 1 is (nan|inf|-1.0) at"):
        files.merge(plan)


@pytest.mark.parametrize(
    ("weights", "message"),
    [([-0.5, 1.5], ">= 0"), ([0.0, 0.0], "not all 0"), ([float("nan"), 1.0], "finite"),
     ([1.0], "one a source|every source")],
)  # fmt: skip
def test_merging_check_34_weights(files, weights, message):
    plan = pair(files)
    marks = files.write("f.safetensors", {k: np.ones_like(v) for k, v in files.model(1).items()})
    sources = []
    for i, model in enumerate(plan["sources"]):
        own = {"weight": weights[i]} if i < len(weights) else {}
        sources.append({"model": model, "precision": str(marks), "parameters": own})
    given = {"method": "fisher", "sources": sources}
    if len(weights) == 1:
        given = {**given, "grid": [weights]}
    with pytest.raises(InvalidInputError, match=message):
        files.merge(given)
    with pytest.raises(InvalidInputError, match="add up to 0"):
        files.merge({"method": "linear", "sources": [
            {"model": m, "parameters": {"weight": w}}
            for m, w in zip(plan["sources"], (1.0, -1.0), strict=True)]})  # fmt: skip


def test_merging_check_35_no_precision_at_all(files):
    a, b = files.model(1), files.model(2)
    plan = pair(files, a, b)
    zero = files.write("zero.safetensors", {k: np.zeros_like(v) for k, v in a.items()})
    plan |= {"method": "fisher", "parameters": {}, "sources": [
        {"model": m, "precision": str(zero), "parameters": {"weight": w}}
        for m, w in zip(plan["sources"], (0.25, 0.75), strict=True)]}  # fmt: skip
    with pytest.raises(InvalidInputError, match="no source has a precision"):
        files.merge({**plan, "fallback": "error"})
    out = files.merge(plan)
    for name, values in files.read(out).items():
        expected = 0.25 * a[name].astype(np.float64) + 0.75 * b[name]
        np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-7)
    facts = json.loads((out / "results.json").read_text())["results"]
    assert facts["entries_without_precision"] == sum(v.size for v in a.values())
    base = files.write("base.safetensors", files.model(0))
    anchored = files.merge({**plan, "base_model": str(base), "parameters": {"anchor": 1.0},
                            "fallback": "error"})  # fmt: skip
    for name, values in files.read(anchored).items():
        np.testing.assert_array_equal(values, files.model(0)[name])


def test_merging_check_36_precisions_of_other_models_and_units(files):
    model = files.model(1, {"w": (4, 3)})
    plan = pair(files, model, files.model(2, {"w": (4, 3)}))

    def tree(name, digest, unit="token"):
        found = PrecisionTree(
            sites={"w": Diagonal(np.ones((4, 3)))}, n_examples=3, trace_errors={"w": 0.1},
            facts={"model_sha256": digest, "token_normalisation": unit},
        )  # fmt: skip
        found.save(files.folder / name)
        return str(files.folder / name)

    import hashlib

    right = [hashlib.sha256(files.model(i, {"w": (4, 3)})["w"].tobytes()).hexdigest()
             for i in (1, 2)]  # fmt: skip
    good = [tree(f"{i}.safetensors", d) for i, d in enumerate(right)]
    plan["method"] = "fisher"
    models = plan["sources"]

    def given(files_):
        return {**plan, "sources": [{"model": m, "precision": f}
                                    for m, f in zip(models, files_, strict=True)]}  # fmt: skip

    files.merge(given(good))
    with pytest.raises(InvalidInputError, match="other parameters than those of source 0"):
        files.merge(given(good[::-1]))
    files.merge(given(good[::-1]), check_models=False)
    with pytest.raises(InvalidInputError, match="differ in 'token_normalisation'"):
        files.merge(given([good[0], tree("x.safetensors", right[1], "example")]))
    broken = files.folder / "0.safetensors"
    broken.write_bytes(broken.read_bytes()[:-8])
    with pytest.raises(CorruptFileError, match="cut short"):
        files.merge(given(good))


def test_merging_check_37_integers_and_bools(files):
    a, b = files.model(1), files.model(2)
    same = {"ids": np.arange(5), "mask": np.array([True, False])}
    merged = files.read(files.merge(pair(files, a | same, b | same)))
    assert merged["ids"].tolist() == [0, 1, 2, 3, 4]
    assert merged["mask"].tolist() == [True, False]
    other = {"ids": np.arange(5) + 1, "mask": same["mask"]}
    with pytest.raises(InvalidInputError, match="never averaged"):
        files.merge(pair(files, a | same, b | other))
    plan = pair(files, a | same, b | other) | {"sites": {"<integers>": "take:1"}}
    assert files.read(files.merge(plan))["ids"].tolist() == [1, 2, 3, 4, 5]
    plan["sites"] = {"ids": "average"}
    with pytest.raises(InvalidInputError, match="never averaged"):
        files.merge(plan)


def test_merging_check_38_heads_of_different_sizes_follow_the_rules(files):
    a = {**files.model(1), "head.weight": np.ones((3, 8), np.float32)}
    b = {**files.model(2), "head.weight": np.zeros((5, 8), np.float32)}
    plan = pair(files, a, b)
    with pytest.raises(InvalidInputError, match=r"'head.weight' has the shape \(3, 8\)"):
        files.merge(plan)
    for rule, shape in (("take:0", (3, 8)), ("take:1", (5, 8))):
        merged = files.read(files.merge({**plan, "sites": {"head.*": rule}}))
        assert merged["head.weight"].shape == shape
    merged = files.read(files.merge({**plan, "sites": {"head.*": "skip"}}))
    assert "head.weight" not in merged
    merged = files.read(files.merge({**plan, "sites": {"<different>": "take"}}))
    assert merged["head.weight"].shape == (3, 8)


def test_merging_check_43_other_readers_see_the_same_names_order_and_metadata(files):
    safetensors = pytest.importorskip("safetensors")
    from safetensors.numpy import load_file

    model, about = files.model(1), {"format": "pt", "made_by": "someone"}
    a = files.write("a.safetensors", model, metadata=about)
    b = files.write("b.safetensors", files.model(2))
    out = files.merge({"method": "linear", "sources": [str(a), str(b)],
                       "parameters": {"weight": 0.5}})  # fmt: skip
    with safetensors.safe_open(out / "model.safetensors", "np") as found:
        assert found.metadata() == about
        assert list(found.offset_keys()) == list(model)
    for name, values in load_file(out / "model.safetensors").items():
        assert values.shape == model[name].shape
        assert values.dtype == np.float32
    assert (out / "model.safetensors").stat().st_size == a.stat().st_size


def test_merging_check_43_transformers_opens_it_and_tied_weights_stay_tied(files, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=33, n_positions=8)
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        models.append(transformers.GPT2LMHeadModel(config).to(torch.bfloat16))
        models[-1].save_pretrained(tmp_path / str(seed), max_shard_size="20KB" if seed else "1GB")
    out = files.merge({"method": "linear", "sources": [str(tmp_path / "0"), str(tmp_path / "1")],
                       "parameters": {"weight": 0.5}})  # fmt: skip
    size = (tmp_path / "0" / "model.safetensors").stat().st_size
    assert (out / "model.safetensors").stat().st_size == size
    merged = transformers.GPT2LMHeadModel.from_pretrained(out, dtype=torch.bfloat16)
    assert merged.lm_head.weight is merged.transformer.wte.weight
    for name, p in merged.named_parameters():
        a, b = (m.get_parameter(name).double() for m in models)
        assert torch.equal(p, ((a + b) / 2).to(torch.bfloat16)), name
    # The same from a sharded target: shards and index like the target's.
    turned = files.merge({"method": "linear", "sources": [str(tmp_path / "1"), str(tmp_path / "0")],
                          "parameters": {"weight": 0.5}, "out_dtype": "float32"})  # fmt: skip
    assert {p.name for p in turned.glob("*.safetensors*")} == {
        p.name for p in (tmp_path / "1").glob("*.safetensors*")
    }
    again = transformers.GPT2LMHeadModel.from_pretrained(turned)
    assert again.config.dtype == torch.float32
    assert torch.equal(
        again.transformer.wte.weight.to(torch.bfloat16), merged.transformer.wte.weight
    )


def test_a_tensor_that_one_source_ties_is_read_from_its_twin(files):
    model = files.model(1)
    twin = model["model.embed_tokens.weight"]
    plan = pair(files, {**model, "lm_head.weight": twin}, files.model(2))
    plan["ties"] = {"lm_head.weight": "model.embed_tokens.weight"}
    merged = files.read(files.merge(plan))
    np.testing.assert_array_equal(merged["lm_head.weight"], merged["model.embed_tokens.weight"])


def adapter(files, name, base, rank, *, alpha, rslora=False, fan=False, seed=0):
    rng, tensors = np.random.default_rng(seed), {}
    for module in ("model.layers.0.mlp", "model.layers.1.attn"):
        out, width = base[f"{module}.weight"].shape
        out, width = (width, out) if fan else (out, width)
        head = f"base_model.model.{module}"
        tensors[f"{head}.lora_A.weight"] = rng.normal(size=(rank, width)).astype(np.float32)
        tensors[f"{head}.lora_B.weight"] = rng.normal(size=(out, rank)).astype(np.float32)
    files.write(f"{name}/adapter_model.safetensors", tensors)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "use_rslora": rslora,
              "fan_in_fan_out": fan, "bias": "none", "target_modules": ["mlp", "attn"]}  # fmt: skip
    (files.folder / name / "adapter_config.json").write_text(json.dumps(config))
    scale = alpha / (rank**0.5 if rslora else rank)
    deltas = {}
    for module in ("model.layers.0.mlp", "model.layers.1.attn"):
        head = f"base_model.model.{module}"
        a, b = (tensors[f"{head}.lora_{f}.weight"].astype(np.float64) for f in "AB")
        deltas[f"{module}.weight"] = scale * ((b @ a).T if fan else b @ a)
    return str(files.folder / name), deltas


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("fan", [False, True])
def test_merging_check_47_adapters_merge_by_their_exact_updates(files, rslora, fan):
    base = files.model(0, dtype=np.float64)
    stem = files.write("base.safetensors", base)
    one, first = adapter(files, "one", base, 2, alpha=8, rslora=rslora, fan=fan, seed=1)
    two, second = adapter(files, "two", base, 5, alpha=3, fan=fan, seed=2)
    for w in ((1.0, 0.0), (0.3, 0.9)):
        plan = {"method": "task_arithmetic", "base_model": str(stem), "sources": [
            {"model": m, "parameters": {"weight": v}} for m, v in zip((one, two), w, strict=True)
        ]}  # fmt: skip
        merged = files.read(files.merge(plan, block_entries=23))
        for name, values in base.items():
            d = w[0] * first.get(name, 0.0) + w[1] * second.get(name, 0.0)
            np.testing.assert_allclose(merged[name], values + d, rtol=1e-12, atol=1e-12)
    config = json.loads((files.folder / "one" / "adapter_config.json").read_text())
    for change in ({"use_dora": True}, {"peft_type": "IA3"}, {"bias": "all"}, {"r": 3}, {"r": "x"}):
        text = json.dumps(config | change)
        (files.folder / "one" / "adapter_config.json").write_text(text)
        with pytest.raises(FishertopeError, match=r"one|LORA"):
            files.merge(plan)


def test_an_adapter_without_its_base_is_refused(files):
    base = files.model(0)
    files.write("base.safetensors", base)
    one, _ = adapter(files, "one", base, 2, alpha=8)
    with pytest.raises(InvalidInputError, match="its base checkpoint is needed"):
        files.merge({"method": "linear", "sources": [one], "parameters": {"weight": 1.0}})


@pytest.mark.parametrize("structure", ["gram", "kronecker", "isotropic"])
def test_sites_of_other_structures_are_solved_as_in_memory(files, structure):
    shapes = {"layer.weight": (6, 4), "layer.bias": (6,), "norm.weight": (5,)}
    models = [files.model(i, shapes, np.float64) for i in (1, 2, 3)]
    rng, trees = np.random.default_rng(0), []
    for _ in models:
        a, b = rng.normal(size=(20, 5)), rng.normal(size=(20, 6))
        site = {
            "gram": lambda a=a: Gram(a.T @ a / 20, 6),
            "kronecker": lambda a=a, b=b: Kronecker(b.T @ b / 20, a.T @ a / 20),
            "isotropic": lambda: Isotropic(float(rng.random()), (6, 5)),
        }[structure]()
        layout = SiteLayout(weight="layer.weight", weight_shape=(6, 4), bias="layer.bias",
                            outputs="first")  # fmt: skip
        trees.append(
            PrecisionTree(
                sites={"layer.weight": site, "norm.weight": Diagonal(rng.random(5))},
                n_examples=20,
                trace_errors={"layer.weight": 0.1, "norm.weight": 0.1},
                layouts={"layer.weight": layout},
            )
        )
    paths = [files.write(f"{i}.safetensors", m) for i, m in enumerate(models)]
    for i, tree in enumerate(trees):
        tree.save(files.folder / f"p{i}.safetensors")
    plan = {"method": "fisher", "sources": [
        {"model": str(p), "precision": str(files.folder / f"p{i}.safetensors")}
        for i, p in enumerate(paths)], "parameters": {"weight": 0.5}}  # fmt: skip
    merged = files.read(files.merge(plan, block_entries=7))
    exact = solve(MergeProblem(sources=models, precisions=trees, weights=[0.5] * 3))
    for name in shapes:
        np.testing.assert_array_equal(merged[name], exact.params[name])


def test_normalised_precisions_and_the_floor_of_the_paper(files):
    a, b = files.model(1, dtype=np.float64), files.model(2, dtype=np.float64)
    rng = np.random.default_rng(0)
    fishers = [{k: rng.random(v.shape) ** 6 for k, v in a.items()} for _ in range(2)]
    marks = [files.write(f"f{i}.safetensors", f) for i, f in enumerate(fishers)]
    plan = pair(files, a, b)
    plan |= {"method": "fisher", "parameters": {"floor": 1e-2, "floor_on": "first",
             "normalize": True}, "sources": [
        {"model": m, "precision": str(f), "parameters": {"weight": w}}
        for m, f, w in zip(plan["sources"], marks, (0.3, 0.7), strict=True)]}  # fmt: skip
    merged = files.read(files.merge(plan))
    first = {k: np.maximum(v, 1e-2) for k, v in fishers[0].items()}
    norms = [np.sqrt(sum((v**2).sum() for v in f.values())) for f in (first, fishers[1])]
    for name, values in merged.items():
        p, q = 0.3 * first[name] / norms[0], 0.7 * fishers[1][name] / norms[1]
        np.testing.assert_allclose(values, (p * a[name] + q * b[name]) / (p + q), rtol=1e-12)


def test_configuration_and_tokenizer_are_carried_over(files):
    plan = pair(files)
    for name, weights in (("a", files.model(1)), ("b", files.model(2))):
        files.write(f"{name}/model.safetensors", weights, code="BF16")
        (files.folder / name / "config.json").write_text('{"torch_dtype": "bfloat16", "x": 1}')
        (files.folder / name / "tokenizer.json").write_text(f'"{name}"')
        (files.folder / name / "manifest.json").write_text("{}")
        (files.folder / name / "evil.py").write_text("raise SystemExit")
    plan["sources"] = [str(files.folder / "a"), str(files.folder / "b")]
    out = files.merge(plan)
    assert (out / "config.json").read_bytes() == (files.folder / "a" / "config.json").read_bytes()
    assert (out / "tokenizer.json").read_text() == '"a"'
    assert not (out / "evil.py").exists()
    card = (out / "README.md").read_text()
    assert "fishertope merge" in card
    assert "method: linear" in card
    out = files.merge({**plan, "tokenizer": str(files.folder / "b"), "out_dtype": "float32"})
    assert (out / "tokenizer.json").read_text() == '"b"'
    assert json.loads((out / "config.json").read_text()) == {"torch_dtype": "float32", "x": 1}
