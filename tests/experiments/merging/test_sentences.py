"""Merged encoders as checkpoints, and the script of docs/merging.md that classifies with one."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TASKS = ("sentiment/yelp", "sentiment/imdb")


def script():
    """The five lines of the document."""
    text = (ROOT / "docs" / "merging.md").read_text()
    found = re.search(r"```python\n(from transformers import pipeline\n.*?)```", text, re.DOTALL)
    assert found
    lines = [line for line in found.group(1).split("\n") if line.strip()]
    assert len(lines) == 5
    return found.group(1)


def run(folder, monkeypatch):
    monkeypatch.chdir(folder)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(script(), {})
    return said.getvalue().strip().split("\n")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", ["regmean", "fisher", "isotropic"])
def test_d6_the_merged_checkpoint_opens_in_transformers(tmp_path, monkeypatch, method, need_data):
    need_data("sentiment")
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from fishertope.experiments.merging.sentence_checkpoints import write_checkpoints

    small = {"tasks": TASKS, "base": "bert-tiny", "steps": 4, "examples": 8}
    made = write_checkpoints(tmp_path / "merged", method=method, **small)
    assert [p.name for p in made.values()] == ["sentiment-yelp", "sentiment-imdb"]
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    one, two = (load(p).state_dict() for p in made.values())
    for name in one:
        same = torch.equal(one[name], two[name])
        assert same != name.startswith("classifier"), name
    lines = run(tmp_path, monkeypatch)
    assert len(lines) == 2
    assert all(line.split()[0] in ("negative", "positive") for line in lines)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_d6_the_script_of_the_document_is_right_about_its_sentences(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    from fishertope.experiments.data._sources import cache_folder
    from fishertope.experiments.merging.encoders import TASKS as FOUR
    from fishertope.experiments.merging.sentence_checkpoints import write_checkpoints

    kept = [p.name for p in (cache_folder() / "models").glob("*-minilm-seed20-*")]
    if not all(any(n.startswith(t.replace("/", "-")) for n in kept) for t in FOUR):
        pytest.skip("MiniLM has not been fine-tuned here; that takes minutes")
    write_checkpoints(tmp_path / "merged", examples=16)
    lines = run(tmp_path, monkeypatch)
    assert [line.split()[0] for line in lines] == ["negative", "positive"]
