"""Register the networks on a study's front in MLflow: plain data with a signature and an example, never a pickle.

MLflow calls three things models. A study has one *registered model*, under the study's name. Each trial that was ever
on the front has a *model version* of it, and under its run a *logged model* with the files. The aliases `best` and
`best-under-N` (at most N parameters) point to the versions that are best now, never to a trial that is marked as
broken: the version and the logged model of such a trial have the tag `broken`.

Each function first looks up what the store has already, so that an interrupted call can be repeated.
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

LOADER_MODULE = "lowrank.serving"
LOADER_PACKAGES = ("torch", "torchvision", "numpy", "safetensors", "pydantic")  # needed beside this project
ALREADY_EXISTS = "RESOURCE_ALREADY_EXISTS"  # MLflow's error code
MAX_VERSIONS = 1000  # read of one registered model


def import_serving() -> None:
    """Import what storing a model needs, torch among it; at the end of a study the driver would wait for that."""
    import lowrank.serving  # noqa: F401


def register_front(
    client: MlflowClient, experiment: str, study: StudyRecord, study_dir: Path, runs: dict[str, str]
) -> None:
    """Bring the study's versions, tags and aliases in the registry up to date.

    Nothing happens before the driver has written models of the front, which it does at the end of a search.

    Args:
        client: of the tracking store.
        experiment: the id of the study's experiment.
        study: the records.
        study_dir: the study's folder.
        runs: MLflow's run ids by trial id.
    """
    models = {
        trial.trial_id: (trial, study_dir / MODELS_FOLDER / trial.trial_id)
        for trial in front_first_seeds(study.trials.values())
        if trial.trial_id in runs and (study_dir / MODELS_FOLDER / trial.trial_id).is_dir()
    }
    if not models and not client.search_registered_models(f"name = '{study.name}'"):
        return
    _ensure_registered_model(client, study)
    versions = _versions_by_trial(client, study.name)
    new = [trial_id for trial_id in models if trial_id not in versions]
    for trial_id in new:
        _register_version(client, experiment, study.name, *models[trial_id], runs[trial_id])
    if new:
        versions = _versions_by_trial(client, study.name)
    for trial_id, model_version in versions.items():
        if trial_id in study.trials:
            _update_tags(client, experiment, study.trials[trial_id], model_version)
    _point_aliases(client, study, {trial_id: str(version.version) for trial_id, version in versions.items()})


def _ensure_registered_model(client: MlflowClient, study: StudyRecord) -> None:
    from mlflow.exceptions import MlflowException

    question = study.header.question
    try:
        client.create_registered_model(study.name, {names.STUDY_TAG: study.name}, question)
    except MlflowException as error:
        if error.error_code != ALREADY_EXISTS:
            raise


def _versions_by_trial(client: MlflowClient, name: str) -> dict[str, ModelVersion]:
    """Return the versions of a registered model by trial id."""
    versions = client.search_model_versions(f"name = '{name}'", max_results=MAX_VERSIONS)
    return {version.tags[names.TRIAL_TAG]: version for version in versions if names.TRIAL_TAG in version.tags}


def _update_tags(client: MlflowClient, experiment: str, trial: TrialRecord, version: ModelVersion) -> None:
    """Set the changed tags of a trial's version and logged model, also where the trial has left the front."""
    changed = {name: text for name, text in names.version_tags(trial).items() if version.tags.get(name) != text}
    if not changed:
        return
    # The version's tags are set last: while they differ, an interrupted update is repeated
    for model in _logged_models(client, experiment, trial):
        client.set_logged_model_tags(model.model_id, changed)
    for name, text in changed.items():
        client.set_model_version_tag(version.name, str(version.version), name, text)


def _register_version(
    client: MlflowClient, experiment: str, name: str, trial: TrialRecord, folder: Path, run_id: str
) -> None:
    """Log the classifier in `folder` under the trial's run and make a version of it."""
    from mlflow.entities import LoggedModelOutput

    model = _ensure_logged_model(client, experiment, trial, run_id)
    with tempfile.TemporaryDirectory() as scratch:
        write_pyfunc_model(Path(scratch) / "model", folder, model, run_id)
        client.log_model_artifacts(model.model_id, str(Path(scratch) / "model"))
    client.finalize_logged_model(model.model_id, "READY")
    outputs = client.get_run(run_id).outputs  # MLflow refuses the same output twice
    if model.model_id not in {output.model_id for output in (outputs.model_outputs if outputs else [])}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=trial.last_epoch)])
    client.create_model_version(
        name, model.artifact_location, run_id=run_id, tags=names.version_tags(trial), model_id=model.model_id,
        description=names.run_name(trial), await_creation_for=0,  # the files are there already
    )  # fmt: skip


def _logged_models(client: MlflowClient, experiment: str, trial: TrialRecord) -> list[LoggedModel]:
    """Return the logged models of a trial. They are searched: MLflow's databases store no model id with a version."""
    return list(client.search_logged_models([experiment], f"tags.{names.TRIAL_TAG} = '{trial.trial_id}'"))


def _ensure_logged_model(client: MlflowClient, experiment: str, trial: TrialRecord, run_id: str) -> LoggedModel:
    """Return the logged model of a trial: one that an interrupted call has created, or a new one."""
    if models := _logged_models(client, experiment, trial):
        return models[0]
    tags, params = names.version_tags(trial), names.run_params(trial)
    return client.create_logged_model(
        experiment, names.model_name(trial), run_id, tags, params, model_type="classifier"
    )


def write_pyfunc_model(target: Path, classifier: Path, model: LoggedModel, run_id: str) -> None:
    """Write the folder that `mlflow.pyfunc.load_model` reads.

    It holds the classifier's files and the name of their loader.

    Args:
        target: the folder to write.
        classifier: the folder with the classifier's files.
        model: the logged model.
        run_id: the id of the trial's run.
    """
    import numpy as np
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    from lowrank.serving import read_preprocessing  # imports torch, so only where a model is stored

    preprocessing = read_preprocessing(classifier)
    example = preprocessing.example_batch()
    signature = ModelSignature(
        Schema([TensorSpec(example.dtype, (-1, *example.shape[1:]))]),
        Schema([TensorSpec(np.dtype(np.float32), (-1, len(preprocessing.classes)))]),
    )
    fields: dict[str, Any] = {"model_id": model.model_id, "run_id": run_id, "artifact_path": model.artifact_location}
    pyfunc.save_model(
        target, loader_module=LOADER_MODULE, data_path=str(classifier), mlflow_model=Model(**fields),
        signature=signature, input_example=example, pip_requirements=_requirements(),
    )  # fmt: skip


def _requirements() -> list[str]:
    """Pin the packages that the loader needs, without a local build tag (`+cpu`), which other machines may not have."""
    return [f"{package}=={version(package).partition('+')[0]}" for package in LOADER_PACKAGES]


def _point_aliases(client: MlflowClient, study: StudyRecord, versions: dict[str, str]) -> None:
    """Point the aliases to the versions that are best now, and delete aliases that no longer apply."""
    best = {alias: trial.trial_id for alias, trial in best_trials(study).items()}
    target = {alias: versions[trial_id] for alias, trial_id in best.items() if trial_id in versions}
    current = {alias: str(number) for alias, number in client.get_registered_model(study.name).aliases.items()}
    for alias in current:
        if alias not in target and (alias == "best" or alias.startswith("best-under-")):
            client.delete_registered_model_alias(study.name, alias)
    for alias, number in target.items():
        if current.get(alias) != number:
            client.set_registered_model_alias(study.name, alias, number)
