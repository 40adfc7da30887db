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


@pytest.mark.parametrize("pool", [False, True])
def test_what_is_no_number_is_not_hidden_by_the_relu(pool):
    x = images(1, 8, 4, 4).detach()
    x[0, 3, 1, 1] = float("nan")
    found, _, variance = norm(x, torch.ones(8, device=DEVICE), torch.zeros(8, device=DEVICE), None, 1e-5, True, pool)
    assert found[0, 3].isnan().all()
    assert variance[3].isnan()
    assert found[0, :3].isfinite().all()


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("resnet9", {"norm": 8, "depthwise": 7, "pointwise": 7, "narrow": 1, "pool": 1}),
        ("wrn_10_1", {"norm": 7, "depthwise": 4, "pointwise": 6, "narrow": 1, "pool": 0}),
    ],
)
def test_a_rewritten_network_is_the_network(name, counts):
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
