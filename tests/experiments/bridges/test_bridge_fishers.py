"""Fishers of a text-to-text model against one backward pass an example and text, in float64."""
# ruff: noqa: E402

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fishertope import estimate_precision, merge, per_example_fishers
from fishertope.core.errors import InvalidInputError
from fishertope.core.fisher import ExactLabels
from fishertope.experiments.bridges import Texts, ask
from fishertope.experiments.seq2seq import Seq2Seq, Seq2SeqConfig, shift_right
from fishertope.experiments.text2text import ByteVocabulary, Lengths
from fishertope.experiments.text2text.folders import TextModel

LABELS = ("no", "yes", "maybe")
EXAMPLES = [
    {"inputs": "a: one", "targets": "yes"},
    {"inputs": "b: two, longer", "targets": "no"},
    {"inputs": "c", "targets": "maybe"},
]


def nano(*, vocab_size=384, targets=6, seed=0, **changes):
    config = Seq2SeqConfig(
        vocab_size=vocab_size, d_model=8, d_ff=12, d_kv=4, heads=2, layers=1, dropout=0.3, **changes
    )
    model = Seq2Seq(config, torch.Generator().manual_seed(seed)).double()
    with torch.no_grad():
        model.embedding.mul_(0.3)
    return TextModel(
        model=model, vocabulary=ByteVocabulary(), lengths=Lengths(inputs=20, targets=targets),
        facts={},
    )  # fmt: skip


def log_likelihood(text_model, inputs, ids):
    """Log p of one text, its end included: one unpadded row, no view, no batch."""
    words = text_model.vocabulary
    read = torch.tensor([[*words.encode(inputs), words.eos_id]])
    goal = torch.tensor([ids])
    logits = text_model.model.eval()(read, shift_right(goal))
    return torch.log_softmax(logits, -1)[0, torch.arange(len(ids)), goal[0]].sum()


def gradient(text_model, value):
    parameters = list(text_model.model.parameters())
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return torch.cat([
        (torch.zeros_like(p) if g is None else g).reshape(-1)
        for p, g in zip(parameters, found, strict=True)
    ])  # fmt: skip


def label_rows(text_model, inputs, labels):
    """Rows √p_c g_c (C, p), p the softmax over the labels' log-likelihoods."""
    words = text_model.vocabulary

    def ranked():
        ids = [[*words.encode(c), words.eos_id] for c in labels]
        values = torch.stack([log_likelihood(text_model, inputs, row) for row in ids])
        return torch.log_softmax(values, 0)

    rows = []
    for c in range(len(labels)):
        value = ranked()[c]
        rows.append((value.detach() / 2).exp() * gradient(text_model, value))
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("gated", [False, True])
def test_f6_label_fisher_is_the_loop_over_examples_and_classes(gated):
    text_model = nano(gated=gated)
    question = ask(text_model, EXAMPLES, labels=LABELS)
    assert question.texts is Texts.RANKED
    found = per_example_fishers(question.model, question.data, **question.options)
    parameters = dict(text_model.model.named_parameters())
    assert [s.name for s in found.sites] == list(parameters)  # the tied embedding once
    assert found.rows.shape == (2 * 3, sum(p.numel() for p in parameters.values()))
    mean = np.zeros(found.rows.shape[1])
    for i, example in enumerate(EXAMPLES):
        due = label_rows(text_model, example["inputs"], LABELS)
        rows = found.rows[found.offsets[i] : found.offsets[i + 1]].numpy()
        probes = np.random.default_rng(i).normal(size=(rows.shape[1], 12))
        want = due.T @ (due @ probes)
        np.testing.assert_allclose(rows.T @ (rows @ probes), want, atol=1e-12 * np.abs(want).max())
        assert found.norms[i] == pytest.approx(np.linalg.norm(due @ due.T), rel=1e-12)
        mean += np.square(due).sum(0) / len(EXAMPLES)
    tree = estimate_precision(question.model, question.data, **question.options)
    flat = np.concatenate([np.asarray(tree[name].values).reshape(-1) for name in parameters])
    np.testing.assert_allclose(flat, mean, atol=1e-12 * mean.max())


def test_f6_sampled_texts_are_scored_as_one_unpadded_row_would_be():
    text_model = nano(targets=3, vocab_size=360)
    question = ask(text_model, EXAMPLES, draws=4, seed=3, batch_size=2)
    assert question.texts is Texts.SAMPLED
    found = per_example_fishers(question.model, question.data, **question.options)
    texts = [row for batch in question.data for row in batch["texts"]]
    for i, example in enumerate(EXAMPLES):
        for j, row in enumerate(texts[i].tolist()):
            ids = row[: row.index(1) + 1] if 1 in row else row
            g = gradient(text_model, log_likelihood(text_model, example["inputs"], ids))
            have = found.rows[found.offsets[i] + j].numpy() * 2.0  # √4 draws
            np.testing.assert_allclose(have, g.numpy(), atol=1e-11)


def small_vocabulary(targets=2):
    """A model of so few tokens that every text it can write can be listed."""

    class Few:
        size, pad_id, eos_id = 6, 0, 1

        def encode(self, text):
            return [2 + ord(c) % 4 for c in text]

    text_model = nano(vocab_size=6, targets=targets)
    with torch.no_grad():
        text_model.model.embedding.mul_(4.0)  # a distribution that is not flat
    return TextModel(model=text_model.model, vocabulary=Few(), lengths=text_model.lengths, facts={})


