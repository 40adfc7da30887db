"""Losses of seeded trainings stay as they were: see tests/golden/README.md.

    python -m tests.lowrank.training.test_golden resnet9_digits | student_losses

writes a file anew, for a change that is meant to move numbers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from lowrank.compression.budget import Budget, solve
from lowrank.compression.substitution import build_student
from lowrank.compression.trace import network_plan
from lowrank.data import DataSettings, default_augmentation, load_data
from lowrank.distillation.teacher import LiveTeacher
from lowrank.layers import Dense, Separable, TensorTrain, Tucker
from lowrank.networks.registry import NetworkSettings, make_network
from lowrank.training.recipe import Recipe
from lowrank.training.trainer import Trainer
from tests.support.training import small_recipe, small_trainer, tensor_train

FOLDER = Path(__file__).parents[2] / "golden"
METHODS = {"dense": Dense(), "separable": Separable(), "tensor_train": TensorTrain(dims=3), "tucker": Tucker(dims=2)}
STEPS, EXACT_STEPS = 50, 10
TAPS = ("stage1", "stage2")  # the third stage is 1 x 1 on the digits: its map is 1, or 0 where nothing is active


def epoch_losses(name: str) -> list[float]:
    """Train a narrow ResNet-9 with one method on 200 digits; mean losses of three epochs."""
    data, settings = load_data(DataSettings(train_images=200)), NetworkSettings(width=0.125)
    plan = network_plan(settings, data.image_shape, 10)
    method = METHODS[name]
    if name in ("tensor_train", "tucker"):
        method = solve(plan, method, Budget(params=4500))
    network = build_student(settings, plan, method, data.image_shape, 10, 0)
    run = Trainer(
        network, data, Recipe(epochs=3, batch_size=32, lr=0.1), order_seed=0,
        augmentation=default_augmentation("digits", data.image_shape),
        decay_ratio=plan.params(method) / plan.params(Dense()),
    )  # fmt: skip
    return [run.train_epoch()["train_loss"] for _ in range(3)]


def student_losses() -> list[float]:
    """Train a tensor train with both kinds of a teacher's signals; losses of 50 steps."""
    torch.manual_seed(7)
    network = make_network(NetworkSettings(width=0.25), (1, 8, 8), 10).to(memory_format=torch.channels_last)
    recipe = small_recipe(epochs=10, lr=0.005, kd_weight=0.5, attention_weight=100)
    run = small_trainer(recipe, method=tensor_train(), teacher=LiveTeacher(network, TAPS), taps=TAPS)
    losses: list[float] = []
    while len(losses) < STEPS:
        run.train_epoch()
        losses += run.step_losses.tolist()
    return losses[:STEPS]


@pytest.mark.parametrize("name", METHODS)
def test_the_losses_of_three_epochs_stay_as_they_were(name: str) -> None:
    assert epoch_losses(name) == pytest.approx(read("resnet9_digits")[name], rel=2e-3)


def test_the_first_losses_of_a_student_stay_as_they_were() -> None:
    """Rounding alone moved a loss by 1e-6 at most in the first ten steps, and by 0.3 % within 50."""
    losses, golden = student_losses(), read("student_losses")
    assert len(golden) == STEPS
    assert losses[:EXACT_STEPS] == pytest.approx(golden[:EXACT_STEPS], rel=1e-4)
    assert losses == pytest.approx(golden, rel=1e-2)
    assert golden[-1] < 0.5 * golden[0]


def read(name: str) -> dict | list:
    return json.loads((FOLDER / f"{name}.json").read_text())


def write(name: str) -> None:
    torch.set_num_threads(1)
    if name == "student_losses":
        losses: dict | list = [round(loss, 6) for loss in student_losses()]
    else:
        losses = {method: [round(loss, 6) for loss in epoch_losses(method)] for method in METHODS}
    (FOLDER / f"{name}.json").write_text(json.dumps(losses, indent=1) + "\n")


if __name__ == "__main__":
    write(sys.argv[1])
