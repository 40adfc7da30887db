"""Run studies: start, resume, plan, series, training recorded trials again, final evaluation.

`sweeps/run.py` calls `start_study`, `resume_study`, `start_retraining` (start.py) and `start_series` (run_series.py);
`run_study` (driver.py) runs one. This is the uppermost package of sweeps: only the commands import it. Must not import
analysis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from sweeps.study.command_line import parse_options as parse_options
    from sweeps.study.plan_report import make_plan as make_plan, print_plan as print_plan
    from sweeps.study.run_series import (
        is_resumable_series as is_resumable_series,
        resume_series as resume_series,
        start_series as start_series,
    )
    from sweeps.study.series import for_each_study as for_each_study, space_from_options as space_from_options
    from sweeps.study.space_list import print_spaces as print_spaces
    from sweeps.study.start import (
        resume_study as resume_study,
        start_retraining as start_retraining,
        start_study as start_study,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "command_line": "parse_options",
        "plan_report": "make_plan print_plan",
        "run_series": "is_resumable_series resume_series start_series",
        "series": "for_each_study space_from_options",
        "space_list": "print_spaces",
        "start": "resume_study start_retraining start_study",
    },
)
