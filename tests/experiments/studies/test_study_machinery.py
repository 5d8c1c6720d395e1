"""npeff.md check 27 and what studies rest on: rows, resuming, intervals, pages from rows."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from fishertope.core.errors import (
    BackendUnavailable,
    CorruptFileError,
    ForeignFolderError,
    InvalidInputError,
    SolveFailedError,
)
from fishertope.core.storage import verify_folder
from fishertope.experiments.npeff.planted import STUDY as PLANTED
from fishertope.experiments.studies import (
    Interval,
    Outcome,
    Study,
    Summary,
    decide,
    find_study,
    grid,
    holm,
    paired_p,
    run_study,
    share_interval,
    study_ids,
    t_interval,
)
from fishertope.experiments.studies.documents import claims_page, keep_rows, write_pages
from fishertope.experiments.studies.rows import append_row, key_of, read_rows
from fishertope.experiments.studies.run import rewrite

ROOT = Path(__file__).resolve().parents[3]


def unit(settings):
    rng = np.random.default_rng(settings["seed"])
    return {"x": float(rng.normal()) + settings["shift"], "nothing": float("nan")}


def summarise(rows):
    d = t_interval(rows.differences("x", {"shift": 1}, {"shift": 0}))
    return Summary.of([decide("difference", d, at_least=0.5)], notes=["A note | with a bar."])


def example(**changes) -> Study:
    options = {
        "id": "npeff-example", "title": "An example", "claims": (1,), "question": "Is 1 > 0?",
        "rule": "The difference is at least 0.5.", "unit": unit, "summarise": summarise,
        "units": lambda quick: grid(range(2 if quick else 5), shift=[0, 1]),
    }  # fmt: skip
    return Study(**(options | changes))


def facts(run):
    return [(r.key, r.settings, r.result) for r in run.rows]


def test_check_27_same_seed_same_table_and_rows_carry_their_facts(tmp_path):
    one = run_study(example(), out=tmp_path / "one")
    two = run_study(example(), out=tmp_path / "two")
    assert facts(one) == facts(two)
    assert one.summary == two.summary
    assert one.summary.outcome is Outcome.HOLDS
    assert one.summary.findings[0].measured.mean == pytest.approx(1.0)
    manifest = verify_folder(tmp_path / "one")
    assert set(manifest["files"]) == {"results.json", "rows.jsonl", "report.html"}
    for row in read_rows(tmp_path / "one" / "rows.jsonl").values():
        assert row.settings["seed"] in range(5)
        assert row.run["threads"] >= 1
        assert row.run["seconds"] >= 0
        assert row.run["versions"]["numpy"] == np.__version__
        assert np.isnan(row["nothing"])
    results = json.loads((tmp_path / "one" / "results.json").read_text())["results"]
    assert results["verdict"] == "holds"
    assert results["units"] == {"done": 10, "total": 10}


def test_check_27_workers_change_nothing(tmp_path):
    few = replace(PLANTED, units=lambda quick: PLANTED.units(True)[:2], seeded=False)
    one = run_study(few, out=tmp_path / "one")
    two = run_study(few, out=tmp_path / "two", jobs=2)
    assert facts(one) == facts(two)
    assert one.summary == two.summary
    assert all(r.run["threads"] == 1 for r in two.rows)


SCRIPT = """
import sys, time
from pathlib import Path
from fishertope.experiments.studies import run_study
sys.path.insert(0, sys.argv[2])
import test_study_machinery as own
def slow(settings):
    time.sleep(0.15)
    return own.unit(settings)
