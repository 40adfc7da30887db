"""What a study keeps on disk: journal, tables, and the typed records that both give back.

Entry points: `sweeps.records.load.load_study`, `sweeps.records.journal.Journal`, `sweeps.records.specification`.
Importing this package loads neither torch nor Optuna nor Ray. `analysis` reads studies through it.
Of sweeps it may import `sweeps.space` and `sweeps.utils` only.
"""
