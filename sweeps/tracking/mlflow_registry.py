"""The front's models in MLflow's registry: plain data with a signature and an example, never a pickle.

The registered model has the study's name and one version for each trial that was ever on its front. The aliases `best`
and `best-under-N` (N parameters at most) point to the present best, never to a trial that is marked as broken; the
version and the model of such a trial have the tag `broken`. Every step first looks up what the store has.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.records import (
    MODELS_FOLDER,
    StudyRecord,
    TrialRecord,
    best_trials,
    front_first_seeds,
    mlflow_names as names,
)

if TYPE_CHECKING:
    from mlflow.entities.logged_model import LoggedModel
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

LOADER = "lowrank.serving"
PACKAGES = ("torch", "torchvision", "numpy", "safetensors", "pydantic")  # that the loader needs, beside this project
EXISTS = "RESOURCE_ALREADY_EXISTS"


def register_front(
    client: MlflowClient, experiment: str, study: StudyRecord, study_dir: Path, runs: dict[str, str]
) -> None:
    """Bring the registry up to a study.

    Nothing is done before a search has finished and kept its models.

    Args:
        client: of the store.
        experiment: the study's experiment.
        study: the study.
        study_dir: its folder.
        runs: run ids by trial id.
    """
    models = {
        trial.trial_id: (trial, study_dir / MODELS_FOLDER / trial.trial_id)
        for trial in front_first_seeds(study.trials.values())
        if trial.trial_id in runs and (study_dir / MODELS_FOLDER / trial.trial_id).is_dir()
    }
    if not models and not client.search_registered_models(f"name = '{study.name}'"):
        return
    _make_model(client, study)
    versions = _versions(client, study.name)
    new = [trial_id for trial_id in models if trial_id not in versions]
    for trial_id in new:
        _register(client, experiment, study.name, *models[trial_id], runs[trial_id])
    if new:
        versions = _versions(client, study.name)
    for trial_id, model_version in versions.items():
        if trial_id in study.trials:
            _tag(client, experiment, study.trials[trial_id], model_version)
    _point_aliases(client, study, {trial_id: str(version.version) for trial_id, version in versions.items()})


def _make_model(client: MlflowClient, study: StudyRecord) -> None:
    from mlflow.exceptions import MlflowException

    question = str(study.header.get("question", ""))
    try:
        client.create_registered_model(study.name, {names.STUDY_TAG: study.name}, question)
    except MlflowException as error:
        if error.error_code != EXISTS:
            raise


def _versions(client: MlflowClient, name: str) -> dict[str, ModelVersion]:
    """The versions of a registered model by trial id."""
    versions = client.search_model_versions(f"name = '{name}'", max_results=1000)
    return {version.tags[names.TRIAL_TAG]: version for version in versions if names.TRIAL_TAG in version.tags}


def _tag(client: MlflowClient, experiment: str, trial: TrialRecord, version: ModelVersion) -> None:
    """Bring the tags of a version, and of its model, up to the trial, whether or not it is on the front."""
    changed = {name: text for name, text in names.version_tags(trial).items() if version.tags.get(name) != text}
    for model in _logged_models(client, experiment, trial) if changed else []:
        # Models first: as long as the version's tags differ, this is done again
        client.set_logged_model_tags(model.model_id, changed)
    for name, text in changed.items():
        client.set_model_version_tag(version.name, str(version.version), name, text)


def _register(client: MlflowClient, experiment: str, name: str, trial: TrialRecord, folder: Path, run_id: str) -> None:
    """Store the model under the trial's run and make a version of it."""
    from mlflow.entities import LoggedModelOutput

    model = _logged_model(client, experiment, trial, run_id)
    with tempfile.TemporaryDirectory() as scratch:
        write_model(Path(scratch) / "model", folder, model, run_id)
        client.log_model_artifacts(model.model_id, str(Path(scratch) / "model"))
    client.finalize_logged_model(model.model_id, "READY")
    outputs = client.get_run(run_id).outputs  # MLflow refuses the same output twice
    if model.model_id not in {output.model_id for output in (outputs.model_outputs if outputs else [])}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=trial.last_epoch)])
    client.create_model_version(
        name, model.artifact_location, run_id=run_id, tags=names.version_tags(trial), model_id=model.model_id,
        description=names.run_name(trial), await_creation_for=0,
    )  # fmt: skip


def _logged_models(client: MlflowClient, experiment: str, trial: TrialRecord) -> list[LoggedModel]:
    """The models of a trial; MLflow's databases do not keep their ids with a version."""
    return list(client.search_logged_models([experiment], f"tags.{names.TRIAL_TAG} = '{trial.trial_id}'"))


def _logged_model(client: MlflowClient, experiment: str, trial: TrialRecord, run_id: str) -> LoggedModel:
    """The trial's model in MLflow: one that an earlier, broken attempt has begun, or a new one."""
    if models := _logged_models(client, experiment, trial):
        return models[0]
    tags, params = names.version_tags(trial), names.run_params(trial)
    return client.create_logged_model(
        experiment, names.model_name(trial), run_id, tags, params, model_type="classifier"
    )


def write_model(path: Path, folder: Path, model: LoggedModel, run_id: str) -> None:
    """Write the folder that `mlflow.pyfunc.load_model` reads.

    It holds the classifier's files and the name of their loader.

    Args:
        path: the folder to write.
        folder: the classifier's files.
        model: the model in MLflow.
        run_id: the trial's run.
    """
    import numpy as np
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    from lowrank.serving import read_preprocessing  # torch comes with it, so only where there is a model to store

    prepared = read_preprocessing(folder)
    example = prepared.example_batch()
    signature = ModelSignature(
        Schema([TensorSpec(example.dtype, (-1, *example.shape[1:]))]),
        Schema([TensorSpec(np.dtype(np.float32), (-1, len(prepared.classes)))]),
    )
    fields: dict[str, Any] = {"model_id": model.model_id, "run_id": run_id, "artifact_path": model.artifact_location}
    pyfunc.save_model(
        path, loader_module=LOADER, data_path=str(folder), mlflow_model=Model(**fields), signature=signature,
        input_example=example, pip_requirements=_requirements(),
    )  # fmt: skip


def _requirements() -> list[str]:
    """Pins of what the loader needs, without the build (`+cpu`) that only this machine may have."""
    return [f"{package}=={version(package).partition('+')[0]}" for package in PACKAGES]


def _point_aliases(client: MlflowClient, study: StudyRecord, versions: dict[str, str]) -> None:
    """Point the aliases to the present best versions, and delete those that no version should have any more."""
    best = {alias: trial.trial_id for alias, trial in best_trials(study).items()}
    target = {alias: versions[trial_id] for alias, trial_id in best.items() if trial_id in versions}
    present = {alias: str(number) for alias, number in client.get_registered_model(study.name).aliases.items()}
    for alias in present:
        if alias not in target and (alias == "best" or alias.startswith("best-under-")):
            client.delete_registered_model_alias(study.name, alias)
    for alias, number in target.items():
        if present.get(alias) != number:
            client.set_registered_model_alias(study.name, alias, number)
