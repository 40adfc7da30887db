"""The front in MLflow's registry: one version a trial, aliases where they belong, loaded without a pickle."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from lowrank.compression.substitution import build_student
from lowrank.compression.trace import network_plan
from lowrank.data import DataSettings, load_data
from lowrank.layers import TensorTrain
from lowrank.networks.registry import NetworkSettings
from lowrank.serving import save_classifier
from sweeps.records.events import Event
from sweeps.records.fronts import best_trials, front_first_seeds
from sweeps.records.journal import Journal
from sweeps.records.load import fold_journal
from sweeps.records.names import JOURNAL_FILE, MLFLOW_FILE, MODELS_FOLDER
from sweeps.tracking.follower import Follower, catch_up
from sweeps.tracking.mlflow_store import create_database, quiet_mlflow
from sweeps.tracking.uri import default_tracking_uri
from tests.support.models import describe
from tests.support.synthetic_study import Plan, write_study

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred"),  # MLflow's own, when its models are imported
]
SETTINGS, METHOD = NetworkSettings(name="resnet9", width=0.125), TensorTrain(dims=3, rank_scale=0.5)


def carry(folder) -> str | None:
    return catch_up(Follower(folder, default_tracking_uri(folder)))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study whose front has kept its models: all the same small network."""
    quiet_mlflow()
    folder = write_study(tmp_path_factory.mktemp("models") / "study", Plan(trials=8, epochs=2))
    create_database(folder / MLFLOW_FILE, folder)
    data = load_data(DataSettings(name="digits", train_images=200))
    plan = network_plan(SETTINGS, data.image_shape, len(data.classes))
    network = build_student(SETTINGS, plan, METHOD, data.image_shape, len(data.classes), seed=0)
    for trial in front_first_seeds(fold_journal(folder / JOURNAL_FILE).trials.values()):
        save_classifier(folder / MODELS_FOLDER / trial.trial_id, network, data, describe(SETTINGS, METHOD, data))
    assert carry(folder) is None
    return folder


def client(folder):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=default_tracking_uri(folder), registry_uri=default_tracking_uri(folder))


def aliases(folder) -> dict[str, str]:
    """Alias -> the trial that it stands for."""
    registry = client(folder)
    found = registry.get_registered_model("tt_dims").aliases
    return {alias: registry.get_model_version("tt_dims", number).tags["trial_id"] for alias, number in found.items()}


def expected(folder) -> dict[str, str]:
    found = best_trials(fold_journal(folder / JOURNAL_FILE))
    return {alias: trial.trial_id for alias, trial in found.items()}


def test_each_trial_of_the_front_is_a_version_once(study):
    front = {trial.trial_id for trial in front_first_seeds(fold_journal(study / JOURNAL_FILE).trials.values())}
    (study / "tracking.json").unlink()
    assert carry(study) is None
    versions = client(study).search_model_versions("name = 'tt_dims'")
    assert sorted(version.tags["trial_id"] for version in versions) == sorted(front)
    assert aliases(study) == expected(study)


def test_a_model_says_what_it_takes_and_loads_without_a_pickle(study, monkeypatch):
    from mlflow import pyfunc

    def never(*args, **kwargs):
        raise AssertionError("a pickle was read")

    version = client(study).get_model_version_by_alias("tt_dims", "best")
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, never)
    model = pyfunc.load_model(version.source)
    example = model.input_example
    assert (example.dtype, example.shape) == (np.uint8, (1, 1, 8, 8))
    assert model.predict(example).shape == (1, 10)
    assert json.loads(model.metadata.signature.to_dict()["outputs"])[0]["tensor-spec"]["shape"] == [-1, 10]
    stored = {path.name for path in (study / "mlflow_artifacts" / "models").rglob("*") if path.is_file()}
    assert {"MLmodel", "model.safetensors", "images.json", "input_example.json"} <= stored
    assert not [name for name in stored if name.endswith((".pkl", ".pickle", ".pt", ".pth", ".joblib", ".py"))]


def version_of(folder, trial_id: str):
    (found,) = client(folder).search_model_versions(f"name = 'tt_dims' and tag.trial_id = '{trial_id}'")
    return found


def model_of(folder, trial_id: str):
    store = client(folder)
    experiment = store.get_experiment_by_name("tt_dims").experiment_id
    (found,) = store.search_logged_models([experiment], f"tags.trial_id = '{trial_id}'")
    return found


def test_an_alias_leaves_a_broken_trial_and_comes_back(study):
    best = expected(study)["best"]
    number = version_of(study, best).version
    for broken in ("wrong labels", None):
        journal = Journal(study / JOURNAL_FILE)
        journal.append(Event.EXCLUDED, trial=best, broken=broken)
        journal.close()
        assert carry(study) is None
        # the next best of the new front has kept no model, as only a resumed search would
        kept = {trial for trial in expected(study).values() if (study / MODELS_FOLDER / trial).is_dir()}
        assert set(aliases(study).values()) == kept
        assert (best in kept) == (broken is None)
        version = version_of(study, best)
        assert (version.version, version.tags["broken"]) == (number, broken or "no")
        assert model_of(study, best).tags["broken"] == (broken or "no")
    assert aliases(study) == expected(study)
