"""No factor starts from a trained weight where it cannot train: a component at zero on every side has no gradient."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from lowrank.layers.base_method import ConvShape
from lowrank.layers.low_rank.bottleneck import BottleneckMap
from lowrank.layers.low_rank.tied_bottleneck import TiedBottleneckMap
from lowrank.layers.low_rank.whole_kernel import KernelChain, WholeKernelMethod
from lowrank.layers.registry import make_method


def seeded(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def loss_of(weight: Tensor) -> Tensor:
    return (weight - seeded(*weight.shape).flip(0)).square().sum()


@pytest.mark.parametrize("dense", [seeded(64, 64), -torch.eye(64)], ids=["random", "negative"])
def test_every_column_of_a_tied_bottleneck_trains(dense: Tensor) -> None:
    layer = TiedBottleneckMap(64, 64, 64)
    assert layer.init_from_dense(dense) < 1 + 1e-3
    loss_of(layer.compute_weight().reshape(64, 64)).backward()
    assert layer.factor.grad is not None
    assert bool((layer.factor.grad.norm(dim=0) > 0).all())


def test_every_channel_of_a_wide_bottleneck_trains_and_the_weight_is_exact() -> None:
    layer, dense = BottleneckMap(32, 64, 48), seeded(64, 32)
    assert layer.init_from_dense(dense) < 1e-5
    loss_of(layer.compute_weight().reshape(64, 32)).backward()
    assert layer.up.grad is not None
    assert bool((layer.up.grad.norm(dim=0) > 0).all())


@pytest.mark.parametrize("kernel", [(3, 3), (3, 1), (1, 1)])
@pytest.mark.parametrize("name", ["svd", "spatial_svd", "tucker2", "cp_kernel", "tensor_train_kernel"])
def test_every_rank_of_a_chain_trains_from_a_weight_of_low_rank(name: str, kernel: tuple[int, int]) -> None:
    method = make_method({"name": name, "rank_scale": 0.7})
    assert isinstance(method, WholeKernelMethod)
    shape = ConvShape(8, 12, kernel)
    dense = torch.einsum("o,i,a,b->oiab", seeded(12), seeded(8), *(seeded(size) for size in kernel))  # of rank 1
    chain = KernelChain(method, shape, method.ranks_at(shape))
    chain.init_from_dense(dense)
    loss_of(chain.dense_weight()).backward()
    slopes = [stage.weight.grad for stage in chain.layers()]
    for before, after in itertools.pairwise(slopes):
        assert before is not None
        assert after is not None
        incoming = before.flatten(1).norm(dim=1)
        depthwise = after.shape[1] == 1 and len(before) > 1
        outgoing = after.flatten(1).norm(dim=1) if depthwise else after.transpose(0, 1).flatten(1).norm(dim=1)
        assert bool((incoming + outgoing > 0).all()), f"{int((incoming + outgoing == 0).sum())} ranks cannot train"


@pytest.mark.parametrize("name", ["bottleneck", "tied_bottleneck"])
def test_the_smallest_scale_that_a_message_names_is_feasible(name: str) -> None:
    for channels in range(1, 2049):
        shape = ConvShape(channels, channels)
        reason = make_method({"name": name, "rank_scale": 1e-6}).infeasible(shape)
        assert reason is not None
        advised = float(reason.rpartition("at least ")[2])
        assert make_method({"name": name, "rank_scale": advised}).infeasible(shape) is None, channels
        assert advised == pytest.approx(1 / channels, rel=1e-5)