run_study(own.example(unit=slow), out=Path(sys.argv[1]))
"""


def test_check_27_a_killed_run_goes_on_to_the_uninterrupted_one(tmp_path):
    out = tmp_path / "out"
    store = tmp_path / ".out.partial" / "rows.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(out), str(Path(__file__).parent)], cwd=tmp_path
    )
    end = time.monotonic() + 60
    while time.monotonic() < end and len(read_rows(store)) < 3:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = read_rows(store)
    assert 3 <= len(kept) < 10
    with store.open("ab") as file:
        file.write(b'{"key": "torn')  # as a kill in the middle of a write leaves it
    calls = []

    def counted(settings):
        calls.append(settings)
        return unit(settings)

    told = []
    run = run_study(example(unit=counted), out=out, progress=lambda *a: told.append(a))
    assert len(calls) == 10 - len(kept)
    assert told[0] == (len(kept), 10)
    assert told[-1] == (10, 10)
    whole = run_study(example(), out=tmp_path / "whole")
    assert facts(run) == facts(whole)
    assert run.summary == whole.summary
    assert not store.exists()


def test_a_stop_ends_the_run_within_a_unit_and_keeps_its_rows(tmp_path):
    from fishertope.core.errors import StoppedError

    calls = []

    def stopped(settings):
        calls.append(settings)
        if len(calls) == 3:
            raise StoppedError("as SIGTERM does")
        return unit(settings)

    with pytest.raises(StoppedError):
        run_study(example(unit=stopped), out=tmp_path / "out")
    assert len(calls) == 3
    assert len(read_rows(tmp_path / ".out.partial" / "rows.jsonl")) == 2


def test_a_budget_stops_between_units_and_a_later_run_goes_on(tmp_path):
    def slow(settings):
        time.sleep(0.05)
        return unit(settings)

    first = run_study(example(unit=slow), out=tmp_path / "out", budget_minutes=0.12 / 60)
    assert 0 < first.done < 10
    assert first.summary is None
    assert not (tmp_path / "out").exists()
    second = run_study(example(), out=tmp_path / "out")
    assert second.complete
    with pytest.raises(InvalidInputError, match="budget_minutes=0"):
        run_study(example(), out=tmp_path / "other", budget_minutes=0)


def test_rows_of_another_version_do_not_count_and_finished_rows_are_taken_up(tmp_path):
    run_study(example(), out=tmp_path / "out")
    calls = []

    def counted(settings):
        calls.append(settings)
        return unit(settings)

    again = run_study(example(unit=counted), out=tmp_path / "out")
    assert again.complete
    assert not calls
    run_study(example(unit=counted, version=2), out=tmp_path / "out")
    assert len(calls) == 10
    run_study(example(unit=counted, version=2), out=tmp_path / "out", fresh=True)
    assert len(calls) == 20
    assert len(read_rows(tmp_path / "out" / "rows.jsonl")) == 10
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ForeignFolderError, match=r"notes\.txt"):
        run_study(example(), out=tmp_path / "out")


def test_one_failing_unit_does_not_cost_the_others(tmp_path):
    def fragile(settings):
        if settings == {"shift": 1, "seed": 3}:
            raise ZeroDivisionError("planted")
        return unit(settings)

    with pytest.raises(SolveFailedError, match=r"(?s)1 units.*'seed': 3.*ZeroDivisionError"):
        run_study(example(unit=fragile), out=tmp_path / "out")
    assert len(read_rows(tmp_path / ".out.partial" / "rows.jsonl")) == 9
    assert run_study(example(), out=tmp_path / "out").complete


def test_torch_is_seeded_by_the_unit_alone(tmp_path):
    torch = pytest.importorskip("torch")

    def draw(settings):
        return {"x": float(torch.rand(1)), "nothing": 0.0}

    torch.manual_seed(1)
    one = run_study(example(unit=draw, needs=("torch",)), out=tmp_path / "one")
    state = torch.get_rng_state()
    torch.rand(7)
    two = run_study(example(unit=draw, needs=("torch",)), out=tmp_path / "two")
    assert facts(one) == facts(two)
    assert len({r["x"] for r in one.rows}) == 10
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())  # the caller's generator did not move
    with pytest.raises(BackendUnavailable, match="no_such_module"):
        run_study(example(needs=("no_such_module",)), out=tmp_path / "three")


def test_rows_survive_torn_lines_and_refuse_strange_ones(tmp_path):
    run = run_study(example(), out=tmp_path / "out")
    path = tmp_path / "rows.jsonl"
    append_row(path, run.rows[0])
    with path.open("ab") as file:
        file.write(run.rows[1].line()[:-5])
    assert list(read_rows(path)) == [run.rows[0].key]
    append_row(path, run.rows[2])  # cuts the torn line off
    assert list(read_rows(path)) == [run.rows[0].key, run.rows[2].key]
    for bad in (b"[1]\n", b'{"key": 1}\n', b"nonsense\n", b'{"key": "a", "key": "b"}\n'):
        path.write_bytes(bad)
        with pytest.raises(CorruptFileError, match=r"rows\.jsonl, line 1"):
            read_rows(path)


def test_keys_depend_on_study_version_and_settings_alone():
    key = key_of("npeff-e1", 1, {"a": 1, "b": 2})
    assert key == key_of("npeff-e1", 1, {"b": 2, "a": 1})
    others = [("npeff-e2", 1, {"a": 1, "b": 2}), ("npeff-e1", 2, {"a": 1, "b": 2}),
              ("npeff-e1", 1, {"a": 1, "b": 3})]  # fmt: skip
    assert len({key, *(key_of(*o) for o in others)}) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "Nothing"}, "npeff-e1"),
        ({"id": "nopaper-x"}, "npeff-e1"),
        ({"claims": (9,)}, "claims 1 to 8"),
        ({"units": lambda quick: grid(range(4), shift=[0, 1])}, "5 seeds"),
        ({"units": lambda quick: [{"shift": 0}] * 2}, "given twice"),
        ({"units": lambda quick: []}, "no unit"),
    ],
)
def test_a_study_that_could_not_be_evidence_is_refused(tmp_path, change, message):
    with pytest.raises(InvalidInputError, match=message):
        run_study(example(**change), out=tmp_path / "out")


def test_verdicts_follow_the_interval():
    def outcome(low, high, **target):
        return decide("x", Interval((low + high) / 2, low, high, 5), **target).outcome

    assert outcome(0.91, 0.95, at_least=0.9) is Outcome.HOLDS
    assert outcome(0.85, 0.95, at_least=0.9) is Outcome.UNDECIDED
    assert outcome(0.80, 0.85, at_least=0.9) is Outcome.FAILS
    assert outcome(0.80, 0.85, at_most=0.9) is Outcome.HOLDS
    assert outcome(0.91, 0.95, at_most=0.9) is Outcome.FAILS
    found = [decide("x", Interval(1, 1, 1, 5), at_least=t) for t in (0.5, 2.0)]
    assert Summary.of(found).outcome is Outcome.FAILS
    assert Summary.of(found[:1]).outcome is Outcome.HOLDS
    said = Summary.of(found, reason="Said.").reason
    assert said == "Said. Missed: x, 1.000 [1.000, 1.000], target at least 2."
    with pytest.raises(InvalidInputError, match="either"):
        decide("x", Interval(1, 1, 1, 5))


def test_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(0)
    draws = rng.normal(1.0, 2.0, size=(2000, 5))
    covered = np.mean([(i := t_interval(v)).low <= 1.0 <= i.high for v in draws])
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 2000)
    ours = t_interval(draws[0])
    theirs = stats.ttest_1samp(draws[0], 0.0).confidence_interval()
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-12)
    wilson = stats.binomtest(17, 20).proportion_ci(method="wilson")
    ours = share_interval(17, 20)
    assert (ours.low, ours.high) == pytest.approx((wilson.low, wilson.high), rel=1e-12)
    d = draws[0]
    exact = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert paired_p(d) == pytest.approx(exact.pvalue, rel=1e-12)
    assert t_interval([3.0]) == Interval(3.0, -np.inf, np.inf, 1)  # one seed decides nothing
    with pytest.raises(InvalidInputError, match="finite"):
        t_interval([1.0, float("nan")])


def test_holm_against_its_definition():
    rng = np.random.default_rng(1)
    for p in rng.random((50, 6)) ** 3:
        order = np.sort(p)
        for a in (0.01, 0.05, 0.2):
            rejected = 0
            while rejected < 6 and order[rejected] <= a / (6 - rejected):
                rejected += 1
            assert int((holm(p) <= a).sum()) == rejected


def test_pages_are_made_from_rows_alone(tmp_path, monkeypatch):
    from fishertope.experiments.studies import documents

    study = example()
    monkeypatch.setattr(documents, "study_ids", lambda: [study.id])
    monkeypatch.setattr(documents, "find_study", lambda name: study)
    claims = tmp_path / "claims"
    claims.mkdir()
    assert "not run yet" in claims_page("npeff", claims)
    run_study(study, out=tmp_path / "out")
    keep_rows(study, claims, tmp_path / "out")
    (page,) = write_pages(claims)
    text = page.read_text()
    assert "**Verdict: holds.**" in text
    assert "1.000 [1.000, 1.000]" in text
    assert f"[{study.id}](#{study.id})" in text
    lines = (claims / "rows" / "npeff-example.jsonl").read_text().splitlines(keepends=True)
    (claims / "rows" / "npeff-example.jsonl").write_text("".join(lines[:-1]))
    assert "not run yet (9 of 10 units)" in claims_page("npeff", claims)
    run_study(study, out=tmp_path / "quick", quick=True)
    with pytest.raises(InvalidInputError, match=r"4 of 10|0 of 10"):
        keep_rows(replace(study, version=3), claims, tmp_path / "out")
    page_before = (tmp_path / "out" / "report.html").read_text()
    rewrite(study, False, tmp_path / "out")
    assert (tmp_path / "out" / "report.html").read_text() == page_before
    assert not re.search(r'(?:src|href)="(?!data:|#)', page_before)
    assert str(tmp_path) not in page_before


@pytest.mark.parametrize("paper", sorted({find_study(n).paper for n in study_ids()}))
def test_documents_show_what_the_stored_rows_give(paper):
    page = ROOT / "docs" / "claims" / f"{paper}.md"
    if not page.exists() and not list(page.parent.glob(f"rows/{paper}-*.jsonl")):
        pytest.skip("none of its studies has been run in full")
    assert page.read_text() == claims_page(paper, ROOT / "docs" / "claims"), (
        f"run `fishertope experiment report --docs docs/claims` and commit {page.name}"
    )


@pytest.mark.parametrize("name", study_ids())
def test_every_study_is_well_formed(name):
    study = find_study(name)
    quick, full = study.checked_units(True), study.checked_units(False)
    assert len(quick) <= len(full)
    assert study.title
    assert study.question
    assert study.rule


def test_listing_studies_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from fishertope.experiments.studies import find_study, study_ids\n"
        "for n in study_ids(): find_study(n)\n"
        "print([m for m in ('torch', 'sklearn', 'transformers', 'matplotlib') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert out.stdout.strip() == "[]"


def test_the_commands(tmp_path, capsys, monkeypatch):
    from fishertope.cli import main
    from fishertope.experiments import studies
    from fishertope.experiments.studies import documents

    monkeypatch.chdir(tmp_path)
    for module in (studies, documents):
        monkeypatch.setattr(module, "study_ids", lambda: ["npeff-example"])
        monkeypatch.setattr(module, "find_study", lambda name: example())

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["experiment", *arguments])
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    code, out, _ = call("list", "--json")
    assert code == 0
    assert json.loads(out)[0]["stored"] == "none"
    code, out, err = call("run", "npeff-example", "--quick", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["units"]["total"] == 4
    code, out, _ = call("run", "all")
    assert code == 0
    assert "npeff-example: holds." in out
    assert (tmp_path / "study-results" / "npeff-example" / "report.html").is_file()
    assert call("report", "npeff-example")[0] == 0
    (tmp_path / "docs" / "claims").mkdir(parents=True)
    code, out, _ = call("report", "npeff-example", "--docs", "docs/claims")
    assert code == 0
    assert "npeff.md" in out
    assert "holds" in call("list")[1]
    code, out, err = call("report", "--docs", "nowhere")
    assert code == 1
    assert "checkout" in err
    assert call("report")[0] == 2


def test_a_study_may_state_fewer_seeds_but_never_less_than_three():
    def units(n):
        return lambda quick: grid(range(n), shift=[0, 1])

    assert len(example(units=units(3), least_seeds=3).checked_units(False)) == 6
    with pytest.raises(InvalidInputError, match="needs 5 seeds"):
        example(units=units(3)).checked_units(False)
    with pytest.raises(InvalidInputError, match="needs 4 seeds"):
        example(units=units(3), least_seeds=4).checked_units(False)
    with pytest.raises(InvalidInputError, match="least_seeds=2 was given; 3 or more"):
        example(least_seeds=2)


def test_a_page_says_what_of_the_paper_no_study_can_test(tmp_path):
    page = claims_page("t5", tmp_path)
    part = page.split("## What cannot be tested here")[1].split("\n## ")[0]
    for word in ("Absolute scores", "WMT", "GLUE", "11 billion"):
        assert word in part
    assert "cannot be tested here" not in claims_page("npeff", tmp_path)


def test_a_partial_study_has_pages_that_say_what_is_missing(tmp_path):
    claims = tmp_path / "claims"
    claims.mkdir()

    def slow(settings):
        time.sleep(0.05)
        return unit(settings)

    def gently(rows):
        value = t_interval(rows.values("x"))
        return Summary.of([decide("mean", value, at_least=-9.0)], reason=f"Of {len(rows)}.")

    gentle = example(unit=slow, partial=True, summarise=gently)
    part = run_study(gentle, out=tmp_path / "out", budget_minutes=0.2 / 60)
    assert 0 < part.done < 10
    assert part.summary.reason == f"Of {part.done}."
    with pytest.raises(InvalidInputError, match="of 10 rows"):
        keep_rows(replace(gentle, partial=False), claims, tmp_path / "out")
    kept = keep_rows(gentle, claims, tmp_path / "out")
    assert kept.done == part.done
    assert kept.summary.reason == f"Of {part.done}."
    more = run_study(gentle, out=tmp_path / "out")
    assert more.complete
    assert keep_rows(gentle, claims, tmp_path / "out").complete


def test_a_finding_of_one_claim_decides_about_that_claim_alone():
    good = decide("a", Interval(1.0, 0.9, 1.1, 5), at_least=0.0, claim=1)
    bad = decide("b", Interval(1.0, 0.9, 1.1, 5), at_most=0.0, claim=2)
    summary = Summary.of([good, bad])
    assert summary.outcome is Outcome.FAILS
    assert summary.outcome_of(1) is Outcome.HOLDS
    assert summary.outcome_of(2) is Outcome.FAILS
    assert summary.outcome_of(3) is Outcome.FAILS
