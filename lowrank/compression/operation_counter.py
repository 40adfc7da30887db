"""Counts the operations of a network whose weights may take no memory.

A network is counted with its weights on the meta device. Its activations are not there: torch runs most operations on
meta tensors in Python, and the first of them imports its compiler and sympy, which takes longer than `import torch`. So
the image is a real one, maps by a meta weight are replaced by a line of arithmetic, and all else runs as usual, on
activations without meaning.

Letters: B images, I in-channels, O out-channels, K kernel size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lowrank.compression.inspection.counting_rules import count_operation
from lowrank.networks import WholeAvgPool2d

_RELU = (torch.ops.aten.relu, torch.ops.aten.relu_)


class OperationCounter(TorchDispatchMode):
    """Counts what runs within its block: mult-adds (see `counting_rules`), and inputs of ReLU calls.

    Weights may be on the meta device while the image is not.

    Attributes:
        mult_adds: multiplications of all products.
        paused: whether products are not counted now, because a registered rule stands for them.
        relu_inputs: numbers of elements that were passed to ReLU, as a module or as a function.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch gives it no types
        self.mult_adds = self.relu_inputs = 0
        self.paused = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Say no: torch would import its compiler, which takes longer than `import torch`, to disable it in here."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        kwargs = kwargs or {}
        operation = func.overloadpacket
        out = _call_with_meta_weights(func, args, kwargs)
        if not self.paused:
            self.mult_adds += count_operation(operation, args, kwargs, out)
        if operation in _RELU:
            self.relu_inputs += args[0].numel()
        return out


def pooling_cost(module: nn.Module, image: Tensor, output: Tensor) -> int:
    """Return the study's cost of a pooling module: the kernel area for each output.

    Args:
        module: a max or average pooling of two dimensions.
        image: what it was given.
        output: what it returned.

    Returns:
        Its mult-adds.
    """
    if isinstance(module, WholeAvgPool2d):
        return image.numel()
    assert isinstance(module, nn.MaxPool2d | nn.AvgPool2d)
    kernel = module.kernel_size
    return (kernel**2 if isinstance(kernel, int) else math.prod(kernel)) * output.numel()


def _call_with_meta_weights(function: Any, arguments: tuple[Any, ...], keywords: dict[str, object]) -> Any:
    """Call an operation that may mix real activations and meta weights.

    Args:
        function: an overload of an operation, as a dispatch mode receives it.
        arguments: its positional arguments.
        keywords: its keyword arguments.

    Returns:
        What the operation returns, with the right shapes. The values have no meaning where a meta tensor took part.
    """
    tensors = _tensors((*arguments, *keywords.values()))
    if len({tensor.is_meta for tensor in tensors}) < 2:
        return function(*arguments, **keywords)
    rule = _RULES.get(function.overloadpacket)
    output = None if rule is None or keywords else rule(*arguments)
    if output is not None:
        return output
    real = next(tensor for tensor in tensors if not tensor.is_meta)
    return function(*_filled(arguments, real), **{key: _filled(value, real) for key, value in keywords.items()})


def _tensors(values: Any) -> list[Tensor]:
    """List the tensors among arguments, those in lists included."""
    if isinstance(values, Tensor):
        return [values]
    return [tensor for value in values for tensor in _tensors(value)] if isinstance(values, list | tuple) else []


def _filled(values: Any, real: Tensor) -> Any:
    """Replace meta tensors by zeros on the device of `real`, which take no memory."""
    if isinstance(values, Tensor) and values.is_meta:
        return torch.zeros((), dtype=values.dtype, device=real.device).expand(values.shape)
    return type(values)(_filled(value, real) for value in values) if isinstance(values, list | tuple) else values


# Each rule returns None for arguments that it does not know or that do not fit each other: torch then says why.


def _convolution(
    image: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], dilation: list[int],
    transposed: bool, output_padding: list[int], groups: int,
) -> Tensor | None:  # fmt: skip
    """Convolve (B, I, H, W) with (O, I / groups, K, K)."""
    if transposed or image.dim() != 4 or weight.dim() != 4 or image.shape[1] != weight.shape[1] * groups:
        return None
    if any(len(pair) != 2 for pair in (stride, padding, dilation)):
        return None
    sides = [
        (side + 2 * padding[axis] - dilation[axis] * (kernel - 1) - 1) // stride[axis] + 1
        for axis, (side, kernel) in enumerate(zip(image.shape[2:], weight.shape[2:], strict=True))
    ]
    return image.new_zeros(image.shape[0], weight.shape[0], *sides) if min(sides) > 0 else None


def _batch_norm(
    image: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, variance: Tensor | None,
    training: bool, momentum: float, epsilon: float,
) -> tuple[Tensor, Tensor, Tensor] | None:  # fmt: skip
    """Normalise by running statistics; the batch's own, the last two outputs, are empty."""
    if training or mean is None or image.dim() < 2 or mean.numel() != image.shape[1]:
        return None
    return torch.empty_like(image), image.new_empty(0), image.new_empty(0)


def _matrix_product(inputs: Tensor, weight: Tensor) -> Tensor | None:
    """Multiply (B, I) by (I, O)."""
    if inputs.dim() != 2 or weight.dim() != 2 or inputs.shape[1] != weight.shape[0] or inputs.is_meta:
        return None
    return inputs.new_zeros(inputs.shape[0], weight.shape[1])


def _biased_matrix_product(bias: Tensor, inputs: Tensor, weight: Tensor) -> Tensor | None:
    """Multiply (B, I) by (I, O) and add (O)."""
    return _matrix_product(inputs, weight) if weight.dim() == 2 and bias.shape == weight.shape[1:] else None


_RULES: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.convolution: _convolution,
    torch.ops.aten.native_batch_norm: _batch_norm,
    torch.ops.aten.mm: _matrix_product,
    torch.ops.aten.addmm: _biased_matrix_product,
}
