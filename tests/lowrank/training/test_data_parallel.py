"""Two processes that share every batch have the losses, statistics, evaluations and weights of one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lowrank.data import AugmentationSettings, ProcessShard
from lowrank.errors import InputError
from lowrank.networks.base import DropPath
from lowrank.networks.registry import NetworkSettings, make_network
from lowrank.training.divergence import DivergedError
from lowrank.training.engine.data_parallel import DataParallelGroup, GlobalBatchNorm
from lowrank.training.trainer import Trainer
from tests.support.process_group import run_in_group
from tests.support.training import (
    TAPS,
    copied_state,
    small_data,
    small_recipe,
    small_teacher,
    small_trainer,
    tensor_train,
)

RUNS: dict[str, dict[str, Any]] = {
    "tensor_train": {},
    "everything": {
        "attention_weight": 50.0, "kd_weight": 0.5, "accumulate": 2, "decay": "frobenius", "clip_norm": 1.0,
        "ema_decay": 0.9, "label_smoothing": 0.1,
    },
}  # fmt: skip
FIRST = {"batch_size": 48}  # four steps an epoch


class Dropping(nn.Module):
    """Everything that looks beyond one image, or draws: a batch norm over vectors, dropped paths, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.path, self.dropout = DropPath(), nn.Dropout(0.3)
        self.head = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(512), nn.Linear(512, 10))

    def set_drop_path(self, rate: float) -> None:
        self.path.set_rate(rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        return self.head(self.dropout(x + self.path(x)))


def trainer(name: str, group: DataParallelGroup | None) -> Trainer:
    if name == "dropping":
        torch.manual_seed(3)
        return small_trainer(small_recipe(drop_path=0.4, **FIRST), network=Dropping(), group=group)
    fields = RUNS[name]
    teacher = {"teacher": small_teacher(), "taps": TAPS} if name == "everything" else {}
    return small_trainer(
        small_recipe(**fields, **FIRST), method=tensor_train(), decay_ratio=0.1, group=group, **teacher
    )


def train(group: DataParallelGroup | None, names: list[str]) -> dict[str, Any]:
    """Train the second epoch (which drops paths) of each run: losses of its steps, metrics and state after it."""
    outcome: dict[str, Any] = {}
    for name in names:
        run = trainer(name, group)
        run.epoch = 1
        metrics = run.train_epoch()
        outcome[name] = run.step_losses.tolist(), metrics, copied_state(run), run.captured_epoch is None
    return outcome


def divergence_message(group: DataParallelGroup | None) -> str:
    run = small_trainer(small_recipe(lr=1e12), method=tensor_train(), group=group)
    with pytest.raises(DivergedError) as caught:
        run.train_epoch()
    return str(caught.value)


def train_and_diverge(group: DataParallelGroup | None) -> tuple[dict[str, Any], str]:
    return train(group, [*RUNS, "dropping"]), divergence_message(group)


@pytest.fixture(scope="module")
def runs() -> tuple[Any, list[Any]]:
    """The outcome of one process alone, and that of each of two."""
    return train_and_diverge(None), run_in_group(2, train_and_diverge)


@pytest.mark.parametrize("name", [*RUNS, "dropping"])
def test_two_processes_have_the_losses_of_one(runs, name):
    (alone, _), shared = runs
    losses, expected, state, _ = alone[name]
    for outcome, _ in shared:
        ours, metrics, weights, not_captured = outcome[name]
        assert not_captured
        assert ours == pytest.approx(losses, rel=5e-6)
        assert metrics.keys() == expected.keys()
        for key in ("train_loss", "val_loss", "grad_norm", "prediction_spread"):
            assert metrics[key] == pytest.approx(expected[key], rel=1e-4), key
        assert metrics["train_error"] == pytest.approx(expected["train_error"])
        assert metrics["val_error"] == pytest.approx(expected["val_error"], abs=0.6)  # one image of 200
        assert weights.keys() == state.keys()
        for key, tensor in state.items():
            torch.testing.assert_close(weights[key], tensor, rtol=1e-4, atol=1e-5)


def test_the_processes_have_the_same_weights_to_the_bit(runs):
    first, second = (outcome for outcome, _ in runs[1])
    for name in first:
        for key, tensor in first[name][2].items():
            assert torch.equal(tensor, second[name][2][key]), (name, key)


def test_all_processes_see_a_divergence_at_the_same_step(runs):
    (_, alone), shared = runs
    messages = [text for _, text in shared]
    assert "epoch 1, step " in alone
    assert messages[0].partition(";")[0] == messages[1].partition(";")[0]
    assert messages[0].partition("; ")[0].rpartition(" in ")[2] == alone.partition("; ")[0].rpartition(" in ")[2]


def losses_on_gpus(group: DataParallelGroup | None, precision: str) -> list[float]:
    device = f"cuda:{group.index}" if group else "cuda:0"
    recipe = small_recipe(**FIRST, precision=precision, engine="plain")
    run = small_trainer(recipe, method=tensor_train(), decay_ratio=0.1, group=group, device=device)
    outcome = run.train_epoch()
    return [*run.step_losses.tolist(), outcome["val_loss"]]


@pytest.mark.gpu(2)
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 3e-2)])
def test_two_gpus_have_the_losses_of_one(precision, tolerance):
    alone = losses_on_gpus(None, precision)
    for outcome in run_in_group(2, losses_on_gpus, precision, on_gpus=True):
        assert outcome == pytest.approx(alone, rel=tolerance)


