"""The demo in a reduced size: it finds what it says, the same on every backend, and writes it."""

import json
import re
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fishertope.core.backend import available_backends, get_backend, thread_limit
from fishertope.core.errors import ForeignFolderError, InvalidInputError
from fishertope.core.factorization import Factorization, matched_cosines, perturb
from fishertope.core.storage import load_arrays, verify_folder
from fishertope.core.testing import tolerance

pytest.importorskip("sklearn", reason="the demo's data ship with scikit-learn")

from fishertope.experiments._demo_effects import SHOWN
from fishertope.experiments._demo_study import N_TOP, Answers, interpret
from fishertope.experiments._digits import load_digits
from fishertope.experiments.demo import DemoFindings, DemoSettings, find_out, run_demo

SMALL = {"n_train": 300, "n_held_out": 160, "hidden": 12, "passes": 120, "n_components": 6}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    # At this size more threads only wait for each other.
    with thread_limit(1):
        yield


@pytest.fixture(scope="module")
def findings() -> DemoFindings:
    return find_out(DemoSettings(backend="reference", **SMALL))


def test_the_network_learned_something(findings: DemoFindings) -> None:
    assert findings.answers.accuracy > 0.7
    assert findings.fishers.rows.shape == (160 * 9, 12 * 64 + 12 + 10 * 12 + 10)


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_backends_give_the_same_answer(findings: DemoFindings, backend: str) -> None:
    if backend not in available_backends():
        pytest.skip(f"{backend} is not installed")
    get_backend(backend)  # loaded before its threads are limited
    with thread_limit(1):
        other = find_out(DemoSettings(backend=backend, **SMALL))
    assert other.factorization.backend == backend
    assert isinstance(other.factorization.components, np.ndarray)
    cosines, matching = matched_cosines(
        findings.factorization.components, other.factorization.components
    )
    assert cosines.min() >= 0.99
    np.testing.assert_array_equal(matching, np.arange(6))
    assert other.answers.accuracy == findings.answers.accuracy
    questions = [[(c.question, c.aligned) for c in f.meaning.components] for f in (findings, other)]
    assert questions[0] == questions[1]


def test_shares_and_explained(findings: DemoFindings) -> None:
    shares = [c.share for c in findings.meaning.components]
    assert sum(shares) == pytest.approx(1.0, rel=tolerance("identity").relative)
    assert shares == sorted(shares, reverse=True)
    assert 0.0 < findings.factorization.relative_loss < 1.0


def test_moves_are_what_a_moved_network_answers(findings: DemoFindings) -> None:
    """Recomputed from a fresh network: same seed, same moves."""
    from fishertope.experiments._digits import train_network

    settings = findings.settings
    network = train_network(
        findings.digits,
        hidden=settings.hidden,
        passes=settings.passes,
        seed=settings.seed,
        advance=lambda done, total: None,
    )
    f = findings.factorization
    size = float(findings.effects.sizes[SHOWN])
    for k in range(f.n_components):
        own = findings.digits.held_out_inputs[f.top_examples(N_TOP)[k]]
        before = network.predict(own)
        for moves in findings.effects.moves[k]:
            with perturb(network, f, k, magnitude=size, sign=moves.sign):
                after = network.predict(own)
            assert moves.total == int((after != before).sum())
            for a, b, count in moves.changed:
                assert count == int(((before == a) & (after == b)).sum())
        np.testing.assert_array_equal(network.predict(own), before)


def test_effects_are_selective_where_theory_says_so(findings: DemoFindings) -> None:
    effects = findings.effects
    assert effects.top.shape == (len(effects.sizes), 6)
    assert (effects.top >= 0).all()
    # Small moves: KL = ½ε²‖Ag‖², so its order in ε is 2.
    order = np.log(effects.top[1] / effects.top[0]) / np.log(effects.sizes[1] / effects.sizes[0])
    np.testing.assert_allclose(order, 2.0, atol=0.5)
    assert effects.prediction_error < 0.25


def test_planted_meaning_is_named_and_noise_is_not(findings: DemoFindings) -> None:
    answers = findings.answers
    rng = np.random.default_rng(0)
    n = len(answers.truth)
    W = rng.random((n, 6)) * 0.1
    W[:, 0] += answers.predicted == 3
    W[:, 1] += answers.wrong
    planted = findings.factorization.replace(coefficients=W)
    meaning = interpret(planted, answers, np.random.default_rng(1))
    assert meaning.components[0].question in ("read as 3", "images of 3")
    assert meaning.components[0].aligned
    assert meaning.components[1].question == "mistakes"
    assert meaning.components[1].wrong_auroc > 0.95
    assert meaning.components[1].wrong_by_chance < 1e-3
    assert sum(c.aligned for c in meaning.components[2:]) <= 1
    assert sum(c.n_strongest for c in meaning.components) == n
    assert sum(c.n_wrong for c in meaning.components) == int(answers.wrong.sum())


