"""The choice after a short training: by what a network knows, not by how sure it is of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from lowrank.deployment.finetune import tempered_cross_entropy


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
