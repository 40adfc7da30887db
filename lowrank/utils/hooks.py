"""What is done to a network's modules inside a `with` block alone: forward hooks, and changes of the mode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn


def modules_with_hooks(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """List the modules of a network that take forward hooks.

    Those of TorchScript take none.

    Args:
        network: any module.

    Returns:
        Names and modules, each module once.
    """
    return (pair for pair in network.named_modules() if not isinstance(pair[1], torch.jit.ScriptModule))


class ForwardHooks(ABC):
    """Hooks on the modules of a network inside a `with` block.

    A subclass chooses the modules and the hooks in `_hooks`.
    """

    _handles: tuple[Any, ...] = ()

    @abstractmethod
    def _hooks(self) -> Iterator[tuple[nn.Module, Callable[..., None]]]:
        """Yield each module with its forward hook."""

    def __enter__(self) -> Self:
        self._handles = tuple(module.register_forward_hook(hook) for module, hook in self._hooks())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = ()


@contextmanager
def keep_modes(network: nn.Module) -> Iterator[None]:
    """Restore each module's training mode at the end of a `with` block.

    Some modules may be in evaluation mode on purpose, so the mode of each is kept.

    Args:
        network: whose modes may change inside the block.

    Returns:
        The context of the `with` block.
    """
    modes = {module: module.training for module in network.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
