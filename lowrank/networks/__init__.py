"""Dense networks as published, and the table that makes them by name.

Entry point: `lowrank.networks.registry.make_network`. A new network is one file here and one line in the table.
Must not import: `lowrank.layers`, `lowrank.compression` and all that builds on them.
"""
