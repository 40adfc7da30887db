"""Takes trained models out of the project: exported formats, their latency, and compression of trained networks.

Entry points: `export_formats` writes a model in all formats and compares each with it; `measure_latency` times models.
Must not import a command (`lowrank.count`, `compress`, `predict`, `serving`).
"""
