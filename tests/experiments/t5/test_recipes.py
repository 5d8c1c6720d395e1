"""Recipes, their cache, transfer and ensembles, on text that ships with Python."""

import threading
from dataclasses import asdict, replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fishertope.core.errors import InvalidInputError  # noqa: E402
from fishertope.experiments.data import _made  # noqa: E402
from fishertope.experiments.seq2seq.decoding import label_log_likelihoods  # noqa: E402
from fishertope.experiments.studies import t_interval  # noqa: E402
from fishertope.experiments.t5 import corpora, recipes, tasks, transfer  # noqa: E402
from fishertope.experiments.t5.conditions import agreement  # noqa: E402
from fishertope.experiments.t5.ensemble import Ensemble  # noqa: E402
from fishertope.experiments.t5.recipes import Recipe  # noqa: E402
from fishertope.experiments.text2text.batches import Lengths  # noqa: E402
from fishertope.experiments.text2text.evaluation import label_scores, label_tokens  # noqa: E402
from fishertope.experiments.text2text.formats import to_class  # noqa: E402
from fishertope.experiments.text2text.streams import BatchStream  # noqa: E402
from fishertope.experiments.text2text.tasks import Task  # noqa: E402

PICO = Recipe(size="pico", seed=0, corpus="manual")
WORDS = corpora.vocabulary("bytes")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of its own, and how often a model was trained."""
    monkeypatch.setattr(_made, "cache_folder", lambda: tmp_path)
    trained = []
    make = recipes.make
    monkeypatch.setattr(recipes, "make", lambda r, f: trained.append(r) or make(r, f))
    return trained


@pytest.fixture
def vowels(monkeypatch):
    """A task that needs no data: does a word begin with a vowel?"""

    def source(split):
        found = ["apple", "bear", "egg", "fox", "ink", "jam", "oak", "pen", "urn", "van"]
        return [{"text": word + split} for word in found for _ in range(3)]

    task = Task(
        name="vowels", source=source,
        format=lambda r: [{"inputs": r["text"], "targets": "yes" if r["text"][0] in "aeiou"
                           else "no"}],
        postprocess=lambda text, example: to_class(("no", "yes"))(text), labels=("no", "yes"),
    )  # fmt: skip
    monkeypatch.setattr(tasks, "task", lambda name: task)
    monkeypatch.setattr(transfer, "task", lambda name: task)
    monkeypatch.setitem(tasks.ROWS, "vowels", Lengths(inputs=16, targets=4))
    tasks.examples.cache_clear()
    yield "vowels"
    tasks.examples.cache_clear()


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_a_recipe_is_trained_once_however_many_ask_at_once(cache):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(recipes.pretrained(PICO))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert cache == [PICO]
    first = weights(found[0].model)
    assert all(torch.equal(first[n], p) for n, p in weights(found[1].model).items())
    assert found[0].loss == found[2].loss
    assert 0 < found[0].loss < 20
    with torch.no_grad():
        found[0].model.embedding.zero_()
    assert weights(recipes.pretrained(PICO).model)["embedding"].any()


def test_a_damaged_model_is_trained_again_to_the_same_bits(cache, tmp_path):
    first = weights(recipes.pretrained(PICO).model)
    (file,) = tmp_path.rglob("model.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"\0\0")
    again = weights(recipes.pretrained(PICO).model)
    assert len(cache) == 2
    assert all(torch.equal(first[n], again[n]) for n in first)


def test_everything_that_decides_a_model_is_part_of_its_key():
    other = {
        "seed": 1, "objective": "lm", "density": 0.2, "mean_span": 2.0, "corpus": "wordnet",
        "max_tokens": 500, "arch": "lm", "layers": 3, "width": 2.0, "longer": 2.0, "larger": 2.0,
        "tasks": ("topic",), "cap": 9.0, "temperature": None, "unlabeled": False, "size": "nano",
    }  # fmt: skip
    assert set(other) == set(asdict(PICO))
    keys = {replace(PICO, **{k: v}).key() for k, v in other.items()}
    assert len(keys | {PICO.key()}) == len(other) + 1
    assert replace(PICO, seed=0).key() == PICO.key()


@pytest.mark.parametrize(
    "changes",
    [{"objective": name} for name in
     ("span_corruption", "replace_spans", "bert_style", "drop_tokens", "deshuffling", "prefix_lm")]
    + [{"objective": "replace_spans", "density": d} for d in (0.1, 0.5)]
    + [{"mean_span": m} for m in (2.0, 10.0)]
    + [{"arch": "lm"}, {"arch": "lm", "objective": "lm"}, {"arch": "prefix_lm"},
       {"arch": "prefix_lm", "objective": "prefix_lm"}, {"arch": "encdec_shared"}, {"layers": 2},
       {"width": 1.5, "larger": 4.0}],
    ids=str,
)  # fmt: skip
def test_rows_of_every_objective_and_structure_fit_and_are_trained_on(changes, tmp_path):
    recipe = replace(PICO, **changes)
    stream, lengths = recipes.corpus_stream(recipe), recipes.row_lengths(recipe)
    assert 60 <= stream.raw_length <= 130
    batches = BatchStream(stream, lengths, batch_size=64, arch=recipe.arch)
    assert all(next(batches).n_tokens > 0 for _ in range(3))
    facts = recipes.make(replace(recipe, longer=0.34), tmp_path)
    assert facts["status"] == "finished"
    assert np.isfinite(facts["loss"])


def test_mixing_rates_of_a_recipe(vowels):
    recipe = replace(PICO, tasks=("vowels",))
    windows = len(recipes.corpus_stream(recipe))
    assert recipes.rates(recipe)["vowels"] == pytest.approx(30 / (30 + windows))
    capped = recipes.rates(replace(recipe, cap=30.0))
    assert capped == pytest.approx({"vowels": 0.5, "unlabeled": 0.5})
    assert recipes.rates(replace(recipe, temperature=None))["vowels"] == 0.5
    assert recipes.rates(replace(recipe, unlabeled=False)) == {"vowels": 1.0}
    with pytest.raises(InvalidInputError, match="trains nothing"):
        recipes.pretrained(replace(PICO, unlabeled=False))


@pytest.mark.parametrize("method", ["all", "adapters", "unfreeze", "none"])
def test_transfer_scores_a_task_and_is_kept(method, cache, vowels, monkeypatch):
    how = transfer.Tuning(method=method, width=2)
    scores = transfer.transfer(PICO, how, tasks=(vowels,))
    assert set(scores) == {
        "pre-training loss", "vowels, accuracy", "vowels, loss", "loss", "accuracy"
    }  # fmt: skip
    assert scores["loss"] == scores["vowels, loss"] > 0
    assert 0 <= scores["accuracy"] <= 100
    monkeypatch.setattr(transfer, "_scores", None)
    assert transfer.transfer(PICO, how, tasks=(vowels,)) == scores


def test_an_unknown_method_is_refused(vowels):
    with pytest.raises(InvalidInputError, match="accepted are all, adapters, unfreeze"):
        transfer.fine_tune(PICO.model(), vowels, "pico", transfer.Tuning(method="some"), seed=0)


def test_scores_of_labels_are_those_of_the_ranking():
    scores = np.log(np.array([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]]))
    labels = ("no", "yes")
    right = [1, 0, 1]

    class Labelled:
        def __init__(self):
            self.labels = labels

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "task", lambda name: Labelled())
        rows = [{"targets": labels[k]} for k in right]
        patch.setattr(transfer, "examples", lambda name, split: rows)
        found = transfer.ranked(scores, "any")
    assert found["loss"] == pytest.approx(-np.mean(np.log([0.8, 0.5, 0.1])))
    assert found["accuracy"] == pytest.approx(100 * 2 / 3)


ROWS = [np.array([5, 9, 1]), np.array([7, 1]), np.array([5, 6, 7, 8, 1])]
LABELS = ("no", "maybe", "yes")


@pytest.mark.parametrize("arch", ["encdec", "encdec_shared", "lm", "prefix_lm"])
def test_label_scores_are_sums_of_next_token_log_probabilities(arch):
    model = replace(PICO, arch=arch).model().eval()
    found = label_scores(model, ROWS, LABELS, WORDS, batch_size=2)
    for i, row in enumerate(ROWS):
        for k, label in enumerate(LABELS):
            goal = [*WORDS.encode(label), WORDS.eos_id]
            total = 0.0
            for n, token in enumerate(goal):
                before = torch.tensor([[0, *goal[:n]]])
                with torch.no_grad():
                    if model.config.has_encoder:
                        logits = model(torch.from_numpy(row)[None], before)
                    else:
                        whole = torch.tensor([[0, *row, *goal[:n]]])
                        prefix = torch.arange(whole.shape[1])[None] <= len(row)
                        options = {"prefix": prefix} if arch == "prefix_lm" else {}
                        logits = model(None, whole, **options)
                total += float(torch.log_softmax(logits[0, -1], -1)[token])
            assert found[i, k] == pytest.approx(total, abs=1e-4)


def test_an_ensemble_is_the_mean_of_logits():
    one, two = (replace(PICO, seed=s).model().eval() for s in (0, 1))
    inputs, read = torch.tensor([[5, 6, 1]]), torch.tensor([[0, 4]])
    both = Ensemble([one, two]).eval()
    assert torch.allclose(both(inputs, read), (one(inputs, read) + two(inputs, read)) / 2)
    alone = label_scores(Ensemble([one]).eval(), ROWS, LABELS, WORDS)
    words = label_tokens(LABELS, WORDS)
    direct = [label_log_likelihoods(one, torch.from_numpy(r)[None], words)[0] for r in ROWS]
    np.testing.assert_allclose(alone, torch.stack(direct).detach().numpy(), atol=1e-4)


def test_agreement_with_the_paper_needs_an_interval_on_one_side():
    lower, wide = t_interval([-1.0, -1.1, -0.9]), t_interval([-1.0, 1.0, 0.2])
    assert agreement(lower, 0.5) == "yes"  # a lower loss, a higher score
    assert agreement(lower, -0.5) == "no"
    assert agreement(wide, 0.5) == "open"
    assert agreement(t_interval([1.0, 1.1, 0.9]), -0.5) == "yes"


def test_corpora_hold_texts_out_and_say_which_there_are():
    learn, held_out = corpora.texts("manual"), corpora.texts("manual", held_out=True)
    assert not set(learn) & set(held_out)
    assert len(learn) > 10 * len(held_out) > 0
    with pytest.raises(InvalidInputError, match="accepted are wordnet, manual"):
        corpora.texts("novels")
