"""When weights are rebuilt from factors: all of a network's together, or again in the backward pass.

Together: a rebuild is a chain of small products, which on a GPU cost their launch more than their work. `Rebuild`
takes all factors of a network in one copy, makes the weights of equal layers as one stack, and hands them to the
layers as inputs. While a CUDA graph is recorded, stacks become parallel branches of it.

Memory for time: weights that are rebuilt from factors may be rebuilt once more in the backward pass.

A rebuild keeps every intermediate product until the backward pass: L matrices of N x N for an ACDC of L layers. With
a checkpoint neither they nor the weight are kept, only the layer's input; the convolution itself is not run again,
since the second run stops as soon as its inputs are there. A linear map keeps the weight.
Source: Chen et al. 2016, "Training deep nets with sublinear memory cost".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod

import torch
from torch import Tensor, nn

from lowrank.layers.base import StructuredMap
from lowrank.layers.factored import FactoredMap, working_dtype


def checkpoint_rebuild(network: nn.Module, on: bool = True) -> nn.Module:
    """Set, in place, whether every structured map of `network` checkpoints its rebuild; returns the network.

    Values and gradients stay the same to the bit. Maps that never form their weight are not changed by it.
    """
    for module in network.modules():
        if isinstance(module, StructuredMap):
            module.rebuild_checkpoint = on
    return network


class Rebuild:
    """Rebuilds the weights of a network's structured maps together; made once for a network on its device.

    Left to themselves are maps that never form their weight and those that checkpoint their rebuild.
    """

    def __init__(self, network: nn.Module):
        self.maps = tuple(module for module in network.modules() if _is_rebuilt(module))
        stacks: dict[object, list[int]] = {}
        for place, each in enumerate(self.maps):
            factor = each.factors()[0]
            stacks.setdefault((each.structure_key(), factor.dtype, factor.device), []).append(place)
        self.stacks = tuple(tuple(places) for places in stacks.values())
        self.sides: dict[tuple[int, torch.device], torch.cuda.Stream] = {}

    def weights(self) -> list[Tensor]:
        """One weight for each of `maps`, of its `weight_shape`, differentiable; under autocast in its dtype."""
        found: dict[int, Tensor] = {}
        parts = list(zip(self.stacks, self._stacked_factors(), strict=True))
        if len(parts) > 1 and self.maps[0].factors()[0].is_cuda and torch.cuda.is_current_stream_capturing():
            self._in_branches(parts, found)
        else:
            for places, factors in parts:
                found.update(self._assembled(places, factors))
        return [found[place] for place in range(len(self.maps))]

    def _assembled(self, places: Sequence[int], factors: Sequence[Tensor]) -> dict[int, Tensor]:
        """The weights of one stack, by the place of their map."""
        first = self.maps[places[0]]
        if len(places) == 1:
            return {places[0]: first.assembled([factor[0] for factor in factors]).reshape(first.weight_shape)}
        stack = first.assembled(factors).reshape(len(places), *first.weight_shape)
        return dict(zip(places, stack.unbind(), strict=True))

    def _in_branches(self, parts: Sequence[tuple[Sequence[int], list[Tensor]]], found: dict[int, Tensor]) -> None:
        """Each stack on a stream of its own, between here and here; autograd goes back the same way."""
        here = torch.cuda.current_stream()
        for branch, (places, factors) in enumerate(parts):
            side = self.sides.setdefault((branch, here.device), torch.cuda.Stream(here.device))
            side.wait_stream(here)
            with torch.cuda.stream(side):
                built = self._assembled(places, factors)
            for tensor in factors:
                tensor.record_stream(side)
            for tensor in built.values():
                tensor.record_stream(here)
            found.update(built)
        for branch in range(len(parts)):
            here.wait_stream(self.sides[branch, here.device])

    def _stacked_factors(self) -> list[list[Tensor]]:
        """For each stack the factors of its maps, each (maps, *its shape): views of one tensor, cast once."""
        kinds: dict[object, list[int]] = {}
        for number, places in enumerate(self.stacks):
            first = self.maps[places[0]]
            factor = first.factors()[0]
            kinds.setdefault((first.cast_first, factor.dtype, factor.device), []).append(number)
        found: dict[int, list[Tensor]] = {}
        for numbers in kinds.values():
            found.update(zip(numbers, self._gathered(numbers), strict=True))
        return [found[number] for number in range(len(self.stacks))]

    def _gathered(self, numbers: Sequence[int]) -> list[list[Tensor]]:
        """The factors of these stacks, of one dtype on one device."""
        columns = [list(zip(*(self.maps[place].factors() for place in self.stacks[n]), strict=True)) for n in numbers]
        flat = torch.cat([factor.reshape(-1) for factors in columns for column in factors for factor in column])
        if self.maps[self.stacks[numbers[0]][0]].cast_first:
            flat = flat.to(working_dtype(flat))
        shapes = [[(len(column), *column[0].shape) for column in factors] for factors in columns]
        pieces = iter(flat.split([prod(shape) for group in shapes for shape in group]))
        return [[next(pieces).view(shape) for shape in group] for group in shapes]

    @contextmanager
    def given(self) -> Iterator[None]:
        """Within, the network's maps use weights rebuilt now; what they compute may be differentiated afterwards."""
        with self.handing(self.weights()):
            yield

    @contextmanager
    def handing(self, weights: Sequence[Tensor]) -> Iterator[None]:
        """Within, the network's maps use these weights, in the order of `maps`."""
        for each, weight in zip(self.maps, weights, strict=True):
            each.given = weight
        try:
            yield
        finally:
            for each in self.maps:
                each.given = None


def _is_rebuilt(module: nn.Module) -> bool:
    if not isinstance(module, FactoredMap) or module.rebuild_checkpoint:
        return False
    return module.forms_weight(module.factors()[0].is_cuda)
