"""A training that diverges raises an error with the epoch, the step and the layer where it began."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank.training.divergence import CHECK_EVERY, DivergedError, NonFiniteLocator
from lowrank.training.engine.precision import MIN_SCALE
from lowrank.training.trainer import Trainer
from tests.support.training import SMALL, assert_same, copied_state, small_data, small_recipe, small_trainer


class Fault(nn.Module):
    """The identity but for one call in training, whose output or gradient is multiplied by `value`."""

    def __init__(self, call: int, where: str, value: float = math.nan):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))  # a buffer, so that a replay restores it
        self.call, self.where, self.value = call, where, value

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        self.calls += 1
        if int(self.calls) != self.call:
            return x
        if self.where == "output":
            return x * self.value
        x = x.clone()
        x.register_hook(lambda gradient: gradient * self.value)
        return x


def faulty_trainer(call: int, where: str, value: float = math.nan, **fields: Any) -> Trainer:
    """Make a trainer whose second stage is faulty at one step."""
    from lowrank.networks.registry import make_network

    torch.manual_seed(0)
    network = make_network(SMALL, small_data().image_shape, 10)
    network.stage2 = nn.Sequential(network.stage2, Fault(call, where, value))
    return small_trainer(small_recipe(**fields), network=network)


def train_until_divergence(run: Trainer, epochs: int = 3) -> DivergedError:
    with pytest.raises(DivergedError) as caught:
        [run.train_epoch() for _ in range(epochs)]
    return caught.value


def test_a_nan_in_an_output_is_traced_to_its_layer():
    error = train_until_divergence(faulty_trainer(8, "output"))
    assert (error.epoch, error.step, error.layer) == (2, 2, "stage2.1")
    assert str(error) == "training loss nan in epoch 2, step 2; first in the output of `stage2.1`"


def test_a_part_of_torchscript_takes_no_hooks_and_is_passed_over():
    class WithScript(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                self.part = torch.jit.trace(nn.Linear(64, 10), torch.zeros(2, 64))
            self.fault = Fault(2, "output")

        def forward(self, x: Tensor) -> Tensor:
            return self.fault(self.part(x.flatten(1)))

    error = train_until_divergence(small_trainer(small_recipe(), network=WithScript()))
    assert (error.epoch, error.step, error.layer) == (1, 2, "fault")


def test_an_infinite_output_is_traced_to_its_layer():
    error = train_until_divergence(faulty_trainer(1, "output", math.inf))
    assert (error.epoch, error.step, error.layer) == (1, 1, "stage2.1")


def test_a_nan_in_a_gradient_is_traced_to_its_own_step():
    """The loss of that step is finite; only the next one is NaN."""
    error = train_until_divergence(faulty_trainer(3, "gradient"))
    assert (error.epoch, error.step) == (1, 3)
    assert error.layer == "stage2.1"
    assert "gradients are not finite (training loss 2." in str(error)


def test_a_nan_in_the_last_gradient_is_found_though_no_loss_is_nan():
    error = train_until_divergence(faulty_trainer(6, "gradient"), epochs=1)
    assert (error.epoch, error.step) == (1, 6)


def test_a_late_step_is_traced_from_the_last_check():
    """The fault comes after the first check, so that the replay starts from the second copy."""
    error = train_until_divergence(faulty_trainer(CHECK_EVERY + 7, "output", batch_size=2), epochs=1)
    assert (error.epoch, error.step, error.layer) == (1, CHECK_EVERY + 7, "stage2.1")


def test_initial_weights_that_are_not_finite_are_found_at_the_first_step():
    run = small_trainer(small_recipe())
    with torch.no_grad():
        run.network.classifier.weight.fill_(math.nan)
    error = train_until_divergence(run)
    assert (error.epoch, error.step, error.layer) == (1, 1, "classifier")


def test_an_exploding_loss_is_a_divergence_though_it_is_finite():
    error = train_until_divergence(small_trainer(small_recipe(lr=1e3)))
    assert error.epoch == 1
    assert error.layer
    assert "has exploded: the mean of 6 steps is over 46.1" in str(error)


def test_a_validation_loss_that_is_not_finite_is_traced_to_its_layer():
    run = small_trainer(small_recipe())
    run.train_epoch()

    def make_nan(*_: Any) -> None:
        run.network.stage1[0][1].running_var.fill_(math.nan)

    run.network.register_forward_pre_hook(make_nan)
    error = train_until_divergence(run, epochs=1)
    assert error.layer == "stage1.0.1"
    assert str(error).startswith("validation loss nan after epoch 2; first in the output of `stage1.0.1`")


def test_checks_change_no_number(monkeypatch):
    def trained() -> dict[str, Tensor]:
        run = small_trainer(small_recipe(batch_size=4))
        run.train_epoch()
        return copied_state(run)

    state = trained()
    monkeypatch.setattr("lowrank.training.trainer.CHECK_EVERY", 3)
    assert_same(state, trained())


def test_float16_skips_steps_that_overflow():
    """At a scale of 2^25 gradients overflow: it is halved until none does."""
    run = small_trainer(small_recipe(precision="float16"))
    assert run.step.scaler is not None
    run.step.scaler.scale.fill_(2.0**25)
    start = run.network.classifier.weight.clone()
    first = run.train_epoch()
    assert 1 <= first["skipped_steps"] <= 5
    assert first["loss_scale"] == 2.0 ** (25 - first["skipped_steps"])
    assert math.isfinite(first["grad_norm"])
    assert not torch.equal(start, run.network.classifier.weight)
    assert run.train_epoch()["skipped_steps"] < first["skipped_steps"]


def test_an_overflow_at_the_least_scale_is_a_divergence():
    run = faulty_trainer(2, "gradient", math.inf, precision="float16")
    assert run.step.scaler is not None
    run.step.scaler.scale.fill_(MIN_SCALE)
    error = train_until_divergence(run)
    assert (error.epoch, error.step, error.layer) == (1, 2, "stage2.1")
    assert "gradients still overflow at the least loss scale (1)" in str(error)


def test_the_locator_leaves_no_hook():
    network = nn.Sequential(nn.Linear(2, 2))
    with NonFiniteLocator(network) as locator:
        network(torch.ones(1, 2))
    assert locator.first == (None, "no layer's output was at fault")
    assert not network[0]._forward_hooks
