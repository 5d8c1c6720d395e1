"""``fisher`` and ``estimate`` on tiny random transformers, as a new user would try them."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from fishertope.cli import main  # noqa: E402
from fishertope.core.fisher import (  # noqa: E402
    FisherStore,
    PrecisionTree,
    estimate_precision,
    per_example_fishers,
)


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return ended.value.code, out, " ".join(err.split())


def tokens(folder: Path, file: Path):
    """All rows of the file as one padded batch, made without the command line's code."""
    rows = [line.rsplit(",", 1) for line in file.read_text().splitlines()[1:]]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer([t.strip('"') for t, _ in rows], padding=True, return_tensors="pt")
    return dict(inputs), torch.tensor([int(y) for _, y in rows])


def test_b10_from_help_to_a_store(capsys, bert, reviews, tmp_path):
    code, out, _ = run(capsys, "fisher", "--help")
    assert code == 0
    for word in ("model", "data", "--out", "--text", "--labels", "--reduce", "--batch-size"):
        assert word in out
    code, out, err = run(
        capsys, "fisher", bert, reviews, "--out", tmp_path / "s", "--text", "review"
    )
    assert (code, err) == (0, "")
    assert "11 examples, complete" in out
    model = transformers.AutoModelForSequenceClassification.from_pretrained(bert)
    whole = per_example_fishers(model, tokens(bert, reviews)[0])
    found = FisherStore.open(tmp_path / "s").load()
    scale = np.abs(whole.rows.numpy()).max()
    np.testing.assert_allclose(found.rows, whole.rows.numpy(), atol=2e-5 * scale)
    code, out, _ = run(capsys, "inspect", tmp_path / "s")
    assert code == 0
    assert "11 examples, complete" in out
    code, out, _ = run(capsys, "inspect", tmp_path / "s", "--json")
    assert json.loads(out)["facts"]["labels"] == "exact"


def test_b10_from_help_to_a_precision(capsys, bert, reviews, tmp_path):
    code, out, _ = run(capsys, "estimate", "--help")
    assert code == 0
    assert "--structure" in out
    file = tmp_path / "p.safetensors"
    command = ("estimate", bert, reviews, "--text", "review", "--out", file)
    code, out, err = run(capsys, *command, "--dtype", "float64", "--batch-size", "3")
    assert (code, err) == (0, "")
    assert "PrecisionTree(diagonal" in out
    model = transformers.AutoModelForSequenceClassification.from_pretrained(bert).double()
    expected = estimate_precision(model, tokens(bert, reviews)[0])
    found = PrecisionTree.load(file)
    assert list(found) == list(expected)
    largest = max(p.values.max() for p in expected.values())
    for name in expected:
        np.testing.assert_allclose(
            found[name].values, expected[name].values, rtol=1e-10, atol=1e-16 * largest
        )
    code, _, err = run(capsys, *command)
    assert code == 1
    assert "--overwrite" in err
    code, out, _ = run(capsys, *command, "--overwrite", "--structure", "isotropic", "--json")
    assert code == 0
    assert json.loads(out)["contents"].startswith("PrecisionTree(isotropic")


@pytest.mark.parametrize(
    ("structure", "options"),
    [("gram", {}), ("kronecker", {"sharing": "reduce"}), ("ekfac", {}),
     ("block", {"params": "classifier*"}),
     ("lowrank+diagonal", {"rank": 3, "params": "*output.dense*"})],
)  # fmt: skip
def test_b10_every_structure_from_the_command_line(
    capsys, bert, reviews, tmp_path, structure, options
):
    file = tmp_path / "p.safetensors"
    flags = [x for k, v in options.items() for x in (f"--{k}", v)]
    command = ("estimate", bert, reviews, "--text", "review", "--dtype", "float64", "--out", file)
    code, out, err = run(capsys, *command, "--structure", structure, *flags, "--batch-size", "4")
    assert (code, err) == (0, "")
    assert f"PrecisionTree({structure}" in out
    model = transformers.AutoModelForSequenceClassification.from_pretrained(bert).double()
    expected = estimate_precision(model, tokens(bert, reviews)[0], structure=structure, **options)
    found = PrecisionTree.load(file)
    assert list(found) == list(expected)
    largest = max(float(np.abs(p.diagonal()).max()) for p in expected.values())
    for name in expected:
        off = np.abs(found[name].diagonal() - expected[name].diagonal()).max()
        assert off <= 1e-9 * largest
    code, out, _ = run(capsys, "inspect", file, "--json")
    assert code == 0
    shown = json.loads(out)
    facts = shown["facts"]["facts"]
    assert facts["structure"] == structure
    for site in shown["sites"]:
        assert site["structure"] == expected[site["site"]].kind
        assert site["trace"] == pytest.approx(expected[site["site"]].trace(), rel=1e-8, abs=1e-15)
        assert site["parameters"] == list(expected.layouts[site["site"]].parameters)
    code, out, _ = run(capsys, "inspect", file)
    assert code == 0
    assert next(iter(expected))[:20] in out
    assert "standard error" in out
    whole = file.stat().st_size
    flags += ["--structure", structure, "--store-dtype", "float32", "--overwrite", "--quiet"]
    code, *_ = run(capsys, *command, *flags)
    assert code == 0
    assert file.stat().st_size < 0.8 * whole
    for name, one in PrecisionTree.load(file).items():
        off = np.abs(one.diagonal() - expected[name].diagonal()).max()
        assert off <= 1e-5 * largest
    assert {k: v for k, v in facts.items() if k in ("sharing", "rank")}.items() >= {
        k: v for k, v in options.items() if k != "params"
    }.items()


