"""One step measured: memory, speed, and the largest batch by doubling or halving."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lowrank.data import AugmentationSettings
from lowrank.networks.registry import NetworkSettings
from lowrank.training.engine import memory_probe
from lowrank.training.engine.cuda_graph import CapturedEpoch
from lowrank.training.engine.memory_probe import (
    MemoryProbe,
    largest_by_doubling,
    largest_by_halving,
    measure_step,
    probe_memory,
)
from lowrank.training.engine.step import TrainStep
from lowrank.training.recipe import Recipe
from lowrank.training.trainer import Trainer
from tests.support.teachers import small_data, small_network

CPU = torch.device("cpu")


def smallest_network() -> nn.Module:
    """No test depends on the network."""
    return small_network(settings=NetworkSettings(name="mlp", width=0.25))


def make(batch_size: int) -> Trainer:
    return Trainer(
        smallest_network(),
        small_data(),
        Recipe(batch_size=batch_size),
        augmentation=AugmentationSettings(),
        order_seed=0,
    )


def full(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError)


def test_a_step_is_measured_in_time_speed_and_memory() -> None:
    step = measure_step(make, 32, CPU)
    assert step.images == 32
    assert step.seconds > 0
    assert step.images_per_second == pytest.approx(32 / step.seconds)
    assert step.peak_mb is None or step.peak_mb >= 0


@pytest.mark.parametrize("guess", [1, 2, 3, 9])
@pytest.mark.parametrize(
    ("capacity", "expected"), [(32, (32, True)), (100, (64, True)), (512, (512, True)), (1000, (1000, False))]
)
def test_the_largest_batch_is_found_whatever_is_guessed(capacity: int, expected: tuple[int, bool], guess: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= capacity

    sizes = [32, 64, 128, 256, 512, 1000]
    assert largest_by_doubling(fits, sizes, min(guess, 5)) == expected
    assert len(set(tried)) == len(tried)


def test_a_good_guess_needs_two_tries() -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= 300

    assert largest_by_doubling(fits, [32, 64, 128, 256, 512, 1000], 3) == (256, True)
    assert tried == [256, 512]


def test_a_batch_that_is_not_tried_is_no_limit() -> None:
    assert largest_by_doubling(lambda size: None, [32, 64]) == (32, False)
    assert largest_by_doubling(lambda size: True if size < 128 else None, [32, 64, 128]) == (64, False)
    assert largest_by_doubling(lambda size: False, [32]) == (32, False)


@pytest.mark.parametrize(("capacity", "expected"), [(100, 64), (5, 4), (0, 0)])
def test_a_batch_that_does_not_fit_is_halved(capacity: int, expected: int) -> None:
    assert largest_by_halving(lambda size: size <= capacity, 64) == expected


def limit_memory(monkeypatch: pytest.MonkeyPatch, capacity: int) -> list[int]:
    """Make steps on more than `capacity` images run out of memory; return the sizes that are tried."""
    tried: list[int] = []
    real = TrainStep.backward

    def backward(self: TrainStep, step: int, images: torch.Tensor, *rest: Any) -> None:
        tried.append(len(images))
        if len(images) > capacity:
            raise torch.OutOfMemoryError("full\nof other things")
        real(self, step, images, *rest)

    monkeypatch.setattr(TrainStep, "backward", backward)
    return tried


def test_the_probe_has_a_step_and_the_largest_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_probe, "available_mb", lambda: None)
    tried = limit_memory(monkeypatch, 100)
    probe = probe_memory(make, 32, CPU, full)
    assert probe.step is not None
    assert (probe.reason, probe.largest_batch, probe.limited) == ("", 64, True)
    assert tried == [32, 32, 32, 64, 128]  # the recipe's batch three times, for its time; one step each beyond it


def test_the_probe_gives_the_reason_if_the_batch_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_memory(monkeypatch, 10)
    assert probe_memory(make, 32, CPU, full) == MemoryProbe(step=None, reason="full", largest_batch=8, limited=True)


def test_batches_are_multiples_of_the_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = limit_memory(monkeypatch, 20)

    def make_accumulating(batch_size: int) -> Trainer:
        recipe = Recipe(batch_size=batch_size, accumulate=3)
        return Trainer(smallest_network(), small_data(), recipe, augmentation=AugmentationSettings(), order_seed=0)

    probe = probe_memory(make_accumulating, 32, CPU, full)
    assert (probe.step, probe.largest_batch) == (None, 15)
    assert tried == [32, 15]


@pytest.mark.parametrize("engine", ["plain", "captured"])
def test_only_the_batch_of_the_recipe_is_captured(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    monkeypatch.setattr(memory_probe, "available_mb", lambda: None)
    prepared: list[int] = []
    real = CapturedEpoch._prepare
    monkeypatch.setattr(
        CapturedEpoch,
        "_prepare",
        lambda self, step, batch, signals: (prepared.append(len(batch[0])), real(self, step, batch, signals)),
    )

    def make_captured(batch_size: int) -> Trainer:
        recipe = Recipe(batch_size=batch_size, engine=engine)
        return Trainer(smallest_network(), small_data(), recipe, augmentation=AugmentationSettings(), order_seed=0)

    assert probe_memory(make_captured, 32, CPU, full).largest_batch == 128
    assert prepared == ([32] if engine == "captured" else [])


def test_a_batch_is_not_tried_without_free_memory_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_probe, "_peak", lambda *args: 10.0)
    monkeypatch.setattr(memory_probe, "available_mb", lambda: 30.0)
    probe = probe_memory(make, 32, CPU, full)
    assert (probe.largest_batch, probe.limited) == (128, False)
    monkeypatch.setattr(memory_probe, "available_mb", lambda: 20.0)
    probe = probe_memory(make, 32, CPU, full)
    assert (probe.largest_batch, probe.limited) == (32, False)


def test_other_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(TrainStep, "backward", fail)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        probe_memory(make, 32, CPU, full)


def test_probing_continues_after_an_epoch() -> None:
    steps = make(100).endless_steps()
    for _ in range(3):  # an epoch has two
        next(steps)
