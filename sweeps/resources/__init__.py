"""What each trial of a study holds of the cluster: shares of cards, their packing, MPS, and the memory probe.

Entry points: `slots.ResourcePlanner` for a study, `memory_probe.probe_space` for `--probe-memory`.
Must not import teachers, execution or study.
"""
