"""One step measured: memory, speed, and the largest batch by doubling or halving."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lowrank import fit
from lowrank.data import ViewSettings
from lowrank.fit import Step, largest_batch, measure_step
from lowrank.recipes import Recipe
from lowrank.training import Trainer
from tests.support.teachers import small_data, small_network

CPU = torch.device("cpu")


def make(batch_size: int) -> Trainer:
    return Trainer(small_network(), small_data(), Recipe(batch_size=batch_size), views=ViewSettings(), order_seed=0)


def full(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError)


def limited(most: int) -> Any:
    """A device on which batches up to `most` fit."""

    def measure(make: Any, size: int, device: torch.device) -> Step:
        if size > most:
            raise torch.OutOfMemoryError("full")
        return Step(0.01, min(size, 1000), 10.0)

    return measure


def test_a_step_has_time_speed_and_memory() -> None:
    step = measure_step(make, 32, CPU)
    assert step.images == 32
    assert step.seconds > 0
    assert step.images_per_second == pytest.approx(32 / step.seconds)
    assert step.peak_mb is None or step.peak_mb >= 0


@pytest.mark.parametrize(
    ("most", "start", "found"),
    [
        (100, 32, (64, True)),
        (100, 128, (64, True)),
        (0, 4, (0, True)),
        (10**9, 32, (1000, False)),
        (512, 512, (512, True)),
    ],
)  # fmt: skip
def test_the_largest_batch(monkeypatch: pytest.MonkeyPatch, most: int, start: int, found: tuple[int, bool]) -> None:
    measure = limited(most)
    monkeypatch.setattr(fit, "measure_step", measure)
    first = measure(make, start, CPU) if start <= most else None
    assert largest_batch(make, first, start, torch.device("cuda"), full) == found


def test_a_cpu_is_asked_for_no_more_than_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "measure_step", limited(10**9))
    assert largest_batch(make, Step(0.01, 32, 10.0), 32, CPU, full) == (128, False)
    monkeypatch.setattr(fit, "available_mb", lambda: 20.0)
    assert largest_batch(make, Step(0.01, 32, 10.0), 32, CPU, full) == (32, False)


def test_another_error_is_no_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Step:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(fit, "measure_step", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        largest_batch(make, Step(0.01, 32, 10.0), 32, CPU, full)


def test_probing_goes_on_beyond_an_epoch() -> None:
    steps = make(100).probe()
    for _ in range(3):  # an epoch has two
        next(steps)
