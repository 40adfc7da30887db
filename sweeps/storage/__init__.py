"""Keep a study at a URI (`--storage`), so that it outlives its machines.

`mirror_study` stores a study's folder as it grows; `fetch_study` brings it back, as does `python -m sweeps.storage`.
Must not import Ray, Optuna, MLflow, torch, nor any package of sweeps but `records` and `utils`.
"""
