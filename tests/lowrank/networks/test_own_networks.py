"""Networks of the user's own code whose sizes only an image fixes."""

from __future__ import annotations

import pytest
import torch
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


def test_buffers_that_share_memory_get_memory_of_their_own():
    network = nn.Linear(2, 2)
    network.register_buffer("ones", torch.ones(1).expand(4))
    network.register_buffer("none", None)
    prepared = prepare_network(network, "own", (1, 1, 2))
    prepared.load_state_dict(prepared.state_dict())
    assert prepared.ones.tolist() == [1] * 4


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
        (nn.ParameterList([torch.ones(2, dtype=torch.complex64)]),
         "own:make must have float32 weights, but `0` is complex: keep its real and imaginary part"),
        (nn.ParameterList([torch.ones(1).expand(3)]), "own:make has the parameter `0`, whose entries share memory"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_one_line(network, message):
    with pytest.raises(InputError, match=message):
        prepare_network(network, "own:make", (1, 4, 4))
