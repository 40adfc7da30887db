"""A worker trains variational layers, removes their groups, and shares one training among budgets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lowrank.data import DataSettings, load_data
from lowrank.io.tensor_file import load_tensors
from sweeps.execution.trainable import TrialTrainable
from sweeps.execution.trial_config import CHECKPOINT_SECONDS, TrialConfig
from sweeps.records.names import CHECKPOINT_FILE, POSTERIORS_FOLDER, TRIALS_FOLDER
from sweeps.records.specification import TrialSpec
from sweeps.trials.build import make_student
from tests.support.training import small_recipe

EPOCHS = 2


def trial_config(folder: Path, trial_id: str, params: int, **method: Any) -> TrialConfig:
    data = load_data(DataSettings(train_images=200))
    recipe = small_recipe(epochs=EPOCHS, optimizer="adamw", lr=0.01, decay="plain").model_dump()
    specification = {
        "network": {"name": "mlp", "hidden": [24, 16]}, "method": {"name": "bayesian", "warmup_epochs": 1, **method},
        "train": recipe, "views": {"shift": 1}, "seed": 0, "budget": {"params": params},
        "data": {**data.settings.model_dump(), "fingerprint": data.fingerprint},
    }  # fmt: skip
    return TrialConfig(
        trial_id=trial_id, specification=TrialSpec.parse(specification), study_dir=str(folder),
        checkpoint_seconds=CHECKPOINT_SECONDS,
    )  # fmt: skip


def steps(config: TrialConfig) -> list[dict[str, Any]]:
    worker, results = TrialTrainable(config.to_tune()), []
    while not results or not results[-1].get("done"):
        results.append(worker.step())
    return results


def test_the_last_epoch_is_that_of_the_network_within_the_budget(tmp_path: Path) -> None:
    config = trial_config(tmp_path, "a", 1000, finetune_epochs=1)
    results = steps(config)
    last = results[-1]
    assert (len(results), last["outcome"]) == (EPOCHS, "completed")
    removed = last["removed"]
    assert removed["counts"]["params"] + removed["counts"]["budget_gap"] == 1000
    assert {"full_val_error", "loss_kl", "kl.hidden.0"} <= last["metrics"].keys()
    state, metadata = load_tensors(tmp_path / TRIALS_FOLDER / "a" / CHECKPOINT_FILE)
    assert json.loads(metadata["removed"]) == removed
    built = config.specification.built(removed)
    network, _ = make_student(built, load_data(DataSettings(train_images=200)))
    weights = {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}
    network.load_state_dict(weights)
    assert sum(value.numel() for value in network.parameters()) == removed["counts"]["params"]


def test_another_budget_takes_the_trained_posterior(tmp_path: Path) -> None:
    steps(trial_config(tmp_path, "a", 1000))
    assert len(list((tmp_path / POSTERIORS_FOLDER).iterdir())) == 1
    shared, alone = steps(trial_config(tmp_path, "b", 500)), steps(trial_config(tmp_path / "other", "b", 500))
    assert len(shared) == 1, "nothing is trained again"
    assert shared[0]["notices"] == ["the posterior is the one that trial a has trained"]
    assert shared[0]["removed"] == alone[-1]["removed"]
    assert shared[0]["metrics"]["val_error"] == alone[-1]["metrics"]["val_error"]
    assert shared[0]["wrong_images"] == alone[-1]["wrong_images"]
    assert len(shared[0]["history"]) == EPOCHS
    assert "images_per_second" not in shared[0]["history"][0]
    # Another removal needs no other training
    assert len(steps(trial_config(tmp_path, "d", 500, min_groups=0.0, finetune_epochs=1))) == 1
    steps(trial_config(tmp_path, "c", 1000, prior="horseshoe"))
    assert len(list((tmp_path / POSTERIORS_FOLDER).iterdir())) == 2, "another prior is another training"


def test_a_posterior_begins_at_the_network_of_another_trial(tmp_path: Path) -> None:
    config = trial_config(tmp_path, "a", 1000)
    content = config.specification.to_json()
    dense = {**content, "method": {"name": "dense"}, "budget": None}
    trained = steps(replace(config, trial_id="d", specification=TrialSpec.parse(dense)))[-1]
    content["start"] = {"from": "trial:d", "fingerprint": "d"}
    first = steps(replace(config, specification=TrialSpec.parse(content)))[0]
    assert first["initial"]["val_error"] == pytest.approx(trained["metrics"]["val_error"])
    assert first["initial"]["val_loss"] == pytest.approx(trained["metrics"]["val_loss"], abs=1e-4)


def test_a_trial_that_ended_before_its_record_was_written_ends_again(tmp_path: Path) -> None:
    config = trial_config(tmp_path, "a", 1000)
    expected = steps(config)[-1]
    again = steps(config)
    assert len(again) == 1
    for name in ("removed", "outcome", "wrong_images"):
        assert again[0][name] == expected[name]
    assert again[0]["metrics"]["val_error"] == expected["metrics"]["val_error"]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
