"""Whether a training step may be recorded, and the recorder of a GPU.

A recorded step repeats the work of the device, not the Python around it. A value of a tensor that Python reads, a
random number that it draws and a counter that it keeps would stay for the whole training what they were while the step
was recorded. So before a step is recorded, a network runs on a few images, and what it does on the host is watched.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from lowrank.training.engine.host_state import (
    INTERNAL_ATTRIBUTES,
    comparable_state,
    python_modules,
    random_state,
    set_random_state,
    undone_buffers,
)

Run = Callable[[], None]
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
HostState = dict[str, object]
"""Comparable values, by what a change of them means: the end of a sentence that begins with "the network"."""
SUM_TOLERANCE = 0.01
"""Of a tensor's largest value: how far two runs of the same operations may differ, where a device adds in any order."""


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


def consists_of_known_code(network: nn.Module) -> bool:
    """Return whether a network is one of this project's, and runs no code but torch's and this project's.

    Nothing of that code keeps, reads or draws anything on the host, so its steps need not be watched: the tests watch
    every network of this project.

    Args:
        network: that will be trained.

    Returns:
        False for the networks of others, and where a module has hooks or a `forward` of its own.
    """
    kind = type(network).__module__
    if not kind.startswith("lowrank.networks.") or kind.startswith("lowrank.networks.external."):
        return False
    return all(
        type(module).__module__.startswith(("torch.nn.", "lowrank."))
        and "forward" not in vars(module)
        and not any(True for _ in hooks_of(module))
        for module in network.modules()
    )


def recording_obstacle(
    network: nn.Module, run: Run, recorder: Recorder | None, evaluate: Run | None = None
) -> str | None:
    """Say why a step of a network must not be recorded.

    Args:
        network: whose attributes are watched.
        run: the network's forward and backward pass on some images; it runs three to five times, since a first pass
            may keep what all later ones use.
        recorder: will record it; None where it is only compiled.
        evaluate: the network's forward pass as it is evaluated between steps; None where `run` is an evaluation.

    Returns:
        One clause for a message; None where nothing is known against it.
    """
    device = next(network.parameters()).device
    at_first = _torch_random(device)
    first_only = set_once(network, run)  # what a first step sets is undone, and no replay sets it again
    at_second, results, last, reads = _torch_random(device), _Results(), _Results(), _HostReads()
    with results:
        run()
    at_third, before = _torch_random(device), _host_state(network)
    waiting = nullcontext() if recorder is None else recorder.forbid_waiting()
    try:
        with waiting, reads, last, _Reuse(results) as reuse:
            run()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if "synchronizing CUDA operation" not in str(error):
            raise
        return f"the network waits for the device in `forward` ({reads.last})"
    if reads.operation is not None:
        return f"the network reads the value of a tensor in `forward` ({reads.operation})"
    if torch.equal(at_second, at_third) and not torch.equal(at_first, at_second):
        return "the network sets the seed of torch's random generator in `forward`"
    change = changed_attribute(before, _host_state(network))
    if change is not None:
        return f"the network {change} in each step"
    if first_only is not None:
        return f"the network changes its {first_only} in its first step alone"
    if reuse.operation is not None:
        return f"the network reads a tensor that its last step has made ({reuse.operation})"
    return None if evaluate is None else _evaluation_obstacle(run, last, evaluate)


def _evaluation_obstacle(run: Run, last: _Results, evaluate: Run) -> str | None:
    """Say what steps and evaluations give to each other that a recorded step would not; `last`: of the last step."""
    evaluated = _Results()
    with evaluated, _Reuse(last) as reuse:
        evaluate()
    if reuse.operation is not None:
        return f"the network reads a tensor in evaluation that its last step has made ({reuse.operation})"
    with _Reuse(evaluated) as reuse:
        run()
    return reuse.operation and f"the network reads a tensor that its last evaluation has made ({reuse.operation})"


