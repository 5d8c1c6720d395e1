"""Check 10 of text_to_text: the task formats, written out."""

import pytest

from fishertope.core.errors import InvalidInputError
from fishertope.experiments.text2text import coreference, formats

GOLDEN = [
    ("cola", {"sentence": "John made Bill master of himself.", "label": 1, "idx": 7},
     "cola sentence: John made Bill master of himself.", "acceptable"),
    ("sst2", {"sentence": "it 's charming", "label": 0}, "sst2 sentence: it 's charming",
     "negative"),
    ("mrpc", {"sentence2": "B.", "sentence1": "A.", "label": 1, "idx": 0},
     "mrpc sentence1: A. sentence2: B.", "equivalent"),
    ("qqp", {"question1": "Why?", "question2": "How?", "label": 0},
     "qqp question1: Why? question2: How?", "not_duplicate"),
    ("mnli", {"premise": "He ran.", "hypothesis": "He sat.", "label": 2},
     "mnli hypothesis: He sat. premise: He ran.", "contradiction"),
    ("qnli", {"question": "Who?", "sentence": "He.", "label": 0},
     "qnli question: Who? sentence: He.", "entailment"),
    ("rte", {"sentence1": "A.", "sentence2": "B.", "label": 1},
     "rte sentence1: A. sentence2: B.", "not_entailment"),
    ("ax", {"premise": "P", "hypothesis": "H", "label": -1}, "mnli hypothesis: H premise: P",
     "<unk>"),
    ("axb", {"sentence1": "A.", "sentence2": "B.", "label": 0},
     "rte sentence1: A. sentence2: B.", "entailment"),
    ("axg", {"premise": "A.", "hypothesis": "B.", "label": 1},
     "rte hypothesis: B. premise: A.", "not_entailment"),
    ("cb", {"premise": "P", "hypothesis": "H", "label": 1}, "cb hypothesis: H premise: P",
     "contradiction"),
    ("copa", {"premise": "P", "choice1": "A", "choice2": "B", "question": "effect", "label": 1},
     "copa choice1: A choice2: B premise: P question: effect", "choice2"),
    ("boolq", {"question": "is it", "passage": "Yes.", "label": 1},
     "boolq passage: Yes. question: is it", "True"),
    ("wic", {"word": "board", "sentence2": "He nailed boards.", "sentence1": "Room and board.",
             "start1": 9, "start2": 10, "label": 0},
     "wic sentence1: Room and board. sentence2: He nailed boards. word: board", "False"),
    ("stsb", {"sentence1": "A.", "sentence2": "B.", "label": 2.57},
     "stsb sentence1: A. sentence2: B.", "2.6"),
    ("multirc", {"paragraph": "<b>Sent 1: </b>Tom ran.<br>", "question": "Who?", "answer": "Tom",
                 "label": 1, "idx": {"paragraph": 3, "question": 4, "answer": 5}},
     "multirc question: Who? answer: Tom paragraph: Sent 1: Tom ran.", "True"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "record", "inputs", "targets"), GOLDEN)
def test_check_10_glue_formats(task, record, inputs, targets):
    (example,) = formats.glue(task)(record)
    assert (example["inputs"], example["targets"]) == (inputs, targets)


def test_check_10_record_gives_one_example_an_answer():
    record = {
        "passage": "It rained in Rome.\n@highlight\nPeople fled\n@highlight\nNo one died",
        "query": "@placeholder was wet", "entities": ["Rome", "People"], "answers": ["Rome", "It"],
    }  # fmt: skip
    examples = formats.glue("record")(record)
    assert [e["targets"] for e in examples] == ["Rome", "It"]
    assert examples[0]["inputs"] == (
        "record query: @placeholder was wet entities: Rome, People passage: It rained in Rome. "
        "People fled. No one died"
    )
    assert len(formats.without_repeats(examples)) == 1
    assert examples[1]["references"] == ["Rome", "It"]
    (hidden,) = formats.glue("record")({**record, "answers": []})
    assert hidden["targets"] == "<unk>"


def test_check_10_squad_forms():
    record = {"question": "Who (really)?", "context": "Ada, in 1843, wrote it.",
              "answers": ["in 1843", "1843"]}  # fmt: skip
    (plain,) = formats.squad(record)
    assert plain["inputs"] == "question: Who ( really ) ? context: Ada , in 1843 , wrote it ."
    assert (plain["targets"], plain["references"]) == ("in 1843", ["in 1843", "1843"])
    (free,) = formats.squad_without_context(record)
    assert free["inputs"] == "squad trivia question: Who ( really ) ?"
    (span,) = formats.squad_spans(record)
    assert span["targets"] == "start: 2 end: 3"
    assert formats.squad_spans({**record, "answers": ["nowhere"]}) == []


