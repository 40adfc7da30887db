"""Every method's layer on a GPU against itself on the CPU; run by `gpu_sweep`, by file name."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.contracts.method_table import SHAPES, Case, one_case_each

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


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
