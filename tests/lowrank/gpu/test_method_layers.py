"""Every method's layer on a GPU against itself on the CPU."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from lowrank.layers import ConvShape
from lowrank.layers.acdc import entries as acdc_entries
from lowrank.layers.acdc.entries import halves_matrix, matrices_backward, multiply_rows, write_matrices
from lowrank.layers.acdc.stack import excess_layers, layer_slots
from lowrank.layers.batched_rebuild import BatchedRebuild
from lowrank.layers.registry import METHODS, make_method
from tests.contracts.method_table import SHAPES, Case, one_case_each

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("case", one_case_each(SHAPES[1]), ids=str)
def test_the_same_values_and_gradients_on_a_gpu(case: Case) -> None:
    module, x = case.build(dtype=torch.float64), case.image(torch.float64)
    there = copy.deepcopy(module).cuda()
    found, expected = there(x.cuda()), module(x)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-9, atol=1e-10)
    found.sum().backward()
    expected.sum().backward()
    for ours, theirs in zip(there.parameters(), module.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("case", one_case_each(SHAPES[0]), ids=str)
def test_bfloat16_channels_last_on_a_gpu_is_near_float64_on_the_cpu(case: Case) -> None:
    module, x = case.build(dtype=torch.float64), case.image(torch.float64)
    there = copy.deepcopy(module).float().cuda()
    there.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.autocast("cuda", torch.bfloat16):
        found = there(x.float().cuda().contiguous(memory_format=torch.channels_last))
    expected = module(x)
    error = (found.double().cpu() - expected).norm() / expected.norm()
    assert error < 0.05, f"relative error {error:.3f}"


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"dense", "separable"}))
def test_weights_rebuilt_together_in_a_graph_equal_those_rebuilt_alone(name: str) -> None:
    """Three layers of one shape and one of another; stacks, branches and all, in bfloat16."""
    torch.manual_seed(0)
    shapes = [ConvShape(24, 24)] * 3 + [ConvShape(16, 48)]
    network = nn.ModuleList(make_method({"name": name}).build(shape) for shape in shapes).cuda()
    images = [torch.randn(2, shape.in_channels, 4, 4, device="cuda") for shape in shapes]
    rebuild, parameters = BatchedRebuild(network), list(network.parameters())

    def step(together: bool) -> list[torch.Tensor]:
        with torch.autocast("cuda", torch.bfloat16), rebuild.use_rebuilt_weights() if together else nullcontext():
            found = [layer(x) for layer, x in zip(network, images, strict=True)]
        directions = [each.detach().float().cos().to(each.dtype) for each in found]
        return [each.detach() for each in (*found, *torch.autograd.grad(found, parameters, directions))]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())  # images and weights may still be on their way
    with torch.cuda.stream(side):
        expected = [each.clone() for each in step(False)]
        step(True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step(True)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    for ours, wanted in zip(found, expected, strict=True):
        assert (ours.double() - wanted.double()).norm() <= 0.02 * wanted.double().norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("maps", "layers", "width"), [(1, 1, 1), (2, 3, 5), (1, 11, 131), (3, 4, 160), (2, 11, 301)])
def test_acdc_kernels_give_the_entries_of_plain_torch(maps: int, layers: int, width: int, dtype: torch.dtype) -> None:
    """Entries differ by at most one rounding, gradients by the order of their sums; runs are equal to the bit."""
    working = dtype if dtype == torch.float64 else torch.float32
    slots = torch.tensor(layer_slots(layers))
    first, second = torch.randn(2, maps, layers, width, dtype=working).unbind()
    given = [
        first,
        second.flatten(0, 1) @ halves_matrix(width, second),
        torch.linspace(0.5, 1, layers, dtype=working),
        slots,
    ]
    out = torch.zeros(layers + excess_layers(layers), maps, width, width, dtype=dtype)
    direction, there = torch.randn_like(out), [each.cuda() for each in given]
    found = torch.zeros_like(out, device="cuda")
    write_matrices(*given, out)
    write_matrices(*there, found)
    assert acdc_entries._kernels(found.device) is not None
    rounding, summing = torch.finfo(dtype).eps, 200 * torch.finfo(working).eps
    for rows, matrix in (
        (second.flatten(0, 1), halves_matrix(width, second).mT.contiguous()),
        (given[1], halves_matrix(width, second)),
    ):
        exact = rows.double() @ matrix.double().mT  # of the way there, then of the way back
        projected = multiply_rows(rows.cuda(), matrix.cuda()).cpu()
        assert projected.dtype == working
        assert (projected.double() - exact).norm() <= summing * exact.norm()
    torch.testing.assert_close(found.cpu(), out, rtol=rounding, atol=4 * torch.finfo(working).eps)
    back = matrices_backward(direction.cuda(), *there)
    for ours, wanted in zip(back, matrices_backward(direction, *given), strict=True):
        assert (ours.cpu() - wanted).norm() <= summing * wanted.norm()
    for ours, again in zip(back, matrices_backward(direction.cuda(), *there), strict=True):
        assert torch.equal(ours, again)
