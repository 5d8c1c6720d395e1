"""Reports of decompositions: planted meanings are found, noise is not, and every export holds."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy.stats import false_discovery_control, mannwhitneyu

from fishertope.core.errors import InvalidInputError, ResultsExistError
from fishertope.core.factorization import (
    LowRankNPEFF,
    factorize,
    perturbation_report,
    stability,
    trace,
)
from fishertope.core.fisher import LowRankFishers, per_example_fishers
from fishertope.core.model import DenseNetwork
from fishertope.core.report import Examples, Feature, decomposition_report, enrich
from fishertope.core.report.enrichment import correct
from fishertope.core.report.features import (
    answer_features,
    conjunctions,
    label_features,
    metadata_features,
    text_features,
)
from fishertope.core.storage import plain, verify_folder

N = 240


def planted(seed=0, noise=0.15):
    """Coefficients of three components: one a word, one a source with an answer, one nothing."""
    rng = np.random.default_rng(seed)
    word = rng.random(N) < 0.3
    source = rng.integers(3, size=N)
    answer = rng.integers(2, size=N)
    W = np.abs(noise * rng.normal(size=(N, 3)))
    W[:, 0] += word
    W[:, 1] += (source == 2) & (answer == 1)
    texts = [
        f"the {'not ' if w else ''}thing {rng.integers(1000)} of {s} <b>&amp;</b>"
        for w, s in zip(word, source, strict=True)
    ]
    return W, texts, source, answer


def factorization(W):
    """Fishers with these coefficients over orthogonal directions, factorized."""
    n, r = W.shape
    rows = np.zeros((n, r, r))
    rows[:, np.arange(r), np.arange(r)] = np.sqrt(W)
    found = factorize(LowRankFishers.from_rows(rows), LowRankNPEFF(r), on_failure="return")
    return found.replace(coefficients=W, components=np.eye(r))


@pytest.fixture(scope="module")
def report():
    W, texts, source, answer = planted()
    rng = np.random.default_rng(5)
    p = np.where(answer[:, None] == np.arange(2), 0.8, 0.2) + 0.05 * rng.normal(size=(N, 2))
    labels = np.where(rng.random(N) < 0.1, 1 - answer, answer)
    examples = Examples(
        texts=texts, labels=labels, predictions=answer, probabilities=p,
        classes=["bad", "good"], metadata={"source": np.array(["a", "b", "c"])[source]},
    )  # fmt: skip
    attributions = {
        (k, int(i)): [("the ", 0.0), ("<i>not</i> ", 0.9), ("thing", -0.5)]
        for k in range(3)
        for i in factorization(W).top_examples(6)[k]
    }
    return decomposition_report(
        factorization(W), examples, title="A & B <script>", attributions=attributions,
        command="fishertope npeff report x",
    )  # fmt: skip


def test_planted_meanings_are_named_and_noise_is_not(report):
    assert report.named.tolist() == [True, True, False]
    names = [report.name_of(k) for k in range(3)]
    assert names[0] in ("negation", "“not”")
    assert names[1] == "source: c + said good"
    assert names[2] == "not named"
    for k in (0, 1):
        first = report.enrichment.findings[k][0]
        assert first.auroc >= 0.95
        assert first.p_corrected <= 1e-6
        assert first.in_top == 1.0
    assert set(report.order[:2]) == {0, 1}
    assert 0.5 < report.enrichment.threshold < 0.75


def test_shuffled_examples_name_nothing():
    W, texts, source, answer = planted()
    rng = np.random.default_rng(1)
    for _ in range(5):
        shuffled = W[rng.permutation(N)]
        examples = Examples(
            texts=texts, predictions=answer, classes=["bad", "good"], metadata={"source": source}
        )
        assert not decomposition_report(factorization(shuffled), examples).named.any()


def test_held_out_numbers_are_those_of_the_held_out_half():
    W, texts, source, _ = planted()
    features = metadata_features({"source": source}) + text_features(texts)
    seed = 3
    found = enrich(W, features, rng=np.random.default_rng(seed), n_best=2, n_shuffles=0)
    order = np.random.default_rng(seed).permutation(N)
    out = np.sort(order[N // 2 :])
    masks = {f.name: f.mask for f in found.features}
    p = []
    for k in range(3):
        for f in found.findings[k]:
            mask = masks[f.feature][out]
            test = mannwhitneyu(
                W[out, k][mask], W[out, k][~mask], alternative="greater", method="asymptotic"
            )
            assert f.p == pytest.approx(test.pvalue)
            assert f.auroc == pytest.approx(test.statistic / (mask.sum() * (~mask).sum()))
            p.append(test.pvalue)
    corrected = correct(np.array(p), "holm").reshape(3, 2)
    for k in range(3):
        assert [f.p_corrected for f in found.findings[k]] == pytest.approx(corrected[k].tolist())


def test_corrections_are_the_textbooks_ones():
    rng = np.random.default_rng(0)
    p = rng.random(30) ** 2
    np.testing.assert_allclose(correct(p, "bh"), false_discovery_control(p, method="bh"))
    holm = correct(p, "holm")
    for i in range(30):  # Holm by its definition
        below = np.sort(p)[: np.sum(p <= p[i])]
        expected = max((30 - j) * q for j, q in enumerate(below))
        assert holm[i] == pytest.approx(min(expected, 1.0))


def test_features_say_what_they_hold():
    texts = ["I can't go!", "Fine; 3 of you?", "more than ever", "haha :)"] * 3
    found = {f.name: f.mask[:4].tolist() for f in text_features(texts, min_count=3)}
    assert found["negation"] == [True, False, False, False]
    assert found["exclamation mark"] == [True, False, False, False]
    assert found["a number"] == [False, True, False, False]
    assert found["second person"] == [False, True, False, False]
    assert found["comparison"] == [False, False, True, False]
    assert found["laughter or emoticon"] == [False, False, False, True]
    assert found["“can't”"] == [True, False, False, False]
    meta = metadata_features({"x": np.arange(40.0), "y": ["a", "b"] * 20, "z": [True, False] * 20})
    assert [f.name for f in meta] == ["x ≤ 9.75", "x ≥ 29.25", "y: a", "y: b", "z"]
    answers = answer_features(
        np.array([0, 1, 1, 0]), ["n", "p"], labels=np.array([0, 1, 0, 0]),
        probabilities=np.array([[0.9, 0.1], [0.4, 0.6], [0.1, 0.9], [0.95, 0.05]]),
    )  # fmt: skip
    names = {f.name: f.mask.tolist() for f in answers}
    assert names["said p"] == [False, True, True, False]
    assert names["wrong answer"] == [False, False, True, False]
    assert names["model is unsure"] == [False, True, False, False]
    both = conjunctions(label_features([0, 1, 1, 0], None) + meta[4:5], [])
    assert both == []
    with pytest.raises(InvalidInputError, match="NaN"):
        metadata_features({"x": np.where(np.arange(40) == 3, np.nan, np.arange(40))})


class Strict(HTMLParser):
    """Open and close tags match, and nothing is fetched or run."""

    VOID = frozenset({"img", "br", "hr", "meta", "input"})

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, name, attributes):
        assert name != "script"
        for key, value in attributes:
            assert not key.startswith("on")
            if key in ("src", "href"):
                assert value.startswith(("data:", "#"))
        if name not in self.VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name


def check_page(text):
    parser = Strict()
    parser.feed(text)
    assert parser.open == []
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"|arXiv:\S+', "", text)
    return text


def test_the_page_is_sound_and_says_what_matters_first(report):
    page = check_page(report.html())
    first = page[: page.index("How to read this")]
    assert "source: c + said good" in first
    assert "AUROC" in first
    assert "&lt;i&gt;not&lt;/i&gt;" in page
    assert "<mark" in page
    assert 'class="less"' in page
    assert "A &amp; B &lt;script&gt;" in page
    assert page == report.html()


def test_exports_hold_the_same_numbers(report, tmp_path):
    results = json.loads(json.dumps(plain(report.results())))
    assert results["components_named"] == 2
    assert results["components"][1]["name"] == "source: c + said good"
    assert results["components"][0]["top_examples"][0]["tokens"][1] == ["<i>not</i> ", 0.9]
    latex = report.latex()
    assert r"\begin{tabular}" in latex
    assert r"A \& B \textless{}script\textgreater{}" in latex
    assert latex.count(r"\begin{") == latex.count(r"\end{")
    rows = [line for line in latex.splitlines() if line.startswith(("0 &", "1 &", "2 &"))]
    assert len(rows) == 6
    markdown = report.markdown()
    assert "| # | share |" in markdown
    assert "## 1: source: c + said good" in markdown
    report.save(tmp_path / "out")
    manifest = verify_folder(tmp_path / "out")
    assert set(manifest["files"]) == {"report.html", "report.tex", "report.md", "results.json"}
    with pytest.raises(ResultsExistError):
        report.save(tmp_path / "out")
    report.save(tmp_path / "out", overwrite=True)


def test_everything_that_was_computed_is_shown():
    rng = np.random.default_rng(0)
    net = DenseNetwork(
        [rng.normal(size=(6, 16)), rng.normal(size=(3, 6))], [np.zeros(6), np.ones(3)]
    )
    x = rng.normal(size=(90, 16))
    fishers = per_example_fishers(net, x)
    method = LowRankNPEFF(3, n_starts=1, tol=1e-2)
    found = factorize(fishers, method, on_failure="return")
    moved = perturbation_report(net, found, x, magnitude=0.05, n_random=2, n_top=10)
    again = stability(fishers, method, seeds=(0, 1), on_failure="return")
    traces = {k: trace(net, found, k, x[:1]) for k in (0, 2)}
    report = decomposition_report(
        found, Examples(images=x.reshape(90, 4, 4), labels=rng.integers(3, size=90)),
        perturbation=moved, stability=again, traces=traces, n_shuffles=5,
    )  # fmt: skip
    page = check_page(report.html())
    for words in (
        "Moving the model along components", "Which components come back", "data:image/png",
        "Where in the network components act", "layers.0", "KL-ratio",
    ):  # fmt: skip
        assert words in page
    results = report.results()
    assert results["components"][2]["trace"]["error"] < 1e-10
    assert results["components"][0]["kl_ratio"] == pytest.approx(moved.kl_ratio[0])
    assert "stability" in report.latex()
    alike = decomposition_report(found, Examples(labels=[0] * 90))
    assert alike.enrichment is None
    check_page(alike.html())
    bare = decomposition_report(found)
    assert not bare.named.any()
    check_page(bare.html())
    assert "component 0" in bare.markdown() or "| 0 |" in bare.markdown()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda f: decomposition_report(f, Examples(texts=["a"])), "texts of length 1"),
        (lambda f: decomposition_report(f, Examples(metadata={"x": [1]})), "'x'"),
        (lambda f: decomposition_report(f, traces={9: None}), "0 to 2"),
        (
            lambda f: enrich(f.coefficients, label_features([0] * N, None),
                             rng=np.random.default_rng(0)),
            "on both sides",
        ),
        (lambda f: decomposition_report(f, stability=[1.0]), "stability of shape"),
        (
            lambda f: enrich(f.coefficients, [Feature(name="x", kind="text", mask=np.ones(3))],
                             rng=np.random.default_rng(0)),
            "has shape",
        ),
        (
            lambda f: decomposition_report(f, Examples(labels=[0, 1] * (N // 2)), correction="no"),
            "holm, bh",
        ),
    ],
)  # fmt: skip
def test_bad_reports_are_named(make, words):
    with pytest.raises(InvalidInputError, match=words):
        make(factorization(planted()[0]))
