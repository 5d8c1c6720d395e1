"""text_to_text.md check 20: the stored table, identical rows, seed noise, claims with verdicts."""

import numpy as np
import pytest
from scipy import stats

from fishertope.core.errors import InvalidInputError
from fishertope.experiments.modifications import early, transfer
from fishertope.experiments.modifications.claims import CONTRASTS, contrasts_of
from fishertope.experiments.modifications.paper import (
    column,
    paper_row,
    table_1,
    table_2,
    transfer_correlations,
)
from fishertope.experiments.modifications.registry import GATED, VARIANTS, difference, groups
from fishertope.experiments.modifications.results import results_of
from fishertope.experiments.modifications.statistics import (
    MANY,
    Prior,
    common_prior,
    compare,
    detectable,
    power,
    rank_correlation,
)
from fishertope.experiments.studies import Row, Rows


def test_check_20_spearman_of_the_stored_table_is_the_papers():
    found = transfer_correlations()
    assert found["superglue"] == pytest.approx(0.872, abs=5e-4)
    assert found["xsum"] == pytest.approx(0.818, abs=5e-4)
    assert found["web_questions"] == pytest.approx(0.727, abs=5e-4)
    assert found["en_de"] == pytest.approx(0.784, abs=5e-4)
    early_final = stats.spearmanr(column("early"), column("final")).statistic
    assert early_final == pytest.approx(0.949, abs=5e-4)
    assert int((column("final") < 1.838).sum()) == 15


def test_the_registry_has_the_rows_of_both_tables_and_nothing_else():
    assert next(iter(table_1())) == "vanilla"
    assert set(VARIANTS) == set(table_1()) | set(table_2())
    assert len(table_1()) == 52
    sizes = {group: len(names) for group, names in groups().items()}
    assert sizes == {
        "activations": 11, "normalisation": 5, "depth": 4, "sharing": 5, "embeddings": 6,
        "softmax": 3, "architecture": 17, "positions": 4,
    }  # fmt: skip
    assert difference("layers-24") == {
        "layers": 24, "decoder_layers": 24, "heads": 6, "d_kv": 64, "d_ff": 1536,
    }  # fmt: skip
    assert difference("layers-8")["d_ff"] == 4608
    assert difference("layers-8")["heads"] == 18
    assert {difference(name)["d_ff"] for name in GATED} == {2048}


