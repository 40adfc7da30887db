"""Sizes, ranks and examples of single layers, beyond the contract suite."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import given, settings, strategies as st

from lowrank.layers import ConvShape
from lowrank.layers.blocks.shuffle import block_diagonal
from lowrank.layers.registry import make_method
from lowrank.layers.tensor.tensor_train_ops import best_split, full_ranks, multiply_train, split_sizes, tt_svd
from lowrank.layers.tensor.tucker import tucker_ranks

EXAMPLES = [  # i, o, d, sizes, tensor train at 0.26, Tucker at 0.25
    (160, 320, 3, (40, 40, 32), 3856, 4720),
    (640, 640, 3, (80, 80, 64), 31328, 31680),
    (640, 640, 4, (25, 32, 32, 16), 2774, 8316),
]


@pytest.mark.parametrize(("i", "o", "dims", "sizes", "train", "tucker"), EXAMPLES)
def test_sizes_and_parameters_of_the_examples(
    i: int, o: int, dims: int, sizes: tuple[int, ...], train: int, tucker: int
) -> None:
    assert split_sizes(i, o, dims) == sizes
    shape = ConvShape(i, o)
    assert make_method({"name": "tensor_train", "dims": dims, "rank_scale": 0.26}).params(shape) == train
    assert make_method({"name": "tucker", "dims": dims, "rank_scale": 0.25}).params(shape) == tucker


@pytest.mark.parametrize(
    ("i", "o", "dims", "sizes"),
    [
        (64, 64, 2, (64, 64)),
        (64, 64, 3, (16, 16, 16)),
        (64, 64, 6, (4, 4, 4, 4, 4, 4)),
        (128, 256, 2, (256, 128)),  # no integer root: the matrix as it is
        (7, 13, 2, (13, 7)),
        (7, 13, 3, (7, 13, 1)),  # all that is left once the least divisor is greater
        (1, 1, 4, (1, 1, 1, 1)),
        (2, 2, 9, (1, 1, 1, 1, 1, 1, 1, 1, 4)),  # the root rounds to 1, whose smallest divisor is 1
    ],
)
def test_sizes_follow_the_rule(i: int, o: int, dims: int, sizes: tuple[int, ...]) -> None:
    assert split_sizes(i, o, dims) == sizes


@given(i=st.integers(1, 300), o=st.integers(1, 300), dims=st.integers(2, 9))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_sizes_multiply_to_the_matrix(i: int, o: int, dims: int) -> None:
    sizes = split_sizes(i, o, dims)
    assert len(sizes) == dims
    assert prod(sizes) == i * o


@given(i=st.integers(1, 64), o=st.integers(1, 64), dims=st.integers(2, 6), scale=st.floats(0.01, 1.0))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_tucker_ranks_are_attainable(i: int, o: int, dims: int, scale: float) -> None:
    sizes = split_sizes(i, o, dims)
    ranks, train = tucker_ranks(sizes, scale)
    edged = (1, *train, 1)
    for k, (size, rank) in enumerate(zip(sizes, ranks, strict=True)):
        assert 1 <= rank <= size
        assert rank <= edged[k] * edged[k + 1]
        assert edged[k] <= rank * edged[k + 1]
    assert all(rank <= full for rank, full in zip(train, full_ranks(sizes), strict=True))


def test_ranks_round_half_to_even() -> None:
    method = make_method({"name": "tensor_train", "dims": 2, "rank_scale": 0.5})
    assert method.structure(5, 5)[1] == (2,)
    assert method.structure(7, 7)[1] == (4,)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_train_is_multiplied_out_the_same_wherever_it_is_cut(cut: int) -> None:
    torch.manual_seed(0)
    ranks = (1, 2, 3, 2, 1)
    cores = [torch.randn(ranks[k], size, ranks[k + 1], dtype=torch.float64) for k, size in enumerate((3, 4, 5, 2))]
    expected = torch.einsum("aib,bjc,ckd,dle->ijkl", *cores).flatten()
    torch.testing.assert_close(multiply_train(cores, cut), expected)
    assert best_split((3, 4, 5, 2), (2, 3, 2)) in (1, 2, 3)


def test_tt_svd_has_the_ranks_asked_for() -> None:
    dense = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    cores = tt_svd(dense, (6, 5))  # the first rank cannot exceed 4: filled up with zeros
    assert [tuple(core.shape) for core in cores] == [(1, 4, 6), (6, 3, 5), (5, 5, 1)]
    torch.testing.assert_close(multiply_train(cores, 1).view(4, 3, 5), dense.double())


def test_a_fit_to_a_trained_weight_shares_its_norm_between_the_factors() -> None:
    """SGD and weight decay need factors of one scale, not one that has all of the norm."""
    layer = make_method({"name": "tensor_train", "dims": 3, "rank_scale": 0.5}).build(ConvShape(16, 16))
    layer.init_from_dense(100 * torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))
    sizes = [core.detach().square().mean().sqrt().item() for core in layer.cores]
    assert max(sizes) == pytest.approx(min(sizes), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layers", [1, 2, 5])
@pytest.mark.parametrize("channels", [(16, 16), (11, 11), (5, 15), (6, 16), (16, 4), (15, 5), (1, 1), (2, 2)], ids=str)
def test_acdc_by_transforms_is_acdc_by_products(
    channels: tuple[int, int], layers: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make_method({"name": "acdc", "layers": layers}).build(ConvShape(*channels)).to(dtype)
    found = []
    for min_transform_width in (0, 1000):
        monkeypatch.setattr(type(layer), "min_transform_width", min_transform_width)
        weight = layer.compute_weight()
        direction = torch.linspace(-1, 1, weight.numel(), dtype=dtype).view_as(weight)
        found.append((weight, *torch.autograd.grad(weight, list(layer.factors()), direction)))
    tolerance = 1e-9 if dtype == torch.float64 else 0.02
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("channels", [(7, 7), (8, 8)], ids=str)
def test_acdc_by_transforms_compiles_and_has_second_derivatives(
    channels: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make_method({"name": "acdc", "layers": 3}).build(ConvShape(*channels)).double()
    monkeypatch.setattr(type(layer), "min_transform_width", 0)
    torch._dynamo.reset()
    x = torch.randn(2, channels[0], 3, 3, dtype=torch.float64)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))

    def weight(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return layer._transform_edge(first, second, layer.edge)

    factors = [factor.detach().requires_grad_() for factor in (layer.first, layer.second)]
    assert torch.autograd.gradcheck(weight, factors)
    assert torch.autograd.gradgradcheck(weight, factors, fast_mode=True)


def test_block_diagonal_equals_that_of_torch() -> None:
    blocks = torch.randn(3, 4, 5)
    assert torch.equal(block_diagonal(blocks), torch.block_diag(*blocks))
