"""What a caller of `compress_network` may give, and how the rest is refused."""

from __future__ import annotations

from itertools import repeat

import pytest
import torch
from torch import Tensor, nn

import lowrank
from lowrank.deployment.given_images import check_exportable, first_images, halve_by_class
from lowrank.errors import InputError

IMAGES = torch.rand(24, 3, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 4
CPU = torch.device("cpu")


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)
    ).eval()


def with_one(value: float) -> Tensor:
    images = IMAGES.clone()
    images[3, 0, 0, 0] = value
    return images


def test_no_more_images_are_read_than_needed() -> None:
    images, labels = first_images(repeat((IMAGES, LABELS)), 30, CPU)
    assert images.shape == (30, 3, 6, 6)
    assert labels is not None
    assert torch.equal(labels, torch.cat([LABELS, LABELS])[:30])


def test_both_halves_have_every_class_where_the_images_lie_class_by_class() -> None:
    labels = torch.tensor([0] * 5 + [1] * 4 + [2] * 2)
    choosing, reporting = halve_by_class(labels)
    assert labels[choosing].bincount().tolist() == [2, 2, 1]
    assert labels[reporting].bincount().tolist() == [3, 2, 1]
    assert torch.equal(torch.cat([choosing, reporting]).sort().values, torch.arange(11))
    assert torch.equal(choosing, choosing.sort().values)


@pytest.mark.parametrize("labels", [[0], [0, 1], [2, 0, 1], [0, 0, 0], [0, 1, 1, 1]])
def test_halves_of_any_labels_have_all_images_once_and_no_more_than_one_image_apart(labels: list[int]) -> None:
    choosing, reporting = halve_by_class(torch.tensor(labels))
    assert len(choosing) == len(labels) // 2
    assert sorted([*choosing.tolist(), *reporting.tolist()]) == list(range(len(labels)))


def test_labels_that_a_batch_lacks_are_left_out() -> None:
    assert first_images([(IMAGES, LABELS), IMAGES], 30, CPU)[1] is None
    assert first_images([[IMAGES, LABELS]], 24, CPU)[1] is not None, "a DataLoader yields lists"


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (IMAGES, "but got a Tensor; put one batch into a list"),
        (None, "but got a NoneType"),
        ((IMAGES, LABELS), r"all images of one shape, but got \(3, 6, 6\) and \(\)"),
        ([{"image": IMAGES}], "but got a dict"),
        ([IMAGES.numpy()], "but got a ndarray"),
        ([(IMAGES,)], "but got a tuple of 1"),
        ([IMAGES, torch.rand(9, 3, 8, 8)], r"all images of one shape, but got \(3, 6, 6\) and \(3, 8, 8\)"),
        ([(IMAGES, LABELS[:3])], r"labels must be one class number an image, but got \(3,\)"),
        ([(IMAGES, nn.functional.one_hot(LABELS))], r"labels must be one class number an image, but got \(24, 4\)"),
        ([with_one(float("nan"))], "the images must be finite"),
        ([with_one(float("inf"))], "the images must be finite"),
    ],
)
def test_other_batches_are_refused(batches, message) -> None:
    with pytest.raises(InputError, match=message):
        first_images(batches, 64, CPU)


def nan_weight() -> nn.Module:
    network = small_network()
    with torch.no_grad():
        network.get_parameter("2.weight")[0, 0, 0, 0] = float("nan")
    return network


class Noisy(nn.Module):
    """Draws random numbers in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small_network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x + 0.1 * torch.randn_like(x))


class Overflows(Noisy):
    """Gives infinite logits for one image."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) / (x[:, :1, 0, 0] != IMAGES[self.index, :1, 0, 0])


class KeepsByHook(nn.Module):
    """A hook that refers to the network; that of a copy fills the original."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.kept = small_network(), {}
        self.inner[0].register_forward_hook(
            lambda module, inputs, output: self.kept.update(mean=output.mean((1, 2, 3)))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + self.kept["mean"][:, None]


class BoundsWeight(nn.Module):
    """Gives its weight other memory each time it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small_network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.inner[2].weight.data = torch.renorm(self.inner[2].weight.data, p=2, dim=0, maxnorm=0.5)
        return self.inner(x)


class LastOnly(nn.Module):
    """A single linear map, which gives the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 6 * 6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.flatten(1))


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (Noisy(), {}, "Noisy must give the same logits for the same images each time in evaluation mode, but they"),
        (
            KeepsByHook(),
            {},
            "a copy of KeepsByHook must give the logits of the original, but does not: does one of its",
        ),
        (BoundsWeight(), {}, "BoundsWeight gives its parameter `inner.2.weight` other memory while it runs"),
        (Overflows(3), {}, "Overflows must give finite logits, but for 1 of 16 images some are NaN or infinity"),
        (Overflows(20), {}, "Overflows must give finite logits, but for 1 of .* images some are NaN or infinity"),
        (
            LastOnly(),
            {},
            r"nothing can be made smaller: the largest is `head` \(linear, 436 parameters\): it gives the",
        ),
        (small_network(), {"keep": "*"}, r"nothing can be made smaller: .*: kept by name \(\*\)"),
        (None, {}, "the network must be an nn.Module, but got NoneType"),
        (nn.Flatten(), {}, "Flatten has no parameters, so there is nothing to compress"),
        (nan_weight(), {}, "the network's weights must be finite, but `2.weight` holds NaN or infinity"),
        (small_network(), {"calibration": 0}, "calibration must be a number of images, at least 2, but got 0"),
        (small_network(), {"calibration": 1.5}, "calibration must be a number of images, at least 2, but got 1.5"),
        (small_network(), {"only": []}, "only must name a layer or be None"),
        (small_network(), {"validation": (IMAGES[:0], LABELS[:0])}, "validation must be a pair of images and labels"),
        (small_network(), {"validation": (IMAGES, LABELS + 9)}, "labels must be class numbers from 0 to 3, but got 9"),
    ],
)
def test_other_networks_and_settings_are_refused(network, options, message) -> None:
    with pytest.raises(InputError, match=message):
        lowrank.compress_network(network, [IMAGES], **options)


def test_one_pattern_may_stand_without_a_list() -> None:
    kept = lowrank.compress_network(small_network(), [IMAGES], 0.9, method="svd", keep="2*")
    assert [layer.name for layer in kept.layers if layer.reason == "kept by name (2*)"] == ["2"]


def test_a_caller_without_gradients_changes_nothing() -> None:
    network = small_network()
    plain = lowrank.compress_network(network, [IMAGES], method="tucker2")
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert lowrank.compress_network(network, [IMAGES], method="tucker2").params == plain.params


def test_an_export_does_not_compare_copies_of_a_network_whose_logits_are_left_to_chance() -> None:
    check_exportable(Noisy(), IMAGES)
    check_exportable(small_network(), IMAGES)
