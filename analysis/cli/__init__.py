"""The commands of `python -m analysis` that are no scripts, and the options that all commands share.

Every module but `arguments` has `add_arguments` and `run`. It must not import the scripts `analysis.report`, `compare`,
`export` and `collate`.
"""