def fake(changes=None, *, sd=0.006, seed=0, leave_out=()):
    """Rows with the paper's early losses plus noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for settings in early.units(False):
        name = settings["variant"]
        loss = 2 + paper_row(name).early + sd * rng.normal()
        result = {
            "status": "finished", "early": loss, "final": loss, "parameters": 100, "flops": 10,
            "seconds_per_step": 0.1, **(changes or {}).get(name, {}),
        }  # fmt: skip
        if name not in leave_out:
            rows.append(Row(key=str(len(rows)), settings=settings, result=result, run={}))
    return Rows(rows)


DIVERGED = {"status": "diverged", "early": None, "final": None}


def test_check_20_vanilla_has_its_noise_and_every_claim_effect_interval_and_verdict():
    rows = fake({"fixup": DIVERGED}, leave_out=("switch",))
    summary = early.summarise(rows)
    titles = [t.title for t in summary.tables]
    first = next(t for t in summary.tables if t.title == "Early loss of every variant")
    vanilla = first.written()[0]
    assert vanilla[0] == "Vanilla Transformer"
    assert "± 0.00" in vanilla[6]
    assert "(6)" in vanilla[6]
    claims = next(t for t in summary.tables if t.title.startswith("What the paper found"))
    assert len(claims.rows) == len(CONTRASTS)
    for line, contrast in zip(claims.written(), CONTRASTS, strict=True):
        if {"fixup", "switch"} & set(contrast.weights):
            assert line[6] == "not run yet"
            continue
        assert "[" in line[2]
        assert line[6] in ("holds", "does not hold here", "cannot be tested at this size")
    by_name = {line[0]: line for line in claims.written()}
    assert by_name["gated units against ReLU"][6] == "holds"
    assert by_name["convolutions against attention"][6] == "holds"
    assert any(t.startswith("Early losses here against") for t in titles)
    notes = " ".join(summary.notes)
    assert "Noise floor" in notes
    assert "Not run yet: Switch Transformer" in notes
    assert "diverged: Fixup (3)" in notes
    assert [f.claim for f in summary.findings] == [1, 2]
    assert len(early.figures(rows)) == 4


def test_verdicts_follow_holm_and_a_table_of_noise_has_none():
    rng = np.random.default_rng(1)
    flat = Rows(
        Row(key=r.key, settings=r.settings, run={},
            result={**r.result, "early": 4.0 + 0.01 * float(rng.normal())})
        for r in fake()
    )  # fmt: skip
    found = results_of(flat)
    assert sum(r.verdict != "–" for r in found.compared) <= 1
    real = results_of(fake())
    assert real.by_name["swiglu"].verdict == "better"
    assert real.by_name["selu"].verdict == "worse"
    assert real.by_name["swiglu"].against.interval.mean == pytest.approx(-0.055, abs=0.02)


def test_one_seed_makes_a_table_without_verdicts_and_no_rows_of_vanilla_do_too():
    one = Rows(r for r in fake() if r.settings["seed"] == 0)
    summary = early.summarise(one)
    assert str(summary.outcome) == "cannot be tested at this size"
    assert len(summary.tables[0].rows) == 56
    without = early.summarise(fake(leave_out=("vanilla",)))
    assert str(without.outcome) == "cannot be tested at this size"


def test_contrasts_have_the_papers_size_and_losses_equal_to_the_papers_hold_all():
    values = {n: {s: paper_row(n).early + 1e-3 * s for s in range(3)} for n in VARIANTS}
    values["vanilla"] = {s: 2.182 + 1e-3 * s for s in range(3)}
    for test in contrasts_of(values):
        if any(n.startswith("position") for n in test.contrast.weights):
            continue
        assert test.finding.measured.mean == pytest.approx(test.contrast.in_paper)
    gated = next(c for c in CONTRASTS if c.what.startswith("gated"))
    assert gated.in_paper == pytest.approx(np.mean([2.174, 2.130, 2.145, 2.127, 2.149]) - 2.182)


def test_welch_without_a_prior_is_scipys_and_with_one_it_shrinks():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=4), 0.5 + 3 * rng.normal(size=7)
    own, theirs = compare(a, b), stats.ttest_ind(a, b, equal_var=False)
    assert own.p == pytest.approx(theirs.pvalue)
    low, high = theirs.confidence_interval(0.95)
    assert (own.interval.low, own.interval.high) == pytest.approx((low, high))
    variance, dof = Prior(2.0, 10.0).shrunk([0.0, 1.0, 2.0])
    assert (variance, dof) == (pytest.approx((10 * 2 + 2 * 1) / 12), 12)
    assert Prior(2.0, 10.0).shrunk([5.0]) == (2.0, 10.0)
    assert compare([1.0], [1.0, 2.0]).interval.high == np.inf


def test_the_common_prior_finds_planted_variances():
    rng = np.random.default_rng(0)
    equal = [0.3 * rng.normal(size=4) for _ in range(4000)]
    prior = common_prior(equal)
    assert prior.variance == pytest.approx(0.09, rel=0.05)
    assert prior.dof > 25
    d0, s0 = 6.0, 0.2
    scales = np.sqrt(s0**2 * d0 / rng.chisquare(d0, size=2000))
    mixed = common_prior([s * rng.normal(size=4) for s in scales])
    assert mixed.variance == pytest.approx(s0**2, rel=0.15)
    assert mixed.dof == pytest.approx(d0, rel=0.35)
    assert common_prior([[1.0, 2.0], [1.0]]).dof == 1.0
    assert common_prior([0.3 * np.ones(3) + np.arange(3) for _ in range(5)]).dof == MANY
    with pytest.raises(InvalidInputError, match="two seeds"):
        common_prior([[1.0], [2.0]])


def test_the_corrected_test_keeps_its_level_with_three_seeds():
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(60):
        samples = [rng.normal(size=3) for _ in range(20)]
        base = rng.normal(size=6)
        prior = common_prior([*samples, base])
        wrong += min(compare(s, base, prior).p for s in samples) < 0.05 / 20
    assert wrong <= 9  # expected 3 at most; P(> 9) < 1e-3 at the level of 5 %


def test_power_by_simulation_and_the_detectable_effect_inverts_it():
    rng = np.random.default_rng(0)
    draws = 1.5 + rng.normal(size=(20_000, 4))
    t = draws.mean(1) / (draws.std(1, ddof=1) / 2)
    simulated = float((np.abs(t) > stats.t.ppf(0.975, 3)).mean())
    assert power(1.5, 0.5, 3.0) == pytest.approx(simulated, abs=0.015)
    least = detectable(0.5, 3.0)
    assert power(least, 0.5, 3.0) == pytest.approx(0.8, abs=1e-6)


def test_rank_correlations_are_scipys_with_an_interval_that_holds_them():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 6, size=30).astype(float)
    y = x + rng.normal(size=30)
    found = rank_correlation(x, y)
    assert found.mean == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.low < found.mean < found.high
    assert rank_correlation([1, 2, 3, 4.0], [2, 4, 6, 9.0]).mean == pytest.approx(1.0)
    with pytest.raises(InvalidInputError, match="4 pairs"):
        rank_correlation([1.0, 2, 3], [1.0, 2, 3])


def test_transfer_tables_from_rows_that_are_the_papers():
    rows = []
    for settings in transfer.units(False):
        paper = paper_row(settings["variant"])
        if settings["variant"].startswith("position"):
            continue
        scores = {"sentiment": paper.superglue, "rating": paper.xsum, "en_de": paper.en_de}
        scores |= {f"{name}_loss": 100 - value for name, value in scores.items()}
        result = {"status": "finished", "early": paper.early, "final": paper.final,
                  "sentiment_majority": 60.0, **scores}  # fmt: skip
        rows.append(Row(key=str(len(rows)), settings=settings, result=result, run={}))
    summary = transfer.summarise(Rows(rows))
    by_what = {f.what: f for f in summary.findings}
    rho = by_what["rank correlation of final loss and sentiment, accuracy"]
    assert rho.measured.mean == pytest.approx(0.872, abs=5e-4)
    assert str(rho.outcome) == "holds"
    assert "of 51" in summary.reason
    assert "Not run yet: Learned" in " ".join(summary.notes)
    assert len(transfer.figures(Rows(rows))) == 3
    few = transfer.summarise(Rows(rows[:2]))
    assert str(few.outcome) == "cannot be tested at this size"