def set_once(network: nn.Module, run: Run) -> str | None:
    """Run a network for the first time, and look for a tensor that it sets from its first images alone.

    Where the first run has changed attributes, a second one begins with the tensors and the random numbers of the
    first, but with the attributes that it has left, as a recorded step does.

    Args:
        network: whose parameters, buffers and attributes are compared.
        run: its pass on some images.

    Returns:
        A tensor that the two runs leave with other values, e.g. "parameter `scale`".
    """
    device, attributes_before = next(network.parameters()).device, attributes(network)
    random_before = random_state(device)
    before = [(tensor, tensor.clone()) for tensor in _named_tensors(network).values()]
    with undone_buffers(network), _undone_tensor_attributes(network):
        run()
        if attributes(network) == attributes_before:
            return None
        first = {name: tensor.clone() for name, tensor in _named_tensors(network).items()}
    for tensor, values in before:
        if not torch.equal(tensor, values):
            tensor.copy_(values)
    set_random_state(random_before, device)
    run()
    second = _named_tensors(network)
    return next((name for name, old in first.items() if name in second and _differ(old, second[name])), None)


def _named_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Collect parameters, buffers and tensors that are attributes, detached, by what a message calls them."""
    tensors: list[tuple[str, Tensor]] = [(f"parameter `{name}`", tensor) for name, tensor in network.named_parameters()]
    tensors += [(f"buffer `{name}`", tensor) for name, tensor in network.named_buffers()]
    tensors += [
        (f"tensor `{attribute}`{_where(where)}", value)
        for where, module in network.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, Tensor)
    ]
    return {name: tensor.detach() for name, tensor in tensors if tensor.layout is torch.strided}


def _differ(one: Tensor, other: Tensor) -> bool:
    """Say whether two tensors differ by more than the order of sums can make; NaN is equal to NaN alone."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return True
    if not one.is_floating_point():
        return not torch.equal(one, other)
    if not torch.equal(one.isnan(), other.isnan()):
        return True
    limit = SUM_TOLERANCE * one.nan_to_num().abs().amax() if one.numel() else 0
    return bool(((one - other).abs() > limit).any())


@contextmanager
def _undone_tensor_attributes(network: nn.Module) -> Iterator[None]:
    """Put tensors that are attributes back where a network replaces them inside `with`; their values stay."""
    before = [
        (module, {name: value for name, value in vars(module).items() if isinstance(value, Tensor)})
        for module in python_modules(network)
    ]
    try:
        yield
    finally:
        for module, tensors in before:
            vars(module).update(tensors)


def unsaved_state(network: nn.Module, run: Run, evaluate: Run) -> str | None:
    """Say what a network carries from step to step beside its parameters and the buffers of its state.

    Args:
        network: whose attributes are watched.
        run: its forward and backward pass on some images, which has run before; it runs twice.
        evaluate: its forward pass in evaluation mode.

    Returns:
        A predicate of a message; None where nothing is known.
    """
    results, last = _Results(), _Results()
    with results:
        run()
    results.addresses -= _addresses([*network.state_dict().values(), *network.parameters()])
    before = _unsaved(network)
    with last, _Reuse(results) as reuse:
        run()
    change = changed_attribute(before, _unsaved(network))
    if change is not None:
        return f"{change} in each step"
    if reuse.operation is not None:
        return f"reads a tensor that its last step has made ({reuse.operation}) in each step"
    last.addresses -= _addresses([*network.state_dict().values(), *network.parameters()])
    with _Reuse(last) as reuse:
        evaluate()
    return reuse.operation and f"reads a tensor in evaluation that its last step has made ({reuse.operation})"


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