def test_a_global_batch_norm_shares_the_tensors_of_the_norm_that_it_replaces():
    network = make_network(NetworkSettings(width=0.125), (1, 8, 8), 10)
    before = network.state_dict(keep_vars=True)
    DataParallelGroup(0, 2).use_global_batch(network)
    after = network.state_dict(keep_vars=True)
    assert list(before) == list(after)
    assert all(after[name] is tensor for name, tensor in before.items())
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert {type(norm) for norm in norms} == {GlobalBatchNorm}
    network.eval()(torch.zeros(1, 1, 8, 8))  # needs no other process


def test_random_numbers_for_one_process_alone_are_refused():
    with pytest.raises(InputError, match="Dropout2d draws random numbers for the images of one process alone"):
        DataParallelGroup(0, 2).use_global_batch(nn.Sequential(nn.Dropout2d()))


def test_shards_of_micro_batches_add_up_to_the_batch():
    order = torch.arange(24)
    group = [ProcessShard(index, 3, 2).of_batches(order, 12) for index in range(3)]
    assert group[0].tolist() == [0, 1, 6, 7, 12, 13, 18, 19]
    assert sorted(torch.cat(group).tolist()) == list(range(24))
    assert [len(ProcessShard(index, 3).of_range(10)) for index in range(3)] == [3, 3, 4]


def test_a_batch_that_cannot_be_shared_evenly_is_refused():
    with pytest.raises(InputError, match="but 32 images in 2 parts cannot be by 3"):
        ProcessShard(0, 3, 2).of_batches(torch.arange(64), 32)


def test_shards_are_augmented_as_the_whole_batch():
    from lowrank.data import train_batches

    data, augmentation = small_data(), AugmentationSettings(shift=1, flip=True)
    settings: dict[str, Any] = {"augmentation": augmentation, "order_seed": 0, "epoch": 1}
    batches = list(train_batches(data, "cpu", 32, **settings))
    shards = [list(train_batches(data, "cpu", 32, shard=ProcessShard(index, 2), **settings)) for index in range(2)]
    for batch, *halves in zip(batches, *shards, strict=True):
        for tensor, *tensor_halves in zip(batch, *halves, strict=True):
            assert torch.equal(tensor, torch.cat(tensor_halves))
