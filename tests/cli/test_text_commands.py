"""``fishertope text``: from a corpus to a fine-tuned model that answers."""

import json

import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")

from fishertope.cli._app import app  # noqa: E402


def run(*words, code=0, **options):
    result = CliRunner().invoke(app, ["text", *map(str, words)], **options)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(f"The number {i} is followed by {i + 1}." for i in range(200)))
    common = ["--corpus", corpus, "--vocabulary", "bytes", "--scale", "nano", "--steps", 4,
              "--batch-size", 4, "--save-every", 2]  # fmt: skip
    run("pretrain", "--out", folder / "base", *common, "--quiet")
    return folder


def test_pretraining_leaves_a_model_a_page_and_its_numbers(pretrained):
    base = pretrained / "base"
    results = json.loads((base / "results.json").read_text())
    assert (results["status"], results["steps"]) == ("finished", 4)
    assert results["scores"]["held-out loss"] > 0
    assert results["facts"]["objective"] == "span_corruption"
    page = (base / "report.html").read_text()
    assert "Pre-training: span corruption" in page
    assert "http" not in page.split("</style>")[1].replace("http://www.w3.org", "")
    assert (base / "model" / "model.safetensors").exists()


def test_a_file_of_pairs_is_learned_scored_and_used(pretrained):
    pairs = pretrained / "parity.jsonl"
    pairs.write_text("\n".join(
        json.dumps({"inputs": f"n {i}", "targets": "odd" if i % 2 else "even"}) for i in range(60)
    ))  # fmt: skip
    done = run("finetune", pretrained / "base", "--out", pretrained / "tuned", "--task", pairs,
               "--steps", 60, "--batch-size", 16, "--rate", 0.03, "--json")  # fmt: skip
    results = json.loads(done.stdout)
    assert results["status"] == "finished"
    assert 0 <= results["scores"]["parity exact_match"] <= 100
    scored = json.loads(run("evaluate", pretrained / "tuned", "--task", pairs, "--split", "test",
                            "--json").stdout)  # fmt: skip
    assert scored[0]["task"] == "parity"
    assert scored[0]["n"] >= 3
    made = json.loads(run("generate", pretrained / "tuned", "n 5", "n 6", "--json").stdout)
    assert [m["inputs"] for m in made] == ["n 5", "n 6"]
    lines = run("generate", pretrained / "tuned", input="n 5\n\nn 6\n").stdout.splitlines()
    assert lines == [m["output"] for m in made]


@pytest.mark.parametrize("method", ["adapters", "unfreeze"])
def test_other_methods_run_and_come_back(pretrained, method):
    out = pretrained / method
    run("finetune", pretrained / "base", "--out", out, "--task", "copy", "--task", "reverse",
        "--steps", 4, "--batch-size", 4, "--method", method, "--cap", 100, "--quiet")  # fmt: skip
    assert json.loads((out / "results.json").read_text())["facts"]["method"] == method
    assert run("generate", out, "copy: ab").stdout.endswith("\n")


def test_tasks_are_listed():
    names = {row["name"] for row in json.loads(run("tasks", "--json").stdout)}
    assert {"copy", "sentiment_amazon", "translate_de", "same_sense"} <= names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrain", "--out", "x", "--scale", "huge"], "accepted are nano"),
        (["pretrain", "--out", "x", "--corpus", "nothing.txt"], "is no file"),
        (["evaluate", "nowhere", "--task", "copy"], "is no folder"),
        (["finetune", "BASE", "--out", "x", "--task", "dance"], "there is no task 'dance'"),
        (["finetune", "BASE", "--out", "x", "--task", "copy", "--method", "some"],
         "accepted are 'all'"),
        (["evaluate", "BASE", "--task", "copy", "--split", "tomorrow"], "accepted are train"),
        (["evaluate", "BASE", "--task", "copy", "--decode", "rank"], "needs label words"),
    ],
)  # fmt: skip
def test_wrong_words_say_what_is_accepted(pretrained, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    corpus = pretrained / "corpus.txt"
    given = [str(pretrained / "base") if w == "BASE" else w for w in words]
    if given[0] == "pretrain" and "--corpus" not in given:
        given += ["--corpus", str(corpus)]
    result = CliRunner().invoke(app, ["text", *given])
    assert result.exit_code != 0
    assert message in (result.output + str(result.exception))
    assert not (tmp_path / "x" / "model").exists()
