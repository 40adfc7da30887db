"""Structured linear maps for torch networks: layers, exact counts, budgets, substitution, training and export.

Entry points: `lowrank.compression` counts and substitutes, `lowrank.training` trains, `lowrank.io` reads and writes
models; `python -m lowrank.count` prints the sizes of a network.
`import lowrank` loads no torch. Must not import `sweeps` or `analysis`.
"""
