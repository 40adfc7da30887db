"""Trial ids never change: those of the kept records, and one of every method in every network."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lowrank.layers.registry import make_method
from lowrank.networks.registry import NetworkSettings
from lowrank.training.recipe import Recipe
from sweeps.records.events import Event
from sweeps.records.model import StudyRecord
from sweeps.records.specification import TrialSpec, identify
from tests.support.journals import fold_events

RESULTS = Path(__file__).resolve().parents[3] / "docs" / "results"
TRIALS = {"tt_schedule": 122, "tt_schedule_finish": 10}  # distinct specifications in each record


def read_kept_journal(name: str) -> list[dict[str, Any]]:
    with gzip.open(RESULTS / f"{name}.journal.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


def header_shape(study: StudyRecord) -> tuple[int, int, int]:
    channels, height, width = study.header.data.image_shape
    return channels, height, width


@pytest.mark.parametrize("name", TRIALS)
def test_kept_trials_keep_their_ids(name: str) -> None:
    events = read_kept_journal(name)
    study = fold_events(events)
    proposed = {event["trial"]: event for event in events if event["event"] == Event.PROPOSED}
    assert len(proposed) == TRIALS[name]
    shape, classes = header_shape(study), study.header.data.classes
    for trial_id, event in proposed.items():
        assert study.trials[trial_id].specification.to_json() == event["specification"]
        assert identify(study.trials[trial_id].specification, shape, classes) == (trial_id, event["point_id"])


def test_a_kept_specification_with_another_seed_is_another_trial_of_the_same_point() -> None:
    study = fold_events(read_kept_journal("tt_schedule"))
    trial = next(trial for trial in study.trials.values() if trial.specification)
    shape, classes = header_shape(study), study.header.data.classes
    reseeded = trial.specification.model_copy(update={"seed": trial.specification.seed + 1})
    trial_id, point_id = identify(reseeded, shape, classes)
    assert trial_id != trial.trial_id
    assert point_id == trial.point_id


def golden_ids() -> list[dict[str, Any]]:
    return json.loads((Path(__file__).resolve().parents[2] / "golden" / "trial_ids.json").read_text())


@pytest.mark.parametrize("network", sorted({case["network"] for case in golden_ids()}))
def test_every_method_keeps_its_id_in_every_network(network: str) -> None:
    for case in golden_ids():
        if case["network"] == network:
            specification = {
                "network": NetworkSettings(name=network).model_dump(mode="json"),
                "method": make_method(case["method"]).model_dump(mode="json"),
                "train": Recipe().model_dump(mode="json"),
                "views": {"shift": 4, "flip": True, "cutout": 8, "seed": 0},
                "data": {"name": "cifar10", "fingerprint": "0123456789abcdef"},
                "seed": 1,
            }
            ids = identify(TrialSpec.parse(specification), (3, 64, 64), 10)
            assert ids == (case["trial_id"], case["point_id"]), case["method"]
