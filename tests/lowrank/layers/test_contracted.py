"""On a CPU factors are contracted with the activations where that is cheaper; large weights are matrix products."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lowrank.layers import CP, ConvShape, StructuredMap, TensorTrain, Tucker
from lowrank.layers.functional import MIN_MATMUL_ENTRIES, convolve
from lowrank.layers.registry import make_method
from lowrank.layers.tensor.cp import MIN_THREE_STAGE_ENTRIES, CPMap, Stages, cheapest_stages
from lowrank.layers.two_stage import TwoStageMap, best_cut, split_product

LAST = torch.channels_last


def images(channels: int, side: int = 5) -> Tensor:
    found = torch.randn(3, channels, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return found.to(memory_format=LAST).requires_grad_()


@pytest.mark.parametrize(
    ("sizes", "ranks", "out_channels", "expected"),
    [
        ((32, 32, 16), (8, 4), 128, (1, 32)),  # 8 * 128 / 32 = 32, 4 * 1024 / 128 = 32
        ((32, 32, 8), (8, 2), 128, (2, 16)),
        ((80, 80, 64), (21, 16), 640, (2, 160)),  # 21 * 640 / 80 = 168, 16 * 6400 / 640 = 160
        ((12, 8), (5,), 12, (1, 5)),
        ((10, 12), (3,), 12, None),  # outputs and rows divide neither way
    ],
)
def test_the_cut_with_fewest_channels_is_chosen(sizes, ranks, out_channels, expected):
    assert best_cut(sizes, ranks, out_channels) == expected


@pytest.mark.parametrize("rows", [2, 6, 12, 24, 72])
def test_the_two_stages_multiply_to_the_matrix(rows):
    left, right = torch.randn(rows, 3, dtype=torch.float64), torch.randn(3, 12 * 18 // rows, dtype=torch.float64)
    up, down = split_product(left, right, 12)
    assert up.shape[1] == 3 * max(12 // rows, rows // 12)
    torch.testing.assert_close(up @ down, (left @ right).reshape(12, 18))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "method",
    [
        TensorTrain(dims=3, rank_scale=0.2), TensorTrain(dims=2, rank_scale=0.1), Tucker(dims=3, rank_scale=0.2),
        Tucker(dims=4, rank_scale=0.3), CP(dims=3, rank_scale=0.2), CP(dims=2, rank_scale=0.1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("channels", [(64, 128), (128, 128), (128, 64)])
def test_a_map_in_two_stages_equals_its_weight_in_value_and_gradient(method, channels, stride, bias):
    torch.manual_seed(0)
    shape = ConvShape(*channels, stride=(stride, stride), bias=bias)
    layer = method.build(shape).double()
    assert isinstance(layer, TwoStageMap)
    assert layer.cut is not None
    assert not layer.builds_weight(on_gpu=False)
    assert layer.builds_weight(on_gpu=True)
    check_against_weight(layer, images(channels[0]), stride)


@pytest.mark.parametrize(
    ("sizes", "channels", "expected"),
    [
        ((64, 64, 32), (256, 512), Stages(1, 2, 8, 8)),
        ((64, 64, 64), (512, 512), Stages(1, 2, 8, 8)),
        ((32, 32, 32, 8), (512, 512), Stages(1, 3, 16, 64)),
        ((64, 64, 16), (256, 256), None),  # small
        ((50, 64, 32), (320, 320), None),  # 50 divides no 320 outputs
        ((128, 128, 128), (512, 4096), None),  # groups of 4 inputs
        ((512, 512), (512, 512), None),  # no middle
    ],
)
def test_the_cheapest_stages_are_chosen(sizes, channels, expected):
    assert cheapest_stages(sizes, *channels) == expected


def check_against_weight(layer: StructuredMap, x: Tensor, stride: int) -> None:
    """Value and gradients, for images and parameters, are those of a convolution with the layer's own weight."""
    inputs, found = list(layer.parameters()), layer(x)
    expected = functional.conv2d(x, layer.dense_weight(), layer.bias, stride)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, [x, *inputs], direction), torch.autograd.grad(expected, [x, *inputs], direction)
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [(256, 512), (512, 256), (512, 512)])
@pytest.mark.parametrize(("dims", "rank_scale"), [(3, 1.0), (3, 0.6)])
def test_a_large_cp_map_is_contracted_in_three_stages(monkeypatch, channels, dims, rank_scale, stride, bias):
    torch.manual_seed(0)
    shape = ConvShape(*channels, stride=(stride, stride), bias=bias)
    layer = CP(dims=dims, rank_scale=rank_scale).build(shape).double()
    assert isinstance(layer, CPMap)
    assert layer.stages is not None
    assert not layer.builds_weight(on_gpu=False)
    check_against_weight(layer, images(channels[0], side=3), stride)


