"""A network of the user's is trained for one step before a study begins; what cannot be trained is one line."""

from __future__ import annotations

import pytest
import torch

from lowrank.errors import InputError
from lowrank.training.training_check import check_training_step
from tests.support import own_networks


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("batch_of_one", "cannot be trained: a step on two images raises RuntimeError: "),
        ("without_gradients", "cannot be trained: a step on two images raises RuntimeError: element 0 of tensors does"),
        ("loss_in_training", r"must return logits \(2, 10\) for two images, alone or first in a tuple, but in training "
                             "mode it returned a dict"),
    ],
)  # fmt: skip
def test_a_network_that_cannot_be_trained_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^own:{name} {message}") as caught:
        check_training_step(getattr(own_networks, name)(10), f"own:{name}", (1, 12, 12), 10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["auxiliary", "log_probabilities", "branch", "class_token", "tied_layer"])
def test_a_network_that_can_be_trained_passes(name: str) -> None:
    check_training_step(getattr(own_networks, name)(10), f"own:{name}", (1, 12, 12), 10)


def test_a_network_whose_outputs_depend_on_no_parameter_is_refused() -> None:
    class Constant(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.shift = torch.nn.Linear(2, 2), torch.zeros(10, requires_grad=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1).sum(1, keepdim=True) + self.shift

    with pytest.raises(InputError, match=r"^own cannot be trained: no parameter of it gets a gradient$"):
        check_training_step(Constant(), "own", (1, 2, 2), 10)
