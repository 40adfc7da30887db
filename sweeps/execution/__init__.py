"""Runs a search as Ray Tune experiments: trials in workers, retries, checkpoints, early stopping.

Entry points: `tuner.run_search` in the driver, `trainable.TrialTrainable` in a worker.
Must not import study.
"""
