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
def test_formats(precision, device, expected):
    assert working_dtype(Recipe(precision=precision), torch.device(device)) is expected


def step(scale: LossScaler, gradient: float) -> float:
    gradients = [torch.full((3,), gradient)]
    collapsed = scale.unscale(gradients)
    scale.update()
    return collapsed.item()


def test_gradients_come_back_unscaled():
    scale = LossScaler(CPU)
    loss = scale.scaled(torch.tensor(2.0))
    assert loss.item() == 2 * START_SCALE
    gradients = [torch.full((3,), 5 * START_SCALE)]
    scale.unscale(gradients)
    assert gradients[0].tolist() == [5.0, 5.0, 5.0]


def test_the_scale_falls_at_each_overflow_to_its_floor_and_not_below():
    scale = LossScaler(CPU)
    seen = []
    for _ in range(20):
        assert step(scale, math.inf) == (1 if seen and seen[-1] == MIN_SCALE else 0)
        seen.append(scale.scale.item())
    assert seen == [max(MIN_SCALE, START_SCALE / 2 ** (count + 1)) for count in range(20)]
    assert scale.skipped.item() == 20


def test_the_scale_grows_after_a_long_calm():
    scale = LossScaler(CPU)
    for _ in range(GROWTH_STEPS):
        assert step(scale, 1.0) == 0
    assert scale.scale.item() == 2 * START_SCALE


def test_a_skipped_first_step_changes_nothing_and_spoils_no_momentum():
    """Fused SGD would take momentum from memory as it lies there after a first step that was skipped."""
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
def test_half_precision_follows_single_precision(precision):
    plain = small_trainer(small_recipe()).train_epoch()
    half = small_trainer(small_recipe(precision=precision)).train_epoch()
    assert half["train_loss"] == pytest.approx(plain["train_loss"], rel=0.02)
    assert ("loss_scale" in half) == (precision == "float16")
