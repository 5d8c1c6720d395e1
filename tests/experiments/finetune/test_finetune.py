"""Fine-tuning: learns, is cached under what decides it, and repeats its bits."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fishertope.core.errors import DataMissingError, InvalidInputError
from fishertope.core.storage import verify_folder
from fishertope.experiments.data import _sources
from fishertope.experiments.data._made import cached
from fishertope.experiments.finetune import (
    BASES,
    TASKS,
    evaluate,
    fine_tuned,
    finetune,
    load_task,
    token_batches,
)
from fishertope.experiments.finetune.__main__ import app
from fishertope.experiments.finetune.bases import word_pieces

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
TASK = "sentiment/yelp"


def quick(task: str = TASK, **options: Any) -> Any:
    given: dict[str, Any] = {"base": "bert-tiny", "steps": 60, "max_length": 16, **options}
    return finetune(task, **given)


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def distance(found: Any, start: Any) -> float:
    """‖θ − θ₀‖ over the body."""
    before = weights(start)
    total = 0.0
    for name, value in weights(found).items():
        body = name.split(".", 1)[1]
        if body in before:
            total += float((value - before[body]).square().sum())
    return total**0.5


@pytest.mark.parametrize("base", ["bert-tiny", "gpt2-tiny"])
def test_it_learns_and_the_folder_gives_what_was_recorded(cache: Path, base: str) -> None:
    found = quick(base=base)
    assert found.accuracy > 0.9
    assert found.metrics["train_loss"][0] > 2 * found.metrics["train_loss"][-1]
    assert verify_folder(found.folder)["command"] == "finetune"
    data = found.data()
    again = evaluate(found.model(), found.tokenizer(), data.test, max_length=found.max_length)
    assert again == found.metrics["test"]
    assert found.model().config.id2label == {0: "negative", 1: "positive"}


def test_the_second_call_trains_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = quick()

    def refuse(*_: Any) -> None:
        raise AssertionError("it trained again")

    monkeypatch.setattr(fine_tuned, "_made", refuse)
    assert quick() == first
    for other in ({"seed": 1}, {"steps": 61}, {"pull": 0.1}, {"freeze": ["*embeddings*"]}):
        with pytest.raises(AssertionError, match="trained again"):
            quick(**other)


def test_same_call_same_bits_and_one_start_for_all(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other_seed = quick(), quick(seed=1)
    other_task = quick("sentiment/imdb")
    assert first.start == other_seed.start == other_task.start
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for archive in cache.glob("*.tgz"):
        (elsewhere / archive.name).write_bytes(archive.read_bytes())
    monkeypatch.setenv(_sources.CACHE_VARIABLE, str(elsewhere))
    second = quick()
    assert second.folder != first.folder
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (second.folder / file).read_bytes() == (first.folder / file).read_bytes()
        assert (second.start / file).read_bytes() == (first.start / file).read_bytes()
    name = "classifier.weight"
    assert not torch.equal(weights(first.folder)[name], weights(other_seed.folder)[name])


def test_a_pull_keeps_the_body_near_its_start(cache: Path) -> None:
    lengths = [distance(f.folder, f.start) for f in (quick(pull=p) for p in (0.0, 1e-2, 1.0))]
    assert lengths[0] > lengths[1] > 2 * lengths[2] > 0


def test_frozen_parameters_keep_their_bits(cache: Path) -> None:
    found = quick(freeze=["*embeddings*"])
    before, after = weights(found.start), weights(found.folder)
    for name, value in before.items():
        same = torch.equal(value, after[f"bert.{name}"])
        assert same == ("embeddings" in name), name


def test_a_checkpoint_folder_is_a_base_too(cache: Path) -> None:
    first = quick("sentiment/imdb")
    second = quick(base=first.folder, steps=20, learning_rate=1e-3)
    assert second.start == first.folder
    assert second.accuracy > 0.9
    head = "classifier.weight"
    assert not torch.allclose(weights(first.folder)[head], weights(second.folder)[head], atol=1e-2)


def test_a_failed_training_leaves_nothing_and_a_damaged_folder_is_made_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidInputError, match="smaller"):
        quick(learning_rate=1e30)
    assert [p.name[:9] for p in (cache / "models").iterdir() if p.is_dir()] == ["bert-tiny"]
    found = quick(steps=5)
    before = (found.folder / "model.safetensors").read_bytes()
    (found.folder / "model.safetensors").write_bytes(before[:-1])
    assert (quick(steps=5).folder / "model.safetensors").read_bytes() == before


def test_one_fills_while_the_others_wait(cache: Path) -> None:
    filled = []

    def fill(out: Any) -> dict[str, Any]:
        filled.append(threading.get_ident())
        out.write_text("note.txt", "here")
        return {}

    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(cached("one", "key", fill, command="test")))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(filled) == 1
    assert found == [cache / "models" / "one"] * 6


def test_no_group_is_in_two_parts(cache: Path) -> None:
    data = load_task(TASK)
    groups = [set(part.groups) for part in (data.train, data.validation, data.test)]
    assert all(groups)
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]


def test_token_batches_keep_order_and_labels(cache: Path) -> None:
    data = load_task(TASK).test
    tokenizer = quick(steps=5).tokenizer()
    batches = token_batches(tokenizer, data, batch_size=7, max_length=16)
    labels = np.concatenate([b["labels"].numpy() for b in batches])
    np.testing.assert_array_equal(labels, data.labels)
    assert {b["input_ids"].shape[0] for b in batches[:-1]} == {7}
    row = batches[0]["input_ids"][3][batches[0]["attention_mask"][3] == 1]
    assert row.tolist() == tokenizer(data.texts[3])["input_ids"][:16]


def test_word_pieces_are_decided_by_the_texts() -> None:
    texts = ["Caf\u00e9 b b b", "a c c", "a"]
    tokenizer = word_pieces(texts, 60)
    assert tokenizer.tokenize("b CAF\u00c9 cab") == ["b", "cafe", "c", "##a", "##b"]
    assert word_pieces(texts[::-1], 60).get_vocab() == tokenizer.get_vocab()
    assert tokenizer("a")["input_ids"][0] == tokenizer.cls_token_id


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"task": "sentiment/rotten"}, "sentiment/amazon"),
        ({"base": "bert-huge"}, "bert-tiny"),
        ({"seed": -1}, "seed"),
        ({"steps": 0}, "steps"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"max_length": 2}, "max_length"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"pull": -1.0}, "pull"),
        ({"warmup": 2.0}, "warmup"),
        ({"freeze": ["*nothing*"]}, r"\*nothing\*"),
        ({"freeze": ["*"]}, "no parameter to be trained"),
    ],
)
def test_bad_input_says_what_is_accepted(cache: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        quick(**options)


def test_what_was_not_fetched_says_how(cache: Path) -> None:
    with pytest.raises(DataMissingError, match="fetch spam"):
        quick("spam")
    with pytest.raises(DataMissingError, match="fetch minilm"):
        quick(base="minilm")


def test_the_command_shows_accuracy_and_folder(cache: Path) -> None:
    line = ["run", TASK, "--base", "bert-tiny", "--steps", "5", "--max-length", "16"]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    assert str(quick(steps=5).folder) in done.stdout
    wrong = CliRunner().invoke(app, ["run", "nothing"])
    assert wrong.exit_code == 2
    assert "sentiment/amazon" in wrong.stderr
    listed = CliRunner().invoke(app, ["list"])
    assert all(name in listed.stdout for name in (*TASKS, *BASES))
