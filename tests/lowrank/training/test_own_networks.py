"""Networks as people bring them are trained, saved and resumed: shared and frozen layers, odd outputs and shapes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lowrank.compression.merging import merge
from lowrank.compression.substitution import build_student
from lowrank.compression.trace import network_plan
from lowrank.io.model_file import load_model, save_model
from lowrank.io.tensor_file import load_tensors, save_tensors
from lowrank.layers import Separable
from lowrank.networks.registry import NetworkSettings
from lowrank.training.trainer import Trainer
from tests.support.own_networks import LinearNetwork
from tests.support.training import small_recipe, small_trainer

IMAGE = (1, 8, 8)


def trainer_of(name: str, **options: object) -> Trainer:
    """A trainer of a network of `tests.support.own_networks` with separable layers."""
    settings = NetworkSettings(name=f"tests.support.own_networks:{name}")
    student = build_student(settings, network_plan(settings, IMAGE, 10), Separable(), IMAGE, 10, seed=0)
    return small_trainer(small_recipe(epochs=2, batch_size=100, **options), network=student)


@pytest.mark.parametrize(
    "name", ["tied_layer", "tied_parameter", "boxed", "lazy", "weight_norm", "class_token", "phases"]
)
def test_a_run_is_saved_and_resumed_to_the_bit(name: str, tmp_path: Path) -> None:
    options = {"ema_decay": 0.9} if name == "tied_layer" else {}
    run, resumed = trainer_of(name, **options), trainer_of(name, **options)
    run.train_epoch()
    save_tensors(tmp_path / "checkpoint", run.state(), {})
    resumed.load_state(load_tensors(tmp_path / "checkpoint")[0])
    assert resumed.train_epoch()["val_loss"] == run.train_epoch()["val_loss"]


@pytest.mark.parametrize("name", ["tied_layer", "phases"])
def test_an_exported_model_of_an_odd_network_is_read_and_merged(name: str, tmp_path: Path) -> None:
    settings = NetworkSettings(name=f"tests.support.own_networks:{name}")
    model = build_student(settings, network_plan(settings, IMAGE, 10), Separable(), IMAGE, 10, seed=0).eval()
    images = torch.linspace(-1, 1, 128).reshape(2, *IMAGE)
    path = tmp_path / "model.safetensors"
    save_model(path, model, network=settings, method=Separable(), image_shape=IMAGE, classes=10)
    loaded = load_model(path, trusted_network=settings.name)
    assert torch.equal(loaded(images), model(images))
    assert torch.allclose(merge(loaded)(images), model(images), atol=1e-5)


class Drops(LinearNetwork):
    """Draws from generators of the host, in training and in evaluation."""

    def last(self, x: Tensor) -> Tensor:
        kept = random.random() < 0.5 if self.training else np.random.random() < 0.5
        return nn.functional.dropout(x, 0.2, training=True) * kept


def test_random_choices_of_any_generator_follow_from_the_seed() -> None:
    networks, measured = [Drops(), Drops()], []
    networks[1].load_state_dict(networks[0].state_dict())
    for seed, network in enumerate(networks):
        run = small_trainer(small_recipe(epochs=2), network=network)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = random.getstate()
        measured.append([run.train_epoch()["val_loss"] for _ in range(2)])
        assert random.getstate() == before  # other code of the process draws from it too
    assert measured[0] == measured[1]


def test_the_moving_average_follows_a_buffer_that_is_replaced(tmp_path: Path) -> None:
    class KeepsMean(LinearNetwork):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(64))
            self.register_buffer("turn", torch.ones(64, dtype=torch.complex64))

        def last(self, x: Tensor) -> Tensor:
            if self.training:
                self.mean = 0.5 * self.mean + 0.5 * x.mean(0)
                self.turn = self.turn * 1j
            return x - self.mean * self.turn.real

    run = small_trainer(small_recipe(epochs=1, ema_decay=0.9), network=KeepsMean())
    evaluated = run.train_epoch()["val_loss"]
    assert run.weights()["network.mean"].norm() > 0
    assert run.network.mean.norm() > 0
    again = small_trainer(small_recipe(epochs=1), network=KeepsMean())
    again.load_state(run.weights())
    assert again.evaluate("val")["loss"] == pytest.approx(evaluated, rel=1e-5)


def test_parameters_of_whole_numbers_and_of_no_numbers_are_trained_beside() -> None:
    class Numbers(LinearNetwork):
        def __init__(self) -> None:
            super().__init__()
            self.power = nn.Parameter(torch.tensor([2]), requires_grad=False)
            self.empty = nn.Parameter(torch.zeros(0))

        def last(self, x: Tensor) -> Tensor:
            return x**self.power

    assert small_trainer(small_recipe(epochs=1), network=Numbers()).train_epoch()["val_loss"] > 0


def test_frozen_layers_do_not_change() -> None:
    run = trainer_of("frozen")
    before = {name: value.clone() for name, value in run.network.named_parameters()}
    run.train_epoch()
    changed = {name for name, value in run.network.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if not name.startswith("2.")}


def test_auxiliary_outputs_of_training_are_ignored_without_a_weight() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
            self.first, self.second = nn.Linear(10, 10), nn.Linear(10, 10)

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
            x = self.body(x)
            return (x, self.first(x), self.second(x)) if self.training else x

    metrics = small_trainer(small_recipe(epochs=1, batch_size=100), network=Auxiliary()).train_epoch()
    assert metrics["val_loss"] > 0


def test_parameters_of_five_dimensions_are_trained() -> None:
    class Volumes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernels = nn.Parameter(torch.randn(10, 1, 1, 8, 8))
            self.conv = nn.Conv2d(1, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("nchw,kczhw->nk", self.conv(x)[:, :1], self.kernels)

    run = small_trainer(small_recipe(epochs=1, batch_size=100, lr=1e-3), network=Volumes())
    assert run.network.conv.weight.is_contiguous(memory_format=torch.channels_last)
    before = run.network.kernels.clone()
    run.train_epoch()
    assert not torch.equal(run.network.kernels, before)


def test_a_stage_that_is_dropped_in_some_steps_is_measured() -> None:
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.extra, self.steps = nn.Linear(64, 10), nn.Linear(10, 10), 0

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x.flatten(1))
            self.steps += self.training
            return self.extra(x) if self.steps % 2 else x

    metrics = small_trainer(small_recipe(epochs=1, batch_size=50), network=Dropped()).train_epoch()
    assert metrics["grad_norm.extra"] > 0