def test_check_10_other_forms():
    (example,) = formats.translation("English", "German")({"English": "Good.", "German": "Gut."})
    assert example == {"inputs": "translate English to German: Good.", "targets": "Gut."}
    (example,) = formats.summary()({"article": "Long.", "highlights": "Short."})
    assert example == {"inputs": "summarize: Long.", "targets": "Short."}
    (example,) = formats.closed_book("wq")({"question": "who?", "answers": ["x", "y"]})
    assert example["inputs"] == "wq question: who?"
    assert example["references"] == ["x", "y"]


@pytest.mark.parametrize(
    ("rating", "text"), [(2.57, "2.6"), (0, "0.0"), (5, "5.0"), (3.25, "3.2"), (1.09, "1.0")]
)
def test_check_10_ratings(rating, text):
    assert formats.rounded_rating(rating) == text
    assert formats.to_number(text) == float(text)


def test_check_10_what_is_no_label_is_minus_one():
    read = formats.to_class(("negative", "positive"))
    assert [read(t) for t in ("positive", " negative", "positively", "")] == [1, 0, -1, -1]
    assert [formats.to_number(t) for t in ("2.6", "two", "nan", "inf")] == [2.6, -1.0, -1.0, -1.0]


def test_bad_records_say_what_is_missing():
    with pytest.raises(InvalidInputError, match="label"):
        formats.glue("sst2")({"sentence": "x"})
    with pytest.raises(InvalidInputError, match=r"label 2; accepted are 0 to 1 \(negative"):
        formats.glue("sst2")({"sentence": "x", "label": 2})
    with pytest.raises(InvalidInputError, match="'word'"):
        formats.glue("wic")({"sentence1": "a", "sentence2": "b", "label": 0})
    with pytest.raises(InvalidInputError, match="accepted are ax, axb"):
        formats.glue("sst3")


def test_check_10_wsc_marks_the_pronoun():
    record = {"text": "The trophy didn't fit because it was too big.", "span1_text": "The trophy",
              "span2_text": "it", "span2_index": 5, "label": 1}  # fmt: skip
    (example,) = coreference.wsc(record)
    assert example["inputs"] == "wsc: The trophy didn't fit because *it* was too big."
    assert example["targets"] == "The trophy"
    assert coreference.wsc({**record, "label": 0}, training=True) == []
    assert len(coreference.wsc(record, training=True)) == 1
    with pytest.raises(InvalidInputError, match="word 4"):
        coreference.wsc({**record, "span2_index": 4})


def test_check_10_definite_pronouns_take_the_last_place():
    record = {"sentence": "Its parts broke when the bees saw its honey.", "pronoun": "its",
              "candidates": ["parts", "bees"], "label": 1}  # fmt: skip
    (example,) = coreference.definite_pronoun(record)
    assert example["inputs"] == "wsc: Its parts broke when the bees saw *its* honey."
    assert example["targets"] == "bees"


def test_check_10_wnli_takes_the_pronoun_that_agrees_best():
    (example,) = coreference.wnli({
        "sentence1": "Lily spoke to Donna, but she said that it broke her concentration.",
        "sentence2": "Speaking broke her concentration.", "label": 0,
    })  # fmt: skip
    assert example["inputs"] == (
        "wsc: Lily spoke to Donna, but she said that *it* broke her concentration."
    )
    assert (example["targets"], example["correct"]) == ("Speaking", 0)
    (example,) = coreference.wnli({
        "sentence1": "The drain is clogged with hair. It has to be cleaned.",
        "sentence2": "The hair has to be cleaned.", "label": 0,
    })  # fmt: skip
    assert example["inputs"].endswith("*It* has to be cleaned.")
    assert example["targets"] == "The hair"
    assert coreference.wnli({"sentence1": "No one.", "sentence2": "None.", "label": 0}) == []


@pytest.mark.parametrize(
    ("prediction", "reference", "same"),
    [
        ("trophy", "The trophy", True),
        ("the big trophy", "trophy", True),
        ("the cat", "the dog", False),
        ("Alice's", "Alice", False),
        ("", "Alice", False),
        ("the", "Alice", False),
        ("ALICE", "alice", True),
    ],
)
def test_check_10_referents(prediction, reference, same):
    assert coreference.same_referent(prediction, reference) is same


def test_an_empty_referent_is_invalid():
    example = {"targets": "the trophy"}
    assert coreference.to_class("trophy", example) == 1
    assert coreference.to_class("suitcase", example) == 0
    assert coreference.to_class(" ", example) == -1
