"""Every method's layer equals the convolution of its weight, is initialised right, saves, compiles, in each dtype."""

from __future__ import annotations

import io
import math
from itertools import pairwise

import method_table
import pytest
import torch
from method_table import METHOD_CONTRACTS, SHAPES, Case
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from lowrank.compression.merging import dense_bias, dense_weight, init_layer
from lowrank.layers import ConvShape, SeparableConv2d, StructuredMap
from lowrank.layers.registry import METHODS

every_case = method_table.over_cases(method_table.cases())
varied_case = method_table.over_cases(method_table.varied_cases())
every_setting = pytest.mark.parametrize("case", method_table.one_case_each_setting(), ids=str)
every_method = pytest.mark.parametrize("case", method_table.one_case_each(SHAPES[0]), ids=str)
every_map = pytest.mark.parametrize(
    "case",
    [
        case for case in method_table.one_case_each(SHAPES[0])
        if isinstance(case.method.build(ConvShape(16, 16)), StructuredMap)  # of a composed layer each map is tested
    ],
    ids=str,
)  # fmt: skip
with_and_without_a_kernel = pytest.mark.parametrize(
    "case", method_table.one_case_each(SHAPES[1]) + method_table.one_case_each(SHAPES[3]), ids=str
)


def by_dense_weight(module: nn.Module, shape: ConvShape, x: Tensor) -> Tensor:
    """Convolve with the module's dense weight."""
    weight = dense_weight(module)
    assert tuple(weight.shape) == (shape.out_channels, shape.in_channels, *shape.kernel)
    return functional.conv2d(x, weight, dense_bias(module), shape.stride, shape.padding, shape.dilation)


def test_every_method_has_a_contract() -> None:
    assert set(METHOD_CONTRACTS) == set(METHODS)


def test_every_method_is_feasible_with_and_without_a_kernel_and_a_bias() -> None:
    for name in METHODS:
        stood = [case.shape for case in method_table.cases() if case.method.name == name]
        assert {shape.kernel_area > 1 for shape in stood} == {True, False}, name
        assert {shape.bias for shape in stood} == {True, False}, name


@every_case
def test_layer_equals_the_convolution_of_its_own_weight(case: Case) -> None:
    module, x = case.build(dtype=torch.float64), case.image(torch.float64).requires_grad_()
    with torch.no_grad():
        for parameter in module.parameters():  # a bias of zero, or an all-positive start, would hide mistakes
            parameter.add_(0.1 * torch.randn_like(parameter))
    found, expected = module(x), by_dense_weight(module, case.shape, x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    inputs = [x, *module.parameters()]
    direction = torch.randn_like(found)
    gradients = torch.autograd.grad(found, inputs, direction)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, inputs, direction), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-8, atol=1e-9)


@every_case
def test_layer_has_the_attributes_of_the_convolution_that_it_replaces(case: Case) -> None:
    module, shape = case.build(dtype=torch.float64), case.shape
    plain = nn.Conv2d(
        shape.in_channels, shape.out_channels, shape.kernel, shape.stride, shape.padding, shape.dilation, shape.groups
    )  # fmt: skip
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
        assert getattr(module, name) == getattr(plain, name), name
    assert (module.padding_mode, module.transposed) == ("zeros", False)
    torch.testing.assert_close(module.weight, dense_weight(module))
    expected = dense_bias(module)
    assert module.bias is expected or torch.equal(module.bias, expected)


