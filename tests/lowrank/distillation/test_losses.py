"""The losses of a student, against figures worked out by hand and against what must hold for any maps."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from lowrank.distillation.losses import attention_loss, attention_map, distillation_loss
from lowrank.errors import InputError


def test_distillation_by_hand():
    """Teacher 3/4 and 1/4, student 1/2 each, at T = 1; at T = 2 the logits ln 9, 0 soften to the same."""
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    student = torch.zeros(1, 2)
    assert distillation_loss(student, torch.tensor([[math.log(3), 0.0]]), 1.0).item() == pytest.approx(expected)
    assert distillation_loss(student, torch.tensor([[math.log(9), 0.0]]), 2.0).item() == pytest.approx(4 * expected)


def test_distillation_is_a_mean_over_the_batch():
    teacher = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    one = distillation_loss(torch.zeros(1, 2), teacher[:1], 1.0)
    assert distillation_loss(torch.zeros(2, 2), teacher, 1.0).item() == pytest.approx(one.item() / 2)


def test_an_attention_map_is_the_mean_square_over_channels():
    activation = torch.tensor([[[[1.0, 2.0]], [[3.0, -4.0]]]])  # 1 image, 2 channels, 1 x 2
    assert attention_map(activation).tolist() == [[[5.0, 10.0]]]


def test_attention_by_hand():
    """Unit vectors (1, 0) and (0.6, 0.8): squares .16 and .64, mean .4; of one tap, so times 3."""
    ours, theirs = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[3.0, 4.0]]])
    assert attention_loss([ours], [theirs]).item() == pytest.approx(3 * 0.4)
    assert attention_loss([ours] * 3, [theirs] * 3).item() == pytest.approx(3 * 0.4)
    assert attention_loss([ours, theirs], [theirs, theirs]).item() == pytest.approx(3 / 2 * 0.4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 100), st.integers(1, 5), st.integers(1, 5))
def test_equal_maps_cost_nothing_whatever_their_scale(seed, scale, height, width):
    maps = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) + 0.1
    assert attention_loss([maps], [scale * maps]).item() == pytest.approx(0, abs=1e-10)
    other = maps.flip(0)
    assert attention_loss([other], [scale * maps]).item() == pytest.approx(
        attention_loss([scale * other], [maps]).item(), rel=1e-4, abs=1e-9
    )


@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_maps_of_different_sizes_are_pooled_to_the_smaller(larger):
    small = torch.rand(2, 2, 3)
    large = small.repeat_interleave(2, 1).repeat_interleave(2, 2)  # whose 2 x 2 means are `small`
    pair = ([large], [small]) if larger == "student" else ([small], [large])
    assert attention_loss(*pair).item() == pytest.approx(0, abs=1e-10)
    assert attention_loss([large.flip(2)], [small]).item() == pytest.approx(
        attention_loss([small.flip(2)], [small]).item(), rel=1e-4
    )


def test_taps_must_come_in_pairs():
    with pytest.raises(InputError, match="as many student taps as teacher taps, but got 1 and 2"):
        attention_loss([torch.ones(1, 1, 1)], [torch.ones(1, 1, 1)] * 2)
    with pytest.raises(InputError, match="but got 0 and 0"):
        attention_loss([], [])


def test_compiled_attention_transfer_is_the_same_loss_and_reduces_each_image_alone():
    """Reductions over all images at once would not be computed in the kernels that normalise the maps."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(4, 4), (4, 6), (2, 3)]
    student = [torch.rand(5, *size, generator=generator, requires_grad=True) for size in sizes]
    teacher = [torch.rand(5, height, 3, generator=generator) for height, _ in sizes]
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(attention_loss, backend=keep, fullgraph=True)(student, teacher)
    plain = attention_loss(student, teacher)
    torch.testing.assert_close(compiled, plain)
    torch.testing.assert_close(torch.autograd.grad(compiled, student), torch.autograd.grad(plain, student))
    reduced = [node.args[0].meta["example_value"].dim() for node in graphs[0].graph.nodes
               if node.target == "mean" and len(node.args) == 1]  # fmt: skip
    assert reduced == [1]
    torch._dynamo.reset()
