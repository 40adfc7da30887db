"""One pass of one image through a network: which layers run, with which areas, what they cost, what comes out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy

from lowrank.compression.inspection.counting_rules import module_rule
from lowrank.compression.inspection.plain_layers import PLAIN
from lowrank.compression.operation_counter import OperationCounter, pooling_cost
from lowrank.errors import InputError, LowrankError
from lowrank.layers import Pair
from lowrank.networks import WholeAvgPool2d
from lowrank.utils import first_line, keep_modes

ImageSize = tuple[int, int, int]
PROBABILITY_TOLERANCE = 1e-4
"""How far from 1 a sum of probabilities may be."""


class NetworkPass:
    """One forward pass of a zero image in evaluation mode.

    Afterwards every module has its mode and its buffers, and torch its random numbers, as before.

    Args:
        network: on any device; lazy layers get their sizes.
        image_shape: (C, H, W) of the image.

    Attributes:
        areas: input and output area of each convolution and linear map, in the order of their first run.
        mult_adds: what ran inside each of them, other such layers inside it excluded.
        pooling: the study's cost of all pooling modules.
        operations: the counter of operations.
        output: what the network returned.

    Raises:
        InputError: the network has no parameters, raises an error for such an image, or changes it.
        UncountableError: an operation has no counting rule.
    """

    def __init__(self, network: nn.Module, image_shape: ImageSize):
        parameters = list(network.parameters())
        if not parameters:
            raise InputError(f"{type(network).__name__} has no parameters: there is nothing to count, replace or train")
        parameter = next((value for value in parameters if value.is_floating_point()), parameters[0])
        attempts = [torch.device("cpu"), parameter.device] if parameter.is_meta else [parameter.device]
        with keep_modes(network), torch.random.fork_rng(devices=[]):
            for device in attempts:
                try:
                    image = torch.zeros(1, *image_shape, device=device, dtype=parameter.dtype)
                    with keep_buffers(network):
                        self._run(network, image)
                    check_unchanged(image, type(network).__name__, torch.zeros_like(image))
                    _check_parameters(network, len(parameters))
                    return
                except LowrankError:
                    raise
                except (Exception, SystemExit) as error:  # the network's own code may raise anything
                    # With weights on the meta device an operation may write to a weight: the next attempt says why
                    if device is attempts[-1]:
                        raise cannot_run(image_shape, error) from error

    def _run(self, network: nn.Module, image: Tensor) -> None:
        self.areas: dict[str, Pair] = {}
        self.mult_adds: dict[str, int] = {}
        self.pooling = 0
        self.operations = OperationCounter()
        self._open: list[list[int]] = []  # of each layer that runs now: the counter at its start, and inner layers
        self._inside_rules = 0  # modules that run now and are counted by a registered rule
        handles = []
        for name, module in network.named_modules():
            rule = module_rule(module)
            if isinstance(module, PLAIN) or rule is not None:
                handles += [
                    module.register_forward_pre_hook(self._begin(rule), prepend=True),
                    module.register_forward_hook(self._end(name, rule), with_kwargs=True),
                ]
            elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d | WholeAvgPool2d):
                handles.append(module.register_forward_hook(self._pool))
        try:
            with torch.no_grad(), unfused_attention(), without_compiling(), self.operations:
                self.output = network.eval()(image)
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, rule: Callable[..., int] | None) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            self._open.append([self.operations.mult_adds, 0])
            self._inside_rules += rule is not None
            self.operations.paused = self._inside_rules > 0

        return hook

    def _end(self, name: str, rule: Callable[..., int] | None) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], keywords: Mapping[str, Any], output: Any) -> None:
            start, inner = self._open.pop()
            if rule is not None:  # stands for all that ran inside
                self._inside_rules -= 1
                self.operations.paused = self._inside_rules > 0
                self.operations.mult_adds, inner = start + rule(module, inputs, output), 0
            total = 0 if self._inside_rules else self.operations.mult_adds - start
            if isinstance(module, PLAIN):
                image = next((value for value in (*inputs, *keywords.values()) if isinstance(value, Tensor)), output)
                before = self.areas.get(name, (0, 0))  # a shared layer costs as often as it runs
                self.areas[name] = before[0] + area(module, image), before[1] + area(module, output)
                self.mult_adds[name] = self.mult_adds.get(name, 0) + total - inner
                inner = total
            if self._open:
                self._open[-1][1] += inner

        return hook

    def _pool(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.pooling += pooling_cost(module, inputs[0], output)


def check_classifier(network: nn.Module, image: Tensor, classes: int | None) -> None:
    """Check that a network takes an image and returns logits.

    Args:
        network: runs once in evaluation mode; it is not changed.
        image: (1, C, H, W), on the network's device.
        classes: number of classes; None for any.

    Raises:
        InputError: it raises an error for such an image or for two, changes it, or returns anything but logits, a row
            for each image.
    """
    original, image = image, image.clone()  # with a count of changes of its own
    pair = torch.cat([image, image])
    try:
        with keep_modes(network), torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = network.eval()(image)
            two = network(pair)
    except (Exception, SystemExit) as error:  # the network's own code may raise anything
        raise cannot_run(tuple(image.shape[1:]), error) from error
    check_unchanged(image, type(network).__name__, original)
    check_logits(output, classes, type(network).__name__)
    if len(two) != 2:
        raise InputError(
            f"{type(network).__name__} must return one row of logits an image, but returned {tuple(two.shape)} for two"
        )


def run_order(network: nn.Module, image_shape: Sequence[int], names: Sequence[str]) -> list[str]:
    """List modules in the order in which they finish.

    Args:
        network: runs once on a zero image in evaluation mode; it is not changed.
        image_shape: (C, H, W) of the image.
        names: of modules.

    Returns:
        The names of those that run; one that runs twice stands twice.

    Raises:
        InputError: the network raises an error for such an image.
    """
    order: list[str] = []
    parameter = next(network.parameters())

    def hook(name: str) -> Callable[..., None]:
        return lambda *_: order.append(name)

    handles = [network.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        with keep_modes(network), torch.no_grad(), torch.random.fork_rng(devices=[]):
            network.eval()(torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype))
    except (Exception, SystemExit) as error:  # the network's own code may raise anything
        raise cannot_run(image_shape, error) from error
    finally:
        for handle in handles:
            handle.remove()
    return order


def cannot_run(image_shape: Sequence[int], error: BaseException) -> InputError:
    """Return the error for a network that raises one when it runs on an image.

    Args:
        image_shape: (C, H, W).
        error: what it raised.

    Returns:
        One line with the shape and the reason.
    """
    kind = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
    return InputError(f"the network cannot take images of {tuple(image_shape)}: {kind}{first_line(error)}")


def _check_parameters(network: nn.Module, before: int) -> None:
    """Raise InputError where a network has made or removed parameters while it ran."""
    after = len(list(network.parameters()))
    if after != before:
        raise InputError(
            f"{type(network).__name__} had {before} parameters and biases before it ran, and {after} afterwards: make "
            "them in `__init__`, or by a lazy layer of torch such as nn.LazyLinear"
        )


def check_unchanged(image: Tensor, name: str, original: Tensor) -> None:
    """Check that a network has not written to the image that it was given.

    The images are those of the data set and of the calibration, which other networks see too.

    Args:
        image: was made for one pass.
        name: of the network, for the message.
        original: the image as it was. Torch does not count changes through `data` or numpy.

    Raises:
        InputError: an operation has changed the image in place.
    """
    if image._version or not (image.is_meta or torch.equal(image.nan_to_num(), original.nan_to_num())):
        raise InputError(
            f"{name} changes the images that it is given, in place, which would change the data: let `forward` begin "
            "with x = x.clone()"
        )


def check_logits(output: Any, classes: int | None, name: str) -> None:
    """Check that an output for one image is logits, one for each class.

    Args:
        output: of the network, for one image.
        classes: number of classes; None for any.
        name: of the network, for messages.

    Raises:
        InputError: it is no tensor (1, classes) of floating-point numbers, or these are probabilities.
    """
    if isinstance(output, Tensor) and output.is_floating_point() and output.dim() == 2 and output.shape[0] == 1:
        if classes in (None, output.shape[1]):
            _check_not_probabilities(output, name)
            return
        raise InputError(f"{name} must give one output for each of {classes} classes, but gives {output.shape[1]}")
    raise InputError(
        f"{name} must be a classifier, which returns logits (1, {classes or 'K'}) for one image, but returned "
        f"{_describe(output)}"
    )


def _check_not_probabilities(output: Tensor, name: str) -> None:
    if output.is_meta or output.shape[1] < 2:
        return
    if float(output.min()) >= 0 and abs(float(output.sum()) - 1) < PROBABILITY_TOLERANCE:
        raise InputError(
            f"{name} must return logits, but its outputs are probabilities (none is negative, their sum is 1): leave "
            "the softmax out of `forward`, because training and predictions take it themselves"
        )


def _describe(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"{str(output.dtype).removeprefix('torch.')} {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"a dictionary of {', '.join(map(str, output)) or 'nothing'}"
    if isinstance(output, tuple | list):
        parts = ", ".join(_describe(part) for part in output[:3])
        return f"a {type(output).__name__} of {len(output)}: {parts}"
    return f"a {type(output).__name__}"


@contextmanager
def keep_buffers(network: nn.Module) -> Iterator[None]:
    """Let a network run, and give its buffers the values that they had before.

    Args:
        network: some count their calls even in evaluation mode. Buffers of lazy layers are left as they become.

    Yields:
        Nothing.
    """
    buffers = [
        (module, name, buffer, buffer.clone(), buffer._version)
        for module in network.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and not is_lazy(buffer) and not buffer.is_meta
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, values, version in buffers:
                if buffer._version != version:
                    buffer.copy_(values)
                module._buffers[name] = buffer


@contextmanager
def without_compiling() -> Iterator[None]:
    """Run compiled networks as plain ones: to compile the count itself would take many seconds."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the import takes longer than that of torch
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Run attention as plain products: torch's counter does not know all of its fused forms."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def area(module: nn.Module, tensor: Tensor) -> int:
    """Count the positions that a layer maps: H * W of all images, or the rows of a linear map.

    Args:
        module: a convolution or a linear map.
        tensor: its input or output.

    Returns:
        The number of positions.
    """
    channels = tensor.shape[-1] if isinstance(module, nn.Linear) else tensor.shape[-3]
    return tensor.numel() // max(1, channels)