@every_method
def test_gradients_agree_with_finite_differences(case: Case) -> None:
    shape = ConvShape(4, 8, (3, 3), (2, 2), (1, 1), bias=True)
    if case.method.infeasible(shape):
        shape = ConvShape(8, 8, (3, 3), (2, 2), (1, 1), bias=True)
    module = Case(case.method, shape).build(dtype=torch.float64)
    names, values = zip(
        *((name, value.detach().requires_grad_()) for name, value in module.named_parameters()), strict=True
    )
    x = torch.randn(1, shape.in_channels, 3, 3, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        return functional_call(module, dict(zip(names, parameters, strict=True)), x)

    assert torch.autograd.gradcheck(run, (x, *values), fast_mode=True)


def pointwise_parts(module: nn.Module) -> list[tuple[Tensor, float]]:
    """Return weights with their target std: sqrt(2 / I) for the map, 1 / K for the depthwise part."""
    if isinstance(module, SeparableConv2d):
        kernel = module.kernel()
        depthwise = (kernel, 1 / math.sqrt(kernel[0].numel()))
        return [depthwise, (module.pointwise.compute_weight(), math.sqrt(2 / module.pointwise.in_channels))]
    weight = dense_weight(module)
    return [(weight, math.sqrt(2 / weight[0].numel()))]


@every_case
def test_initial_weight_has_the_target_std_within_one_percent(case: Case) -> None:
    for weight, target in pointwise_parts(case.build(seed=3)):
        assert weight.detach().double().square().mean().sqrt().item() == pytest.approx(target, rel=0.01)


@every_method
def test_factors_before_rescaling_give_the_target_std_in_the_mean(case: Case) -> None:
    """The rule for the factors' std is right, so that rescaling only removes the scatter of a single draw."""
    maps = [part for part in case.build().modules() if isinstance(part, StructuredMap)]
    generator = torch.Generator().manual_seed(0)
    for part in maps:
        squares = []
        for _ in range(300):
            with torch.no_grad():
                part.init_factors(0.5, generator)
            squares.append(part.compute_weight().detach().double().square().mean())
        assert torch.stack(squares).mean().sqrt().item() == pytest.approx(0.5, rel=0.15)


@every_map
def test_reset_takes_fan_std_and_generator(case: Case) -> None:
    module = case.method.build(ConvShape(16, 16))
    assert isinstance(module, StructuredMap)
    module.reset(fan="out", generator=torch.Generator().manual_seed(5))
    first = module.compute_weight().detach().clone()
    assert first.square().mean().sqrt().item() == pytest.approx(math.sqrt(2 / 16), rel=0.01)
    module.reset(std=0.3, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(module.compute_weight().detach(), first * (0.3 / math.sqrt(2 / 16)))


@every_setting
def test_state_dict_round_trip(case: Case) -> None:
    module, other = case.build(seed=0), case.build(seed=1)
    stored = io.BytesIO()
    torch.save(module.state_dict(), stored)
    stored.seek(0)
    other.load_state_dict(torch.load(stored, weights_only=True))
    assert torch.equal(other(case.image()), module(case.image()))


@every_method
def test_layer_holds_nothing_but_parameters(case: Case) -> None:
    """What else a layer needs (hashes, transforms) is computed from the settings, never stored."""
    module = case.build()
    assert set(module.state_dict()) == {name for name, _ in module.named_parameters()}


@varied_case
def test_low_precision_stays_near_float64(case: Case) -> None:
    exact = case.build(dtype=torch.float64)(case.image(torch.float64))
    for dtype, tolerance in ((torch.float16, 0.02), (torch.bfloat16, 0.15), (torch.float32, 1e-4)):
        found = case.build(dtype=dtype)(case.image(dtype))
        assert found.dtype == dtype
        assert ((found.double() - exact).norm() / exact.norm()).item() < tolerance
    module = case.build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(case.image())
    assert ((found.double() - exact).norm() / exact.norm()).item() < 0.15


@with_and_without_a_kernel
def test_channels_last_gives_the_same(case: Case) -> None:
    module = case.build()
    expected = module(case.image())
    found = module.to(memory_format=torch.channels_last)(case.image().contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@with_and_without_a_kernel
def test_layer_compiles_without_a_graph_break(case: Case) -> None:
    module, x = case.build(), case.image()
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    expected = module(x)
    found = compiled(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    gradients = torch.autograd.grad(found.square().sum(), list(module.parameters()))
    wanted = torch.autograd.grad(expected.square().sum(), list(module.parameters()))
    for gradient, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-4)


@with_and_without_a_kernel
def test_layer_is_exported(case: Case) -> None:
    module, x = case.build().eval(), case.image()
    exported = torch.export.export(module, (x,)).module()
    torch.testing.assert_close(exported(x), module(x), rtol=1e-5, atol=1e-6)


@every_setting
def test_factors_are_parameters_of_the_layer(case: Case) -> None:
    module = case.build()
    own = {id(parameter) for parameter in module.parameters()}
    for part in module.modules():
        if isinstance(part, StructuredMap):
            assert {id(factor) for factor in part.factors()} <= own
            assert all(factor is not part.bias for factor in part.factors())


def trained_weight(*shape: int) -> Tensor:
    """A weight with a decaying spectrum, as training leaves them."""
    generator = torch.Generator().manual_seed(7)
    flat = torch.randn(shape[0], math.prod(shape[1:]), generator=generator)
    left, values, right = torch.linalg.svd(flat, full_matrices=False)
    decay = torch.arange(1, len(values) + 1) ** -0.7
    return (left * (values * decay) @ right).reshape(shape)


EXACT = [(name, contract.exact) for name, contract in METHOD_CONTRACTS.items() if contract.exact is not None]


@pytest.mark.parametrize(("name", "settings"), EXACT)
@pytest.mark.parametrize("channels", [(16, 16), (8, 24), (24, 8), (13, 7), (1, 16), (1, 1)], ids=str)
def test_fit_to_a_trained_weight_is_exact_at_full_size(name: str, settings: dict, channels: tuple) -> None:
    shape = ConvShape(*channels)
    module = Case(method_table.method(name, settings), shape).build()
    dense = trained_weight(shape.out_channels, shape.in_channels, 1, 1)
    error = init_layer(module, dense)
    assert error < 1e-5
    torch.testing.assert_close(dense_weight(module), dense, rtol=1e-4, atol=1e-5)


@varied_case
def test_fit_to_a_trained_weight_reports_its_error_and_beats_zero(case: Case) -> None:
    module, shape = case.build(), case.shape
    dense = trained_weight(shape.out_channels, shape.in_channels, *shape.kernel)
    error = init_layer(module, dense)
    left = (dense_weight(module).detach() - dense).norm() / dense.norm()
    assert error == pytest.approx(left.item(), rel=1e-3, abs=1e-5)
    assert error < 1.0 + 1e-3  # where nothing is nearer than zero, components start with noise so that they can train
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


GROWING = [(name, contract.growing) for name, contract in METHOD_CONTRACTS.items() if contract.growing]


@pytest.mark.parametrize(("name", "growing"), GROWING)
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)], ids=["k1", "k3"])
def test_fit_to_a_trained_weight_improves_with_size(name: str, growing: tuple, kernel: tuple) -> None:
    shape = ConvShape(16, 32, kernel)
    dense = trained_weight(32, 16, *kernel)
    errors = [init_layer(Case(method_table.method(name, settings), shape).build(), dense) for settings in growing]
    for smaller, larger in pairwise(errors):
        assert larger <= smaller * 1.001
    assert errors[-1] < errors[0]


@every_method
def test_fit_to_a_weight_of_the_same_structure_is_exact(case: Case) -> None:
    """A structure with a closed-form fit reproduces the weight of another layer of that structure."""
    shape = ConvShape(16, 16)
    dense = dense_weight(Case(case.method, shape).build(seed=1)).detach()
    assert init_layer(Case(case.method, shape).build(seed=2), dense) < 1e-3


@every_method
def test_fit_to_a_weight_of_another_shape_is_refused(case: Case) -> None:
    with pytest.raises(ValueError, match="the weight must be 16 x 16 x 3 x 3, but got"):
        init_layer(case.build(), torch.zeros(3, 16, 3, 3))
