"""Carry a study's journal into MLflow and the Arrow tables, in a process of its own.

`TrackingProcess` starts that process, `python -m sweeps.tracking STUDY_DIR` is its command, `Follower` does the work.
The driver imports this package and must not pay for MLflow: only functions import it. Must not import Ray, Optuna,
torch at import, nor any package of sweeps but `records` and `utils`.
"""
