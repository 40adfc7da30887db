"""When weights are rebuilt from factors: all of a network's together, or again in the backward pass.

Together: a rebuild is a chain of small products, which on a GPU cost their launch more than their work.
`BatchedRebuild` takes all factors of a network in one copy, makes the weights of equal layers as one stack, and hands
them to the layers as inputs. While a CUDA graph is recorded, stacks become parallel branches of it, and a layer waits
for its own stack alone.

Memory for time: weights that are rebuilt from factors may be rebuilt once more in the backward pass.

A rebuild keeps every intermediate product until the backward pass: L matrices of N x N for an ACDC of L layers. With
a checkpoint neither they nor the weight are kept, only the layer's input; the convolution itself is not run again,
since the second run stops as soon as its inputs are there. A linear map keeps the weight.
Source: Chen et al. 2016, "Training deep nets with sublinear memory cost".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lowrank.layers.base_layer import StructuredMap
from lowrank.layers.factored import FactoredMap, Tables, gathered, working_dtype


def checkpoint_rebuild(network: nn.Module, on: bool = True) -> nn.Module:
    """Set, in place, whether every structured map of `network` checkpoints its rebuild; returns the network.

    Values and gradients stay the same to the bit. Maps that never form their weight are not changed by it.
    """
    for module in network.modules():
        if isinstance(module, StructuredMap):
            module.rebuild_checkpoint = on
    return network


class BatchedRebuild:
    """Rebuilds the weights of a network's structured maps together; made once for a network on its device.

    Left to themselves are maps that never form their weight and those that checkpoint their rebuild; with `every`
    all maps form it. A CUDA graph may be recorded after one run outside of it, which puts the tables of the filling
    on the device.
    """

    def __init__(self, network: nn.Module, *, include_all: bool = False):
        maps = (module for module in network.modules() if isinstance(module, FactoredMap))
        self.maps = tuple(each for each in maps if include_all or _is_rebuilt(each))
        stacks: dict[object, list[int]] = {}
        for place, each in enumerate(self.maps):
            factor = each.factors()[0]
            stacks.setdefault((each.structure_key(), factor.dtype, factor.device), []).append(place)
        self.stacks = tuple(tuple(places) for places in stacks.values())
        self.side_streams: list[torch.cuda.Stream] = []
        self.tables: Tables = {}

    @staticmethod
    def stream_priority(branch: int) -> int:
        """The first layers wait for the first branches, and theirs are the last gradients to come."""
        return max(3 - branch, 1)

    def weights(self) -> list[Tensor]:
        """One weight for each of `maps`, of its `weight_shape`, differentiable; under autocast in its dtype."""
        found, events = self._rebuild_all()
        for event in events:
            torch.cuda.current_stream().wait_event(event)
        return found

    def _rebuild_all(self) -> tuple[list[Tensor], list[torch.cuda.Event]]:
        """The weights, and for each stack the event after which they are there; none where they are there now."""
        found: dict[int, Tensor] = {}
        parts = list(zip(self.stacks, self._stacked_factors(), strict=True))
        branches = len(parts) > 1 and parts[0][1][0].is_cuda and torch.cuda.is_current_stream_capturing()
        events = self._in_branches(parts, found) if branches else []
        for places, factors in () if branches else parts:
            found.update(self._assembled(places, factors))
        return [found[place] for place in range(len(self.maps))], events

    def _assembled(self, places: Sequence[int], factors: Sequence[Tensor]) -> dict[int, Tensor]:
        """The weights of one stack, by the place of their map."""
        first = self.maps[places[0]]
        if len(places) == 1:
            return {places[0]: first.assembled([factor.squeeze(0) for factor in factors]).reshape(first.weight_shape)}
        stack = first.assembled(factors).reshape(len(places), *first.weight_shape)
        return dict(zip(places, stack.unbind(), strict=True))

    def _in_branches(
        self, parts: Sequence[tuple[Sequence[int], list[Tensor]]], found: dict[int, Tensor]
    ) -> list[torch.cuda.Event]:
        """Each stack on a stream of its own; autograd goes back the same way. One event for each."""
        here, events = torch.cuda.current_stream(), []
        while len(self.side_streams) < len(parts):
            stream_priority = self.stream_priority(len(self.side_streams))
            self.side_streams.append(
                torch.cuda.Stream(here.device, priority=-stream_priority)
            )  # small kernels go first
        for side, (places, factors) in zip(self.side_streams, parts, strict=False):
            side.wait_stream(here)
            with torch.cuda.stream(side):
                built = self._assembled(places, factors)
                events.append(side.record_event())
            for tensor in factors:
                tensor.record_stream(side)
            for tensor in built.values():
                tensor.record_stream(here)
            found.update(built)
        return events

    def _stacked_factors(self) -> list[list[Tensor]]:
        """For each stack the factors of its maps, each (maps, *its shape): views of one tensor, cast once."""
        kinds: dict[object, list[int]] = {}
        for number, places in enumerate(self.stacks):
            first = self.maps[places[0]]
            factor = first.factors()[0]
            kinds.setdefault((first.cast_factors_first, factor.dtype, factor.device), []).append(number)
        found: dict[int, list[Tensor]] = {}
        for numbers in kinds.values():
            found.update(zip(numbers, self._gathered(numbers), strict=True))
        return [found[number] for number in range(len(self.stacks))]

    def _gathered(self, numbers: Sequence[int]) -> list[list[Tensor]]:
        """The factors of these stacks, of one dtype on one device; on a GPU laid out as they are multiplied fastest."""
        leads = [self.maps[self.stacks[number][0]] for number in numbers]
        columns = [list(zip(*(self.maps[place].factors() for place in self.stacks[n]), strict=True)) for n in numbers]
        first = columns[0][0][0]
        return gathered(
            leads, columns, working_dtype(first) if leads[0].cast_factors_first else first.dtype, self.tables
        )

    @contextmanager
    def use_rebuilt_weights(self) -> Iterator[None]:
        """Within, the network's maps use weights rebuilt now; what they compute may be differentiated afterwards."""
        weights, events = self._rebuild_all()
        for places, event in zip(self.stacks, events, strict=False):
            for place in places:
                self.maps[place].external_weight_ready = event
        try:
            with self.use_weights(weights):
                yield
        finally:
            for each in self.maps:
                each.external_weight_ready = None
            for event in events:  # a branch whose maps were not used must end too
                torch.cuda.current_stream().wait_event(event)

    @contextmanager
    def use_weights(self, weights: Sequence[Tensor]) -> Iterator[None]:
        """Within, the network's maps use these weights, in the order of `maps`.

        A compiled trunk that takes the weights as inputs serves every method and size: their shapes are the same.
        """
        for each, weight in zip(self.maps, weights, strict=True):
            each.external_weight = weight
        try:
            yield
        finally:
            for each in self.maps:
                each.external_weight = None


def _is_rebuilt(each: FactoredMap) -> bool:
    return not each.rebuild_checkpoint and each.builds_weight(each.factors()[0].is_cuda)
