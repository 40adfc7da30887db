"""Formulas of a batch norm that several kernels share.

Letters: C channels, CH channels of a program, R rows (positions of all images), W width of an image.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scale_and_shift(weight, bias, mean, variance, channel, valid, eps):
    """Return scale and shift of y = scale * x + shift, the reciprocal deviation and the mean, each (1, CH)."""
    centre = tl.load(mean + channel, mask=valid, other=0.0)
    spread = tl.load(variance + channel, mask=valid, other=1.0)
    return scale_and_shift_of(weight, bias, centre, spread, channel, valid, eps)


@triton.jit
def scale_and_shift_of(weight, bias, centre, spread, channel, valid, eps):
    """Return what `scale_and_shift` returns, from the values of mean and variance, each (CH,)."""
    inverse = 1.0 / tl.sqrt(spread + eps)
    scale = tl.load(weight + channel, mask=valid, other=0.0) * inverse
    shift = tl.load(bias + channel, mask=valid, other=0.0) - centre * scale
    return scale[None, :], shift[None, :], inverse[None, :], centre[None, :]


@triton.jit
def slope_and_level(scale, inverse, centre, grad_weight, grad_bias, count):
    """Return slope and level, (1, CH), of the input's gradient dx = scale * dy - slope * x - level.

    That is dx = scale * (dy - mean(dy) - z * mean(dy * z)) with the normalised input z. The gradients of weight and
    bias are (CH,).
    """
    slope = scale * inverse * grad_weight[None, :] / count
    return slope, scale * grad_bias[None, :] / count - slope * centre


@triton.jit
def pooled_origin(row, W: tl.constexpr):
    """Return the input row of the upper left of the four positions that a pooled row stands for."""
    return ((row // W) * 2) * (2 * W) + (row % W) * 2