def test_structures_that_do_not_fit_say_what_to_do(capsys, bert, reviews, tmp_path):
    command = ("estimate", bert, reviews, "--text", "review", "--out", tmp_path / "p.safetensors")
    for flags, words in (
        (("--structure", "dense"), "kronecker"),
        (("--sharing", "both"), "expand, reduce"),
        (("--rank", "0"), "rank"),
        (("--structure", "kronecker", "--params", "*LayerNorm*"), "linear layers"),
    ):
        code, _, err = run(capsys, *command, *flags)
        assert code in (1, 2)
        assert words in err


def test_labels_of_the_file_give_the_empirical_fisher(capsys, bert, reviews, tmp_path):
    code, *_ = run(
        capsys, "fisher", bert, reviews, "--text", "review", "--label", "stars", "--labels", "data",
        "--out", tmp_path / "s", "--dtype", "float64", "--params", "classifier*", "--quiet",
    )  # fmt: skip
    assert code == 0
    found = FisherStore.open(tmp_path / "s").load()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(bert).double().eval()
    inputs, y = tokens(bert, reviews)
    log_p = model(**inputs).logits.log_softmax(1)
    for i in range(len(y)):
        model.zero_grad()
        log_p[i, y[i]].backward(retain_graph=True)
        g = torch.cat([p.grad.reshape(-1) for p in model.classifier.parameters()])
        np.testing.assert_allclose(found.block(i)[0], g.numpy(), atol=1e-12)


