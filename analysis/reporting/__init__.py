"""The report of a study and the comparison of several: numbers, tables, pictures and the page that holds them.

Entry points: `write.write_report`, `comparison_page.write_comparison` and, for the terminal, `summary_table`. A picture
is a typed record first (`contents`, `front_data`) and drawn second (`front_figure`, `figures`, `render`). Must not
import `analysis.cli`, the commands, or `analysis.model_export`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from analysis.reporting.comparison_page import write_comparison as write_comparison
    from analysis.reporting.render import start_forkserver as start_forkserver
    from analysis.reporting.summary_table import print_summary as print_summary
    from analysis.reporting.write import (
        STEPS as STEPS,
        is_large as is_large,
        refresh_outputs as refresh_outputs,
        write_report as write_report,
        write_summary as write_summary,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "comparison_page": "write_comparison",
        "render": "start_forkserver",
        "summary_table": "print_summary",
        "write": "STEPS is_large refresh_outputs write_report write_summary",
    },
)
