"""Studies: claims tested by independent units whose rows are kept, with rules for verdicts."""

from .registry import find_study as find_study, study_ids as study_ids
from .rows import Row as Row, Rows as Rows
from .run import Progress as Progress, StudyRun as StudyRun, run_study as run_study
from .statistics import (
    Interval as Interval,
    bootstrap_interval as bootstrap_interval,
    holm as holm,
    paired_p as paired_p,
    share_interval as share_interval,
    t_interval as t_interval,
)
from .study import (
    Figure as Figure,
    Finding as Finding,
    Outcome as Outcome,
    Study as Study,
    Summary as Summary,
    decide as decide,
    grid as grid,
)