@pytest.mark.parametrize("suffix", ["jsonl", "tsv", "parquet"])
def test_every_format_holds_the_same_rows(capsys, bert, reviews, tmp_path, suffix):
    rows = [line.rsplit(",", 1) for line in reviews.read_text().splitlines()[1:]]
    texts, labels = [t.strip('"') for t, _ in rows], [int(y) for _, y in rows]
    file = tmp_path / f"r.{suffix}"
    if suffix == "jsonl":
        lines = (json.dumps({"text": t, "y": y}) for t, y in zip(texts, labels, strict=True))
        file.write_text("\n\n".join(lines) + "\n")
    elif suffix == "tsv":
        file.write_text(
            "text\ty\n" + "".join(f"{t}\t{y}\n" for t, y in zip(texts, labels, strict=True))
        )
    else:
        pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs the parquet extra")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"text": texts, "y": labels}), file)
    for name, source in (("a", file), ("b", reviews)):
        text = () if name == "a" else ("--text", "review")
        code, _, err = run(
            capsys, "fisher", bert, source, *text, "--out", tmp_path / name, "--quiet",
            "--reduce", "projection:8",
        )  # fmt: skip
        assert (code, err) == (0, "")
    a, b = (tmp_path / n / "shard-000000.safetensors" for n in ("a", "b"))
    assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (("--text", "reviw"), ("no column 'reviw'", "review, stars", "Did you mean 'review'?")),
        ((), ("review, stars", "--text COLUMN")),
        (("--text", "review", "--labels", "data"), ("--label COLUMN",)),
        (("--text", "review", "--label", "star"), ("no column 'star'", "'stars'")),
        (("--text", "review", "--params", "nothing*"), ("nothing*", "bert.embeddings")),
        (("--text", "review", "--max-length", "21"), ("--max-length 21", "at most 20")),
        (("--text", "review", "--label-word", "good"), ("language models",)),
        (("--text", "review", "--engine", "magic"), ("magic",)),
        (("--text", "review", "--device", "cuda:77"), ("--device cuda:77",)),
        (("--text", "review", "--fresh-head", "4"), ("has a head of 3 classes", "Leave")),
        (("--text", "review", "--fresh-head", "4", "--task", "tokens"), ("--task tokens",)),
    ],
)
def test_b10_what_is_wrong_is_said_with_what_to_do(capsys, bert, reviews, tmp_path, extra, words):
    out = tmp_path / "s"
    code, printed, err = run(capsys, "fisher", bert, reviews, "--out", out, *extra)
    assert (code, printed) == (1, "")
    assert err.startswith("Error: ")
    for word in words:
        assert word in err
    assert not out.exists()


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        (("--labels", "exactly"), "exact"),
        (("--labels", "probe", "--top", "2"), "--labels exact"),
        (("--labels", "exact", "--draws", "2"), "--labels sampled and probe"),
        (("--min-prob", "1.5"), "[0, 1)"),
        (("--reduce", "pca:3"), "projection:D"),
        (("--reduce", "projection:x"), "whole number"),
        (("--reduce", "top:3"), "diagonal"),
        (("--kind", "diagonal", "--reduce", "svd:3"), "low_rank"),
        (("--kind", "dense"), "low-rank"),
        (("--batch-size", "0"), "'--batch-size'"),
        (("--nonsense",), "--nonsense"),
    ],
)
def test_b10_misuse_ends_with_2(capsys, bert, reviews, tmp_path, extra, word):
    command = ("fisher", bert, reviews, "--text", "review", "--out", tmp_path / "s", *extra)
    code, out, err = run(capsys, *command)
    assert (code, out) == (2, "")
    assert word in err
    assert not (tmp_path / "s").exists()


def test_b10_an_out_that_cannot_be_is_refused(capsys, bert, reviews, tmp_path):
    before = reviews.read_bytes()
    code, _, err = run(capsys, "fisher", bert, reviews, "--text", "review", "--out", reviews)
    assert code == 1
    assert "is a file" in err
    assert reviews.read_bytes() == before
    command = ("estimate", bert, reviews, "--text", "review", "--out")
    for name, word in (("p.txt", ".safetensors"), ("none/p.safetensors", "no folder")):
        code, _, err = run(capsys, *command, tmp_path / name)
        assert code == 1
        assert word in err
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("text,y\n", ("no row",)),
        ("", ("no row",)),
        ("text,y\ngood film,0\n,1\n", ("row 2", "'text' is empty")),
        ("text,y\ngood film,0\nbad,3\n", ("row 2", "'3'", "0 to 2", "class0")),
        ("text,y\ngood film,-1\n", ("row 1", "0 to 2")),
        ("text,y\ngood film,fine\n", ("'fine'", "class2")),
        ("text,y\ngood film,\n", ("row 1", "'y' is empty")),
        ("text,y\ngood, film,0\n", ("line 2", "double quotes")),
        ('text,y\n"good film,0\n', ("not valid CSV",)),
        (b"text,y\ngood \xff,0\n", ("not UTF-8",)),
    ],
)
def test_b10_a_bad_row_is_named(capsys, bert, tmp_path, content, words):
    file = tmp_path / "d.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    code, out, err = run(
        capsys, "fisher", bert, file, "--text", "text", "--label", "y", "--out", tmp_path / "s"
    )
    assert (code, out) == (1, "")
    for word in words:
        assert word in err
    assert not (tmp_path / "s").exists()


def test_class_names_are_labels_too(capsys, bert, tmp_path):
    for name, labels in (("a", ("class2", "class0")), ("b", ("2", "0"))):
        (tmp_path / f"{name}.csv").write_text(f"text,y\ngood film,{labels[0]}\nbad,{labels[1]}\n")
        code, _, err = run(
            capsys, "fisher", bert, tmp_path / f"{name}.csv", "--label", "y", "--labels", "data",
            "--out", tmp_path / name, "--quiet",
        )  # fmt: skip
        assert (code, err) == (0, "")
    a, b = (FisherStore.open(tmp_path / n).load().rows for n in "ab")
    assert np.array_equal(a, b)


