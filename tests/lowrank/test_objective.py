"""The training loss: its parts, their weights, the teacher beside the student, views that come again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowrank.data import DataSettings, ImageData, default_views, load_data
from lowrank.distill import LiveTeacher, Signals
from lowrank.errors import InputError
from lowrank.layers import Dense
from lowrank.losses import attention_loss, distillation_loss
from lowrank.networks import NetworkSettings, make_network
from lowrank.plan import network_plan
from lowrank.recipes import Recipe
from lowrank.substitute import build_student
from lowrank.training import Trainer

SMALL = NetworkSettings(width=0.125)
TAPS = ("stage1", "stage2", "stage3")
RECIPE = Recipe(epochs=2, batch_size=32, lr=0.05, kd_weight=0.5, attention_weight=1000)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataSettings(train_images=200))


def network(seed: int, width: float = 0.125) -> nn.Module:
    torch.manual_seed(seed)
    return make_network(NetworkSettings(width=width), (1, 8, 8), 10)


def live(width: float = 0.25) -> LiveTeacher:
    return LiveTeacher(network(7, width).to(memory_format=torch.channels_last), TAPS)


def trainer(data: ImageData, recipe: Recipe = RECIPE, **options) -> Trainer:
    plan = network_plan(SMALL, data.image_shape, 10)
    student = build_student(SMALL, plan, Dense(), data.image_shape, 10, 0)
    return Trainer(student, data, recipe, views=default_views("digits"), order_seed=0, **options)


def test_the_loss_is_the_weighted_sum_of_its_parts(data):
    metrics = trainer(data, teacher=live()).train_epoch()
    parts = metrics["loss_cross_entropy"], metrics["loss_kd"], metrics["loss_attention"]
    assert all(part > 0 for part in parts)
    assert metrics["train_loss"] == pytest.approx(0.5 * parts[0] + 0.5 * parts[1] + 1000 * parts[2], rel=1e-5)


def test_the_parts_of_a_step_are_those_of_the_formulas(data):
    run, teacher = trainer(data, teacher=live()), live()
    images, labels, indices = next(iter(run.batches()))
    run.network.train()
    logits, _, parts = run.objective(images, labels, run.objective.ask(images, indices, 0))
    said = teacher.signals(images, indices, 0)
    with torch.no_grad():
        activation, maps = images, []
        for name in ("stem", *TAPS):
            activation = run.network.get_submodule(name)(activation)
            maps.append(activation.square().mean(1))
    assert parts[0].item() == pytest.approx(nn.functional.cross_entropy(logits, labels).item())
    assert parts[1].item() == pytest.approx(distillation_loss(logits, said.logits, 4.0).item(), rel=1e-5)
    assert parts[2].item() == pytest.approx(attention_loss(maps[1:], said.maps).item(), rel=1e-4)


def test_without_weights_a_teacher_is_never_asked(data):
    class Silent:
        def signals(self, images: torch.Tensor, indices: torch.Tensor, slot: int) -> Signals:
            raise AssertionError("asked")

    metrics = trainer(data, Recipe(epochs=1, batch_size=32), teacher=Silent()).train_epoch()
    assert metrics["loss_cross_entropy"] == metrics["train_loss"]
    assert not {"loss_kd", "loss_attention"} & metrics.keys()


def test_weights_without_a_teacher_are_an_error(data):
    with pytest.raises(InputError, match="`kd_weight` and `attention_weight` above 0 need a teacher"):
        trainer(data)


def test_an_unknown_tap_is_an_error(data):
    with pytest.raises(InputError, match="unknown tap 'stage9'"):
        trainer(data, teacher=live(), taps=("stage9",))


def test_views_come_again_after_the_slots_of_a_cache_but_in_another_order(data):
    asked: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    class Listener:
        def signals(self, images: torch.Tensor, indices: torch.Tensor, slot: int) -> Signals:
            asked.append((slot, images.clone(), indices))
            return Signals(torch.zeros(len(images), 10), ())

    recipe = Recipe(epochs=3, batch_size=200, lr=0.05, kd_weight=1.0)
    run = trainer(data, recipe, teacher=Listener(), view_slots=2)
    for _ in range(3):
        run.train_epoch()
    assert [slot for slot, *_ in asked] == [0, 1, 0]
    (_, first, order), (_, second, _), (_, third, other_order) = asked
    assert not torch.equal(order, other_order)
    assert torch.equal(first[order.argsort()], third[other_order.argsort()])
    assert not torch.equal(first[order.argsort()], second[asked[1][2].argsort()])
