"""The feed-forward layer's one-output form is what the model itself computes."""
# ruff: noqa: E402

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fishertope.core.errors import InvalidInputError
from fishertope.experiments.bridges.feed_forward import as_module, one_output
from fishertope.experiments.seq2seq import Seq2Seq, Seq2SeqConfig
from fishertope.experiments.text2text import ByteVocabulary, Lengths
from fishertope.experiments.text2text.folders import TextModel
from fishertope.theory import as_shallow, certify, polish

LABELS = ("bad", "bright")  # alike in the first byte
EXAMPLES = [
    {"inputs": f"text {i} {'x' * (i % 5)}", "targets": LABELS[i % 2]} for i in range(24)
]  # fmt: skip


def small(**changes):
    config = Seq2SeqConfig(
        vocab_size=384, d_model=8, d_ff=6, d_kv=4, heads=2, layers=2, dropout=0.2, **changes
    )
    model = Seq2Seq(config, torch.Generator().manual_seed(5)).double()
    with torch.no_grad():
        model.decoder.final_norm.weight.uniform_(0.5, 1.5)
    return TextModel(
        model=model, vocabulary=ByteVocabulary(), lengths=Lengths(inputs=20, targets=9), facts={}
    )


def margins(text_model):
    """Logit of the second label's second byte minus that of the first's, after their first."""
    words, out = text_model.vocabulary, []
    a, b = (words.encode(label) for label in LABELS)
    for e in EXAMPLES:
        read = torch.tensor([[*words.encode(e["inputs"]), words.eos_id]])
        with torch.no_grad():
            logits = text_model.model.eval()(read, torch.tensor([[0, a[0]]]))[0, 1]
        out.append(float(logits[b[1]] - logits[a[1]]))
    return np.array(out)


def test_f6_one_output_form_has_the_margins_of_the_model():
    text_model = small()
    layer = one_output(text_model, EXAMPLES, LABELS)
    due = margins(text_model)
    f = np.maximum(layer.inputs @ layer.weights.T, 0) @ layer.outputs
    whole = layer.residuals + f
    s = due / whole
    assert (s > 0).all()
    assert layer.margin == pytest.approx(np.abs(due).mean())
    np.testing.assert_allclose(
        layer.targets, layer.margin * layer.labels / s - layer.residuals, atol=1e-9
    )
    right = (np.sign(due) == layer.labels).mean()
    assert layer.accuracy(layer.weights, layer.outputs) == pytest.approx(right)
    part = layer.part(layer.strongest(2), layer.directions(8))
    assert part.weights.shape == (2, 8)
    assert part.loss(part.weights, part.outputs) == pytest.approx(
        layer.loss(layer.weights, layer.outputs)
    )
    module = as_module(layer.weights, layer.outputs)
    found = module(torch.from_numpy(layer.inputs)).detach().numpy()[:, 0]
    np.testing.assert_allclose(found, f, atol=1e-12)


def test_f6_the_layer_is_polished_and_its_local_minimum_proven():
    layer = one_output(small(), EXAMPLES, LABELS)
    part = layer.part(layer.strongest(2), layer.directions(3))
    found = polish(as_module(part.weights, part.outputs), part.inputs, part.targets)
    assert found.loss_before == pytest.approx(part.loss(part.weights, part.outputs))
    assert found.loss_after < found.loss_before
    assert certify(as_shallow(found.module), part.inputs, part.targets).local_minimum


def test_f6_other_layers_are_refused():
    for changes in ({"gated": True}, {"activation": "gelu"}, {"norm": "layer"}, {"ffn_bias": True}):
        with pytest.raises(InvalidInputError, match=r"T5 v1\.0"):
            one_output(small(**changes), EXAMPLES, LABELS)
    with pytest.raises(InvalidInputError, match="3 labels"):
        one_output(small(), EXAMPLES, (*LABELS, "other"))
