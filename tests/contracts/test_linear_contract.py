"""Every method on linear maps: the layer equals the linear map of its weight, is initialised right, merges."""

from __future__ import annotations

import math

import method_table
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.compression.merging import dense_bias, dense_weight, init_layer, merge
from lowrank.layers import ConvShape, StructuredLinear
from lowrank.layers.linear import build_linear
from lowrank.layers.low_rank.whole_kernel import KernelChain
from lowrank.layers.registry import METHODS

SHAPES = (
    ConvShape(16, 16),
    ConvShape(8, 24, bias=True),
    ConvShape(24, 8, bias=True),
    ConvShape(13, 5),
    ConvShape(1, 4),
)
CASES = [
    method_table.Case(setting, shape)
    for setting in method_table.all_settings()
    for shape in SHAPES
    if setting.infeasible(shape) is None
]
every_case = method_table.over_cases(CASES)
every_method = pytest.mark.parametrize("case", method_table.one_case_each(SHAPES[0]), ids=str)


def build(case: method_table.Case, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Build the layer from a seed."""
    torch.manual_seed(0)
    return build_linear(case.method, case.shape).to(dtype)


def vectors(case: method_table.Case, *leading: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Make inputs (.., I)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*leading, case.shape.in_channels, dtype=torch.float64, generator=generator).to(dtype)


def test_every_method_is_tested_on_a_linear_map() -> None:
    assert {case.method.name for case in CASES} == set(METHODS)


@every_case
def test_layer_equals_the_linear_map_of_its_own_weight(case: method_table.Case) -> None:
    module = build(case)
    with torch.no_grad():
        for parameter in module.parameters():  # a bias of zero would hide mistakes
            parameter.add_(0.1 * torch.randn_like(parameter))
    for leading in ((), (3,), (2, 3, 4), (0,)):
        x = vectors(case, *leading).requires_grad_()
        weight, bias = dense_weight(module), dense_bias(module)
        assert tuple(weight.shape) == (case.shape.out_channels, case.shape.in_channels)
        found, expected = module(x), functional.linear(x, weight, bias)
        torch.testing.assert_close(
            found, expected, rtol=1e-9, atol=1e-10, msg=lambda text, size=leading: f"{size}: {text}"
        )
        inputs, direction = [x, *module.parameters()], torch.randn_like(found)
        gradients = torch.autograd.grad(found, inputs, direction)
        for gradient, wanted in zip(gradients, torch.autograd.grad(expected, inputs, direction), strict=True):
            torch.testing.assert_close(gradient, wanted, rtol=1e-8, atol=1e-9)


@every_method
def test_layer_has_the_attributes_of_the_linear_map_that_it_replaces(case: method_table.Case) -> None:
    module = build(case)
    assert (module.in_features, module.out_features) == (case.shape.in_channels, case.shape.out_channels)
    torch.testing.assert_close(module.weight, dense_weight(module))
    expected = dense_bias(module)
    assert module.bias is expected or torch.equal(module.bias, expected)


@every_case
def test_count_and_initial_std_are_those_of_the_pointwise_map(case: method_table.Case) -> None:
    module = build(case)
    assert sum(parameter.numel() for parameter in module.parameters()) == case.method.params(case.shape)
    if case.method.name not in ("shuffle", "hashed_both"):  # two factors that are started separately
        std = dense_weight(module).detach().square().mean().sqrt().item()
        assert std == pytest.approx(math.sqrt(2 / case.shape.in_channels), rel=0.01)


@every_method
def test_fit_to_a_trained_weight_reports_its_error(case: method_table.Case) -> None:
    module, dense = build(case), torch.randn(16, 16, generator=torch.Generator().manual_seed(0)).double()
    error = init_layer(module, dense)
    assert error == pytest.approx(((dense_weight(module) - dense).norm() / dense.norm()).item(), abs=1e-6)
    with pytest.raises(ValueError, match="the weight must be 16 x 16, but got"):
        init_layer(module, dense[:3])


@every_method
def test_merging_gives_a_plain_linear_map(case: method_table.Case) -> None:
    network = nn.Sequential(nn.Identity(), build(case)).eval()
    x = vectors(case, 5)
    expected = network(x)
    assert isinstance(network[1], StructuredLinear | KernelChain) == (case.method.signature(case.shape) != ("dense",))
    merge(network)
    assert type(network[1]) is nn.Linear
    assert not network[1].training
    torch.testing.assert_close(network(x), expected, rtol=1e-9, atol=1e-10)


@every_method
def test_layer_compiles_and_is_exported_whole(case: method_table.Case) -> None:
    module, x = build(case, torch.float32), vectors(case, 3, 2, dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x), rtol=1e-5, atol=1e-6)
    exported = torch.export.export(module.eval(), (x,)).module()
    torch.testing.assert_close(exported(x), module(x), rtol=1e-5, atol=1e-6)
