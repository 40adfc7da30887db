"""Formatters, styles of methods, CSV files and progress bars, for every package of analysis.

Entry points: `formatting`, `styles.method_styles`, `csv_file.write_csv`, `progress.steps`. It must not import any other
package of analysis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from analysis.utils.csv_file import write_csv as write_csv
    from analysis.utils.formatting import (
        data_label as data_label,
        format_duration as format_duration,
        format_error_interval as format_error_interval,
        format_mean_and_deviation as format_mean_and_deviation,
        format_percent as format_percent,
        format_points as format_points,
        format_points_interval as format_points_interval,
        join_words as join_words,
        method_label as method_label,
        status_label as status_label,
    )
    from analysis.utils.progress import silent as silent, steps as steps
    from analysis.utils.styles import REFERENCE_COLOURS as REFERENCE_COLOURS, method_styles as method_styles

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "csv_file": "write_csv",
        "formatting": (
            "data_label format_duration format_error_interval format_mean_and_deviation format_percent "
            "format_points format_points_interval join_words method_label status_label"
        ),
        "progress": "silent steps",
        "styles": "REFERENCE_COLOURS method_styles",
    },
)
