"""An exponential moving average of a network's weights, which is evaluated and saved in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from lowrank.errors import InputError


class ExponentialMovingAverage:
    """Moving average of weights and of running statistics of batch norms.

    After each step average <- d * average + (1 - d) * weight.
    d rises to `decay` as (1 + t) / (10 + t) over the steps t, so that the initial weights are soon forgotten.
    Source: Polyak and Juditsky 1992; the warm-up is TensorFlow's `ExponentialMovingAverage`.

    Torch's `AveragedModel` with `get_ema_multi_avg_fn` gives other numbers: its d is constant, and its first update
    copies the weights instead of averaging them with the initial ones. Its state is a second module, under
    `module.NAME` and `n_averaged`; checkpoints hold `average.NAME`.

    Args:
        network: its tensors are read at each update.
        decay: the largest d.

    Attributes:
        tensors: the average, by the names of the network's state.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self._sources = _find_sources(network)
        self.tensors = _copies(self._live())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the present weights to the average.

        Args:
            step: that has just been taken, from 0 over the whole run.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.tensors.values()), list(self._live().values()), 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Give the network the average as its weights inside `with`."""
        weights = _copies(self._live())
        self._write(self.tensors)
        try:
            yield
        finally:
            self._write(weights)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, tensor in self._live().items():
            tensor.copy_(values[name])

    def _live(self) -> dict[str, Tensor]:
        """The network's present tensors."""
        return {name: source() for name, source in self._sources.items()}

    def restart(self) -> None:
        """Start again from the network's present weights."""
        self.load(self._live())

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a saved average.

        Args:
            tensors: from `tensors` of the same network.

        Raises:
            InputError: the names are not this network's.
        """
        if tensors.keys() != self.tensors.keys():
            raise InputError("the average in the checkpoint is of another network")
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])


def _find_sources(network: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """Say where each averaged tensor of a network's state lies; a step may put another buffer in the place of one."""
    buffers = {
        f"{prefix}.{name}".removeprefix("."): partial(module._buffers.__getitem__, name)
        for prefix, module in network.named_modules(remove_duplicate=False)
        if not isinstance(module, torch.jit.ScriptModule)
        for name in module._buffers
    }
    averaged = ((name, tensor) for name, tensor in network.state_dict().items() if _is_averaged(tensor))
    return {name: buffers[name] if name in buffers else partial(_same, tensor) for name, tensor in averaged}


def _is_averaged(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone(memory_format=torch.preserve_format) for name, tensor in tensors.items()}