def test_f6_sampled_fisher_has_the_mean_over_all_texts():
    """E over drawn texts against the sum over all 5·6 + 1 texts of at most two tokens."""
    text_model = small_vocabulary()
    example = {"inputs": "hello"}
    texts = [[1]] + [[a, b] for a, b in itertools.product(range(6), repeat=2) if a != 1]
    likely, squares = [], []
    for ids in texts:
        value = log_likelihood(text_model, "hello", ids)
        likely.append(float(value.detach().exp()))
        squares.append(gradient(text_model, value).numpy() ** 2)
    assert sum(likely) == pytest.approx(1.0)  # these are all texts, the cut ones included
    p, g2 = np.array(likely)[:, None], np.array(squares)
    due, draws = (p * g2).sum(0), 4 * 500
    error = np.sqrt(((p * g2**2).sum(0) - due**2) / draws)
    question = ask(text_model, [example] * 500, draws=4, seed=1, batch_size=100)
    tree = estimate_precision(question.model, question.data, **question.options)
    names = [n for n, _ in text_model.model.named_parameters()]
    have = np.concatenate([np.asarray(tree[n].values).reshape(-1) for n in names])
    assert (np.abs(have - due) <= 5 * error + 1e-12 * due.max()).all()
    assert due.sum() > 20 * np.linalg.norm(error)  # a wrong weight would be seen


def test_f6_given_prefix_is_the_exact_expectation_at_each_position():
    text_model = small_vocabulary(targets=4)
    example = {"inputs": "abc", "targets": "bd"}
    question = ask(text_model, [example], texts="given prefix")
    exact = {**question.options, "labels": ExactLabels()}
    found = estimate_precision(question.model, question.data, **exact)
    model, words = text_model.model.eval(), text_model.vocabulary
    goal = torch.tensor([[*words.encode("bd"), 1]])
    read = torch.tensor([[*words.encode("abc"), 1]])
    due = 0
    for t, v in itertools.product(range(3), range(6)):
        logits = torch.log_softmax(model(read, shift_right(goal)), -1)[0, t]
        g = gradient(text_model, logits[v])
        due = due + float(logits[v].detach().exp()) * g.numpy() ** 2
    names = [n for n, _ in model.named_parameters()]
    have = np.concatenate([np.asarray(found[n].values).reshape(-1) for n in names])
    np.testing.assert_allclose(have, due, atol=1e-11 * due.max())


def test_f6_empirical_is_the_gradient_of_the_given_text_and_called_so():
    text_model = nano()
    question = ask(text_model, EXAMPLES, texts=Texts.EMPIRICAL)
    found = per_example_fishers(question.model, question.data, **question.options)
    assert "empirical" in str(found.facts)
    words = text_model.vocabulary
    for i, e in enumerate(EXAMPLES):
        ids = [*words.encode(e["targets"]), words.eos_id]
        g = gradient(text_model, log_likelihood(text_model, e["inputs"], ids))
        np.testing.assert_allclose(found.rows[i].numpy(), g.numpy(), atol=1e-11)


def test_f6_views_change_nothing_and_merge_takes_their_precisions():
    models = [nano(seed=s) for s in range(4)]
    before = [{n: p.detach().clone() for n, p in m.model.named_parameters()} for m in models]
    trees = []
    for m in models:
        question = ask(m, EXAMPLES, labels=LABELS)
        assert question.model.embedding is m.model.embedding
        trees.append(estimate_precision(question.model, question.data, **question.options))
    merged = merge([m.model for m in models], trees, method="fisher")
    assert sorted(merged.params) == sorted(before[0])
    for m, old in zip(models, before, strict=True):
        assert all(torch.equal(p, old[n]) for n, p in m.model.named_parameters())
    weights = [np.asarray(t["embedding"].values).reshape(384, 8) for t in trees]
    due = sum(w * b["embedding"].numpy() for w, b in zip(weights, before, strict=True))
    live = sum(weights) > 1e-12 * sum(weights).max()
    have = merged.params["embedding"].numpy()
    np.testing.assert_allclose(have[live], (due[live] / sum(weights)[live]), rtol=1e-6)


def test_f6_what_cannot_be_asked_is_refused():
    text_model = nano()
    with pytest.raises(InvalidInputError, match="accepted are 'ranked'"):
        ask(text_model, EXAMPLES, texts="true")
    with pytest.raises(InvalidInputError, match="at least two strings"):
        ask(text_model, EXAMPLES, labels=("yes", "yes"))
    with pytest.raises(InvalidInputError, match="at least two strings"):
        ask(text_model, EXAMPLES, texts=Texts.RANKED)
    with pytest.raises(InvalidInputError, match="0 examples"):
        ask(text_model, [], labels=LABELS)
    with pytest.raises(InvalidInputError, match="two stacks"):
        ask(nano(arch="lm"), EXAMPLES)


def test_f6_a_model_that_reads_an_example_several_times_is_not_traced():
    """One row for each label passes through the decoder: there is no one path to draw."""
    from fishertope import LowRankNPEFF, factorize, trace
    from fishertope.core.model import engine_for

    question = ask(nano(), EXAMPLES * 2, labels=LABELS)
    fishers = per_example_fishers(question.model, question.data, **question.options)
    found = factorize(fishers, LowRankNPEFF(2), on_failure="return")
    engine = engine_for(question.model, output=question.options["output"])
    ids = next(iter(question.data))
    one = {k: v[:1] for k, v in ids.items()}
    with pytest.raises(InvalidInputError, match="several times"):
        trace(engine, found, 0, one)
