"""One step measured: memory, speed, and the largest batch by doubling or halving."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lowrank.data import AugmentationSettings
from lowrank.training.engine import memory_probe as fit
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


def make(batch_size: int) -> Trainer:
    return Trainer(
        small_network(), small_data(), Recipe(batch_size=batch_size), augmentation=AugmentationSettings(), order_seed=0
    )


def full(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError)


def test_a_step_has_time_speed_and_memory() -> None:
    step = measure_step(make, 32, CPU)
    assert step.images == 32
    assert step.seconds > 0
    assert step.images_per_second == pytest.approx(32 / step.seconds)
    assert step.peak_mb is None or step.peak_mb >= 0


@pytest.mark.parametrize("guess", [1, 2, 3, 9])
@pytest.mark.parametrize(
    ("most", "found"), [(32, (32, True)), (100, (64, True)), (512, (512, True)), (1000, (1000, False))]
)
def test_the_largest_batch_is_found_whatever_is_guessed(most: int, found: tuple[int, bool], guess: int) -> None:
    asked: list[int] = []

    def fits(size: int) -> bool:
        asked.append(size)
        return size <= most

    sizes = [32, 64, 128, 256, 512, 1000]
    assert largest_by_doubling(fits, sizes, min(guess, 5)) == found
    assert len(set(asked)) == len(asked)


def test_a_good_guess_takes_two_tries() -> None:
    asked: list[int] = []

    def fits(size: int) -> bool:
        asked.append(size)
        return size <= 300

    assert largest_by_doubling(fits, [32, 64, 128, 256, 512, 1000], 3) == (256, True)
    assert asked == [256, 512]


def test_what_is_not_tried_limits_nothing() -> None:
    assert largest_by_doubling(lambda size: None, [32, 64]) == (32, False)
    assert largest_by_doubling(lambda size: True if size < 128 else None, [32, 64, 128]) == (64, False)
    assert largest_by_doubling(lambda size: False, [32]) == (32, False)


@pytest.mark.parametrize(("most", "found"), [(100, 64), (5, 4), (0, 0)])
def test_a_batch_that_does_not_fit_is_halved(most: int, found: int) -> None:
    assert largest_by_halving(lambda size: size <= most, 64) == found


def refusing(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Steps on more than `most` images find no memory; the sizes that are tried."""
    tried: list[int] = []
    real = TrainStep.backward

    def backward(self: TrainStep, step: int, images: torch.Tensor, *rest: Any) -> None:
        tried.append(len(images))
        if len(images) > most:
            raise torch.OutOfMemoryError("full\nof other things")
        real(self, step, images, *rest)

    monkeypatch.setattr(TrainStep, "backward", backward)
    return tried


def test_a_fit_has_a_step_and_the_largest_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "available_mb", lambda: None)
    tried = refusing(monkeypatch, 100)
    found = probe_memory(make, 32, CPU, full)
    assert found.step is not None
    assert (found.reason, found.largest_batch, found.limited) == ("", 64, True)
    assert tried == [32, 32, 32, 64, 128]  # the recipe's batch three times, for its time; one step each beyond it


def test_a_fit_names_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, 10)
    assert probe_memory(make, 32, CPU, full) == MemoryProbe(step=None, reason="full", largest_batch=8, limited=True)


def test_batches_are_whole_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = refusing(monkeypatch, 20)

    def cut(batch_size: int) -> Trainer:
        recipe = Recipe(batch_size=batch_size, accumulate=3)
        return Trainer(small_network(), small_data(), recipe, augmentation=AugmentationSettings(), order_seed=0)

    found = probe_memory(cut, 32, CPU, full)
    assert (found.step, found.largest_batch) == (None, 15)
    assert tried == [32, 15]


@pytest.mark.parametrize("engine", ["plain", "captured"])
def test_no_other_batch_is_recorded(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    monkeypatch.setattr(fit, "available_mb", lambda: None)
    prepared: list[int] = []
    real = CapturedEpoch._prepare
    monkeypatch.setattr(
        CapturedEpoch, "_prepare", lambda self, images, *rest: (prepared.append(len(images)), real(self, images, *rest))
    )

    def recorded(batch_size: int) -> Trainer:
        recipe = Recipe(batch_size=batch_size, engine=engine)
        return Trainer(small_network(), small_data(), recipe, augmentation=AugmentationSettings(), order_seed=0)

    assert probe_memory(recorded, 32, CPU, full).largest_batch == 128
    assert prepared == ([32] if engine == "captured" else [])


def test_a_cpu_is_asked_for_no_more_than_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "_peak", lambda *args: 10.0)
    monkeypatch.setattr(fit, "available_mb", lambda: 30.0)
    found = probe_memory(make, 32, CPU, full)
    assert (found.largest_batch, found.limited) == (128, False)
    monkeypatch.setattr(fit, "available_mb", lambda: 20.0)
    found = probe_memory(make, 32, CPU, full)
    assert (found.largest_batch, found.limited) == (32, False)


def test_another_error_is_no_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(TrainStep, "backward", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        probe_memory(make, 32, CPU, full)


def test_probing_goes_on_beyond_an_epoch() -> None:
    steps = make(100).probe()
    for _ in range(3):  # an epoch has two
        next(steps)
