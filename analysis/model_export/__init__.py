"""Exports a trained trial: chooses it, loads its network, writes the files, what was measured on them, and the card.

Entry points: `select_trial.choose_trial` and `export_trial.export_trial`. Must not import `analysis.cli`, the commands,
or `analysis.reporting`.
"""
