"""A recorder for CPUs that behaves as a CUDA graph does: it repeats operations, not the Python around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode


class OperationRecorder:
    """Notes every operation of torch with its arguments; a replay writes the results into the same tensors.

    As in a CUDA graph, a value that Python reads while it is recorded is an error, and random numbers are drawn anew.
    """

    def warm_up(self, run: Callable[[], None]) -> None:
        """Run it."""
        run()

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run it once and note what it does."""
        tape = _Tape()
        with tape:
            run()
        return tape.replay

    def forbid_waiting(self) -> AbstractContextManager[None]:
        """A CPU does not wait."""
        return nullcontext()


class FailingRecorder(OperationRecorder):
    """Records nothing, as where a backend does something that no CUDA graph may hold."""

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """Fail in the middle of the step."""
        run()
        raise RuntimeError("operation not permitted when stream is capturing")


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.data_dependent_output in func.tags:
            raise RuntimeError("operation not permitted when stream is capturing")
        results = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, _pytree.tree_leaves(results)))
        return results

    @torch.no_grad()
    def replay(self) -> None:
        """Repeat all operations, in their order."""
        for func, args, kwargs, results in self._calls:
            again = _pytree.tree_leaves(func(*args, **kwargs))
            for old, new in zip(results, again, strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@contextmanager
def recording_on_cpu(monkeypatch: Any, recorder: Any = None) -> Iterator[None]:
    """Let every trainer that is made inside `with`, and asks for recorded steps, record them on the CPU."""
    from lowrank.training.engine import cuda_graph, notices

    class Recorded(cuda_graph.CapturedEpoch):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "recorder": recorder or OperationRecorder()})

    with monkeypatch.context() as patched:
        patched.setattr(cuda_graph, "CapturedEpoch", Recorded)
        patched.setattr(notices, "_GIVEN", set())
        yield
