"""Passes through a network that run again only what has changed since the pass before.

Layers are fitted in the order in which they run. Everything before the layer in hand has its final weights, so the
outputs there are the same in each later pass over the same images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.utils import modules_with_hooks

CPU_BYTES = 2**30
"""Memory for stored outputs on a CPU."""
GPU_SHARE = 0.2
"""Share of a GPU's free memory for them."""


def storage_limit(device: torch.device) -> float:
    """Return how many bytes of outputs may be stored.

    Args:
        device: where they are.

    Returns:
        CPU_BYTES, or GPU_SHARE of what is free on a GPU.
    """
    return GPU_SHARE * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else CPU_BYTES


@torch.no_grad()
def count_calls(network: nn.Module, image: Tensor) -> dict[str, int]:
    """Count how often each module runs in one pass.

    Args:
        network: in evaluation mode.
        image: (1, C, H, W).

    Returns:
        The number of calls by module name.
    """
    calls: Counter[str] = Counter()

    def count(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: calls.update([name])

    handles = [module.register_forward_hook(count(name)) for name, module in modules_with_hooks(network) if name]
    try:
        network(image)
    finally:
        for handle in handles:
            handle.remove()
    return dict(calls)


class Replay:
    """Stored outputs of the modules that run before a layer, by module and batch.

    Only modules that run once in a pass, give one tensor and leave their inputs unchanged are stored. Where a module is
    stored, those inside it are not.

    Args:
        network: in evaluation mode; its modules may be replaced from one pass to the next, in the order in which they
            run.
        calls: see `count_calls`.
        limit: bytes that may be stored; what does not fit runs again in each pass.
    """

    def __init__(self, network: nn.Module, calls: dict[str, int], limit: float):
        self.network, self.limit = network, limit
        self._once = {name for name, count in calls.items() if count == 1}
        self._outputs: dict[str, dict[int, Tensor]] = {}
        self._bytes = 0

    @contextmanager
    def before(self, target: str, batch: int) -> Iterator[None]:
        """Let the modules that run before `target` give their stored outputs, and store those of the others.

        Args:
            target: name of the layer up to which all weights are final.
            batch: index of the images that pass through the network inside the context.
        """
        modules = dict(self.network.named_modules(remove_duplicate=True))
        reached = [False]  # set by the target's first call

        def mark(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            reached[0] = True

        handle = modules[target].register_forward_pre_hook(mark)
        wrapped = [
            name for name in modules
            if name in self._once and name != target and not target.startswith(f"{name}.")
            and not name.startswith(f"{target}.")
        ]  # fmt: skip
        instance_forwards = {
            name: vars(modules[name])["forward"] for name in wrapped if "forward" in vars(modules[name])
        }
        for name in wrapped:
            modules[name].forward = self._wrapper(name, modules[name].forward, batch, reached)
        try:
            yield
        finally:
            handle.remove()
            for name in wrapped:
                del modules[name].forward
                if name in instance_forwards:  # some libraries set it on the instance
                    modules[name].forward = instance_forwards[name]

    def _wrapper(self, name: str, forward: Callable[..., Any], batch: int, reached: list[bool]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            stored = self._outputs.get(name, {}).get(batch)
            if stored is not None and not reached[0]:  # what runs after the target has another input now
                return stored.clone()  # what follows may change it in place
            tensors = [value for value in (*args, *options.values()) if isinstance(value, Tensor)]
            versions = [tensor._version for tensor in tensors]
            output = forward(*args, **options)
            if not reached[0] and isinstance(output, Tensor) and versions == [tensor._version for tensor in tensors]:
                self._store(name, batch, output)
            return output

        return run

    def _store(self, name: str, batch: int, output: Tensor) -> None:
        inside = [other for other in self._outputs if other.startswith(f"{name}.")]
        for other in inside:
            dropped = self._outputs[other].pop(batch, None)
            self._bytes -= 0 if dropped is None else dropped.nbytes
        if self._bytes + output.nbytes <= self.limit:
            self._outputs.setdefault(name, {})[batch] = output.clone()
            self._bytes += output.nbytes