def test_b10_exact_labels_over_a_vocabulary_are_refused_before_any_work(
    capsys, gpt2, reviews, tmp_path, monkeypatch
):
    command = ("fisher", gpt2, reviews, "--text", "review", "--out", tmp_path / "s")
    with monkeypatch.context() as patched:
        patched.setattr(transformers.AutoModelForCausalLM, "from_pretrained", None)
        code, out, err = run(capsys, *command)
    assert (code, out) == (1, "")
    for word in ("14 tokens", "13 backward passes", "--labels probe", "--labels sampled",
                 "--label-word"):  # fmt: skip
        assert word in err
    assert not (tmp_path / "s").exists()
    code, *_ = run(capsys, *command, "--labels", "probe", "--draws", "2", "--quiet")
    assert code == 0
    assert len(FisherStore.open(tmp_path / "s")) == 11
    words = ("--label-word", "good", "--label-word", "bad")
    code, *_ = run(capsys, *command[:-1], tmp_path / "w", *words, "--quiet")
    assert code == 0
    assert FisherStore.open(tmp_path / "w").load().ranks.tolist() == [1] * 11
    code, _, err = run(capsys, *command[:-1], tmp_path / "x", "--label-word", "goodish")
    assert code == 1
    assert "'goodish'" in err


def test_a_checkpoint_without_a_head_is_not_given_one_in_silence(
    capsys, headless, reviews, tmp_path
):
    command = ("fisher", headless, reviews, "--text", "review", "--out", tmp_path / "s")
    code, _, err = run(capsys, *command)
    assert code == 1
    assert "--fresh-head" in err
    code, _, err = run(capsys, *command, "--task", "classification")
    assert code == 1
    assert "classifier.weight" in err
    assert "--fresh-head" in err
    code, *_ = run(capsys, *command, "--fresh-head", "4", "--quiet")
    assert code == 0
    assert FisherStore.open(tmp_path / "s").load().ranks.tolist() == [3] * 11


def test_folders_that_are_no_checkpoints(capsys, bert, reviews, tmp_path):
    def told(folder):
        code, _, err = run(
            capsys, "fisher", folder, reviews, "--text", "review", "--out", tmp_path / "s"
        )
        assert code == 1
        return err

    assert "is no folder" in told(tmp_path / "none")
    folder = tmp_path / "m"
    folder.mkdir()
    assert "config.json" in told(folder)
    (folder / "config.json").write_text("{")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert "pickle" in told(folder)
    (folder / "model.safetensors").write_bytes((bert / "model.safetensors").read_bytes()[:999])
    assert "not JSON" in told(folder)
    (folder / "config.json").write_text((bert / "config.json").read_text())
    assert "could not be loaded" in told(folder)


LOADERS = """
import numpy as np
from fishertope.core.model import DenseNetwork

def net():
    rng = np.random.default_rng(0)
    return DenseNetwork([rng.normal(size=(3, 4))], [np.zeros(3)])

def arrays():
    return np.random.default_rng(1).normal(size=(9, 4))

def stream():
    return (x for x in np.split(arrays(), 3))

number = 3
def wrong():
    return 5
"""


def test_python_loaders(capsys, reviews, tmp_path, monkeypatch):
    (tmp_path / "my_loaders_for_test.py").write_text(LOADERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    own = "my_loaders_for_test"
    for data in ("arrays", "stream"):
        code, _, err = run(
            capsys, "fisher", f"{own}:net", f"{own}:{data}", "--out", data, "--quiet"
        )
        assert (code, err) == (0, "")
    a, b = (FisherStore.open(n).load().rows for n in ("arrays", "stream"))
    np.testing.assert_allclose(a, b, atol=1e-12)
    code, *_ = run(capsys, "estimate", f"{own}:net", f"{own}:stream", "--out", "p.safetensors")
    assert code == 0
    for model, data, extra, word in (
        (f"{own}:none", f"{own}:arrays", (), "no such name"),
        (f"{own}:number", f"{own}:arrays", (), "a int"),
        (f"{own}x:net", f"{own}:arrays", (), "no module"),
        (f"{own}:net", f"{own}:wrong", (), "returned a int"),
        (f"{own}:net", reviews, (), "no tokenizer"),
        (f"{own}:net", f"{own}:arrays", ("--limit", "3"), "--limit"),
        (f"{own}:net", f"{own}:arrays", ("--max-length", "3"), "--max-length"),
    ):
        code, _, err = run(capsys, "fisher", model, data, "--out", "s", *extra)
        assert code == 1
        assert word in err