def test_confusions_are_counted(findings: DemoFindings) -> None:
    """Every misread image in the component of its own confusion, planted by hand."""
    n = 400
    rng = np.random.default_rng(0)
    side = rng.integers(0, 3, n)
    low, high = np.array([1, 3, 5])[side], np.array([7, 8, 6])[side]
    truth = np.where(rng.random(n) < 0.5, low, high)
    said = np.where(rng.random(n) < 0.2, low + high - truth, truth)
    probabilities = np.full((n, 10), 0.01)
    probabilities[np.arange(n), low] = probabilities[np.arange(n), high] = 0.4
    probabilities[np.arange(n), said] = 0.5
    answers = Answers(truth=truth, probabilities=probabilities)
    W = np.zeros((n, 3))
    W[np.arange(n), side] = 1.0 + rng.random(n)
    planted = findings.factorization.replace(
        coefficients=W, components=findings.factorization.components[:3]
    )
    meaning = interpret(planted, answers, rng)
    assert [c.pair for c in meaning.components] == [(1, 7), (3, 8), (5, 6)]
    assert meaning.n_confusions == int(answers.wrong.sum())
    assert meaning.confusions_by_chance < 0.6 * meaning.n_confusions


class Names(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.names.append(tag)


def test_the_folder_is_complete_self_contained_and_replaced(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    settings = DemoSettings(backend="reference", **(SMALL | {"n_components": 3, "passes": 30}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = run_demo(settings, out=out)
    manifest = verify_folder(out)
    assert set(manifest["files"]) == {
        "report.html",
        "results.json",
        "factorization.safetensors",
        "heldout.safetensors",
    }
    results = json.loads((out / "results.json").read_text())
    assert results["run"]["seed"] == 0
    assert results["run"]["backend"] == "reference"
    assert len(results["results"]["components"]) == 3
    assert results["run"]["versions"]["scikit-learn"]
    arrays, _ = load_arrays(out / "heldout.safetensors", kind="demo images")
    assert arrays["images"].shape == (160, 64)
    stored = Factorization.load(out / "factorization.safetensors")
    np.testing.assert_array_equal(stored.components, summary.findings.factorization.components)
    page = (out / "report.html").read_text()
    assert {"script", "link", "iframe"}.isdisjoint(Names(page).names)
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert summary.findings.headline.split("“")[0] in page
    assert str(tmp_path) not in page
    assert "report.html" in repr(summary)
    assert "<table>" in summary._repr_html_()
    # Again: replaced. With something added: refused, before any work, and untouched.
    run_demo(settings, out=out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ForeignFolderError, match=r"notes\.txt"):
        run_demo(settings, out=out)
    assert (out / "notes.txt").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demo"]


def test_the_command_prints_json_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fishertope.cli import main
    from fishertope.experiments import demo

    small = DemoSettings(backend="reference", **(SMALL | {"n_components": 2, "passes": 20}))
    monkeypatch.setattr(demo, "DemoSettings", lambda **given: small)
    for flags in (["--json"], ["--quiet"], []):
        with pytest.raises(SystemExit) as ended:
            main(["demo", "--out", str(tmp_path / "demo"), *flags])
        assert ended.value.code == 0
        out, err = capsys.readouterr()
        if flags == ["--json"]:
            assert len(json.loads(out)["components"]) == 2
            assert err == ""
        elif flags:
            assert out == err == ""
        else:
            assert "what it is about" in out
            assert "report.html" in out
            assert "Factorize them" in err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--out", str(tmp_path / "mine")])
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Error: ")
    assert "thesis.tex" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_train": 1700}, "at most 1797 in all"),
        ({"n_held_out": 8}, "at least 10"),
        ({"n_components": 161}, "at most as many"),
        ({"n_components": 0}, "n_components=0"),
    ],
)
def test_settings_out_of_range(change: dict, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        find_out(DemoSettings(**(SMALL | change)))


def test_the_split_is_disjoint_and_seeded() -> None:
    one, two = (load_digits(100, 200, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(one.held_out_inputs, two.held_out_inputs)
    seen = {row.tobytes() for row in one.train_inputs}
    assert not any(row.tobytes() in seen for row in one.held_out_inputs)
    assert one.train_inputs.min() >= 0.0
    assert one.train_inputs.max() == 1.0
