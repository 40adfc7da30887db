"""The short training: what is chosen, and which weights are averaged."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from lowrank.data import DataSettings, load_data
from lowrank.deployment.finetune import _Candidate, _greedy_mean, finetune, mean_weights, tempered_cross_entropy


class Scores(nn.Module):
    """Gives its inputs back, times a factor."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.factor * images.flatten(1)


def scores(images: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (images,), generator=generator)
    noise = torch.randn(images, 4, generator=generator)
    return (noise + 2 * functional.one_hot(labels, 4))[:, :, None, None], labels


def test_confidence_does_not_count():
    images, labels = scores()
    modest, sure = (tempered_cross_entropy(Scores(factor), images, labels) for factor in (1.0, 4.0))
    assert sure == pytest.approx(modest, abs=1e-4)
    plain = functional.cross_entropy(4 * images.flatten(1), labels)
    assert sure < float(plain) - 0.1


def test_the_network_with_more_right_is_better():
    images, labels = scores()
    worse = images + torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    assert tempered_cross_entropy(Scores(1.0), images, labels) < tempered_cross_entropy(Scores(1.0), worse, labels)


def test_it_is_the_least_over_temperatures():
    images, labels = scores()
    least = min(
        float(functional.cross_entropy(images.flatten(1).double() / temperature, labels))
        for temperature in torch.linspace(0.2, 3, 281).tolist()
    )
    assert tempered_cross_entropy(Scores(1.0), images, labels) == pytest.approx(least, abs=1e-5)


class Shift(nn.Module):
    """Adds a parameter to its inputs, and has a counter."""

    def __init__(self, shift: list[float]):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift))
        self.register_buffer("calls", torch.tensor(len(shift)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) + self.shift


def test_weights_are_averaged_and_counters_are_not():
    first, second = Shift([1.0, 2.0]), Shift([3.0, 8.0])
    second.calls.fill_(7)
    mean = mean_weights([first, second])
    assert mean.shift.tolist() == [2.0, 5.0]
    assert int(mean.calls) == 2
    assert first.shift.tolist() == [1.0, 2.0]


def test_running_statistics_are_averaged():
    norms = [nn.BatchNorm2d(2), nn.BatchNorm2d(2)]
    norms[1].running_var.fill_(4.0)
    assert mean_weights(norms).running_var.tolist() == [2.5, 2.5]


def test_the_mean_of_opposite_errors_is_chosen():
    images, labels = scores()
    left, right, far = (Shift(shift) for shift in ([2.0, 0, 0, 0], [-2.0, 0, 0, 0], [0, 9.0, 9.0, 0]))
    candidates = [
        _Candidate(network, (rate,), tempered_cross_entropy(network, images, labels))
        for network, rate in ((far, 0.3), (left, 0.1), (right, 0.2))
    ]
    best = _greedy_mean(candidates, (images, labels))
    assert best is not None
    assert best.rates == (0.2, 0.1)
    assert best.network.shift.tolist() == [0.0, 0.0, 0.0, 0.0]
    assert best.loss == tempered_cross_entropy(best.network, images, labels) < min(one.loss for one in candidates)


def test_a_network_that_no_training_improves_stays_as_it_is():
    """The rate is too small to change any weight: a change of rounding alone could be an improvement."""
    data = load_data(DataSettings(train_images=64))
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    images, labels = data.val.images[:32].float(), data.val.labels[:32]
    trained = finetune(
        network, network, data, network_name="mlp", epochs=1, choosing=(images, labels), rates=[1e-30]
    )  # fmt: skip
    assert trained.rates == ()
    assert torch.equal(trained.network[1].weight, network[1].weight)


@pytest.mark.parametrize(("norm", "highest"), [(nn.Identity(), "0.0006"), (nn.BatchNorm1d(10), "0.04")])
def test_networks_without_batch_norms_have_rates_of_their_own(norm, highest):
    data = load_data(DataSettings(train_images=64))
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), norm)
    choosing = data.val.images[:32].float(), data.val.labels[:32]
    lines: list[str] = []
    finetune(network, network, data, network_name="mlp", epochs=1, choosing=choosing, progress=lines.append)
    assert lines[0].endswith(f"1 of 3, rate {highest}, epoch 1")
