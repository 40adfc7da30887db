"""Which modules compute what a plain convolution or linear map with their weight computes, and why others do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from torch import nn

from lowrank.errors import InputError

GIVES_CLASSES = "it gives the classes"
"""Why the last layer keeps its form."""
LayerClass = TypeVar("LayerClass", bound=type[nn.Module])
PLAIN = (nn.Conv2d, nn.Linear)
_METHODS = ("forward", "_conv_forward", "__call__")
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_REGISTERED = ("_modules", "_parameters", "_buffers")  # attributes in which torch itself holds parts of a module
_equivalent_classes: set[type[nn.Module]] = set()


def register_equivalent(layer_class: LayerClass) -> LayerClass:
    """Declare that a layer class computes what its torch base class computes.

    Layers of this class are then replaced like those of `nn.Conv2d` or `nn.Linear`, although the class has a `forward`
    of its own. It can decorate the class.

    Args:
        layer_class: derives from `nn.Conv2d` or `nn.Linear`. Classes that derive from it count too, unless they have a
            `forward` of their own.

    Returns:
        The class.

    Raises:
        InputError: the class derives from neither.
    """
    if not isinstance(layer_class, type) or not issubclass(layer_class, PLAIN):
        raise InputError(f"an equivalent class must derive from nn.Conv2d or nn.Linear, but got {layer_class!r}")
    _equivalent_classes.add(layer_class)
    return layer_class


def check_patterns(patterns: Sequence[str], network: nn.Module) -> None:
    """Check that each pattern of the user's matches a layer: a mistyped one would change nothing.

    Args:
        patterns: shell-style, of module names.
        network: whose convolutions and linear maps they must match.

    Raises:
        InputError: one matches none; the first names are listed.
    """
    names = [name for name, module in network.named_modules() if isinstance(module, PLAIN)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise InputError(f"no layer is called {pattern!r}; choose from: {shown}")


def reason_by_name(name: str, keep: Sequence[str], only: Sequence[str] | None) -> str:
    """Say why the user's patterns keep a layer as it is.

    Args:
        name: of the layer.
        keep: patterns of the names that stay as they are.
        only: patterns of the names that alone may be replaced; None for all.

    Returns:
        The reason; "" if they let it be replaced.
    """
    matched = next((pattern for pattern in keep if fnmatchcase(name, pattern)), None)
    if matched is not None:
        return f"kept by name ({matched})"
    if only is not None and not any(fnmatchcase(name, pattern) for pattern in only):
        return f"not among {', '.join(only)}"
    return ""


class ModuleUses:
    """Where the parameters and modules of a network are used besides their own place.

    Args:
        network: is read once; it is not changed.
    """

    def __init__(self, network: nn.Module):
        modules = list(network.modules())
        self._owners = Counter(
            id(value) for module in modules for value in module._parameters.values() if value is not None
        )
        self._holders: dict[int, str] = {}
        for module in modules:
            for attribute, value in vars(module).items():
                if attribute not in _REGISTERED:
                    for held in _modules_in(value):
                        self._holders.setdefault(id(held), f"{type(module).__name__}.{attribute}")

    def reason_not_plain(self, module: nn.Conv2d | nn.Linear) -> str:
        """Say why a module differs from a plain layer of its weight and bias.

        Args:
            module: of the network.

        Returns:
            The reason; "" if it is plain, so that another layer can take its place.
        """
        method = _own_method(module)
        if method:
            return f"{type(module).__name__} has a {method} of its own"
        if module._parameters.get("weight") is None or set(module._parameters) - {"weight", "bias"}:
            return "its weight is computed from other parameters"
        if list(module.children()):  # a parametrization is one
            return "its weight is computed from other parameters"
        if module._buffers:
            return f"it has buffers of its own ({', '.join(module._buffers)})"
        if any(getattr(module, hooks) for hooks in _HOOKS):
            return "hooks are attached to it"
        for name, value in module._parameters.items():
            if value is not None and self._owners[id(value)] > 1:
                return f"its {name} is shared with another layer"
        if id(module) in self._holders:
            return f"{self._holders[id(module)]} refers to it too"
        return ""


def _own_method(module: nn.Conv2d | nn.Linear) -> str:
    """Name the method by which a module differs from its torch base class; "" if there is none."""
    plain = {*nn.Conv2d.__mro__, *nn.Linear.__mro__, *_equivalent_classes}
    for method in _METHODS:
        owner = next((base for base in type(module).__mro__ if method in vars(base)), None)
        if method in vars(module) or (owner is not None and owner not in plain):
            return method
    return ""


def _modules_in(value: Any, depth: int = 2) -> Iterator[nn.Module]:
    """Yield modules that an attribute holds, also in lists, tuples, sets and dictionaries."""
    if isinstance(value, nn.Module):
        yield value
    elif depth and isinstance(value, list | tuple | set | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _modules_in(part, depth - 1)
