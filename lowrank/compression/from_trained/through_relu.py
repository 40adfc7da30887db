"""Fits a layer to what is left of its outputs after the ReLU behind it.

Where a ReLU follows, errors of outputs that it cuts off do not matter. The layer is then fitted to auxiliary targets z
that minimise ||relu(a y + c) - relu(a z + c)||^2 + p ||a z - a y'||^2, with y the trained layer's outputs, y' those of
the fit so far, and a, c the scale and shift of a batch norm between (Zhang et al. 2015, "Accelerating very deep
convolutional networks for classification and detection", section 3.2). z and the factors are found in turn.

Letters: B batch, O out-channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

PENALTIES = (0.1, 1.0)
"""p in each round: small at first, so that targets move, then 1, so that they and the outputs agree."""
_RELUS = (functional.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, functional.relu_)
Fitted = tuple[nn.Module, Any]
Pairs = Callable[[], Iterator[tuple[Tensor, Tensor]]]


class Affine(NamedTuple):
    """Scale and shift (O) between a layer and the ReLU behind it."""

    scale: Tensor
    shift: Tensor


class _FindRelu(TorchFunctionMode):
    """Notes the tensors that a ReLU takes."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []  # kept, so that no later tensor has the identity of an earlier one

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch; note the input of a ReLU."""
        if func in _RELUS and args:
            self.inputs.append(args[0])
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def find_relu(network: nn.Module, layer: nn.Module, image: Tensor) -> Affine | None:
    """Find the ReLU that directly follows a convolution, with at most a batch norm between.

    Args:
        network: in evaluation mode.
        layer: one of its convolutions.
        image: (1, C, H, W), on which the network runs once.

    Returns:
        Scale and shift of the batch norm, 1 and 0 without one; None where no ReLU follows, or the layer runs several
        times.
    """
    outputs: list[Tensor] = []
    norms: list[tuple[nn.Module, Tensor, Tensor]] = []
    handles = [layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            handles.append(
                module.register_forward_hook(lambda norm, inputs, output: norms.append((norm, inputs[0], output)))
            )
    try:
        with _FindRelu() as tracer:
            network(image)
    finally:
        for handle in handles:
            handle.remove()
    if len(outputs) != 1 or outputs[0].dim() != 4:
        return None
    channels = outputs[0].shape[1]
    if any(value is outputs[0] for value in tracer.inputs):
        return Affine(outputs[0].new_ones(channels), outputs[0].new_zeros(channels))
    for norm, entered, left in norms:
        if entered is outputs[0] and any(value is left for value in tracer.inputs):
            return _affine(norm)
    return None


def _affine(norm: nn.Module) -> Affine | None:
    """Scale and shift of a batch norm in evaluation; None where it has no running statistics."""
    assert isinstance(norm, nn.BatchNorm2d)
    if norm.running_mean is None or norm.running_var is None:
        return None
    deviation = (norm.running_var + norm.eps).sqrt()
    scale = (torch.ones_like(deviation) if norm.weight is None else norm.weight.detach()) / deviation
    bias = torch.zeros_like(deviation) if norm.bias is None else norm.bias.detach()
    return Affine(scale, bias - norm.running_mean * scale)


def auxiliary_targets(trained: Tensor, fitted: Tensor, affine: Affine, penalty: float) -> Tensor:
    """Solve for the targets z of one round, entry by entry.

    Args:
        trained: outputs y of the trained layer (B, O, H, W).
        fitted: outputs y' of the fit so far, of the same shape.
        affine: between the layer and the ReLU.
        penalty: p, above 0.

    Returns:
        z (B, O, H, W); where the scale of a channel is 0 the trained outputs.
    """
    scale, shift = affine.scale[:, None, None], affine.shift[:, None, None]
    wanted, ours = functional.relu(trained * scale + shift), fitted * scale + shift
    above = ((wanted + penalty * ours) / (1 + penalty)).clamp_min(0)
    below = ours.clamp_max(0)
    cost_above = (wanted - above).square() + penalty * (above - ours).square()
    cost_below = wanted.square() + penalty * (below - ours).square()
    chosen = torch.where(cost_above <= cost_below, above, below)
    usable = scale.abs() > 1e-12
    return torch.where(usable, (chosen - shift) / torch.where(usable, scale, 1.0), trained)


@torch.no_grad()
def relu_error(module: nn.Module, pairs: Iterator[tuple[Tensor, Tensor]], affine: Affine) -> float:
    """Sum the squared differences behind the ReLU.

    Args:
        module: the fitted layer.
        pairs: its inputs with the outputs of the trained layer.
        affine: between the layer and the ReLU.

    Returns:
        The sum over all entries.
    """
    scale, shift = affine.scale[:, None, None], affine.shift[:, None, None]
    total = 0.0
    for x, y in pairs:
        gap = functional.relu(y * scale + shift) - functional.relu(module(x) * scale + shift)
        total += float(gap.double().square().sum())
    return total


@torch.no_grad()
def fit_through_relu(
    first: Fitted, pairs: Pairs, affine: Affine, refit: Callable[[Iterator[tuple[Tensor, Tensor]]], Fitted]
) -> Fitted:
    """Improve a fitted layer with respect to what is left behind the ReLU.

    Args:
        first: the layer fitted to the trained outputs, and what is known of that fit.
        pairs: gives its inputs with the trained layer's outputs, anew at each call.
        affine: between the layer and the ReLU.
        refit: fits the layer to pairs of inputs and other targets.

    Returns:
        The best of the rounds, `first` where none is better.
    """
    best, least, last = first, relu_error(first[0], pairs(), affine), first
    for penalty in PENALTIES:
        last = refit(_moved(last[0], pairs(), affine, penalty))
        error = relu_error(last[0], pairs(), affine)
        if error < least:
            best, least = last, error
    return best


def _moved(
    module: nn.Module, pairs: Iterator[tuple[Tensor, Tensor]], affine: Affine, penalty: float
) -> Iterator[tuple[Tensor, Tensor]]:
    for x, y in pairs:
        yield x, auxiliary_targets(y, module(x), affine, penalty)
