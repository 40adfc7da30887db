"""Networks of the user's own code whose sizes only an image fixes."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from lowrank.errors import InputError
from lowrank.networks.own_networks import prepare_network


class Unused(nn.Module):
    """It runs its second layer in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.extra = nn.LazyLinear(3), nn.LazyLinear(3)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.head(images.flatten(1))
        return logits + self.extra(images.flatten(1)) if self.training else logits


def test_lazy_layers_get_the_sizes_of_the_images():
    network = prepare_network(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), "own:make", (1, 4, 4))
    assert network.get_parameter("1.weight").shape == (3, 16)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(3)),
         r"the lazy layers of own:make cannot take an image of \(1, 4, 4\): RuntimeError: Given groups=1"),
        (Unused(), r"own:make does not run `extra\.\w+` in evaluation, so its size stays unknown; give it a size"),
        (nn.Flatten(), "own:make has no parameters, so there is nothing to train"),
        (nn.Linear(2, 2).double(), "own:make must have float32 weights, but `weight` is float64"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_one_line(network, message):
    with pytest.raises(InputError, match=message):
        prepare_network(network, "own:make", (1, 4, 4))
