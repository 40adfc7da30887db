"""Formatters, styles of methods, CSV files and progress bars, for every package of analysis.

Entry points: `formatting`, `styles.method_styles`, `csv_file.write_csv`, `progress.steps`. It must not import any other
package of analysis.
"""
