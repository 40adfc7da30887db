"""Small trainings on the digits: a narrow ResNet-9, a few images, a teacher twice as wide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.compression.budget import Budget, solve
from lowrank.compression.substitution import build_student
from lowrank.compression.trace import network_plan
from lowrank.data import DataSettings, ImageData, default_augmentation, load_data
from lowrank.distillation import CacheKey, CacheSource, Layout, TeacherCache, fill_cache
from lowrank.distillation.teacher import LiveTeacher, default_taps, tap_sizes
from lowrank.layers import Dense, Method, TensorTrain
from lowrank.networks.registry import NetworkSettings, make_network
from lowrank.training.recipe import Recipe
from lowrank.training.trainer import Trainer

SMALL = NetworkSettings(width=0.125)
TAPS = ("stage1", "stage2", "stage3")
RECIPE: dict[str, Any] = {"epochs": 3, "batch_size": 32, "lr": 0.05}


def small_data() -> ImageData:
    """200 training and 200 validation digits."""
    return load_data(DataSettings(train_images=200))


def small_recipe(**fields: Any) -> Recipe:
    return Recipe(**{**RECIPE, **fields})


def small_trainer(
    recipe: Recipe, *, method: Method | None = None, network: nn.Module | None = None, **options: Any
) -> Trainer:
    """A trainer of a small network: dense, of another method, or given."""
    data = small_data()
    if network is None:
        plan = network_plan(SMALL, data.image_shape, 10)
        network = build_student(SMALL, plan, method or Dense(), data.image_shape, 10, 0)
    augmentation = default_augmentation("digits", data.image_shape)
    return Trainer(network, data, recipe, augmentation=augmentation, order_seed=0, **options)


def tensor_train(params: int = 4500) -> Method:
    """A tensor train of the small network with so many parameters at most."""
    return solve(network_plan(SMALL, (1, 8, 8), 10), TensorTrain(dims=3), Budget(params=params))


def small_teacher(device: str = "cpu") -> LiveTeacher:
    """An untrained teacher, the same at every call."""
    torch.manual_seed(7)
    network = make_network(NetworkSettings(width=0.25), (1, 8, 8), 10)
    return LiveTeacher(network.to(device, memory_format=torch.channels_last), TAPS)


def filled_cache(folder: Path, data: ImageData, cache_epochs: int) -> TeacherCache:
    """What an untrained network of the small one's size says about augmented digits, for so many cache epochs."""
    torch.manual_seed(7)
    network, views = make_network(SMALL, data.image_shape, 10), default_augmentation("digits", data.image_shape)
    taps = default_taps(network)
    layout = Layout(len(data.train), 10, tap_sizes(network, taps, data.image_shape))
    key = CacheKey(weights="w", data="d", views=views, taps=taps, layout=layout, precision="float32")
    cache, live = TeacherCache(folder, key), LiveTeacher(network, taps)
    source = CacheSource(teacher=lambda: live, data=data, device="cpu", batch_size=64)
    fill_cache(cache, source, cache_epochs, notify=lambda line: None)
    return cache


def copied_state(run: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in run.state().items()}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """Equal to the bit."""
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name
