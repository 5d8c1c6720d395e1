"""The cleaning rules of C4, one at a time, and their counts."""

import pytest

from fishertope.core.errors import InvalidInputError
from fishertope.experiments.text2text.cleaning import CleaningReport, CleaningRules, clean

PAGE = "\n".join(["The first line has enough words.", "The second line also has enough!",
                  "Does the third line have them?"])  # fmt: skip


def run(*pages, **changes):
    report = CleaningReport()
    kept = list(clean(pages, CleaningRules(**changes), report))
    return kept, report


def test_a_sound_page_passes_unchanged():
    kept, report = run(PAGE)
    assert kept == [PAGE]
    assert report.as_dict() == {
        "pages": 1, "lines": 3, "characters": len(PAGE), "pages_kept": 1,
        "characters_kept": len(PAGE), "pages_dropped": {}, "lines_dropped": {},
        "sentences_dropped": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("A menu without any end mark", "no end mark"),
        ("Too few words.", "too few words"),
        ("Please turn on JavaScript to see this page.", "phrase"),
        ("By reading on you accept our Privacy Policy today.", "phrase"),
    ],
)
def test_lines_are_dropped_by_their_rule(line, rule):
    kept, report = run(f"{PAGE}\n\n{line}")
    assert kept == [PAGE]
    assert report.lines_dropped == {rule: 1}
    assert report.lines == 4


@pytest.mark.parametrize(
    ("page", "rule"),
    [
        (f"{PAGE}\nLorem ipsum dolor sit amet now.", "phrase 'lorem ipsum'"),
        (f"{PAGE}\nvar x = {{}}", "phrase '{'"),
        (f"{PAGE}\nThis has the word GRUBBY in it.", "bad word"),
        ("Only one line of good length.\nAnd a second one of it.", "too few sentences"),
    ],
)
def test_pages_are_dropped_by_their_rule(page, rule):
    kept, report = run(PAGE, page, bad_words=frozenset({"grubby"}))
    assert kept == [PAGE]
    assert report.pages_dropped == {rule: 1}


def test_bad_words_are_whole_words():
    page = f"{PAGE}\nScunthorpe is a town of England."
    assert run(page, bad_words=frozenset({"town of", "thorpe"}))[1].pages_dropped == {"bad word": 1}
    assert run(page, bad_words=frozenset({"thorpe"}))[0] == [page]


def test_citation_marks_go():
    (kept,), _ = run(PAGE.replace("words.", "words[12] here[citation needed].[3]"))
    assert kept == PAGE.replace("words.", "words here.")


def test_runs_of_three_sentences_are_kept_once():
    other = f"A new opening sentence stands here. {' '.join(PAGE.splitlines())} And a new last one."
    kept, report = run(PAGE, other, min_sentences=1)
    assert kept == [PAGE, "A new opening sentence stands here. And a new last one."]
    assert report.sentences_dropped == 3
    assert len(run(PAGE, PAGE, span=0)[0]) == 2


def test_a_language_judge_is_asked_once_a_page():
    asked = []

    def judge(text):
        asked.append(text)
        return 0.5 if "Zweiter" in text else 1.0

    german = PAGE.replace("second", "Zweiter")
    kept, report = run(PAGE, german, language=judge, span=0)
    assert kept == [PAGE]
    assert len(asked) == 2
    assert report.pages_dropped == {"language": 1}


def test_bad_rules_are_refused():
    with pytest.raises(InvalidInputError, match="min_words=-1"):
        CleaningRules(min_words=-1)
