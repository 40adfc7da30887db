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
    from analysis.reporting.figures import draw_curves as draw_curves
    from analysis.reporting.front_data import front_plot as front_plot
    from analysis.reporting.front_figure import draw_front as draw_front
    from analysis.reporting.render import (
        DrawJob as DrawJob,
        drawing_executor as drawing_executor,
        render_png as render_png,
        start_forkserver as start_forkserver,
    )
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
        "figures": "draw_curves",
        "front_data": "front_plot",
        "front_figure": "draw_front",
        "render": "DrawJob drawing_executor render_png start_forkserver",
        "summary_table": "print_summary",
        "write": "STEPS is_large refresh_outputs write_report write_summary",
    },
)