def test_most_large_cp_maps_have_stages():
    shapes = [(256, 512), (512, 512), (512, 256), (640, 640), (1024, 1024), (2048, 512), (512, 2048)]
    for channels in shapes:
        assert channels[0] * channels[1] >= MIN_THREE_STAGE_ENTRIES
        assert CP(dims=3, rank_scale=1.0).make_map(*channels).stages is not None


def test_two_cheap_stages_are_preferred_and_a_padded_map_uses_its_weight():
    thin = CP(dims=3, rank_scale=0.1).make_map(512, 512)
    assert thin.stages is None
    assert thin.cut is not None
    assert CP(dims=3, rank_scale=1.0).build(ConvShape(512, 512, padding=(1, 1))).stages is None


def test_a_map_of_large_rank_uses_its_weight():
    layer = TensorTrain(dims=3, rank_scale=1.0).make_map(64, 64)
    assert isinstance(layer, TwoStageMap)
    assert layer.cut is None
    assert layer.builds_weight(on_gpu=False)


def test_a_map_that_checkpoints_its_rebuild_uses_its_weight(monkeypatch):
    layer = TensorTrain(dims=3, rank_scale=0.1).make_map(64, 64).double()
    monkeypatch.setattr(type(layer), "halves", None)
    monkeypatch.setattr(type(layer), "compute_weight", lambda self: torch.ones(64, 64, dtype=torch.float64))
    layer.rebuild_checkpoint = True
    assert layer(images(64)).shape == (3, 64, 5, 5)


@pytest.mark.parametrize("bias", [False, True])
def test_a_large_weight_is_a_matrix_product(monkeypatch, bias):
    x, weight = images(256), torch.randn(256, 256, 1, 1, dtype=torch.float64)
    offset = torch.randn(256, dtype=torch.float64) if bias else None
    assert weight.numel() == MIN_MATMUL_ENTRIES
    expected = functional.conv2d(x, weight, offset)
    monkeypatch.setattr(functional, "conv2d", None)
    found = convolve(x, weight, offset)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=LAST)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": (2, 2)}, {"padding": (1, 1)}, {"groups": 2}, {"weight": torch.randn(256, 256, 3, 3)},
        {"x": torch.randn(3, 256, 5, 5)}, {"weight": torch.randn(128, 256, 1, 1)},
    ],
)  # fmt: skip
def test_everything_else_is_a_convolution(monkeypatch, options):
    fields = {"x": images(256).detach().float(), "weight": torch.randn(256, 256, 1, 1)} | options
    if "groups" in fields:
        fields["weight"] = torch.randn(512, 128, 1, 1)
    monkeypatch.setattr(functional, "linear", None)
    torch.testing.assert_close(convolve(**fields), functional.conv2d(fields.pop("x"), fields.pop("weight"), **fields))


def test_a_large_map_equals_its_convolution():
    layer = make_method({"name": "hashed", "bank_scale": 0.1}).build(ConvShape(256, 256)).double()
    assert isinstance(layer, StructuredMap)
    x = images(256)
    torch.testing.assert_close(layer(x), functional.conv2d(x, layer.dense_weight()))
