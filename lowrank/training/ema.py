"""An exponential moving average of a network's weights, which is evaluated and kept in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lowrank.errors import InputError


class ExponentialMovingAverage:
    """avg <- d * avg + (1 - d) * weight after each step, statistics of batch norms included.

    d rises to `decay` as (1 + t) / (10 + t) over the steps t, so that the start is soon forgotten.
    Source: Polyak and Juditsky 1992; the warm-up is TensorFlow's `ExponentialMovingAverage`.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self._live = _floating(network)
        self.tensors = {name: tensor.clone(memory_format=torch.preserve_format) for name, tensor in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` (from 0, over the whole run)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.tensors.values()), list(self._live.values()), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The network's weights are the average inside `with`, and its own again after it."""
        own = {name: tensor.clone(memory_format=torch.preserve_format) for name, tensor in self._live.items()}
        self._copy(self.tensors)
        try:
            yield
        finally:
            self._copy(own)

    @torch.no_grad()
    def _copy(self, values: Mapping[str, Tensor]) -> None:
        for name, tensor in self._live.items():
            tensor.copy_(values[name])

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up an average, or, where there is none, the network's own weights; raises InputError for a part."""
        if tensors and tensors.keys() != self.tensors.keys():
            raise InputError("the average in the checkpoint is of another network")
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name] if tensors else self._live[name])


def _floating(network: nn.Module) -> dict[str, Tensor]:
    """The network's own floating tensors by name: parameters and statistics."""
    return {name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
