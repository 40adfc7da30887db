"""Where studies come from: MLflow stores, and several studies joined into one.

Entry points: `mlflow.load_from_mlflow`, `collate_studies.collate`, `push_to_mlflow.push_study`. A study's folder is
read by `sweeps.records.load`. It must not import stats, findings or what stands above them.
"""
