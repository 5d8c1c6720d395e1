"""``fishertope npeff`` on a tiny random transformer and on arrays, as a new user would try it."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from fishertope.cli import main  # noqa: E402
from fishertope.core.factorization import Factorization, LowRankNPEFF, factorize  # noqa: E402
from fishertope.core.fisher import FisherStore, per_example_fishers  # noqa: E402
from fishertope.core.storage import load_arrays, verify_folder  # noqa: E402

N = 60
WORDS = ("good", "bad", "film", "plot", "slow", "fine", "dull", "bright", "never", "always")


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")


def call(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    return ended.value.code


def run(capsys, *arguments):
    code = call(*arguments)
    out, err = capsys.readouterr()
    return code, out, " ".join(err.split())


@pytest.fixture(scope="module")
def place(bert, tmp_path_factory):
    """A data file, its store, a decomposition of projected Fishers and the lifted one."""
    folder = tmp_path_factory.mktemp("npeff")
    rng = np.random.default_rng(0)
    lines = ["review,stars,shop,pages"]
    for i in range(N):
        words = " ".join(WORDS[w] for w in rng.integers(10, size=rng.integers(2, 8)))
        lines.append(f"{words},{rng.integers(3)},{'ab'[i % 2]},{rng.integers(100)}")
    data = folder / "reviews.csv"
    data.write_text("\n".join(lines) + "\n")
    assert call(
        "fisher", bert, data, "--text", "review", "--out", folder / "store", "--quiet",
        "--reduce", "gaussian:48", "--dtype", "float64",
    ) == 0  # fmt: skip
    found, lifted = folder / "found.safetensors", folder / "lifted.safetensors"
    assert call("npeff", "fit", folder / "store", "-o", found, "-r", 3, "--tol", "1e-2",
                     "--subsets", 1, "--quiet") == 0  # fmt: skip
    assert call("npeff", "lift", found, bert, data, "--text", "review", "-o", lifted,
                     "--store", folder / "store", "--dtype", "float64", "--quiet") == 0  # fmt: skip
    return folder


def test_a_fit_is_that_of_the_library(place, capsys):
    store = FisherStore.open(place / "store")
    expected = factorize(store, LowRankNPEFF(3, tol=1e-2), seed=0, on_failure="return")
    found = Factorization.load(place / "found.safetensors")
    np.testing.assert_array_equal(found.components, expected.components)
    assert len(found.facts["stability"]) == 3
    out = place / "again.safetensors"
    code, text, _ = run(capsys, "npeff", "fit", place / "store", "-o", out, "-r", 2, "--json",
                        "--solver", "mu-gd", "--max-steps", 5)  # fmt: skip
    assert code == 0
    facts = json.loads(text)
    assert (facts["components"], facts["examples"]) == (2, N)
    assert "mu-gd" in facts["method"]


def test_new_examples_get_the_librarys_coefficients(place, capsys):
    out = place / "w.safetensors"
    code, text, _ = run(
        capsys, "npeff", "transform", place / "found.safetensors", place / "store", "-o", out,
        "--json",
    )  # fmt: skip
    assert code == 0
    assert json.loads(text)["examples"] == N
    arrays, facts = load_arrays(out, kind="npeff coefficients")
    found = Factorization.load(place / "found.safetensors")
    expected = found.transform(FisherStore.open(place / "store").load())
    np.testing.assert_allclose(arrays["coefficients"], expected, atol=1e-12)
    assert facts["components"] == 3


def test_moves_are_measured_and_the_folder_is_complete(place, bert, capsys):
    command = (
        "npeff", "perturb", place / "lifted.safetensors", bert, place / "reviews.csv", "--text",
        "review", "--top-examples", 6, "--baseline", 8, "--random", 1, "-k", 1, "-k", 0,
        "--dtype", "float64", "--magnitude", "0.01",
    )  # fmt: skip
    code, text, _ = run(capsys, *command, "--json", "--out", place / "moved")
    assert code == 0
    results = json.loads(text)
    assert results["components"] == [1, 0]
    np.testing.assert_allclose(
        np.mean(results["kl_top"], axis=1), results["predicted_top"], rtol=0.05
    )
    assert verify_folder(place / "moved")["command"] == "npeff perturb"
    code, _, err = run(capsys, *command, "--out", place / "moved")
    assert code == 1
    assert "--overwrite" in err
    code, text, _ = run(capsys, *command, "--direction", "orthogonalised")
    assert code == 0
    assert "median KL-ratio" in text


def test_a_report_has_answers_tokens_traces_and_stability(place, bert, capsys):
    out = place / "report"
    command = (
        "npeff", "report", place / "lifted.safetensors", place / "reviews.csv", "--out", out,
        "--text", "review",
    )  # fmt: skip
    code, text, err = run(
        capsys, *command, "--model", bert, "--label", "stars", "--dtype", "float64",
        "--top-examples", 2, "--traces", 1, "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    results = json.loads(text)
    assert len(results["components"]) == 3
    first = results["components"][0]
    assert first["top_examples"][0]["answer"].startswith("class")
    tokens = first["top_examples"][0]["tokens"]
    assert "".join(t for t, _ in tokens) == first["top_examples"][0]["text"]
    assert first["stability"] is not None
    assert any("trace" in c and c["trace"]["error"] < 1e-8 for c in results["components"])
    assert results["features_compared"] > 5
    page = (out / "report.html").read_text()
    assert "Moving the model along components" in page
    code, text, _ = run(capsys, *command, "--overwrite")
    assert code == 0
    assert "what it tracks" in text
    assert "shop: a" in (out / "results.json").read_text() + (out / "report.html").read_text()


def test_arrays_of_a_loader_are_shown_as_images(tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "from fishertope import DenseNetwork\n"
        "rng = np.random.default_rng(0)\n"
        "W = [rng.normal(size=(6, 16)), rng.normal(size=(3, 6))]\n"
        "def model():\n    return DenseNetwork(W, [np.zeros(6), np.zeros(3)])\n"
        "def data():\n    return rng.random((50, 16)), rng.integers(3, size=50)\n"
        "x = data()\n"
        "def same():\n    return x\n"
    )
    monkeypatch.chdir(tmp_path)
    from fishertope import DenseNetwork  # noqa: F401

    assert call("fisher", "mine:model", "mine:same", "--out", "store", "--quiet") == 0
    assert call("npeff", "fit", "store", "-o", "f.safetensors", "-r", 2, "--quiet") == 0
    code, _, err = run(
        capsys, "npeff", "report", "f.safetensors", "mine:same", "--model", "mine:model",
        "--image-shape", "4x4", "--out", "page",
    )  # fmt: skip
    assert code == 0, err
    assert "data:image/png" in (tmp_path / "page" / "report.html").read_text()
    code, _, err = run(
        capsys, "npeff", "report", "f.safetensors", "mine:same", "--model", "mine:model",
        "--image-shape", "5x5", "--out", "page2",
    )  # fmt: skip
    assert code == 1
    assert "28x28" in err


def test_diagonal_stores_are_fitted_with_their_solvers(place, bert, capsys):
    assert call(
        "fisher", bert, place / "reviews.csv", "--text", "review", "--out", place / "diagonal",
        "--kind", "diagonal", "--params", "classifier*", "--quiet",
    ) == 0  # fmt: skip
    out = place / "d.safetensors"
    assert call("npeff", "fit", place / "diagonal", "-o", out, "-r", 2, "--quiet") == 0
    assert Factorization.load(out).method.solver == "hals"
    code, _, err = run(capsys, "npeff", "fit", place / "diagonal", "-o", out, "--solver", "pals")
    assert code == 1
    code, _, err = run(capsys, "npeff", "fit", place / "diagonal", "-o", place / "e.safetensors",
                       "--solver", "pals")  # fmt: skip
    assert code == 1
    assert "hals, mu" in err


def test_files_of_the_reference_are_fitted(tmp_path, capsys):
    h5py = pytest.importorskip("h5py", reason="HDF5 needs the hdf5 extra")
    rng = np.random.default_rng(0)
    n, C, K = 20, 2, 6
    with h5py.File(tmp_path / "x.h5", "w") as file:
        data = file.create_group("data")
        data.attrs["n_classes"], data.attrs["n_parameters"] = C, 30
        data["labels"], data["logits"] = np.zeros(n, "i4"), rng.normal(size=(n, C)).astype("f4")
        data["values"] = rng.normal(size=(n, K)).astype("f4")
        data["col_offsets"] = np.tile(np.array([0, 3, 6], "i4"), (n, 1))
        data["row_indices"] = np.stack([rng.choice(30, K, replace=False) for _ in range(n)])
        data["pef_frobenius_norms"] = rng.uniform(1, 2, n).astype("f4")
    code, text, _ = run(capsys, "npeff", "fit", tmp_path / "x.h5", "-o",
                        tmp_path / "f.safetensors", "-r", 2, "--json", "--tol", "1e-2")  # fmt: skip
    assert code == 0
    assert json.loads(text)["examples"] == n


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("fit", "nowhere", "-o", "x.safetensors"), 1, "is no store"),
        (("fit", "STORE", "-o", "FOUND"), 1, "--overwrite"),
        (("fit", "STORE", "-o", "DATA"), 1, "left as it is"),
        (("fit", "STORE", "-o", "no/such/x.safetensors"), 1, "no folder"),
        (("fit", "STORE", "-o", "x.safetensors", "-r", "0"), 2, "components"),
        (("fit", "STORE", "-o", "x.safetensors", "--solver", "magic"), 2, "magic"),
        (("transform", "STORE", "STORE", "-o", "x.safetensors"), 1, "is no file"),
        (("transform", "DATA", "STORE", "-o", "x.safetensors"), 1, "reviews.csv"),
        (("perturb", "LIFTED", "BERT", "DATA", "--magnitude", "-1"), 1, "auto or a finite"),
        (("perturb", "LIFTED", "BERT", "DATA", "--text", "review", "-k", "9"), 1, "0 to 2"),
        (("perturb", "LIFTED", "BERT", "DATA", "--text", "review", "--limit", "5"), 1, "has 60"),
        (("report", "FOUND", "--model", "BERT"), 1, "without data"),
        (("report", "FOUND", "DATA", "--text", "review", "--metadata", "sho"), 1, "shop"),
        (("report", "FOUND", "DATA", "--text", "review", "--limit", "7"), 1, "texts of length 7"),
        (("report", "FOUND", "DATA", "--text", "review", "--correction", "x"), 1, "holm, bh"),
    ],
)
def test_mistakes_are_named(place, bert, capsys, tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    names = {
        "STORE": place / "store", "FOUND": place / "found.safetensors", "BERT": bert,
        "LIFTED": place / "lifted.safetensors", "DATA": place / "reviews.csv",
    }  # fmt: skip
    found, _, err = run(capsys, "npeff", *(names.get(a, a) for a in arguments))
    assert found == code
    assert words in err
    assert not (tmp_path / "x.safetensors").exists()
    assert not (tmp_path / "npeff-report").exists()


def test_classes_of_the_module_engine_are_those_of_the_checkpoint(place, bert):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(bert).double()
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    rows = [line.split(",") for line in (place / "reviews.csv").read_text().splitlines()[1:]]
    inputs = dict(tokenizer([r[0] for r in rows], padding=True, return_tensors="pt"))
    complete = per_example_fishers(model, inputs)
    found = Factorization.load(place / "found.safetensors")
    store = FisherStore.open(place / "store")
    lifted = Factorization.load(place / "lifted.safetensors")
    expected = found.lift(complete, fitted=store)
    np.testing.assert_allclose(lifted.components, expected.components, atol=1e-8)
