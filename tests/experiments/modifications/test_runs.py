"""Killed and resumed runs of variants, processes that share them, and the command line."""
# ruff: noqa: E402

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from fishertope.core.fisher.ranks import Ranks
from fishertope.experiments.modifications import early
from fishertope.experiments.modifications.harness import pretrain
from fishertope.experiments.modifications.setting import Setting
from fishertope.experiments.modifications.spread import collect, collected, spread
from fishertope.experiments.studies import find_study, run_study, study_ids
from fishertope.experiments.studies.rows import read_rows

SMALL = Setting(corpus="manual", words="bytes", batch_size=4, held_out=2, early=2)
NAMES = ("vanilla", "geglu")


def unit(settings):
    run = pretrain(settings["variant"], settings["seed"], setting=SMALL, steps=2)
    return {k: v for k, v in run.row.items() if k != "seconds_per_step"} | {"seconds_per_step": 1.0}


def units(quick):
    return [early.settings_of(name, seed, steps=2) for seed in range(3) for name in NAMES]


STUDY = replace(early.STUDY, units=units, unit=unit, needs=("torch",), least_seeds=3)


def facts(rows):
    return {r.key: (dict(r.settings), dict(r.result)) for r in rows}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run_study(STUDY, out=tmp_path_factory.mktemp("whole") / "out")


def test_check_20_interrupted_and_resumed_is_uninterrupted(tmp_path, whole):
    out, calls = tmp_path / "out", []

    def fragile(settings):
        calls.append(settings)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return unit(settings)

    with pytest.raises(KeyboardInterrupt):
        run_study(replace(STUDY, unit=fragile), out=out)
    assert len(read_rows(tmp_path / ".out.partial" / "rows.jsonl")) == 3
    again = run_study(STUDY, out=out)
    assert facts(again.rows) == facts(whole.rows)
    assert again.summary.tables[0].rows == whole.summary.tables[0].rows
    assert "Noise floor" in (out / "report.html").read_text()


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch; torch.set_num_threads(1)
import test_runs
from fishertope.experiments.studies import run_study
run_study(test_runs.STUDY, out=Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_check_20_killed_and_resumed_is_uninterrupted(tmp_path, whole):
    store = tmp_path / ".out.partial" / "rows.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "out"), str(Path(__file__).parent)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    end = time.monotonic() + 120
    while time.monotonic() < end and len(read_rows(store)) < 2 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(read_rows(store)) >= 2
    again = run_study(STUDY, out=tmp_path / "out")
    assert facts(again.rows) == facts(whole.rows)


def test_processes_that_share_the_units_make_the_same_rows(tmp_path, whole):
    out = tmp_path / "shared"
    assert spread(STUDY, out, ranks=Ranks(rank=0, world=2)) == 3
    assert spread(STUDY, out, ranks=Ranks(rank=1, world=2)) == 3
    assert spread(STUDY, out, ranks=Ranks(rank=0, world=3)) == 0
    assert facts(collected(out).values()) == facts(whole.rows)
    assert collect(STUDY, out, tmp_path / "results") == 6

    def never(settings):
        raise AssertionError("there is a row already")

    done = run_study(replace(STUDY, unit=never), out=tmp_path / "results")
    assert done.complete


def test_g6_a_papers_name_stands_for_all_of_its_studies():
    from fishertope.cli._experiment import _studies

    own = [name for name in study_ids() if name.startswith("modifications-")]
    assert [s.id for s in _studies(["modifications"])] == own
    assert len(own) >= 3
    assert [s.id for s in _studies(["modifications", own[0], "npeff-e1"])] == [*own, "npeff-e1"]
    for name in own:
        study = find_study(name)
        assert study.question.endswith("?") or study.question.endswith(".")
        assert study.rule
        assert study.history
        assert json.dumps(study.units(True))
        assert study.checked_units(False)
