"""Weights of a whole network that are rebuilt from factors together, for speed.

A rebuild is a chain of small products, which on a GPU cost more in kernel launches than in arithmetic.
`BatchedRebuild` copies all factors of a network at once, computes the weights of equal layers as one stack, and sets
them as the layers' external weights. While a CUDA graph is recorded, the stacks become parallel branches of it, and a
layer waits only for its own stack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lowrank.layers.factored import FactoredMap, PaddingTables, gather_factors, working_dtype


class BatchedRebuild:
    """Rebuilds the weights of a network's structured maps together.

    Made once for a network, when it is on its device. Left out are maps that never build their weight and those that
    checkpoint their rebuild. Before a CUDA graph is recorded, run it once outside of the graph: that puts the tables of
    the padding on the device.

    `maps` are the maps that are rebuilt; `stacks` the positions in `maps` of those that are rebuilt as one.

    Args:
        network: the network.
        include_all: whether all maps build their weight.
    """

    def __init__(self, network: nn.Module, *, include_all: bool = False):
        maps = (module for module in network.modules() if isinstance(module, FactoredMap))
        self.maps = tuple(module for module in maps if include_all or _is_rebuilt(module))
        stacks: dict[object, list[int]] = {}
        for position, module in enumerate(self.maps):
            factor = module.factors()[0]
            stacks.setdefault((module.stack_key(), factor.dtype, factor.device), []).append(position)
        self.stacks = tuple(tuple(positions) for positions in stacks.values())
        self.side_streams: list[torch.cuda.Stream] = []
        self.tables: PaddingTables = {}

    @staticmethod
    def stream_priority(branch: int) -> int:
        """Return the priority of a branch's stream, higher for earlier branches, at least 1.

        The network's first layers wait for the first branches, and their gradients come last.
        """
        return max(3 - branch, 1)

    def weights(self) -> list[Tensor]:
        """Rebuild the weights of `maps`, each of its `weight_shape`, differentiable; under autocast in its dtype."""
        weights, events = self._rebuild_all()
        for event in events:
            torch.cuda.current_stream().wait_event(event)
        return weights

    def _rebuild_all(self) -> tuple[list[Tensor], list[torch.cuda.Event]]:
        """Return the weights, and for each stack the event to wait for; no events where the weights are complete."""
        weights: dict[int, Tensor] = {}
        parts = list(zip(self.stacks, self._stacked_factors(), strict=True))
        branches = len(parts) > 1 and parts[0][1][0].is_cuda and torch.cuda.is_current_stream_capturing()
        events = self._rebuild_in_branches(parts, weights) if branches else []
        for positions, factors in () if branches else parts:
            weights.update(self._rebuild_stack(positions, factors))
        return [weights[position] for position in range(len(self.maps))], events

    def _rebuild_stack(self, positions: Sequence[int], factors: Sequence[Tensor]) -> dict[int, Tensor]:
        """Compute the weights of one stack, by the position of their map."""
        lead = self.maps[positions[0]]
        if len(positions) == 1:
            weight = lead.assemble([factor.squeeze(0) for factor in factors])
            return {positions[0]: weight.reshape(lead.weight_shape)}
        stack = lead.assemble(factors).reshape(len(positions), *lead.weight_shape)
        return dict(zip(positions, stack.unbind(), strict=True))

    def _rebuild_in_branches(
        self, parts: Sequence[tuple[Sequence[int], list[Tensor]]], weights: dict[int, Tensor]
    ) -> list[torch.cuda.Event]:
        """Compute each stack on a stream of its own, as autograd does on the way back; one event for each stack."""
        # A negative priority: these small kernels run before those of the main stream
        main_stream, events = torch.cuda.current_stream(), []
        while len(self.side_streams) < len(parts):
            priority = self.stream_priority(len(self.side_streams))
            self.side_streams.append(torch.cuda.Stream(main_stream.device, priority=-priority))
        for side_stream, (positions, factors) in zip(self.side_streams, parts, strict=False):
            side_stream.wait_stream(main_stream)
            with torch.cuda.stream(side_stream):
                rebuilt = self._rebuild_stack(positions, factors)
                events.append(side_stream.record_event())
            for tensor in factors:
                tensor.record_stream(side_stream)
            for tensor in rebuilt.values():
                tensor.record_stream(main_stream)
            weights.update(rebuilt)
        return events

    def _stacked_factors(self) -> list[list[Tensor]]:
        """Return for each stack the factors of its maps, each (maps, *its shape): views of one tensor, cast once."""
        groups: dict[object, list[int]] = {}
        for number, positions in enumerate(self.stacks):
            lead = self.maps[positions[0]]
            factor = lead.factors()[0]
            groups.setdefault((lead.cast_factors_first, factor.dtype, factor.device), []).append(number)
        factors: dict[int, list[Tensor]] = {}
        for numbers in groups.values():
            factors.update(zip(numbers, self._gather(numbers), strict=True))
        return [factors[number] for number in range(len(self.stacks))]

    def _gather(self, numbers: Sequence[int]) -> list[list[Tensor]]:
        """Gather the factors of these stacks, which are of one dtype on one device."""
        leads = [self.maps[self.stacks[number][0]] for number in numbers]
        columns = [
            list(zip(*(self.maps[position].factors() for position in self.stacks[number]), strict=True))
            for number in numbers
        ]
        first = columns[0][0][0]
        dtype = working_dtype(first) if leads[0].cast_factors_first else first.dtype
        return gather_factors(leads, columns, dtype, self.tables)

    @contextmanager
    def use_rebuilt_weights(self) -> Iterator[None]:
        """Rebuild the weights now and let the maps use them within the context.

        What the maps compute there may be differentiated after the context has ended.
        """
        weights, events = self._rebuild_all()
        for positions, event in zip(self.stacks, events, strict=False):
            for position in positions:
                self.maps[position].external_weight_ready = event
        try:
            with self.use_weights(weights):
                yield
        finally:
            for module in self.maps:
                module.external_weight_ready = None
            for event in events:  # a branch whose maps were not used must end too
                torch.cuda.current_stream().wait_event(event)

    @contextmanager
    def use_weights(self, weights: Sequence[Tensor]) -> Iterator[None]:
        """Let the maps use these weights within the context.

        A compiled network that takes the weights as inputs serves every method and size: their shapes are the same.

        Args:
            weights: one for each of `maps`, of its `weight_shape`.
        """
        for module, weight in zip(self.maps, weights, strict=True):
            module.external_weight = weight
        try:
            yield
        finally:
            for module in self.maps:
                module.external_weight = None


def _is_rebuilt(module: FactoredMap) -> bool:
    return not module.rebuild_checkpoint and module.builds_weight(module.factors()[0].is_cuda)
