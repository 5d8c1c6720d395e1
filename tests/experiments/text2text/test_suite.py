"""The tasks on real text: sides, forms, and a folder that comes back."""

import pytest

torch = pytest.importorskip("torch")

from fishertope.core.errors import CorruptFileError, InvalidInputError  # noqa: E402
from fishertope.experiments.seq2seq import Seq2Seq, Seq2SeqConfig  # noqa: E402
from fishertope.experiments.text2text import (  # noqa: E402
    ByteVocabulary,
    SentencePieceVocabulary,
    finetuning,
    suite,
)
from fishertope.experiments.text2text.batches import Lengths  # noqa: E402
from fishertope.experiments.text2text.folders import load_model, save_model  # noqa: E402

TASKS = suite.suite()
FORMS = {
    "sentiment_amazon": "sst2 sentence: ", "sentiment_movie": "sst2 sentence: ",
    "spam": "spam sentence: ", "rating_movie": "rating sentence: ",
    "translate_de": "translate English to German: ", "reverse_dictionary": "define: ",
    "summary": "summarize: ", "entailment": "mnli hypothesis: ", "same_sense": "wic sentence1: ",
    "topic": "topic sentence: ",
    "copy": "copy: ", "add": "add: ",
}  # fmt: skip
NEEDS: dict[str, tuple[str, ...]] = {
    "sentiment_amazon": ("sentiment",), "sentiment_movie": ("vader",), "spam": ("spam",),
    "rating_movie": ("vader",), "translate_de": ("django",), "copy": (), "add": (),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_sides_have_the_form_and_share_no_input(name, need_data):
    need_data(*NEEDS.get(name, ("wordnet",)))
    task = TASKS[name]
    sides = {split: task.examples(split) for split in ("train", "validation", "test")}
    for split, examples in sides.items():
        assert len(examples) >= 20, split
        assert all(e["inputs"].startswith(FORMS[name]) and e["targets"] for e in examples)
        if task.labels:
            assert {e["targets"] for e in examples} == set(task.labels)
    inputs = {split: {e["inputs"] for e in examples} for split, examples in sides.items()}
    assert not inputs["train"] & (inputs["validation"] | inputs["test"])
    assert not inputs["validation"] & inputs["test"]
    assert len(sides["train"]) > 3 * len(sides["test"])
    some = sides["test"][:30]
    perfect = task.score(some, [e["targets"] for e in some])
    if name == "summary":  # a single word has no pair of words
        perfect = {"rouge1": perfect["rouge1"]}
    assert all(value == pytest.approx(100, abs=1e-6) for value in perfect.values())
    assert task.examples("test") == sides["test"]


def test_corpora_hold_out_whole_texts():
    kept, away = suite.corpus("manual"), suite.corpus("manual", held_out=True)
    assert len(kept) > 10 * len(away) > 0
    assert not set(kept) & set(away)
    with pytest.raises(InvalidInputError, match="wordnet and manual"):
        suite.corpus("web")
    with pytest.raises(InvalidInputError, match="accepted are amazon"):
        suite.sentiment("tv")
    with pytest.raises(InvalidInputError, match="copy, reverse, sort, add"):
        suite.algorithmic("multiply")


@pytest.mark.parametrize("case", ["t5", "prefix_lm", "adapters"])
def test_a_folder_comes_back(tmp_path, case):
    vocabulary = ByteVocabulary(sentinels=3)
    config = Seq2SeqConfig(
        vocab_size=vocabulary.size, d_model=16, d_ff=32, d_kv=8, heads=2, layers=1,
        arch="prefix_lm" if case == "prefix_lm" else "encdec",
    )  # fmt: skip
    model = Seq2Seq(config, torch.Generator().manual_seed(0))
    if case == "adapters":
        finetuning.add_adapters(model, 4)
    save_model(tmp_path, model, vocabulary, Lengths(inputs=20, targets=9), {"task": "x"})
    found = load_model(tmp_path)
    assert (found.vocabulary, found.lengths) == (vocabulary, Lengths(inputs=20, targets=9))
    assert found.facts == {"task": "x"}
    for (name, a), (other, b) in zip(
        model.named_parameters(), found.model.named_parameters(), strict=True
    ):
        assert name == other
        assert torch.equal(a, b)
    assert (tmp_path / "config.json").exists() == (case == "t5")


def test_pieces_are_kept_with_the_model_and_checked(tmp_path):
    pytest.importorskip("sentencepiece")
    vocabulary = SentencePieceVocabulary.train(suite.corpus("manual")[:8], size=300)
    config = Seq2SeqConfig(vocab_size=384, d_model=8, d_ff=8, d_kv=4, heads=2, layers=1)
    model = Seq2Seq(config, torch.Generator().manual_seed(0))
    save_model(tmp_path, model, vocabulary, Lengths(inputs=20, targets=9))
    assert load_model(tmp_path).vocabulary.facts() == vocabulary.facts()
    other = SentencePieceVocabulary.train(suite.corpus("manual")[8:20], size=300)
    (tmp_path / "spiece.model").write_bytes(other.model)
    with pytest.raises(CorruptFileError, match="not the one"):
        load_model(tmp_path)
    with pytest.raises(InvalidInputError, match="has 359 ids"):
        save_model(tmp_path, Seq2Seq(Seq2SeqConfig(
            vocab_size=300, d_model=8, d_ff=8, d_kv=4, heads=2, layers=1)),
            ByteVocabulary(), Lengths(inputs=2, targets=2))  # fmt: skip


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="no folder"):
        load_model(tmp_path / "none")
    with pytest.raises(InvalidInputError, match=r"neither text2text\.json"):
        load_model(tmp_path)
    (tmp_path / "text2text.json").write_text("{}")
    with pytest.raises(CorruptFileError, match="not one of ours"):
        load_model(tmp_path)
