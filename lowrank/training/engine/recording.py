"""Whether a training step may be recorded, and the recorder of a GPU.

A recorded step repeats the work of the device, not the Python around it. A value of a tensor that Python reads, a
random number that it draws and a counter that it keeps would stay for the whole training what they were while the step
was recorded. So before a step is recorded, a network runs on a few images, and what it does on the host is watched.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lowrank.training.engine.compiled_forward import INTERNAL_ATTRIBUTES, plain_value

Run = Callable[[], None]
HostState = dict[str, object]
"""Comparable values, by what a change of them means: the end of a sentence that begins with "the network"."""


class Recorder(Protocol):
    """Records what a device does."""

    def warm_up(self, run: Run) -> None:
        """Run a function as a recording needs what it runs before."""

    def record(self, run: Run) -> Run:
        """Record a function.

        Args:
            run: works on tensors that stay at one address.

        Returns:
            What repeats its work.

        Raises:
            RuntimeError: it cannot be recorded; the process can go on.
        """

    def forbid_waiting(self) -> AbstractContextManager[None]:
        """Raise RuntimeError inside `with` where the host waits for the device."""


class CudaGraphRecorder:
    """Records a CUDA graph.

    Args:
        device: a GPU.
        shared: whether several processes train together: NCCL has threads that ask the device about earlier exchanges
            meanwhile.
    """

    def __init__(self, device: torch.device, *, shared: bool):
        self._device, self._mode = device, "thread_local" if shared else "global"

    def warm_up(self, run: Run) -> None:
        """Run a function on a stream of its own; see Recorder.warm_up."""
        current, side = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            run()
        current.wait_stream(side)

    def record(self, run: Run) -> Run:
        """Record a CUDA graph; see Recorder.record."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode=self._mode):
                run()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            torch.cuda.synchronize(self._device)  # raises where the device itself is lost
            self._leave_recording()
            raise
        return graph.replay

    def _leave_recording(self) -> None:
        """Give the random generator a state that is not being recorded: a recording that failed leaves it so."""
        index = torch.cuda.current_device() if self._device.index is None else self._device.index
        generator = torch.cuda.default_generators[index]
        generator.graphsafe_set_state(generator.clone_state())

    @contextmanager
    def forbid_waiting(self) -> Iterator[None]:
        """Turn on CUDA's own check; see Recorder.forbid_waiting."""
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():  # torch says once in a process that the check does not see every wait
            warnings.simplefilter("ignore", UserWarning)
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)


def recording_obstacle(network: nn.Module, run: Run, recorder: Recorder | None) -> str | None:
    """Say why a step of a network must not be recorded.

    Args:
        network: whose attributes are watched.
        run: the network's forward and backward pass on some images; it runs twice, since a first pass may keep what all
            later ones use.
        recorder: will record it; None where it is only compiled.

    Returns:
        One clause for a message; None where nothing is known against it.
    """
    run()
    before, reads = _host_state(network), _HostReads()
    try:
        with nullcontext() if recorder is None else recorder.forbid_waiting(), reads:
            run()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if "synchronizing CUDA operation" not in str(error):
            raise
        return f"the network waits for the device in `forward` ({reads.last})"
    if reads.operation is not None:
        return f"the network reads the value of a tensor in `forward` ({reads.operation})"
    change = changed_attribute(before, _host_state(network))
    return change and f"the network {change} in each step"


class _HostReads(TorchDispatchMode):
    """Notes the first operation whose outcome the host must wait for.

    Attributes:
        operation: its name; None where there is none.
        last: the name of the last operation of all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operation: str | None = None
        self.last = "its first operation"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.last = str(func)
        if self.operation is None and _waits(func, args):
            self.operation = str(func)
        return func(*args, **(kwargs or {}))


def _waits(func: Any, args: Any) -> bool:
    """Say whether the host must wait for a value of the device before it goes on after an operation."""
    if func is torch.ops.aten.index.Tensor:  # tagged for its masks; the size that whole numbers select is known
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags


def _host_state(network: nn.Module) -> HostState:
    """Collect what Python code may change in a step: random generators of the host, attributes of modules."""
    state: HostState = {"draws numbers of Python's `random`": random.getstate()}
    if next(network.parameters()).device.type != "cpu":  # there it is the device's own, and recorded with all else
        state["draws random numbers of torch on the CPU"] = torch.get_rng_state().numpy().tobytes()
    if "numpy" in sys.modules:
        _, key, *rest = sys.modules["numpy"].random.get_state()
        state["draws numbers of `numpy.random`"] = (key.tobytes(), *rest)
    return state | attributes(network)


def attributes(network: nn.Module) -> HostState:
    """Collect the attributes of a network's modules that can be compared: numbers, texts, and containers of them.

    Args:
        network: any network.

    Returns:
        The attributes; those of torch's own Module are left out.
    """
    state: HostState = {}
    for name, module in network.named_modules():
        where = f" of module `{name}`" if name else ""
        for attribute, value in vars(module).items():
            if attribute not in INTERNAL_ATTRIBUTES:
                comparable, plain = _comparable(value)
                if comparable:
                    state[f"changes its attribute `{attribute}`{where}"] = plain
    return state


def changed_attribute(before: HostState, after: HostState) -> str | None:
    """Find what differs between two states of one network.

    Args:
        before: the earlier one.
        after: the later one.

    Returns:
        The first key of `before` whose value differs; None where none does.
    """
    return next((name for name, value in before.items() if name in after and after[name] != value), None)


def _comparable(value: Any) -> tuple[bool, object]:
    if isinstance(value, random.Random):
        return True, value.getstate()
    return plain_value(value)
