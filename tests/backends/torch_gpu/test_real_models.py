"""MiniLM and SmolLM2 on real sentences: small numbers of what benchmarks/ does at full size."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from fishertope.backends.torch_gpu.hooks import module_engine  # noqa: E402
from fishertope.backends.torch_gpu.readout import EachToken, LabelWords  # noqa: E402
from fishertope.core.fisher import (  # noqa: E402
    FactoredProjection,
    FisherStore,
    ProbeLabels,
    RandomProjection,
    estimate_precision,
    per_example_fishers,
)
from fishertope.core.model import TokenCategorical  # noqa: E402
from fishertope.core.testing.tolerances import deviation, tolerance  # noqa: E402

FLOAT32 = tolerance("identity", "float32").relative
N = 24


@pytest.fixture(scope="module")
def minilm(need_data):
    """The encoder with a random head of two classes, and real sentences as batches."""
    need_data("minilm", "sentiment")
    from fishertope.experiments.data import minilm_folder
    from fishertope.experiments.finetune import load_task, token_batches
    from fishertope.experiments.finetune.training import fresh_classifier

    model, tokenizer = fresh_classifier(minilm_folder(), ("no", "yes"), seed=0)
    texts = load_task("sentiment/imdb").test.take(range(N))
    batches = token_batches(tokenizer, texts, batch_size=8, max_length=32)
    return model.eval(), [{k: v for k, v in b.items() if k != "labels"} for b in batches]


def body(name):
    return not name.startswith("classifier.")


@pytest.mark.slow
def test_b1_rows_of_minilm_equal_autograd_one_sentence_at_a_time(minilm):
    model, batches = minilm
    found = per_example_fishers(model, batches[:1], engine="hooks")
    for i in range(3):
        length = int(batches[0]["attention_mask"][i].sum())
        z = model(**{k: v[i : i + 1, :length] for k, v in batches[0].items()}).logits[0]
        p = float(torch.softmax(z.detach(), 0)[0])
        model.zero_grad()
        (z[1] - z[0]).backward()
        g = torch.cat([w.grad.reshape(-1) for w in model.parameters()])
        a = found.block(i)[0]
        assert deviation(a * torch.sign(a @ g), math.sqrt(p * (1 - p)) * g) <= FLOAT32


@pytest.mark.slow
def test_b2_batches_of_minilm_change_nothing(minilm):
    model, batches = minilm
    alone = [{k: v[i : i + 1] for k, v in b.items()} for b in batches[:1] for i in range(8)]
    last = "*layer.5.*"
    whole = per_example_fishers(model, batches[:1], params=last).rows
    assert deviation(per_example_fishers(model, alone, params=last).rows, whole) <= FLOAT32
    # By the largest entry of all: the bias of the keys has no gradient but what rounding leaves.
    first, second = (estimate_precision(model, b, params=last) for b in (batches[:1], alone))
    largest = max(p.values.max() for p in first.values())
    for site in first:
        assert np.abs(second[site].values - first[site].values).max() <= FLOAT32 * largest


@pytest.mark.slow
@pytest.mark.parametrize("kind", [FactoredProjection, RandomProjection])
def test_b6_projected_stores_of_minilm_keep_the_gram(minilm, tmp_path, kind):
    model, batches = minilm
    options = {"params": body, "reduce": kind(2048), "batch_size": 8}
    store = per_example_fishers(model, batches, store=tmp_path / "s", **options)
    assert isinstance(store, FisherStore)
    assert len(store) == N
    rows = store.load().rows
    assert rows.shape == (N, 2048)
    size = sum(p.stat().st_size for p in (tmp_path / "s").iterdir())
    assert size <= rows.nbytes + 64 * 1024, "the store holds the projected rows and little else"
    last = "*layer.5.*"
    exact = per_example_fishers(model, batches, params=last).rows.numpy()
    near = per_example_fishers(model, batches, params=last, reduce=kind(2048)).rows.numpy()
    gram, scale = exact @ exact.T, np.linalg.norm(exact, axis=1)
    error = np.abs(near @ near.T - gram) / np.outer(scale, scale)
    assert np.sqrt(np.mean(error**2)) <= 3 * math.sqrt(math.log(N) / 2048)
    if kind is RandomProjection:
        assert error.max() <= 3 * math.sqrt(math.log(N) / 2048)


@pytest.mark.slow
def test_b4_kl_of_minilm_is_half_the_quadratic_form(minilm):
    model, batches = minilm
    model64 = transformers.AutoModelForSequenceClassification.from_config(model.config).double()
    model64.load_state_dict(model.state_dict())
    model64.eval()
    x = {k: v[:4] for k, v in batches[0].items()}
    fishers = per_example_fishers(model64, x)
    engine = module_engine(model64)
    # A generic direction moves nothing; one in the span of the gradients does.
    delta = fishers.rows.sum(0)
    delta /= delta.norm()
    half = 0.5 * (fishers.rows @ delta).square()
    z, errors = engine.predict(x), []
    for eps in (2e-3, 1e-3, 5e-4):
        with engine.patch(eps * delta):
            moved = engine.output.kl(z, engine.predict(x)) / eps**2
        errors.append(float((moved - half).abs().max() / half.max()))
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.2)


@pytest.fixture(scope="module")
def smollm2_texts():
    return [
        "Review: The food was wonderful and the staff were kind. Sentiment:",
        "Review: A dull film; we left before the end. Sentiment:",
        "Review: The phone broke after two days. Sentiment:",
    ]


def test_smollm2_classifies_by_label_words_and_its_vocabulary_is_probed(large, smollm2_texts):
    large("smollm2")
    from fishertope.experiments.data import smollm2_folder

    folder = smollm2_folder()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer.padding_side = "right"
    x = dict(tokenizer(smollm2_texts, return_tensors="pt", padding=True))
    words = [tokenizer.encode(w, add_special_tokens=False)[0] for w in (" negative", " positive")]
    readout = LabelWords(words)
    with torch.no_grad():
        z = readout(model(**x), x)
    assert (z[0, 1] - z[0, 0]) > max(z[1, 1] - z[1, 0], z[2, 1] - z[2, 0])
    last = "model.layers.29.*"
    found = per_example_fishers(model, x, outputs_of=readout, params=last)
    assert found.ranks.tolist() == [1, 1, 1]
    i, length = 1, int(x["attention_mask"][1].sum())
    one = {k: v[i : i + 1, :length] for k, v in x.items()}
    z = readout(model(**one), one)[0]
    p = float(torch.softmax(z.detach(), 0)[0])
    chosen = [w for name, w in model.named_parameters() if name.startswith("model.layers.29.")]
    g = torch.cat([a.reshape(-1) for a in torch.autograd.grad(z[1] - z[0], chosen)])
    a = found.block(i)[0]
    assert deviation(a * torch.sign(a @ g), math.sqrt(p * (1 - p)) * g) <= 1e-3
    probed = per_example_fishers(
        model, x, outputs_of=EachToken(following=True), labels=ProbeLabels(2),
        output=TokenCategorical(model.config.vocab_size), params="model.norm.weight",
    )  # fmt: skip
    assert probed.ranks.tolist() == [2, 2, 2]
    assert float(probed.rows.abs().max()) > 0
