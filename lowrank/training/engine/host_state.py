"""What Python code of a network may change in a step beside parameters: random generators, attributes of modules."""

from __future__ import annotations

import copy
import random
import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree

INTERNAL_ATTRIBUTES = frozenset(vars(nn.Module())) - {"training"}
"""Attributes of every module in which torch keeps its parts."""


@dataclass(frozen=True)
class RandomState:
    """The state of all generators that a training step may draw from: torch's, Python's and numpy's."""

    torch: list[Tensor]
    python: object
    numpy: Any


def random_state(device: torch.device) -> RandomState:
    """Copy the state of the generators that a training step may draw from.

    Args:
        device: where the step runs.

    Returns:
        The state of torch's generator of the CPU and, on a GPU, of the device's, of `random` and of `numpy.random`.
    """
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    return RandomState(states, random.getstate(), np.random.get_state())


def set_random_state(state: RandomState, device: torch.device) -> None:
    """Restore the generators.

    Args:
        state: what `random_state` returned.
        device: where the steps run.
    """
    torch.set_rng_state(state.torch[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state.torch[1], device)
    random.setstate(state.python)  # type: ignore[arg-type]  # what getstate returned
    np.random.set_state(state.numpy)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Begin all generators at a seed inside `with`, and restore them afterwards.

    Args:
        seed: not negative.
        device: where the network runs.

    Yields:
        Nothing.
    """
    before = random_state(device)
    torch.manual_seed(seed % 2**63)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        set_random_state(before, device)


def plain_value(value: Any) -> tuple[bool, object]:
    """Say whether a module's attribute can be compared.

    Args:
        value: of the attribute.

    Returns:
        Whether it can be compared; and, if so, the same as a hashable value.
    """
    simple = bool | int | float | complex | str | bytes | np.generic | torch.dtype | torch.device | type
    if value is None or isinstance(value, simple) or _is_function(value):
        return True, (type(value), value)
    if isinstance(value, dict):
        value = tuple(value.items())
    if isinstance(value, tuple | list | deque | set | frozenset):
        parts = [plain_value(part) for part in value]
        gather = frozenset if isinstance(value, set | frozenset) else tuple
        return all(comparable for comparable, _ in parts), (type(value), gather(part for _, part in parts))
    return False, None


def _is_function(value: Any) -> bool:
    """Say whether a value is a function that closes over nothing."""
    return isinstance(value, types.BuiltinFunctionType) or (
        isinstance(value, types.FunctionType) and value.__closure__ is None
    )


def comparable_state(value: Any) -> tuple[bool, object]:
    """Say whether a change of an attribute's value can be seen.

    Args:
        value: of the attribute.

    Returns:
        Whether it can; and, if so, what to compare: as `plain_value`, or the state of a random generator of the host
        or of an array.
    """
    if isinstance(value, random.Random):
        return True, value.getstate()
    if isinstance(value, np.random.Generator):
        return True, repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return True, repr(value.get_state(legacy=False))
    if isinstance(value, torch.Generator):
        return value.device.type == "cpu", value.get_state().numpy().tobytes() if value.device.type == "cpu" else None
    if isinstance(value, np.ndarray):
        return True, (value.dtype, value.shape, value.tobytes())
    return plain_value(value)


@dataclass
class Undo:
    """What becomes of tensors that the code inside `undone_attributes` puts where none was.

    Attributes:
        keep_made: they stay, e.g. because a recorded step reads them.
    """

    keep_made: bool = False


@contextmanager
def undone_attributes(network: nn.Module) -> Iterator[Undo]:
    """Undo what Python code of a network does to attributes of its modules inside `with`.

    Counters, tensors and buffers that a step replaces are what they were. An object of another kind stays as the code
    has left it.

    Args:
        network: any module.

    Yields:
        What the code inside may set.
    """
    undo = Undo()
    before = [
        (module, {name: (isinstance(value, Tensor), _restorer(value)) for name, value in _attributes(module)})
        for module in python_modules(network)
    ]
    try:
        with undone_buffers(network):
            yield undo
    finally:
        for module, restorers in before:
            for name, value in list(_attributes(module)):
                is_made = bool(tensors_in(value))
                if name not in restorers and (comparable_state(value)[0] or (is_made and not undo.keep_made)):
                    del vars(module)[name]
            for name, (was_tensor, restore) in restorers.items():
                is_made = not was_tensor and bool(tensors_in(vars(module).get(name)))
                if restore is not None and not (is_made and undo.keep_made):
                    vars(module)[name] = restore()


def tensors_in(value: object) -> list[Tensor]:
    """List the tensors in an attribute: itself, or those in containers.

    Args:
        value: of the attribute.

    Returns:
        The tensors.
    """
    return [leaf for leaf in _pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def attribute_tensors(network: nn.Module) -> list[Tensor]:
    """List the tensors in attributes of a network's modules that are neither parameters nor buffers.

    Args:
        network: any module.

    Returns:
        The tensors.
    """
    values = (value for module in python_modules(network) for _, value in _attributes(module))
    return [tensor for value in values for tensor in tensors_in(value)]


@contextmanager
def undone_buffers(network: nn.Module) -> Iterator[None]:
    """Put the buffers that a network replaces inside `with` back; their values are the caller's to restore.

    Args:
        network: any module.

    Yields:
        Nothing.
    """
    before = [(module, dict(module._buffers)) for module in python_modules(network)]
    try:
        yield
    finally:
        for module, buffers in before:
            module._buffers.update(buffers)


def python_modules(network: nn.Module) -> Iterator[nn.Module]:
    """List the modules of a network whose attributes are Python's: all but those of TorchScript.

    Args:
        network: any module.

    Returns:
        The modules, each once.
    """
    return (module for module in network.modules() if not isinstance(module, torch.jit.ScriptModule))


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, value) for name, value in vars(module).items() if name not in INTERNAL_ATTRIBUTES)


def _restorer(value: Any) -> Callable[[], object] | None:
    """Return a function that returns a value as it is now; None for one that cannot be restored."""
    if isinstance(value, Tensor):
        data = value.detach()
        return _refill(value, data.copy_, data.clone()) if value.layout is torch.strided else None
    if isinstance(value, random.Random):
        return _refill(value, value.setstate, value.getstate())
    if isinstance(value, torch.Generator):
        return _refill(value, value.set_state, value.get_state())
    if not comparable_state(value)[0]:
        return None
    if isinstance(value, np.random.Generator):
        return _refill(value, lambda state: setattr(value.bit_generator, "state", state), value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return _refill(value, value.set_state, value.get_state(legacy=False))
    if isinstance(value, np.ndarray):
        return _refill(value, lambda before: np.copyto(value, before), value.copy())
    if isinstance(value, list):
        return _refill(value, lambda before: value.__setitem__(slice(None), before), copy.deepcopy(value))
    if isinstance(value, dict | set | deque):
        add = value.extend if isinstance(value, deque) else value.update
        return _refill(value, lambda before: (value.clear(), add(before)), copy.deepcopy(value))
    return lambda: value


def _refill(value: object, write: Callable[[Any], object], before: object) -> Callable[[], object]:
    def restore() -> object:
        write(before)
        return value

    return restore
