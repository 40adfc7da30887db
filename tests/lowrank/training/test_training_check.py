"""A network of the user's is trained for one step before a study begins; what cannot be trained is one line."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank.errors import InputError
from lowrank.training.training_check import check_training_step
from tests.support import own_networks
from tests.support.own_networks import LinearNetwork

IMAGE = (1, 8, 8)


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


class MakesLayer(LinearNetwork):
    def last(self, x: Tensor) -> Tensor:
        if self.training and not hasattr(self, "extra"):
            self.extra = nn.Linear(64, 64)
        return self.extra(x) if self.training else x


class MakesTable(LinearNetwork):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", None)

    def last(self, x: Tensor) -> Tensor:
        self.table = torch.ones(64) if self.table is None else self.table
        return x * self.table


class ReplacesWeight(LinearNetwork):
    def last(self, x: Tensor) -> Tensor:
        self.head.weight = nn.Parameter(self.head.weight.detach().clamp(-1, 1))
        return x


class WritesUnseen(LinearNetwork):
    """Through `data`, which torch's count of changes leaves out."""

    def last(self, x: Tensor) -> Tensor:
        x.data.mul_(0.5)
        return x


class SavesNoBias(LinearNetwork):
    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        return {key: value for key, value in super().state_dict(*arguments, **options).items() if "bias" not in key}


class RenamesState(LinearNetwork):
    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        return {f"model.{key}": value for key, value in super().state_dict(*arguments, **options).items()}


class SparseTable(LinearNetwork):
    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(2, 64, sparse=True)

    def last(self, x: Tensor) -> Tensor:
        return x + self.places(torch.zeros(len(x), dtype=torch.int64))


class Ends(LinearNetwork):
    def last(self, x: Tensor) -> Tensor:
        raise SystemExit("bye")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (MakesLayer, "makes `extra.bias` while it runs, so that it would not be trained or saved"),
        (MakesTable, "makes `table` while it runs"),
        (ReplacesWeight, "replaces its parameter `head.weight` while it runs"),
        (WritesUnseen, "changes the images that it is given, in place"),
        (SavesNoBias, "leaves its parameter `head.bias` out of `state_dict`"),
        (RenamesState, "cannot load the state that its `state_dict` returns: RuntimeError: Error"),
        (SparseTable, "cannot be trained: the gradient of `places.weight` is sparse"),
        (Ends, "cannot be trained: a step on two images raises SystemExit: bye"),
    ],
)
def test_what_would_be_lost_without_a_word_is_refused(make: type[nn.Module], message: str) -> None:
    with pytest.raises(InputError, match=f"^own {re.escape(message)}") as caught:
        check_training_step(make(), "own", IMAGE, 10)
    assert "\n" not in str(caught.value)


class Counts(LinearNetwork):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def last(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return x * self.calls


class CountsUnsaved(LinearNetwork):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(64), persistent=False)

    def last(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean += x.detach().mean(0)
        return x - self.mean


class KeepsMean(LinearNetwork):
    means = (torch.zeros(64),)

    def last(self, x: Tensor) -> Tensor:
        if self.training:
            self.means = (0.9 * self.means[0] + x.detach().mean(0),)
        return x - self.means[0]


class KeepsSavedMean(LinearNetwork):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("saved", torch.zeros(64))

    def last(self, x: Tensor) -> Tensor:
        if self.training:
            self.saved = 0.9 * self.saved + x.detach().mean(0)
        return x - self.saved


class KeepsLastMean(LinearNetwork):
    """Only evaluation reads it."""

    means = torch.zeros(64)

    def last(self, x: Tensor) -> Tensor:
        if self.training:
            self.means = x.detach().mean(0)
        return x if self.training else x - self.means


class KeepsLastSavedMean(LinearNetwork):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("saved", torch.zeros(64))

    def last(self, x: Tensor) -> Tensor:
        if self.training:
            self.saved = x.detach().mean(0)
        return x if self.training else x - self.saved


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (LinearNetwork, None),
        (KeepsLastSavedMean, None),
        (
            KeepsLastMean,
            "reads a tensor in evaluation that its last step has made (aten.sub.Tensor), which no checkpoint",
        ),
        (KeepsSavedMean, None),
        (Counts, "changes its attribute `calls` in each step, which no checkpoint holds"),
        (CountsUnsaved, "changes its buffer `mean` in each step, which no checkpoint holds"),
        (KeepsMean, "reads a tensor that its last step has made (aten.mul.Tensor) in each step, which no checkpoint"),
    ],
)
def test_what_no_checkpoint_holds_is_said(make: type[nn.Module], words: str | None) -> None:
    lines = check_training_step(make(), "own", IMAGE, 10)
    assert [line.startswith(f"own {words}") for line in lines] == ([] if words is None else [True])


def test_a_weight_that_forward_bounds_is_said() -> None:
    class Bounds(LinearNetwork):
        def last(self, x: Tensor) -> Tensor:
            self.head.weight.data.clamp_(-0.01, 0.01)
            return x

    (line,) = check_training_step(Bounds(), "own", IMAGE, 10)
    assert line.startswith("own changes its parameter `head.weight` while it runs: where that layer is replaced")


@pytest.mark.parametrize("kind", ["parameter", "buffer", "tensor"])
@pytest.mark.parametrize("in_evaluation", [False, True])
def test_a_tensor_that_the_first_images_set_is_said(kind: str, in_evaluation: bool) -> None:
    class Scales(LinearNetwork):
        def __init__(self) -> None:
            super().__init__()
            self.is_set = False
            if kind == "buffer":
                self.register_buffer("scale", torch.ones(()))
            else:
                self.scale = nn.Parameter(torch.ones(())) if kind == "parameter" else torch.ones(())

        def last(self, x: Tensor) -> Tensor:
            if (self.training or in_evaluation) and not self.is_set:
                self.scale.data.copy_(1 / (1 + x.detach().std()))
                self.is_set = True
            return x * self.scale

    (line,) = check_training_step(Scales(), "own", IMAGE, 10)
    assert line.startswith(f"own sets its {kind} `scale` from the first images, and only an attribute says that")


def test_chance_in_evaluation_is_said() -> None:
    class Drops(LinearNetwork):
        def last(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x, 0.5, training=True)

    network, before = Drops(), torch.get_rng_state()
    (line,) = check_training_step(network, "own", IMAGE, 10)
    assert line.startswith("own gives other logits for the same images in evaluation mode")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_whose_outputs_depend_on_no_parameter_is_refused() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.shift = nn.Linear(2, 2), torch.zeros(10, requires_grad=True)

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).sum(1, keepdim=True) + self.shift

    with pytest.raises(InputError, match=r"^own cannot be trained: no parameter of it gets a gradient$"):
        check_training_step(Constant(), "own", IMAGE, 10)
