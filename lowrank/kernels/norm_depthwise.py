"""A batch norm in training, its ReLU and the depthwise 3 x 3 convolution that reads them, as one operation.

So begin the halves of a pre-activation block. The normalised images are never written: the convolution's kernels
(lowrank.kernels.depthwise) apply the norm to what they read. The statistics come from elsewhere. Backward: one pass
computes the gradient behind the norm, its sums and that of the convolution's weight; one more turns it into the
input's gradient.

With z the norm's result, the result is the convolution of max(z, 0) and the gradient behind the norm that of z.
Letters: B images, C channels, H x W positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowrank.kernels import depthwise as plain
from lowrank.kernels.batch_norm import gather_sums, input_gradient, normalise, to_channels_last
from lowrank.kernels.depthwise import LaunchConfig, backward_kernel, depthwise, forward_kernel, launch_grid, sum_parts


def forward_config(width: int) -> LaunchConfig | None:
    """Return how the forward kernel is launched for images of this width; None where norm and convolution are faster.

    The kernel applies the norm to each value three times, since three columns read it.
    """
    return plain.forward_config(width)


def backward_config(width: int) -> LaunchConfig:
    """Return how the backward kernel is launched for images of this width."""
    return plain.backward_config(width)


@torch.library.custom_op("lowrank::norm_depthwise", mutates_args=())
def norm_depthwise(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, kernel: Tensor, eps: float, relu: bool
) -> Tensor:
    """Normalise by statistics of the batch, apply a ReLU, then convolve depthwise with stride 1 and padding 1.

    Args:
        x: (B, C, H, W), as wide as `lowrank.kernels.depthwise.depthwise` takes it.
        weight: (C,), float32, of the norm, as is the bias.
        bias: (C,), float32.
        mean: of x, (C,), float32.
        variance: of x, biased, (C,), float32.
        kernel: (C, 1, 3, 3), float32.
        eps: added to the variance.
        relu: whether negative values become zero before the convolution.

    Returns:
        The result, (B, C, H, W) in x's dtype, channels-last.
    """
    x = to_channels_last(x)
    config = forward_config(x.shape[3])
    if config is None:
        result: Tensor = depthwise(normalise(x, weight, bias, mean, variance, None, eps, relu, False), kernel)
        return result
    out = torch.empty_like(x)
    constants, grid = launch_grid(x, config)
    forward_kernel[grid](
        x, kernel.contiguous(), out, weight, bias, mean, variance, eps, **constants, NORM=True, RELU=relu
    )  # fmt: skip
    return out


@norm_depthwise.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, kernel: Tensor, eps: float, relu: bool
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@torch.library.custom_op("lowrank::norm_depthwise_backward", mutates_args=())
def norm_depthwise_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, kernel: Tensor,
    eps: float, relu: bool, other: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute the gradients of `norm_depthwise`.

    Args:
        gradient: of the result, (B, C, H, W).
        x: as `norm_depthwise` took it, as are all that follow but `other`.
        weight: (C,).
        bias: (C,).
        mean: (C,).
        variance: (C,).
        kernel: (C, 1, 3, 3).
        eps: added to the variance.
        relu: whether there was a ReLU.
        other: another gradient of x, to be added to the first result; None for none.

    Returns:
        Those by x, weight, bias and kernel.
    """
    x, gradient = to_channels_last(x), to_channels_last(gradient)
    constants, grid = launch_grid(x, backward_config(x.shape[3]))
    normal, channels = torch.empty_like(x), x.shape[1]  # the gradient behind the norm
    parts = x.new_empty((grid[0], *kernel.shape), dtype=torch.float32)
    totals, products = (torch.empty((grid[0], channels), device=x.device) for _ in range(2))
    backward_kernel[grid](
        gradient, x, kernel.contiguous(), normal, normal, normal, parts, weight, bias, mean, variance, totals, products,
        eps, **constants, ADD=False, SCALE=False, NORM=True, RELU=relu,
    )  # fmt: skip
    grad_weight, grad_bias = gather_sums(totals, products)
    grad_x = input_gradient(
        normal,
        x,
        weight,
        bias,
        mean,
        variance,
        grad_bias,
        grad_weight,
        x.numel() // channels,
        eps,
        False,
        False,
        other=other,
    )
    return grad_x, grad_weight, grad_bias, sum_parts(parts, torch.float32)


@norm_depthwise_backward.register_fake
def _(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, kernel: Tensor,
    eps: float, relu: bool, other: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    grad_x = torch.empty_like(x, memory_format=torch.channels_last)
    return grad_x, torch.empty_like(weight), torch.empty_like(bias), torch.empty(kernel.shape, device=kernel.device)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps, ctx.relu = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of the inputs; those of the statistics are part of that of x."""
    of_x, of_weight, of_bias, of_kernel = norm_depthwise_backward(gradient, *ctx.saved_tensors, ctx.eps, ctx.relu)
    return of_x, of_weight, of_bias, None, None, of_kernel, None, None


norm_depthwise.register_autograd(_backward, setup_context=_save_for_backward)
