"""Two processes that share every batch are one training: losses, statistics, evaluation, weights."""

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
from tests.support.process_group import together
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


def trainer(name: str, ranks: DataParallelGroup | None) -> Trainer:
    if name == "dropping":
        torch.manual_seed(3)
        return small_trainer(small_recipe(drop_path=0.4, **FIRST), network=Dropping(), group=ranks)
    fields = RUNS[name]
    teacher = {"teacher": small_teacher(), "taps": TAPS} if name == "everything" else {}
    return small_trainer(
        small_recipe(**fields, **FIRST), method=tensor_train(), decay_ratio=0.1, group=ranks, **teacher
    )


def trained(ranks: DataParallelGroup | None, names: list[str]) -> dict[str, Any]:
    """Of each run: what its second epoch (with dropped paths) tells, the losses of its steps, the weights after it."""
    found: dict[str, Any] = {}
    for name in names:
        run = trainer(name, ranks)
        run.epoch = 1
        metrics = run.train_epoch()
        found[name] = run.step_losses.tolist(), metrics, copied_state(run), run.captured_epoch is None
    return found


def diverging(ranks: DataParallelGroup | None) -> str:
    run = small_trainer(small_recipe(lr=1e12), method=tensor_train(), group=ranks)
    with pytest.raises(DivergedError) as caught:
        run.train_epoch()
    return str(caught.value)


def both(ranks: DataParallelGroup | None) -> tuple[dict[str, Any], str]:
    return trained(ranks, [*RUNS, "dropping"]), diverging(ranks)


@pytest.fixture(scope="module")
def runs() -> tuple[Any, list[Any]]:
    """What one process finds, and what each of two does."""
    return both(None), together(2, both)


@pytest.mark.parametrize("name", [*RUNS, "dropping"])
def test_two_processes_have_the_losses_of_one(runs, name):
    (alone, _), shared = runs
    losses, expected, state, _ = alone[name]
    for found, _ in shared:
        ours, metrics, weights, uncaptured = found[name]
        assert uncaptured
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
    first, second = (found for found, _ in runs[1])
    for name in first:
        for key, tensor in first[name][2].items():
            assert torch.equal(tensor, second[name][2][key]), (name, key)


def test_all_see_a_divergence_at_the_same_step(runs):
    (_, alone), shared = runs
    said = [text for _, text in shared]
    assert "epoch 1, step " in alone
    assert said[0].partition(";")[0] == said[1].partition(";")[0]
    assert said[0].partition("; ")[0].rpartition(" in ")[2] == alone.partition("; ")[0].rpartition(" in ")[2]


def on_cards(ranks: DataParallelGroup | None, precision: str) -> list[float]:
    device = f"cuda:{ranks.index}" if ranks else "cuda:0"
    recipe = small_recipe(**FIRST, precision=precision, engine="plain")
    run = small_trainer(recipe, method=tensor_train(), decay_ratio=0.1, group=ranks, device=device)
    found = run.train_epoch()
    return [*run.step_losses.tolist(), found["val_loss"]]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 3e-2)])
def test_two_cards_have_the_losses_of_one(precision, tolerance):
    alone = on_cards(None, precision)
    for found in together(2, on_cards, precision, cards=True):
        assert found == pytest.approx(alone, rel=tolerance)


def test_a_batch_norm_of_one_process_becomes_one_of_all_with_the_same_tensors():
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


def test_what_draws_for_one_process_alone_is_refused():
    with pytest.raises(InputError, match="Dropout2d draws random numbers for the images of one process alone"):
        DataParallelGroup(0, 2).use_global_batch(nn.Sequential(nn.Dropout2d()))


def test_slices_of_parts_make_up_the_batch():
    order = torch.arange(24)
    ranks = [ProcessShard(index, 3, 2).of_batches(order, 12) for index in range(3)]
    assert ranks[0].tolist() == [0, 1, 6, 7, 12, 13, 18, 19]
    assert sorted(torch.cat(ranks).tolist()) == list(range(24))
    assert [len(ProcessShard(index, 3).of_range(10)) for index in range(3)] == [3, 3, 4]


def test_a_batch_that_cannot_be_shared_evenly_is_refused():
    with pytest.raises(InputError, match="but 32 images in 2 parts cannot be by 3"):
        ProcessShard(0, 3, 2).of_batches(torch.arange(64), 32)


def test_each_slice_holds_the_views_that_the_whole_would():
    from lowrank.data import train_batches

    data, views = small_data(), AugmentationSettings(shift=1, flip=True)
    whole = list(train_batches(data, "cpu", 32, augmentation=views, order_seed=0, epoch=1))
    parts = [
        list(train_batches(data, "cpu", 32, augmentation=views, order_seed=0, epoch=1, shard=ProcessShard(index, 2)))
        for index in range(2)
    ]
    for batch, *halves in zip(whole, *parts, strict=True):
        for tensor, *pieces in zip(batch, *halves, strict=True):
            assert torch.equal(tensor, torch.cat(pieces))
