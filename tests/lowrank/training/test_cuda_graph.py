"""A captured step gives the losses, weights and state of the plain one, whatever the recipe."""

from __future__ import annotations

import pytest
import torch

from lowrank.compression.budget import Budget, solve
from lowrank.compression.substitution import build_student
from lowrank.compression.trace import network_plan
from lowrank.data import DataSettings, ImageData, default_augmentation, load_data
from lowrank.distillation import CachedTeacher, Teacher, cached_teacher
from lowrank.distillation.teacher import LiveTeacher, default_taps
from lowrank.layers import TensorTrain
from lowrank.networks.registry import NetworkSettings, make_network
from lowrank.training.engine.cuda_graph import choose_engine
from lowrank.training.recipe import Recipe
from lowrank.training.trainer import Trainer
from tests.support.training import filled_cache

SMALL = NetworkSettings(width=0.125)
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
RECIPES = {
    "plain": {},
    "clipped, averaged": {"clip_norm": 0.5, "ema_decay": 0.9},
    "in micro-batches": {"accumulate": 2},
    "frobenius": {"decay": "frobenius"},
    "no momentum": {"momentum": 0.0, "nesterov": False},
    "adamw": {"optimizer": "adamw", "lr": 1e-3},
    "distilled": {"attention_weight": 1000.0, "kd_weight": 0.5},
}


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataSettings(train_images=200))


def trainer(
    data: ImageData, engine: str, *, teacher: Teacher | None = None, cache_epochs: int | None = None, **fields: object
) -> Trainer:
    plan = network_plan(SMALL, data.image_shape, 10)
    method = solve(plan, TensorTrain(dims=3), Budget(params=4500))
    network = build_student(SMALL, plan, method, data.image_shape, 10, 0)
    torch.manual_seed(1)
    teacher_network = make_network(SMALL, data.image_shape, 10).to(DEVICE)
    recipe = Recipe(epochs=3, batch_size=32, engine=engine, **{"lr": 0.1, **fields})
    return Trainer(
        network, data, recipe, augmentation=default_augmentation("digits", data.image_shape), order_seed=0,
        device=DEVICE, teacher=teacher or LiveTeacher(teacher_network, default_taps(teacher_network)),
        cache_epochs=cache_epochs,
    )  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_captured_step_trains_as_the_plain_one(data, name):
    plain, captured = trainer(data, "plain", **RECIPES[name]), trainer(data, "captured", **RECIPES[name])
    for _ in range(2):
        expected, metrics = plain.train_epoch(), captured.train_epoch()
        timeless = [key for key in expected if not key.endswith(("seconds", "_second", "_mb", "utilisation"))]
        tolerance = 0.02 if ON_GPU else 1e-6
        assert {key: metrics[key] for key in timeless} == pytest.approx(
            {key: expected[key] for key in timeless}, rel=tolerance
        )
    state = captured.state()
    if not ON_GPU:
        for key, tensor in plain.state().items():
            torch.testing.assert_close(state[key], tensor, rtol=1e-5, atol=1e-7, msg=key)


def test_a_resumed_captured_run_is_the_uninterrupted_one(data):
    whole, cut, resumed = (trainer(data, "captured", ema_decay=0.9) for _ in range(3))
    for _ in range(2):
        whole.train_epoch()
    cut.train_epoch()
    resumed.train_epoch()  # captures a step on tensors that load_state then replaces
    resumed.load_state({name: tensor.clone() for name, tensor in cut.state().items()})
    resumed.train_epoch()
    for key, tensor in whole.state().items():
        torch.testing.assert_close(resumed.state()[key], tensor, rtol=0, atol=0 if not ON_GPU else 1e-2, msg=key)


@pytest.mark.parametrize("slots", [2, 3], ids=["two cache epochs on the device", "all of them"])
def test_captured_steps_gather_what_the_cache_holds_over_fifty_steps(data, slots, tmp_path, monkeypatch):
    """Nine epochs of three cache epochs: each is read from its slot, where others replace it meanwhile."""
    monkeypatch.setattr(cached_teacher, "MAX_PRELOADED_BYTES", 0 if slots == 2 else 10**9)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    cache, losses = filled_cache(tmp_path, data, 3), []
    for engine, preload in (("captured", True), ("plain", True), ("plain", False)):
        teacher = CachedTeacher(cache, data, pytest.fail, device=DEVICE, preload=preload)
        fields = {"precision": "float32", "attention_weight": 100.0, "kd_weight": 0.5}
        run = trainer(data, engine, teacher=teacher, cache_epochs=3, lr=0.05, **fields)
        for _ in range(9):
            run.train_steps()
            losses.append(run.step_losses.clone())
            run.epoch += 1
        assert not preload or teacher._table.count == slots
        assert engine == "plain" or not ON_GPU or run.captured_epoch.replay is not None
        if ON_GPU and engine == "plain":
            break  # rows of a file are read by an index on the host
    runs = torch.cat(losses).view(-1, 9 * run.steps_per_epoch)[:, :50]
    assert len(runs[0]) == 50
    for other in runs[1:]:
        torch.testing.assert_close(runs[0], other, rtol=2e-3 if ON_GPU else 1e-6, atol=2e-3 if ON_GPU else 1e-6)


@pytest.mark.parametrize(
    ("engine", "epochs", "on_gpu", "expected"),
    [
        ("auto", 100, True, "compiled"), ("auto", 99, True, "captured"), ("auto", 100, False, "plain"),
        ("plain", 100, True, "plain"), ("captured", 100, False, "captured"), ("compiled", 1, True, "compiled"),
    ],
)  # fmt: skip
def test_auto_compiles_long_trials_on_a_gpu(engine, epochs, on_gpu, expected):
    assert choose_engine(Recipe(engine=engine, epochs=epochs), 50, on_gpu) == expected
