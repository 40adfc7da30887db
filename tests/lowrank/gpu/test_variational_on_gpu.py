"""Variational layers on a GPU: recorded steps draw the random numbers of the plain loop, and train as it does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lowrank.compression import VariationalSettings, make_variational
from lowrank.layers import Bayesian
from lowrank.networks import make_network
from lowrank.training.engine.recording import CudaGraphRecorder
from lowrank.training.trainer import Trainer
from lowrank.training.variational import CounterNoise
from tests.support.training import SMALL, small_data, small_recipe, small_trainer

pytestmark = pytest.mark.gpu


def variational_trainer(engine: str, prior: str, **fields: Any) -> Trainer:
    torch.manual_seed(0)
    network = make_network(SMALL, small_data().image_shape, 10)
    method = Bayesian(prior=prior, warmup_epochs=2)
    make_variational(network, method)
    recipe = small_recipe(**{"engine": engine, "lr": 0.01, "optimizer": "adamw", "decay": "plain", **fields})
    settings = VariationalSettings(method=method, network=SMALL)
    return small_trainer(recipe, network=network, device="cuda", notify=pytest.fail, variational=settings)


def test_a_graph_draws_the_numbers_of_the_epoch_and_images_that_its_buffers_hold():
    device, draws = torch.device("cuda"), torch.empty(4, 1001, device="cuda")
    indices = torch.tensor([3, 1, 4, 159], device=device)
    noise = CounterNoise(5, 3, device)
    noise.select(indices)

    def draw() -> None:
        draws.copy_(noise.normal(2, 4, 1001, device))

    recorder = CudaGraphRecorder(device, shared=False)
    recorder.warm_up(draw)
    replay = recorder.record(draw)
    for epoch in (0, 7):
        noise.begin_epoch(epoch)
        indices += 1
        replay()
        plain, other = (CounterNoise(5, 3, torch.device(where)) for where in ("cuda", "cpu"))
        for source in (plain, other):
            source.begin_epoch(epoch)
            source.select(indices)
        assert torch.equal(draws, plain.normal(2, 4, 1001, device))
        torch.testing.assert_close(draws.cpu(), other.normal(2, 4, 1001, torch.device("cpu")), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prior", ["normal_jeffreys", "horseshoe"])
@pytest.mark.parametrize("engine", ["captured", "compiled"])
def test_recorded_variational_steps_have_the_plain_loops_losses(engine, prior, monkeypatch):
    monkeypatch.setattr("lowrank.training.engine.notices._GIVEN", set())
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    plain = variational_trainer("plain", prior, precision="float32")
    recorded = variational_trainer(engine, prior, precision="float32")
    for _ in range(2):
        expected, metrics = plain.train_epoch(), recorded.train_epoch()
        assert metrics["kl_weight"] == expected["kl_weight"] > 0
        torch.testing.assert_close(recorded.step_losses, plain.step_losses, rtol=2e-3, atol=2e-3)
    assert recorded.captured_epoch is not None
    assert recorded.captured_epoch.replay is not None


def test_variational_steps_are_recorded_in_bfloat16(monkeypatch):
    monkeypatch.setattr("lowrank.training.engine.notices._GIVEN", set())
    recorded = variational_trainer("auto", "normal_jeffreys")
    assert recorded.step.dtype is torch.bfloat16
    losses = [recorded.train_epoch()["loss_cross_entropy"] for _ in range(3)]
    assert recorded.captured_epoch is not None
    assert recorded.captured_epoch.replay is not None
    assert losses[-1] < losses[0]
