"""``fisher`` and ``estimate`` on MiniLM and a CSV of real reviews, as a new user would."""

import csv
import json

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from fishertope.core.fisher import FisherStore, PrecisionTree

from .test_fisher_commands import run

pytestmark = pytest.mark.slow
HEAD = ("--fresh-head", "2", "--max-length", "24")


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture(scope="module")
def folder(need_data):
    need_data("minilm")
    from fishertope.experiments.data import minilm_folder

    return minilm_folder()


@pytest.fixture
def reviews(need_data, tmp_path):
    need_data("sentiment")
    from fishertope.experiments.data import load_sentiment

    held_out = load_sentiment("yelp").held_out
    path = tmp_path / "reviews.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["review", "stars"])
        rows.writerows(zip(held_out.texts[:6], held_out.labels[:6], strict=True))
    return path


def test_b10_a_store_of_projected_fishers_from_a_checkpoint_and_a_csv(
    capsys, folder, reviews, tmp_path
):
    command = ("fisher", folder, reviews, "--out", tmp_path / "s")
    for extra, words in (
        (HEAD, ("--text COLUMN", "review, stars")),
        (("--text", "reviews", *HEAD), ("no column 'reviews'", "Did you mean 'review'?")),
        (("--text", "review"), ("BertModel", "--fresh-head C")),
        (("--text", "review", *HEAD[:2], "--max-length", "9999"), ("at most 512",)),
    ):
        code, out, err = run(capsys, *command, *extra)
        assert (code, out) == (1, "")
        for word in words:
            assert word in err
        assert not (tmp_path / "s").exists()
    told = (*command, "--text", "review", *HEAD, "--reduce", "factored:64")
    code, out, err = run(capsys, *told)
    assert (code, err) == (0, "")
    assert "6 examples, complete" in out
    found = FisherStore.open(tmp_path / "s").load()
    assert found.rows.shape == (6, 64)
    assert np.isfinite(found.rows).all()
    before = (tmp_path / "s" / "manifest.json").read_bytes()
    assert run(capsys, *told, "--quiet") == (0, "", "")
    assert (tmp_path / "s" / "manifest.json").read_bytes() == before
    code, _, err = run(capsys, *told, "--seed", "1")
    assert code == 1
    assert "seed" in err


def test_b10_rows_that_the_disk_cannot_hold_are_refused_with_what_takes_less(
    capsys, folder, reviews, tmp_path, monkeypatch
):
    import shutil
    from types import SimpleNamespace

    free = SimpleNamespace(total=0, used=0, free=300 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    code, _, err = run(
        capsys, "fisher", folder, reviews, "--text", "review", *HEAD, "--out", tmp_path / "s"
    )
    assert code == 1
    for word in ("0.545 GB", "6 examples", "--reduce projection:2048", "--params"):
        assert word in err


def test_b10_a_precision_from_a_checkpoint_and_a_csv(capsys, folder, reviews, tmp_path):
    file = tmp_path / "p.safetensors"
    command = ("estimate", folder, reviews, "--text", "review", *HEAD, "--out", file)
    code, _, err = run(capsys, *command, "--label", "review", "--labels", "data")
    assert code == 1
    assert "outside the model's 2 classes" in err
    code, _, err = run(capsys, *command, "--params", "*layer.7*")
    assert code == 1
    assert "*layer.7*" in err
    code, out, err = run(capsys, *command, "--params", "*layer.5*", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["contents"].startswith("PrecisionTree(diagonal")
    tree = PrecisionTree.load(file)
    assert tree.n_examples == 6
    assert len(tree) == 16
    assert sum(p.trace() for p in tree.values()) > 0
