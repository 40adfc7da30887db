"""Number formats, and float16's loss scale."""

from __future__ import annotations

import math

import pytest
import torch

from lowrank.training.engine.precision import GROWTH_STEPS, MIN_SCALE, START_SCALE, LossScaler, working_dtype
from lowrank.training.recipe import Recipe
from tests.support.training import small_recipe, small_trainer

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        ("auto", "cpu", None), ("auto", "cuda", torch.bfloat16), ("float32", "cuda", None),
        ("bfloat16", "cpu", torch.bfloat16), ("float16", "cuda", torch.float16),
    ],
)  # fmt: skip
def test_the_format_follows_precision_and_device(precision, device, expected):
    assert working_dtype(Recipe(precision=precision), torch.device(device)) is expected


def step(scaler: LossScaler, gradient: float) -> float:
    gradients = [torch.full((3,), gradient)]
    collapsed = scaler.unscale(gradients)
    scaler.update()
    return collapsed.item()


def test_unscale_divides_gradients_by_the_scale():
    scaler = LossScaler(CPU)
    loss = scaler.scaled(torch.tensor(2.0))
    assert loss.item() == 2 * START_SCALE
    gradients = [torch.full((3,), 5 * START_SCALE)]
    scaler.unscale(gradients)
    assert gradients[0].tolist() == [5.0, 5.0, 5.0]


def test_each_overflow_halves_the_scale_down_to_its_minimum():
    scaler = LossScaler(CPU)
    scales = []
    for _ in range(20):
        assert step(scaler, math.inf) == (1 if scales and scales[-1] == MIN_SCALE else 0)
        scales.append(scaler.scale.item())
    assert scales == [max(MIN_SCALE, START_SCALE / 2 ** (count + 1)) for count in range(20)]
    assert scaler.skipped.item() == 20


def test_the_scale_doubles_after_many_steps_without_overflow():
    scaler = LossScaler(CPU)
    for _ in range(GROWTH_STEPS):
        assert step(scaler, 1.0) == 0
    assert scaler.scale.item() == 2 * START_SCALE


def test_a_skipped_first_step_changes_neither_weights_nor_momentum():
    """Without zeros to start from, fused SGD would leave momentum uninitialised after a skipped first step."""
    run = small_trainer(small_recipe(precision="float16"))
    assert run.step.scaler is not None
    before = {name: value.clone() for name, value in run.network.named_parameters()}
    for parameter in run.network.parameters():
        parameter.grad = torch.full_like(parameter, math.inf)
    run.step.begin_epoch()
    run.step.update(0)
    for name, parameter in run.network.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert not run.step.optimizer.state[parameter]["momentum_buffer"].any()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_has_nearly_the_loss_of_single_precision(precision):
    plain = small_trainer(small_recipe()).train_epoch()
    half = small_trainer(small_recipe(precision=precision)).train_epoch()
    assert half["train_loss"] == pytest.approx(plain["train_loss"], rel=0.02)
    assert ("loss_scale" in half) == (precision == "float16")
