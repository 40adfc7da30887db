"""Forward hooks that are there inside `with` and gone after it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

from torch import nn


class ForwardHooks(ABC):
    """Listens to modules while a network runs inside `with`; a subclass says to which, and what it does."""

    _handles: tuple[Any, ...] = ()

    @abstractmethod
    def _hooks(self) -> Iterator[tuple[nn.Module, Callable[..., None]]]:
        """Each module with its forward hook."""

    def __enter__(self) -> Self:
        self._handles = tuple(module.register_forward_hook(hook) for module, hook in self._hooks())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = ()
