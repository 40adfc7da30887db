"""Metrics of an epoch against numbers computed by hand."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from lowrank.networks.registry import NetworkSettings, make_network
from lowrank.training.metrics import EvalMeter, GradientMeter, TrainMeter, machine_metrics, stage_of
from tests.support.training import small_recipe, small_trainer

CPU = torch.device("cpu")


def evaluate(logits: torch.Tensor, labels: list[int], batch: int = 3) -> dict[str, float]:
    meter = EvalMeter(logits.shape[1], CPU, len(logits))
    for start in range(0, len(logits), batch):
        meter.add(logits[start : start + batch], torch.tensor(labels[start : start + batch]))
    return meter.read()


def test_training_means_are_over_images():
    """A step of 3 and one of 1: the mean is over the four images."""
    meter = TrainMeter(2, ("loss_cross_entropy", "loss_kd"), CPU)
    right, wrong = torch.eye(3), torch.eye(3)[:1]
    meter.add(0, 1.0, right, torch.arange(3), torch.tensor(1.0), [torch.tensor(2.0), torch.tensor(3.0)])
    meter.add(1, 1.0, wrong, torch.tensor([2]), torch.tensor(4.0), [torch.tensor(8.0), torch.tensor(5.0)])
    assert meter.read() == {"train_loss": 1.75, "loss_cross_entropy": 3.5, "loss_kd": 3.5, "train_error": 25.0}


def test_micro_batches_are_summed_to_their_step():
    meter = TrainMeter(1, ("loss_cross_entropy",), CPU)
    for share, loss in ((0.75, 1.0), (0.25, 5.0)):
        meter.add(0, share, torch.eye(2), torch.arange(2), torch.tensor(loss), [torch.tensor(loss)])
    assert meter.read()["train_loss"] == pytest.approx(2.0)
    assert meter.images == 4


def test_an_incomplete_batch_is_weighted_by_its_images():
    logits = torch.randn(7, 6)
    labels = [0, 1, 2, 3, 4, 5, 0]
    expected = nn.functional.cross_entropy(logits, torch.tensor(labels)).item()
    assert evaluate(logits, labels)["loss"] == pytest.approx(expected, rel=1e-6)
    assert evaluate(logits, labels, batch=7) == pytest.approx(evaluate(logits, labels))


def test_top_1_and_top_5_errors():
    logits = torch.arange(6.0).repeat(4, 1)  # class 5 first, class 0 last
    metrics = evaluate(logits, [5, 4, 1, 0])
    assert (metrics["error"], metrics["error_top5"]) == (75.0, 25.0)
    assert "error_top5" not in evaluate(torch.randn(4, 5), [0, 1, 2, 3])


def test_the_balanced_error_counts_each_class_alike():
    """Class 0 has six images, one of them wrong; class 1 has two, one wrong; class 2 has none."""
    logits = torch.eye(3)[[0, 0, 0, 0, 0, 1, 1, 0]]
    metrics = evaluate(logits, [0, 0, 0, 0, 0, 0, 1, 1])
    assert metrics["error"] == pytest.approx(25.0)
    assert metrics["balanced_error"] == pytest.approx(100 * (1 / 6 + 1 / 2) / 2)


def test_each_process_marks_the_wrong_images_of_its_own_shard():
    logits, labels = torch.eye(3)[[0, 1, 2, 0]], torch.tensor([0, 2, 2, 1])
    shards = []
    for start in (0, 2):
        meter = EvalMeter(3, CPU, 4, start)
        meter.add(logits[start : start + 2], labels[start : start + 2])
        shards.append(meter.wrong_images)
    assert [shard.tolist() for shard in shards] == [[0, 1, 0, 0], [0, 0, 0, 1]]


def test_a_constant_predictor_has_the_error_of_chance_and_no_spread():
    metrics = evaluate(torch.zeros(10, 10), list(range(10)))
    assert metrics["prediction_spread"] == pytest.approx(0, abs=1e-9)
    assert (metrics["error"], metrics["error_top5"]) == (90.0, 50.0)
    same = evaluate(torch.randn(1, 10).repeat(10, 1), list(range(10)))
    assert same["prediction_spread"] == pytest.approx(0, abs=1e-7)


def test_a_certain_predictor_has_the_greatest_spread():
    metrics = evaluate(1000 * torch.eye(10), list(range(10)))
    assert metrics["prediction_spread"] == pytest.approx(math.sqrt(9) / 10)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("resnet9", {"stem", "stage1", "stage2", "stage3", "classifier"}),
        ("darts", {"stem", "cells.5", "cells.12", "cells.19", "classifier"}),
        ("wrn_10_1", {"stem", "stage1", "stage2", "stage3", "norm", "classifier"}),
    ],
)
def test_each_parameter_belongs_to_a_stage_of_its_network(network, expected):
    built = make_network(NetworkSettings(name=network, width=0.125), (3, 32, 32), 10)
    stages = {name: stage_of(built, name) for name, _ in built.named_parameters()}
    assert set(stages.values()) == expected
    if network == "darts":
        assert stages["cells.0.preprocess1.1.weight"] == "cells.5"
        assert stages["cells.6.preprocess1.1.weight"] == "cells.12"


def test_gradient_norms_by_stage_add_up_to_the_total():
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    meter = GradientMeter(network, steps=20)
    for step in range(20):
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, step + 1.0)
        meter.add(step)
    metrics = meter.read()
    steps = torch.tensor([2, 5, 7, 10, 12, 15, 17, 20.0])  # eight of twenty, the last among them
    assert metrics["grad_norm.0"] == pytest.approx(steps.mean().item() * math.sqrt(16), rel=1e-6)
    assert metrics["grad_norm.1"] == pytest.approx(steps.mean().item() * math.sqrt(10), rel=1e-6)
    assert metrics["grad_norm"] == pytest.approx(steps.mean().item() * math.sqrt(26), rel=1e-6)


def test_gradient_norms_leave_out_steps_that_overflow():
    network = nn.Linear(1, 1, bias=False)
    meter = GradientMeter(network, steps=2)
    for step, value in enumerate((math.inf, 3.0)):
        network.weight.grad = torch.full((1, 1), value)
        meter.add(step)
    assert meter.read() == {"grad_norm": 3.0, "grad_norm.weight": 3.0}
    assert meter.read() == {}


def test_a_stage_without_gradients_in_some_steps_is_averaged_over_the_others():
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    meter = GradientMeter(network, steps=2)
    for step in range(2):
        network[0].weight.grad = torch.full((1, 1), 3.0)
        network[1].weight.grad = torch.full((1, 1), 4.0) if step else None  # dropped in the first step
        meter.add(step)
    assert meter.read() == {"grad_norm": 4.0, "grad_norm.0": 3.0, "grad_norm.1": 4.0}


def test_gradient_norms_are_those_before_clipping():
    free = small_trainer(small_recipe(epochs=1, batch_size=200)).train_epoch()
    clipped = small_trainer(small_recipe(epochs=1, batch_size=200, clip_norm=1e-3)).train_epoch()
    assert clipped["grad_norm"] == pytest.approx(free["grad_norm"])
    assert free["grad_norm"] > 1e-2


def test_an_epoch_has_exactly_these_metrics():
    metrics = small_trainer(small_recipe()).train_epoch()
    stages = {f"grad_norm.{stage}" for stage in ("stem", "stage1", "stage2", "stage3", "classifier")}
    assert metrics.keys() == stages | {
        "train_loss", "train_error", "loss_cross_entropy", "val_loss", "val_error", "val_error_top5",
        "prediction_spread", "val_balanced_error", "grad_norm", "lr", "images_per_second", "epoch_seconds",
        "host_memory_mb", "input_seconds", "eval_seconds",
    }  # fmt: skip
    assert all(math.isfinite(value) for value in metrics.values())


def test_host_memory_is_that_of_this_process():
    # Not by how much it grows: what earlier tests freed is used again, and a kernel may take idle pages meanwhile
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("what a process holds is read from Linux's /proc")
    (kibibytes,) = re.findall(r"^VmRSS:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
    assert machine_metrics(CPU)["host_memory_mb"] == pytest.approx(int(kibibytes) * 1024 / 1e6, rel=0.02)
