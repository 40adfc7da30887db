"""The report of a study and the comparison of several: numbers, tables, pictures and the page that holds them.

Entry points: `write.write_report`, `comparison_page.write_comparison` and, for the terminal, `summary_table`. A picture
is a typed record first (`contents`, `front_data`) and drawn second (`front_figure`, `figures`, `render`). Must not
import `analysis.cli`, the commands, or `analysis.model_export`.
"""
