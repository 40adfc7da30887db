"""Kernels of this project's own give torch's values and gradients, alone and in a rewritten network.

They need Triton and a GPU; with TRITON_INTERPRET=1 they run, slowly, on a CPU.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lowrank.kernels import rewrite as rewriting
from lowrank.kernels.rewrite import rewrite
from lowrank.methods import make_method
from lowrank.networks import NetworkSettings
from lowrank.plan import network_plan
from lowrank.substitute import build_student

pytest.importorskip("triton", reason="the kernels need Triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not (torch.cuda.is_available() or INTERPRETED):
    pytest.skip("the kernels need a GPU", allow_module_level=True)

from lowrank.kernels.depthwise import depthwise  # noqa: E402
from lowrank.kernels.norm import norm  # noqa: E402
from lowrank.kernels.pointwise import fits, pointwise_norm, product_with_statistics  # noqa: E402
from tests.benchmarks.gpu_kernels import RESULTS, Layer, distances  # noqa: E402

DEVICE = "cpu" if INTERPRETED else "cuda"


def images(*shape: int, spread: float = 1.0, centre: float = 0.0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * spread + centre
    return x.to(DEVICE, memory_format=torch.channels_last).requires_grad_()


def compare(found: Tensor, wanted: Tensor, inputs: tuple[Tensor, ...], near: float = 1e-4) -> None:
    torch.testing.assert_close(found, wanted, rtol=near, atol=near)
    direction = torch.randn_like(wanted)
    pairs = zip(
        torch.autograd.grad(found, inputs, direction), torch.autograd.grad(wanted, inputs, direction), strict=True
    )  # fmt: skip
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=near, atol=near * float(theirs.abs().max()))


@pytest.mark.parametrize("shape", [(2, 16, 6, 5), (2, 20, 8, 8), (1, 80, 4, 4), (2, 8, 1, 1), (1, 8, 3, 32)], ids=str)
def test_depthwise(shape):
    x, weight = images(*shape), torch.randn(shape[1], 1, 3, 3, device=DEVICE, requires_grad=True)
    found = depthwise(x, weight)
    assert found.is_contiguous(memory_format=torch.channels_last)
    with torch.backends.cudnn.flags(allow_tf32=False):
        compare(found, functional.conv2d(x, weight, padding=1, groups=shape[1]), (x, weight))


@pytest.mark.parametrize("shape", [(2, 16, 6, 10), (3, 20, 8, 8)], ids=str)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("adds", [False, True])
def test_norm(shape, relu, pool, adds):
    x, weight, bias = images(*shape, spread=2, centre=5), *torch.randn(2, shape[1], device=DEVICE)
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    wanted = functional.batch_norm(x, None, None, weight, bias, training=True)
    wanted = functional.relu(wanted) if relu else wanted
    wanted = functional.max_pool2d(wanted, 2) if pool else wanted
    residual = torch.randn_like(wanted).requires_grad_() if adds else None
    wanted = wanted if residual is None else wanted + residual
    found, mean, variance = norm(x, weight, bias, residual, 1e-5, relu, pool)
    torch.testing.assert_close(mean, x.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(variance, x.var((0, 2, 3), correction=0), rtol=1e-3, atol=1e-4)
    compare(found, wanted, (x, weight, bias, *(() if residual is None else (residual,))))


@pytest.mark.parametrize(
    ("channels", "outs", "size", "relu", "pool", "adds"),
    [
        (8, 16, (6, 10), True, False, True), (8, 16, (6, 10), False, True, True), (8, 16, (6, 10), True, True, False),
        (64, 128, (2, 2), True, True, False), (128, 64, (2, 3), True, False, True),
        (128, 256, (4, 4), True, True, True), (16, 8, (1, 1), False, False, False),
    ],
)  # fmt: skip
def test_a_map_and_its_norm(channels, outs, size, relu, pool, adds):
    if outs > 64 and not INTERPRETED:
        pytest.skip("in float32 no card has room for it; tests.benchmarks.gpu_kernels is of bfloat16")
    x = images(3, channels, *size, spread=2, centre=1)
    matrix = torch.randn(outs, channels, device=DEVICE) / channels**0.5
    weight, bias = torch.randn(2, outs, device=DEVICE)
    parameters = [each.requires_grad_() for each in (matrix, weight, bias)]
    product = functional.conv2d(x, matrix[:, :, None, None])
    wanted = functional.batch_norm(product, None, None, weight, bias, training=True)
    wanted = functional.relu(wanted) if relu else wanted
    wanted = functional.max_pool2d(wanted, 2) if pool else wanted
    residual = torch.randn_like(wanted).requires_grad_() if adds else None
    wanted = wanted if residual is None else wanted + residual
    found, mean, variance, own, _ = pointwise_norm(x, matrix, weight, bias, residual, 1e-5, relu, pool)
    torch.testing.assert_close(own, product, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mean, product.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(variance, product.var((0, 2, 3), correction=0), rtol=1e-3, atol=1e-4)
    compare(found, wanted, (x, *parameters, *(() if residual is None else (residual,))))


@pytest.mark.parametrize("layer", [Layer(16, 32, 4, True, True), Layer(32, 16, 3, False, False)], ids=str)
def test_in_sixteen_bits_it_is_as_near_to_float64_as_a_map_and_a_norm(layer):
    dtype = torch.float16 if INTERPRETED else torch.bfloat16  # Triton's interpreter multiplies the bits of the latter
    for name, ours, theirs in zip(RESULTS, *distances(layer, 3, DEVICE, dtype), strict=True):
        assert ours < max(1.2 * theirs, 0.004), name


@pytest.mark.parametrize("rows", [1, 127, 2000])
def test_statistics_of_a_product_far_from_zero(rows):
    """Deviations of a thousandth of the mean keep four digits, over several programs and tiles."""
    generator = torch.Generator().manual_seed(rows)
    x = 1 + torch.randn(1, 16, rows, 1, generator=generator) * 1e-3
    x = x.to(DEVICE).contiguous(memory_format=torch.channels_last)
    product, mean, variance = product_with_statistics(x, torch.ones(32, 16, device=DEVICE))
    wanted = product.double()
    torch.testing.assert_close(mean.double(), wanted.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance.double(), wanted.var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-12)


def test_in_bfloat16_maps_are_joined_with_their_norms():
    settings = NetworkSettings(name="resnet9", width=0.125)
    plan = network_plan(settings, (3, 8, 8), 10)
    network = build_student(settings, plan, make_method({"name": "separable"}), (3, 8, 8), 10, 0).to(DEVICE).train()
    found: dict[str, int] = {}

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        found.update(rewrite(copy.deepcopy(graph)))
        return graph.forward

    torch._dynamo.reset()
    with torch.autocast(DEVICE, torch.bfloat16):
        torch.compile(network, backend=backend, fullgraph=True)(images(2, 3, 8, 8).detach())
    assert found == {"joined": 7, "norm": 1, "depthwise": 7, "pointwise": 0, "narrow": 1, "pool": 1}


def test_shapes_that_the_joined_kernels_are_made_for():
    assert [fits(8, 16), fits(64, 128), fits(256, 256)] == [True] * 3
    assert [fits(4, 16), fits(96, 128), fits(256, 512)] == [False] * 3


@pytest.mark.parametrize("pool", [False, True])
def test_what_is_no_number_is_not_hidden_by_the_relu(pool):
    x = images(1, 8, 4, 4).detach()
    x[0, 3, 1, 1] = float("nan")
    found, _, variance = norm(x, torch.ones(8, device=DEVICE), torch.zeros(8, device=DEVICE), None, 1e-5, True, pool)
    assert found[0, 3].isnan().all()
    assert variance[3].isnan()
    assert found[0, :3].isfinite().all()


COUNTS = {
    "resnet9": {"joined": 0, "norm": 8, "depthwise": 7, "pointwise": 7, "narrow": 1, "pool": 1},
    "wrn_10_1": {"joined": 0, "norm": 7, "depthwise": 4, "pointwise": 6, "narrow": 1, "pool": 0},
}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("joined", [0, None], ids=["apart", "joined"])
def test_a_rewritten_network_is_the_network(name, joined, monkeypatch):
    counts = dict(COUNTS[name])
    if joined is None:
        monkeypatch.setattr(rewriting, "FUSED", (torch.float32,))
        joined = {"resnet9": 7, "wrn_10_1": 3}[name]
        counts |= {"joined": joined, "norm": counts["norm"] - joined, "pointwise": counts["pointwise"] - joined}
    settings = NetworkSettings(name=name, width=0.125 if name == "resnet9" else 1.0)
    plan = network_plan(settings, (3, 16, 16), 10)
    plain = build_student(settings, plan, make_method({"name": "separable"}), (3, 16, 16), 10, 0)
    plain = plain.to(DEVICE, memory_format=torch.channels_last).train()
    other, found = copy.deepcopy(plain), {}

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        found.update(rewrite(graph))
        return graph.forward

    torch._dynamo.reset()
    x = images(4, 3, 16, 16).detach()
    with torch.backends.cudnn.flags(allow_tf32=False):
        wanted = plain(x)
        compiled = torch.compile(other, backend=backend, fullgraph=True)
        torch.testing.assert_close(compiled(x), wanted, rtol=1e-4, atol=1e-4)
        direction = torch.randn_like(wanted)
        wanted.backward(direction)
        other.zero_grad()
        compiled(x).backward(direction)
    assert found == counts
    for ours, theirs in zip(other.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3 * float(theirs.grad.abs().max()))
