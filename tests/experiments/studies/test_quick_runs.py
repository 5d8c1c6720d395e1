"""Every study's quick run goes through, twice the same; its outcome is not asserted."""

import importlib.util
import re

import pytest

from fishertope.core.errors import FishertopeError
from fishertope.experiments.studies import Outcome, find_study, run_study, study_ids
from fishertope.experiments.studies.run import run_unit


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", study_ids())
def test_check_27_quick_runs_are_complete_and_repeatable(name, tmp_path):
    study = find_study(name)
    missing = [m for m in study.needs if importlib.util.find_spec(m) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed")
    try:
        run = run_study(study, quick=True, out=tmp_path / "out")
    except FishertopeError as error:
        if "DataMissingError" in str(error):
            pytest.skip("its data have not been fetched")
        raise
    assert run.complete
    assert run.summary.outcome in Outcome
    assert run.summary.reason
    assert run.summary.tables
    page = (tmp_path / "out" / "report.html").read_text()
    assert study.title in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    again = run_unit(study, run.rows[0].settings)
    assert _steady(again.result) == _steady(run.rows[0].result)


def _steady(result):
    """What a second run repeats: all but times of the processor, which studies of costs measure."""
    own = {"seconds", "timed"}
    return {name: value for name, value in result.items() if not own & set(re.split("[ _]", name))}
