"""The step of each network is measured once in the life of a study."""

from __future__ import annotations

import json

import pytest

from lowrank.compression.trace import network_plan
from lowrank.layers.registry import make_method
from lowrank.networks.registry import NetworkSettings
from sweeps.records import STEP_TIMES_FILE
from sweeps.trials.step_timer import StepTimer

NETWORK = NetworkSettings(name="resnet9", width=0.0625)


@pytest.fixture
def measured(monkeypatch) -> list[object]:
    """The networks that are measured, each in as many milliseconds as were measured before."""
    networks: list[object] = []

    def measure(timer, network, plan, sized) -> float:
        networks.append(sized)
        return float(len(networks))

    monkeypatch.setattr(StepTimer, "measure", measure)
    return networks


def test_a_network_is_measured_once_even_after_a_resume(tmp_path, measured):
    plan = network_plan(NETWORK, (1, 8, 8), 10)
    timer = StepTimer((1, 8, 8), 10, 32)
    timer.use_folder(tmp_path)
    first, second = (make_method({"name": name}) for name in ("dense", "separable"))
    assert [timer.milliseconds(NETWORK, plan, method) for method in (first, second, first)] == [1.0, 2.0, 1.0]
    resumed = StepTimer((1, 8, 8), 10, 32)
    resumed.use_folder(tmp_path)
    assert resumed.milliseconds(NETWORK, plan, second) == 2.0
    assert len(measured) == 2
    assert StepTimer((1, 8, 8), 10, 64).milliseconds(NETWORK, plan, second) == 3.0  # another batch is another step


def test_times_that_were_measured_before_the_folder_existed_are_kept(tmp_path, measured):
    plan = network_plan(NETWORK, (1, 8, 8), 10)
    timer = StepTimer((1, 8, 8), 10, 32)
    timer.use_folder(tmp_path / "study")
    timer.milliseconds(NETWORK, plan, make_method({"name": "dense"}))
    (tmp_path / "study").mkdir()
    timer.milliseconds(NETWORK, plan, make_method({"name": "separable"}))
    assert sorted(json.loads((tmp_path / "study" / STEP_TIMES_FILE).read_text()).values()) == [1.0, 2.0]


def test_a_real_step_takes_some_time():
    plan = network_plan(NETWORK, (1, 8, 8), 10)
    assert StepTimer((1, 8, 8), 10, 4).milliseconds(NETWORK, plan, make_method({"name": "separable"})) > 0
