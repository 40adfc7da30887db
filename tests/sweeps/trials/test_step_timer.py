"""The step of each network is measured once in the life of a study."""

from __future__ import annotations

import json
import os
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import pytest

from lowrank.compression.trace import network_plan
from lowrank.layers.registry import make_method
from lowrank.networks.registry import NetworkSettings
from sweeps.records import STEP_TIMES_FILE
from sweeps.trials import step_timer
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


class EndingProcesses:
    """Stands for pools of one process: the first ends before it answers, the next answers with a number or an error."""

    def __init__(self, *answers: float | Exception):
        self.answers, self.started, self.closed = list(answers), 0, 0

    def __call__(self, *arguments: object) -> EndingProcesses:
        self.started += 1
        return self

    def submit(self, *task: object) -> Future[float]:
        future: Future[float] = Future()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
        return future

    def shutdown(self, wait: bool) -> None:
        self.closed += 1


@pytest.fixture
def measure_on_card(monkeypatch):
    """Measures one network as on a machine with a card, by processes that answer as they are told."""

    def measure(processes: EndingProcesses) -> float:
        monkeypatch.setattr(step_timer, "ProcessPoolExecutor", processes)
        timer = StepTimer((1, 8, 8), 10, 4)
        timer.device = "cuda"
        return timer.milliseconds(NETWORK, network_plan(NETWORK, (1, 8, 8), 10), make_method({"name": "separable"}))

    return measure


def test_a_process_that_ends_is_replaced_once(measure_on_card):
    processes = EndingProcesses(BrokenProcessPool("ended"), 3.0)
    assert measure_on_card(processes) == 3.0
    assert (processes.started, processes.closed) == (2, 1)
    with pytest.raises(BrokenProcessPool):
        measure_on_card(EndingProcesses(BrokenProcessPool("ended"), BrokenProcessPool("ended"), 3.0))


def test_a_process_with_an_error_of_its_card_is_not_used_again(measure_on_card):
    processes = EndingProcesses(RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        measure_on_card(processes)
    assert (processes.started, processes.closed) == (1, 1)


def test_another_process_measures_a_real_step():
    plan = network_plan(NETWORK, (1, 8, 8), 10)
    timer = StepTimer((1, 8, 8), 10, 4)
    task = (NETWORK, plan, make_method({"name": "separable"}), (1, 8, 8), 10, 4, "cpu")
    assert timer._measure_apart(*task) > 0
    assert timer._process is not None
    (process,) = timer._process._processes
    assert process != os.getpid()
    timer._process.shutdown()