class _Results(TorchDispatchMode):
    """Notes the memory that operations make.

    Attributes:
        tensors: the results, which keep their memory from being used again.
        addresses: of the memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []
        self.addresses: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        inputs = _addresses((args, kwargs))
        for tensor in _pytree.tree_leaves(results):
            new = _addresses(tensor) - inputs
            if new:
                self.tensors.append(tensor)
                self.addresses |= new
        return results


class _Reuse(TorchDispatchMode):
    """Notes the first operation that reads memory which an earlier step has made.

    A recorded step would read what that one step has left for ever, wherever Python keeps it: in a buffer that is
    replaced, in an attribute, in a list, in memory that a parameter was given.

    Args:
        earlier: of that step.

    Attributes:
        operation: its name; None where there is none.
    """

    def __init__(self, earlier: _Results):
        super().__init__()
        self._earlier = earlier
        self.operation: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.operation is None and not self._earlier.addresses.isdisjoint(_addresses((args, kwargs))):
            self.operation = str(func)
        return func(*args, **(kwargs or {}))


def hooks_of(module: nn.Module) -> Iterator[Callable[..., Any]]:
    """List the hooks that run with a module.

    Args:
        module: of a network.

    Yields:
        Each hook.
    """
    return (hook for kind in _HOOKS for hook in getattr(module, kind).values())


def _addresses(values: Any) -> set[int]:
    """Collect where the memory of all plain tensors in arguments or results begins."""
    tensors = (value for value in _pytree.tree_leaves(values) if isinstance(value, Tensor))
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.layout is torch.strided} - {0}


def _torch_random(device: torch.device) -> Tensor:
    """Copy the state of the generator that the network's device uses."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


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
    state["draws numbers of `numpy.random`"] = repr(np.random.get_state(legacy=False))
    return state | _buffers(network) | _tensor_attributes(network) | attributes(network)


@dataclass(frozen=True, eq=False)
class _Identity:
    """A tensor; another one in its place is a change, whatever it holds."""

    tensor: Tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.tensor is other.tensor

    __hash__ = None  # type: ignore[assignment]


def _buffers(network: nn.Module) -> HostState:
    """Collect the buffers: a recorded step would write to the one of its recording, which no checkpoint then has."""
    return {
        f"replaces its buffer `{name}`{_where(where)}": _Identity(buffer)
        for where, module in network.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)
        for name, buffer in module._buffers.items()
        if buffer is not None
    }


@dataclass(frozen=True, eq=False)
class _Version:
    """A tensor and how often it was changed in place; another tensor in its place is no change of it."""

    tensor: Tensor
    version: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Version) and (self.tensor is not other.tensor or self.version == other.version)

    __hash__ = None  # type: ignore[assignment]


def _tensor_attributes(network: nn.Module) -> HostState:
    """Collect the tensors that are attributes, which neither a checkpoint nor compiled code has as inputs."""
    return {
        f"changes its tensor `{attribute}`{_where(name)}": _Version(value, value._version)
        for name, module in network.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, Tensor)
    }


@dataclass(frozen=True, eq=False)
class _Values:
    """What a tensor holds."""

    tensor: Tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Values) and torch.equal(self.tensor, other.tensor)

    __hash__ = None  # type: ignore[assignment]


def _unsaved(network: nn.Module) -> HostState:
    """Collect what no checkpoint holds: attributes, tensors among them, and buffers that are not saved."""
    buffers: HostState = {
        f"changes its buffer `{name}`{_where(where)}": _Values(tensor.clone())
        for where, module in network.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)
        for name in module._non_persistent_buffers_set
        if (tensor := module._buffers.get(name)) is not None
    }
    return buffers | _tensor_attributes(network) | attributes(network)


def _where(module: str) -> str:
    return f" of module `{module}`" if module else ""


def attributes(network: nn.Module) -> HostState:
    """Collect the attributes of a network's modules that can be compared: numbers, texts, and containers of them.

    Args:
        network: any network.

    Returns:
        The attributes; those of torch's own Module are left out.
    """
    state: HostState = {}
    for name, module in network.named_modules():
        for attribute, value in vars(module).items():
            if attribute not in INTERNAL_ATTRIBUTES:
                comparable, plain = comparable_state(value)
                if comparable:
                    state[f"changes its attribute `{attribute}`{_where(name)}"] = plain
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
