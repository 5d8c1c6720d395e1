"""A real checkpoint end to end: two classifiers on MiniLM with different heads become one."""

import numpy as np
import pytest

from fishertope import estimate_precision, merge
from fishertope.core.errors import FishertopeError

TEXTS = ["a fine film", "dull and far too long", "I would see it again", "nothing works here"] * 4


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_minilm_classifiers_with_different_heads_merge():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from fishertope.experiments.data.models import minilm_folder

    try:
        folder = str(minilm_folder())
    except FishertopeError:
        pytest.skip("MiniLM has not been fetched")
    make = transformers.AutoModelForSequenceClassification.from_pretrained
    models = []
    for seed, labels in ((0, 2), (1, 3)):
        torch.manual_seed(seed)
        one = make(folder, num_labels=labels).eval()
        with torch.no_grad():
            for p in one.bert.parameters():
                p.add_(0.01 * p.std(correction=0) * torch.randn_like(p))
        models.append(one)
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        TEXTS, return_tensors="pt", padding=True
    )
    trees = [estimate_precision(m, dict(tokens)) for m in models]
    rules = {"classifier.*": "take:0"}
    found = merge(models, trees, method="fisher", sites=rules)
    out = found.model()
    assert out.config.num_labels == 2
    assert torch.equal(out.classifier.weight, models[0].classifier.weight)
    with torch.no_grad():
        logits = out(**tokens).logits
    assert torch.isfinite(logits).all()
    name = "bert.encoder.layer.0.attention.self.query.weight"
    F = [t[name].values for t in trees]
    W = [m.state_dict()[name].double().numpy() for m in models]
    some = F[0] + F[1] > 0
    expected = (F[0] * W[0] + F[1] * W[1])[some] / (F[0] + F[1])[some]
    np.testing.assert_allclose(found.params[name].numpy()[some], expected, rtol=0, atol=1e-6)
    table = "bert.embeddings.word_embeddings.weight"
    words = [m.state_dict()[table].double().numpy() for m in models]
    rows = found.params[table].numpy()
    unseen = 5000 if 5000 not in tokens["input_ids"] else 5001
    np.testing.assert_allclose(rows[unseen], (words[0][unseen] + words[1][unseen]) / 2, atol=1e-7)
    assert found.fallback > 1e6  # rows of words that no text has
    # Layer Grams of the encoder alone, for RegMean.
    params = [n for n, _ in models[0].named_parameters() if n.startswith("bert.encoder.layer.0.")]
    grams = [
        estimate_precision(m, dict(tokens), structure="gram", params=params)
        for m in models
    ]  # fmt: skip
    regmean = merge(models, grams, method="regmean", sites=rules)
    assert regmean.residual < 1e-8
    kinds = {s.name: (s.action, s.solver) for s in regmean.sites}
    assert kinds[name][0] == "merge"
    assert kinds["bert.encoder.layer.5.attention.self.query.weight"] == ("average", "mean")
